"""The command line: reads arguments, calls the command, turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C, 143 by SIGTERM. Nothing here imports torch before a
command runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

import exptilt
from exptilt.errors import InputError, ProcessLostError, RunError, first_line, of_files, printable
from exptilt.memory import is_out_of_memory
from exptilt.options import (
    Bench,
    Compare,
    Demo,
    Evaluate,
    Export,
    Likelihood,
    Pretrain,
    Push,
    Report,
    Reproduce,
    Sample,
    Tilt,
)

# What a command that was interrupted says of going on.
_AGAIN = {
    Pretrain: "; repeat the command with --resume to go on",
    Tilt: "; repeat the command with --resume to go on",
    Reproduce: "; repeat the command to go on",
}

COMMANDS = (Demo, Pretrain, Tilt, Sample, Evaluate, Compare, Likelihood, Export, Push, Report, Reproduce, Bench)
# Those whose work the processes of a distributed run share; the others are run by the main process alone.
SHARED = (Pretrain, Tilt, Sample, Evaluate)


class Terminated(KeyboardInterrupt):
    """SIGTERM came; it stops as Ctrl-C does, with a line that says how to go on."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command, and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where ± and λ cannot be printed, ? stands for them.
        sys.stdout.reconfigure(errors="replace")
    if "--version" in arguments[:1]:
        print(f"exptilt {exptilt.__version__}")
        return
    command = _parse(arguments)
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run(command))


def _run(command: Any) -> int:
    try:
        from exptilt import commands

        with _warnings_in_one_line(), _as_one_of_many(command) as taken:
            if taken is not None:
                getattr(commands, type(command).__name__.lower())(taken)
    except Exception as error:
        if command.debug:
            raise
        if isinstance(error, OSError):
            error = of_files(error)
        elif is_out_of_memory(error):
            error = RunError(f"out of memory ({first_line(error)}); use a smaller --batch-size")
        bad_input = isinstance(error, InputError)
        known = bad_input or isinstance(error, (RunError, ProcessLostError))
        name = "" if known else f"{type(error).__name__} in {_place(error)}: "
        hint = "" if known else " (--debug shows the traceback)"
        if getattr(error, "told", False):
            # Another process prints it, and is to have done so when the launcher sees this one end and stops all.
            time.sleep(1)
        else:
            print(f"exptilt: {_process()}{name}{printable(' '.join(str(error).split()))}{hint}", file=sys.stderr)
        return 2 if bad_input else 1
    except KeyboardInterrupt as stop:
        print(f"exptilt: {_process()}interrupted{_AGAIN.get(type(command), '')}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    return 0


def _process() -> str:
    """Which process says something, where there are several."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return f"process {os.environ.get('RANK', '?')} of {os.environ['WORLD_SIZE']}: " if several else ""


@contextlib.contextmanager
def _as_one_of_many(command: Any) -> Iterator[Any]:
    """The command as this process is to run it: one of several that share a run is quiet, unless it is the main one.

    None where there is nothing to share, so that the main process runs the command alone.
    """
    from exptilt import distributed

    if distributed.world().size == 1:
        yield command
        return
    shared, is_main = isinstance(command, SHARED), distributed.is_main()
    with contextlib.ExitStack() as stack:
        if not shared:
            stack.enter_context(distributed.alone())
        if not is_main:
            nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123 - no path, a device
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            command = dataclasses.replace(command, quiet=True) if shared else None
        yield command


def _terminate(*_: Any) -> None:
    raise Terminated


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Warnings like errors: their text, without the line of code that they come from."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"exptilt: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _parse(arguments: list[str]) -> Any:
    """The command as a dataclass. tyro's boxed complaint becomes one line on standard error, exit code 2."""
    options: Any = None
    for kind in COMMANDS:
        option = Annotated[kind, tyro.conf.subcommand(name=kind.__name__.lower())]
        options = option if options is None else options | option
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                options,
                prog="exptilt",
                description=exptilt.__doc__,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code:
            print(f"exptilt: {_one_line(complaint.getvalue())}", file=sys.stderr)
        raise
    except BrokenPipeError:
        # Of a help that is read in part. What is left is flushed at the end of the process, and must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _one_line(box: str) -> str:
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()]
    # A line of dashes parts the fault from the help; where boxes cannot be drawn, another parts it from the title.
    rules = [i for i, line in enumerate(box.splitlines()) if set(line.strip("│ ")) in ({"─"}, {"-"})]
    fault = " ".join(line for line in lines[1 : rules[-1] if rules else None] if line.strip("-")).rstrip(".")
    help_command = re.findall(r"exptilt[a-z ]*--help", " ".join(lines))
    return f"{printable(fault)}; see {help_command[-1] if help_command else 'exptilt --help'}"


if __name__ == "__main__":
    main()
