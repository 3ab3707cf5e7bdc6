"""Kills every long command at random moments, goes on, and compares with a run that was left alone.

    python tests/kill_matrix.py --trials 50 --json docs/reliability-faults.json

Each trial is a process that is forked from this one, which has imported everything and computed nothing. It is killed
by SIGKILL at a random time, or at a random one of its writes (in the middle of a file, before and after it is synced
and gets its name, in the middle of a line of the log), or stopped by SIGTERM at a random time; up to three times before
it may run to its end. Then every file in its folder must be that of the undisturbed run, and no other may be there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exptilt import cli, commands
from exptilt.storage import read_tensors
from exptilt.training import calibrate, outcome
from exptilt.training.run_folder import RunFolder

# fmt: off
_TILT = ("tilt", "{vae}", "--data", "digits", "--limit", "600", "--batch-size", "16", "--seed", "1")
_ON_X = (
    *_TILT, "--recipe", "paper", "--energy", "small", "--energy-width", "4", "--iterations", "24", "--check-every", "4",
    "--chain-steps", "3", "--steps", "3",
)
# What is killed. Each is repeated with what stands last, and leaves its files in {out}.
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pretrain points": (
        ("pretrain", "toy-gaussians", "--limit", "2000", "--epochs", "32", "--out", "{out}"), ("--resume",)
    ),
    "pretrain images": (
        ("pretrain", "vae-digits", "--limit", "100", "--batch-size", "10", "--epochs", "22", "--out", "{out}"),
        ("--resume",),
    ),
    "tilt, short-run chains": ((*_ON_X, "--out", "{out}"), ("--resume",)),
    "tilt, persistent chains": (
        (*_ON_X, "--objective", "maximum_likelihood", "--chains", "persistent", "--walkers", "32", "--out", "{out}"),
        ("--resume",),
    ),
    "tilt, replay buffer": (
        (*_ON_X, "--objective", "maximum_likelihood", "--chains", "replay", "--walkers", "64", "--out", "{out}"),
        ("--resume",),
    ),
    "tilt, Jarzynski walkers": (
        (
            *_ON_X, "--chains", "jarzynski", "--walkers", "32", "--chain-kernel", "mala", "--out", "{out}",
        ),
        ("--resume",),
    ),
    "tilt, ratio on images": (
        (
            *_TILT, "--recipe", "default-x", "--energy-width", "4", "--iterations", "40", "--check-every", "8",
            "--steps", "3", "--out", "{out}",
        ),
        ("--resume",),
    ),
    "tilt, ratio on latents, calibrated": (
        (
            *_TILT, "--energy-width", "16", "--iterations", "120", "--check-every", "20", "--steps", "5",
            "--strengths", "1", "2", "--out", "{out}",
        ),
        ("--resume",),
    ),
    "sample to an archive": (
        ("sample", "{tilted}", "-n", "3000", "--steps", "5", "--seed", "2", "--out", "{out}/samples.npz"), ()
    ),
    "evaluate": (
        ("evaluate", "{out}/model", "--data", "digits", "-n", "200", "--seeds", "0", "1", "--json", "{out}/r.json"), ()
    ),
    "log Z": (("likelihood", "{out}/model", "-n", "2000"), ()),
    "reproduce table1": (
        (
            "reproduce", "table1", "--data-sets", "digits", "--only", "vae", "--scale", "laptop", "-n", "200",
            "--epochs", "1", "--limit", "400", "--out", "{out}",
        ),
        (),
    ),
}
# fmt: on
# What depends on the clock, the machine or the way here, and is no result.
_PASSING = {"seconds", "started", "command", "commit", "training_commit", "training_command", "sampling_seconds"}
_NO_RESULT = {".lock"}
_PASSING_COLUMNS = {"training s", "sampling s"}


class Matrix:
    """Trials of the commands in a folder.

    Args:
        folder: Where runs are made.
        seed: Fixes when what is killed, up to the speed of the machine.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.trials = folder, random.Random(seed), 0
        self.models = {"vae": folder / "vae", "tilted": folder / "tilted"}

    def prepare(self) -> None:
        """Make the models that commands are about."""
        self.left_alone(("pretrain", "vae-digits", "--limit", "600", "--epochs", "2", "--out", "{vae}"), "vae")
        short = ("--energy-width", "16", "--iterations", "30", "--steps", "5", "--features", "none")
        self.left_alone((*_TILT, *short, "--out", "{tilted}"), "tilted")

    def left_alone(self, command: tuple[str, ...], name: str) -> Trial:
        """A run that nobody disturbs."""
        trial = Trial(self, command, self.folder / name)
        code = trial.run()
        if code != 0:
            raise SystemExit(f"{name}: {trial.told()}")
        # What it imported, no other process has to.
        for module in trial.noted("modules").split():
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        return trial

    def test(self, name: str, trials: int) -> dict[str, Any]:
        """Trials of one command; what was seen, as JSON values."""
        command, again = COMMANDS[name]
        whole = self.left_alone(command, name.replace(" ", "-"))
        whole = self.left_alone(command, name.replace(" ", "-") + "-again")
        expected = contents(whole.out)
        kills = {"time": 0, "write": 0, "SIGTERM": 0}
        faults: list[str] = []
        lost = 0.0
        for number in range(trials):
            trial = Trial(self, command, self.folder / f"trial-{number}")
            for _ in range(self.random.choice((1, 1, 2, 3))):
                how = self.random.choice(list(kills))
                code = trial.disturbed(how, whole, self.random)
                trial.command = (*command, *again)
                if code == 0:
                    break
                kills[how] += 1
                expected_code = 128 + signal.SIGTERM if how == "SIGTERM" else -signal.SIGKILL
                if code != expected_code:
                    faults.append(f"{how}: exit code {code}: {trial.told()}")
            code = trial.run()
            if code != 0 or trial.told():
                faults.append(f"went on with code {code}: {trial.told()}")
            different = differences(expected, contents(trial.out))
            if different:
                faults.append(f"not the same: {', '.join(different)}")
            lost = max(lost, trial.cpu_seconds - whole.cpu_seconds)
            shutil.rmtree(trial.out, ignore_errors=True)
        return {
            "command": " ".join(command),
            "trials": trials,
            "kills": kills,
            "survived": trials - len(faults),
            "faults": faults,
            "cpu_seconds": round(whole.cpu_seconds, 2),
            "most_cpu_seconds_lost": round(lost, 2),
        }


