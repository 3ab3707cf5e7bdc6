"""The folder of a run: its resolved configuration, its log, and a checkpoint from which it goes on."""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import torch

import exptilt
from exptilt import provenance
from exptilt.errors import InputError
from exptilt.storage import LOG, RUN, read_json, read_tensors, write_bytes, write_json, write_tensors

CHECKPOINT, EARLIER_CHECKPOINT = "checkpoint.safetensors", "checkpoint-earlier.safetensors"


class RunFolder:
    """A folder that one run at a time writes to.

    Args:
        path: The folder; made if it is missing.
        config: Resolved configuration, JSON values. A run is only resumed with the configuration it began with.
        resume: Go on with the run that is there, if there is one.

    Raises:
        InputError: The path is a file; a run is there and ``resume`` is false; or it began with another configuration.
    """

    def __init__(self, path: str | Path, config: dict[str, Any], *, resume: bool = False) -> None:
        self.path = Path(path)
        # Of a later stage: its number, and the updates before it.
        self.number, self.first = 0, 0
        self.config = json.loads(json.dumps(config))
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {path}", "is a file", "give a folder")
        existing = self.path / RUN
        if existing.exists():
            if not resume:
                raise InputError(
                    f"--out {path}", "holds a run already", "give --resume to go on with it, or another folder"
                )
            self._require_same(read_json(existing))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder's lock, and record the configuration.

        Raises:
            InputError: Another run holds it, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.path / ".lock", timeout=0):
                if not (self.path / RUN).exists():
                    self.record()
                yield
        except filelock.Timeout:
            raise InputError(
                f"--out {self.path}", "is being written by another run", "wait for it, or give another folder"
            ) from None
        except PermissionError as error:
            raise InputError(
                f"--out {self.path}", f"cannot be written ({error.strerror})", "give another folder"
            ) from None

    def record(self, **more: Any) -> None:
        """Write ``run.json``: command, versions, configuration, and what is added to it."""
        path = self.path / RUN
        began = read_json(path) if path.exists() else _beginning()
        now = {
            "version": exptilt.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "config": self.config,
        }
        write_json(path, began | now | more)

    def stage(self, number: int, first: int) -> RunFolder:
        """This folder for the stage of that number, which comes after ``first`` updates of earlier ones.

        It has checkpoints of its own, so that a run is resumed in the stage that it was in, and shares the log.
        """
        folder = copy.copy(self)
        folder.number, folder.first = number, first
        return folder

    def save_checkpoint(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint atomically; the one before it is kept beside it."""
        current, earlier = self._checkpoints()
        if current.exists():
            current.replace(earlier)
        write_tensors(current, tensors, state)

    def load_checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None. A damaged one is passed over, with a line on standard error."""
        for path in self._checkpoints():
            if path.exists():
                try:
                    return read_tensors(path)
                except InputError as error:
                    print(f"exptilt: {error.subject}: {error.fault}; going on with an earlier one", file=sys.stderr)
        return None

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to the log, its iteration counted from the start of the first stage."""
        if self.number:
            line = {**line, "stage": self.number, "iteration": self.first + line["iteration"]}
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate_log(self, iteration: int) -> None:
        """Drop what was logged after ``iteration`` of this stage: the run repeats it."""
        path = self.path / LOG
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _is_kept(line, self.number, self.first + iteration)]
        write_bytes(path, "".join(line + "\n" for line in kept).encode())

    def _checkpoints(self) -> tuple[Path, Path]:
        """Where the newest and the earlier checkpoint are."""
        prefix = f"stage-{self.number}-" if self.number else ""
        return self.path / f"{prefix}{CHECKPOINT}", self.path / f"{prefix}{EARLIER_CHECKPOINT}"

    def _require_same(self, recorded: Any) -> None:
        before = recorded.get("config") if isinstance(recorded, dict) else None
        if before != self.config:
            before = before if isinstance(before, dict) else {}
            changed = sorted(k for k in before.keys() | self.config.keys() if before.get(k) != self.config.get(k))
            raise InputError(
                f"--resume {self.path}",
                f"the run there began with other settings ({', '.join(changed[:4])})",
                "repeat its settings, or give another folder",
            )


def _beginning() -> dict[str, Any]:
    """What is recorded once, when a run begins, and kept when it is resumed."""
    return {
        "command": provenance.command(),
        "commit": provenance.commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _is_kept(line: str, stage: int, iteration: int) -> bool:
    """Whether a line of the log is of another stage, or not after an iteration of this one."""
    try:
        told = json.loads(line)
        return told.get("stage", 0) != stage or told["iteration"] <= iteration
    except (ValueError, KeyError, TypeError, AttributeError):
        return False  # a line that was cut off by a kill
