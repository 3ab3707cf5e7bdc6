"""Command lines as nobody should type them, each run in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from exptilt import cli
from fuzzing.harness import Case, Entry, FaultError, ReachedWorkError, Special
from fuzzing.models import model_files
from fuzzing.values import TEXTS

# No argument of a process holds a zero byte.
_TEXTS = tuple(text for text in TEXTS if "\0" not in text)
_NUMBERS = ("0", "-1", "1", "2", "3", "-0", "1e3", "0.5", "nan", "inf", "-inf", "1e309", "1e-320", "٣", "0x10", "1_0")
_HUGE = ("9" * 4000, str(2**31), str(2**63), str(2**64), str(10**30), "99999999999")
_PATHS = ("m", "m", "m", "v", "pipe", "nothing", "full", "file.txt", "result.json", "m/model_index.json", "images", ".")
# What is asked for of a command that would then work for minutes; the checks before it are what is tried here.
_WORK = (
    "exptilt.demo.run",
    "exptilt.web.serve.serve",
    "exptilt.commands.use.benchmark",
    "exptilt.commands.use.scaling",
    "exptilt.train_run.tilt_generator",
    "exptilt.training.pretrain.pretrain",
    "exptilt.train_run.fit_mixture",
    "exptilt.commands.use.measure_likelihood",
    "exptilt.commands.use.push_to_hub",
    "exptilt.evaluation.evaluate._collect",
    "exptilt.measure_run.evaluate_points",
    "exptilt.reproduce.cells.tilt_run",
)


@st.composite
def commands(draw: st.DrawFn) -> Case:
    """A command with some of its options, values of the right and of the wrong kind, and what is no option."""
    kind = draw(st.sampled_from(cli.COMMANDS))
    words = [kind.__name__.lower()]
    hints = typing.get_type_hints(kind, include_extras=True)
    chosen = {field.name: field for field in dataclasses.fields(kind)}
    positional = [name for name in chosen if "Positional" in str(hints[name]) or name in _positional(kind)]
    for name in positional:
        if draw(st.integers(0, 19)):
            words += [draw(_value(str(hints[name]), name))]
    required = [n for n, f in chosen.items() if f.default is dataclasses.MISSING and n not in positional]
    others = [name for name in chosen if name not in positional and name not in required and name != "debug"]
    flags = [name for name in required if draw(st.integers(0, 19))]
    flags += draw(st.lists(st.sampled_from(others), max_size=3, unique=True))
    for name in flags:
        option, hint = "--" + name.replace("_", "-"), str(hints[name])
        words += [option] if chosen[name].default is False else [option, draw(_value(hint, name))]
        if draw(st.integers(0, 39)) == 0:
            words.pop()
    extra = draw(st.integers(0, 19))
    if extra == 0:
        words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from(_TEXTS)))
    elif extra == 1:
        words += [
            draw(st.sampled_from(("--unknown", "--", "-", "---", "--=", "-n", "--seed=", "--help", "-h", "--version")))
        ]
    return Case(lambda folder: run(words, folder), _files(), str(words)[:500])


def _positional(kind: type[Any]) -> tuple[str, ...]:
    names = ("preset", "generator", "model", "a", "b", "run", "what", "models")
    return tuple(
        name for name in names if name in kind.__annotations__ and "Positional" in str(kind.__annotations__[name])
    )


def _value(hint: str, name: str) -> st.SearchStrategy[str]:
    right: list[str] = []
    if "Path" in hint or name in ("data", "features", "generator"):
        right += [*_PATHS, "digits", "gaussians", "auto", "none", "out.png", "out.npz", "new"]
    if "int" in hint or "float" in hint:
        # Small enough to be done, or so large that it must be refused.
        right += [*_NUMBERS, *_NUMBERS, *_HUGE]
    if "Literal" in hint:
        right += list(_choices(hint))
    if not right:
        return st.sampled_from(_TEXTS)
    return st.integers(0, 9).flatmap(lambda roll: st.sampled_from(right if roll else _TEXTS))


def _choices(hint: str) -> Iterator[str]:
    for part in hint.split("Literal[")[1:]:
        yield from (choice.strip("' ") for choice in part.split("]")[0].split(","))


def _files() -> dict[str, Entry]:
    files: dict[str, Entry] = {f"m/{name}": content for name, content in model_files("tilted").items()}
    files |= {f"v/{name}": content for name, content in model_files("VAE").items()}
    return files | {
        "pipe": Special("pipe"),
        "full/x": b"x",
        "file.txt": b"text",
        "result.json": b"{}",
        "images/a.png": b"no",
    }


def run(words: list[str], folder: Path) -> bool:
    """Run a command line, and check what it says and how it ends; whether it was refused."""
    here, said, told = Path.cwd(), io.StringIO(), io.StringIO()
    os.chdir(folder)
    code: Any = 0
    try:
        with contextlib.ExitStack() as stack:
            for work in _WORK:
                stack.enter_context(mock.patch(work, side_effect=ReachedWorkError))
            stack.enter_context(contextlib.redirect_stdout(said))
            stack.enter_context(contextlib.redirect_stderr(told))
            cli.main(words)
    except SystemExit as stop:
        code = stop.code
    finally:
        os.chdir(here)
    errors = [line for line in told.getvalue().splitlines() if line.startswith("exptilt: ") and "warning" not in line]
    if "Traceback" in told.getvalue() or "(--debug shows the traceback)" in told.getvalue():
        raise FaultError(f"a traceback, or what hides one: {errors[-1:] or told.getvalue()[-300:]}")
    if code not in (0, 1, 2, None):
        raise FaultError(f"exit code {code!r}")
    if code == 1:
        raise FaultError(f"exit code 1: {errors[-1:]}")
    if code == 2 and (len(errors) != 1 or len(errors[0]) > 2000):
        raise FaultError(f"{len(errors)} lines of error, the last of {len(errors[-1]) if errors else 0} characters")
    return code == 2