class Trial:
    """One run of a command, in one process or, where it is killed, in several."""

    def __init__(self, matrix: Matrix, command: tuple[str, ...], out: Path) -> None:
        self.matrix, self.command, self.out = matrix, command, out
        self.seconds, self.cpu_seconds, self.writes = 0.0, 0.0, 0
        out.mkdir()
        if "{out}/model" in command:
            shutil.copytree(matrix.models["tilted"], out / "model")

    def run(self) -> int:
        """Run to the end; the exit code."""
        began = time.monotonic()
        code = self._wait(self._fork(None))
        self.seconds = time.monotonic() - began
        self.writes = int(self.noted("writes") or 0)
        return code

    def disturbed(self, how: str, whole: Trial, chance: random.Random) -> int:
        """Run, and kill it at a random moment; the exit code, negative for a signal, 0 where it was faster."""
        at_write = chance.randint(1, whole.writes) if how == "write" else None
        process = self._fork(at_write)
        if at_write is None:
            deadline = time.monotonic() + chance.uniform(0, whole.seconds)
            while time.monotonic() < deadline:
                time.sleep(0.001)
            os.kill(process, signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
        return self._wait(process)

    def told(self) -> str:
        """What the last process wrote to standard error."""
        return self.noted("messages").strip()

    def noted(self, what: str) -> str:
        """What the last process left beside its folder."""
        file = self._beside(what)
        return file.read_text(errors="replace") if file.exists() else ""

    def _beside(self, what: str) -> Path:
        return self.out.with_name(f"{self.out.name}.{what}")

    def _fork(self, at_write: int | None) -> int:
        # SIGTERM finds its handler in place, as in a command whose imports are done.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        process = os.fork()
        if process:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            return process
        code = 99
        try:
            places = {"out": str(self.out), **{name: str(path) for name, path in self.matrix.models.items()}}
            os.environ["EXPTILT_CACHE"] = str(self.out / "cache")
            with self._beside("messages").open("w") as messages, Path(os.devnull).open("w") as nothing:
                os.dup2(messages.fileno(), 2)
                os.dup2(nothing.fileno(), 1)
            count = count_writes(at_write)
            usual = signal.signal

            def unblock(number: int, handler: Any) -> Any:
                before = usual(number, handler)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
                return before

            signal.signal = unblock
            try:
                cli.main([word.format(**places) for word in self.command] + ["--quiet"])
            except SystemExit as stop:
                code = int(stop.code or 0)
            except KeyboardInterrupt:
                code = 128 + signal.SIGTERM  # It came after the command's last line.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            self._beside("writes").write_text(str(count()))
            self._beside("modules").write_text("\n".join(sorted(sys.modules)))
            sys.stderr.flush()
        finally:
            os._exit(code)

    def _wait(self, process: int) -> int:
        _, status, usage = os.wait4(process, 0)
        self.cpu_seconds += usage.ru_utime + usage.ru_stime
        return os.waitstatus_to_exitcode(status)


def count_writes(fatal: int | None) -> Callable[[], int]:
    """Count what this process does to files from now on, and let it be killed at number ``fatal``."""
    seen = 0

    def event() -> bool:
        nonlocal seen
        seen += 1
        return seen == fatal

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if event():
                die()
            result = function(*args, **kwargs)
            if event():
                die()
            return result

        return counted

    usual_open, usual_log = os.fdopen, RunFolder.log

    def open_counted(*args: Any, **kwargs: Any) -> Any:
        file = usual_open(*args, **kwargs)
        if "w" in args:
            usual_write = file.write

            class Half:
                def __getattr__(self, name: str) -> Any:
                    return getattr(file, name)

                def __enter__(self) -> Any:
                    file.__enter__()
                    return self

                def __exit__(self, *error: Any) -> Any:
                    return file.__exit__(*error)

                def write(self, content: Any) -> Any:
                    if event():
                        usual_write(memoryview(content)[: len(content) // 2])
                        file.flush()
                        die()
                    return usual_write(content)

            return Half()
        return file

    def log_counted(folder: RunFolder, line: dict[str, Any]) -> None:
        if event():
            with (folder.path / "log.jsonl").open("a") as file:
                file.write(json.dumps(line)[:20])
            die()
        usual_log(folder, line)

    os.fsync, os.replace, os.fdopen = around(os.fsync), around(os.replace), open_counted
    RunFolder.log = log_counted
    return lambda: seen


def contents(folder: Path) -> dict[str, Any]:
    """What the files of a folder hold, by name, without what no two runs share."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _NO_RESULT]
    return {str(path.relative_to(folder)): _content(path, folder) for path in files}


def _content(path: Path, folder: Path) -> Any:
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        return {name: x.numpy().tobytes() for name, x in tensors.items()}, _lasting(metadata, folder)
    if path.suffix == ".json":
        return _lasting(json.loads(path.read_text()), folder)
    if path.suffix == ".jsonl":
        return [_lasting(json.loads(line), folder) for line in path.read_text().splitlines()]
    if path.suffix == ".md":
        return _without_columns(path.read_text().splitlines())
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in arrays.files}
    return path.read_bytes()


def _without_columns(lines: list[str]) -> list[list[str]]:
    """The cells of each line of a page, without those of columns that tell times."""
    result, passing = list[list[str]](), set[int]()
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 1:
            passing = set()
        passing |= {place for place, cell in enumerate(cells) if cell in _PASSING_COLUMNS}
        result.append([cell for place, cell in enumerate(cells) if place not in passing])
    return result


def _lasting(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner, folder) for key, inner in value.items() if key not in _PASSING}
    if isinstance(value, list):
        return [_lasting(inner, folder) for inner in value]
    return value.replace(str(folder), "{out}") if isinstance(value, str) else value


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of files that are missing, too many, or different."""
    return sorted(
        name for name in expected.keys() | found.keys() if name not in found or expected.get(name) != found[name]
    )


def main() -> None:
    """Run the matrix, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50, help="trials of each command")
    parser.add_argument("--only", nargs="*", default=list(COMMANDS), help="commands, by name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Imported before anything is forked, and small enough for trials of a second.
    assert commands
    calibrate.SAMPLES = outcome.SAMPLES = 100
    outcome.CALIBRATED_FROM = 50
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder), args.seed)
        matrix.prepare()
        for name in args.only:
            results[name] = matrix.test(name, args.trials)
            print(json.dumps({name: results[name]}), flush=True)
            if args.json is not None:
                keep(args.json, args.seed, {name: results[name]})
    kills = sum(sum(result["kills"].values()) for result in results.values())
    faults = sum(len(result["faults"]) for result in results.values())
    print(f"{kills} kills in {len(results) * args.trials} trials of {len(results)} commands: {faults} faults")
    sys.exit(faults > 0)


def keep(path: Path, seed: int, results: dict[str, Any]) -> None:
    """Put results into a file; those of other commands in it stay."""
    known = json.loads(path.read_text())["commands"] if path.exists() else {}
    merged = {name: result for name in COMMANDS if (result := results.get(name) or known.get(name))}
    totals = {key: sum(result[key] for result in merged.values()) for key in ("trials", "survived")}
    kills = sum(sum(result["kills"].values()) for result in merged.values())
    record = {"seed": seed, "torch": torch.__version__, **totals, "kills": kills, "commands": merged}
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
