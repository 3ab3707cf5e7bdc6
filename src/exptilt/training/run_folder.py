"""The folder of a run: its resolved configuration, its log, and a checkpoint from which it goes on."""

from __future__ import annotations

import contextlib
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

    def save_checkpoint(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint atomically; the one before it is kept beside it."""
        current = self.path / CHECKPOINT
        if current.exists():
            current.replace(self.path / EARLIER_CHECKPOINT)
        write_tensors(current, tensors, state)

    def load_checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None. A damaged one is passed over, with a line on standard error."""
        for name in (CHECKPOINT, EARLIER_CHECKPOINT):
            if (self.path / name).exists():
                try:
                    return read_tensors(self.path / name)
                except InputError as error:
                    print(f"exptilt: {error.subject}: {error.fault}; going on with an earlier one", file=sys.stderr)
        return None

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to the log."""
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate_log(self, iteration: int) -> None:
        """Drop what was logged after ``iteration``: the run repeats it."""
        path = self.path / LOG
        if not path.exists():
            return
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _iteration(line) <= iteration]
        write_bytes(path, "".join(line + "\n" for line in kept).encode())

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


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that was cut off by a kill
