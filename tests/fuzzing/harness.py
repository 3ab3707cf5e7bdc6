"""One hostile input: the files that it consists of, what is done with them, and how that ended."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from exptilt.errors import InputError

# Seconds of wall clock, and MiB over what the process had before, that one input may take.
MOST_SECONDS, MOST_MIB = 60.0, 512
# Address space over what the process has: what is asked for and not touched counts here.
_ADDRESS_SPACE = 4 << 30
_LONGEST_LINE = 2000


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Special:
    """A folder or a named pipe in the place of a file."""

    kind: str


Entry = bytes | Link | Special


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        call: What is done with the folder of its files; returns nothing, or raises.
        files: Their contents by name; none for an input without files.
        note: What tells this input from others of its kind.
    """

    call: Callable[[Path], object] = field(repr=False)
    files: Mapping[str, Entry] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """How an input ended.

    Attributes:
        fault: What is wrong with how it ended; empty if nothing is.
        refused: It was refused by an :class:`InputError`, or a command by exit code 2.
        seconds: Of processor time.
        mib: Most memory over what the process had before.
    """

    fault: str
    refused: bool
    seconds: float
    mib: float


class TooLongError(BaseException):
    """The time of an input is over."""


class ReachedWorkError(BaseException):
    """A command has checked everything and would begin its work."""


class FaultError(AssertionError):
    """An input did not end as it should, where no exception says so."""


def judge(case: Case) -> Outcome:
    """Run one input in a folder of its own, within bounds of time and memory."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        write(folder, case.files)
        began = time.process_time()
        with _peak() as peak:
            fault, refused = _ending(case, folder)
        seconds = time.process_time() - began
        if not fault and peak[0] > MOST_MIB:
            fault = f"took {peak[0]:.0f} MiB"
        return Outcome(fault, refused, seconds, peak[0])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_refused(case: Case) -> None:
    """What a test asserts of an input: it ends well, whether it is refused or taken."""
    outcome = judge(case)
    assert not outcome.fault, f"{outcome.fault}\n{case.note}"


def write(folder: Path, files: Mapping[str, Entry]) -> None:
    """Write a case's files below a folder."""
    for name, entry in files.items():
        path = folder / name
        with contextlib.suppress(OSError, ValueError):  # A name that no file can have is no input.
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(entry, Link):
                path.symlink_to(entry.target)
            elif isinstance(entry, Special):
                path.mkdir() if entry.kind == "folder" else os.mkfifo(path)
            else:
                path.write_bytes(entry)


def _ending(case: Case, folder: Path) -> tuple[str, bool]:
    try:
        with _time_limit(), _address_space_limit(), warnings.catch_warnings(action="ignore"):
            refused = case.call(folder)
        return "", refused is True
    except InputError as error:
        told = str(error)
        if len(told.splitlines()) != 1 or len(told) > _LONGEST_LINE or not told.isprintable():
            return f"a message that is not one line to print, from {_place(error)}", True
        return "", True
    except ReachedWorkError:
        return "", False
    except TooLongError as error:
        return f"took more than {MOST_SECONDS} s in {_place(error)}", False
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        told = error.args[0] if isinstance(error, FaultError) else type(error).__name__
        return f"{told} in {_place(error)}", False


def _place(error: BaseException) -> str:
    """The last line of exptilt itself, and the last line at all, that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/exptilt/" in frame.filename or "/fuzzing/" in frame.filename]
    chosen = [*ours[-1:], frames[-1]]
    return " < ".join(dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in chosen))


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _address_space_limit() -> Iterator[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ADDRESS_SPACE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _peak() -> Iterator[list[float]]:
    """Growth of resident memory in MiB at its highest, in a list that is filled at the end."""
    peak = [0.0]
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew at what is resident now
    before = _status("VmRSS")
    try:
        yield peak
    finally:
        peak[0] = max(0.0, (_status("VmHWM") - before) / 1024)


def _status(name: str) -> int:
    """A figure of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
