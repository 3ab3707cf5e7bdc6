"""The folder of a run: its resolved configuration, its log, and a checkpoint from which it goes on."""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import torch

import exptilt
from exptilt import provenance
from exptilt.errors import NOT_ACCESSIBLE, InputError
from exptilt.storage import (
    LOG,
    MODULE_CONFIG,
    RUN,
    naming,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)
from exptilt.tilted import INDEX

CHECKPOINT, EARLIER_CHECKPOINT = "checkpoint.safetensors", "checkpoint-earlier.safetensors"
# What a run leaves that was asked to stop between two checks.
STOPPED_CHECKPOINT = "checkpoint-stopped.safetensors"

Checkpoint = tuple[dict[str, torch.Tensor], dict[str, Any]]


class RunFolder:
    """A folder that one run at a time writes to.

    Args:
        path: The folder; made if it is missing.
        config: Resolved configuration, JSON values. A run is only resumed with the configuration it began with.
        resume: Go on with the run that is there, if there is one.
        device: What the training runs on, for the record.

    Raises:
        InputError: The path is a file; a run is there and ``resume`` is false; it began with another configuration; or
            a model is there that no run has left.
    """

    def __init__(
        self, path: str | Path, config: dict[str, Any], *, resume: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        self.path, self.device = Path(path), torch.device(device)
        # Of a later stage: its number, and the updates before it.
        self.number, self.first = 0, 0
        self.config = json.loads(json.dumps(config))
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {path}", "is a file", "give a folder")
        record = self.path / RUN
        has_run = record.exists() or (self.path / CHECKPOINT).exists()
        if not has_run and any((self.path / name).exists() for name in (MODULE_CONFIG, INDEX)):
            # Perhaps the very one that is to be tilted: with the run's files beside it, it would be another model.
            raise InputError(f"--out {path}", "holds a model, and no run", "give another folder")
        if has_run and not resume:
            raise InputError(
                f"--out {path}", "holds a run already", "give --resume to go on with it, or another folder"
            )
        if record.exists():
            recorded = _read_record(record)
            self._require_same(recorded.get("config"), record)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder's lock, and record the configuration.

        Raises:
            InputError: Another run holds it, or the folder cannot be written.
        """
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"--out {self.path}", "is being written by another run", "wait for it, or give another folder"
            ) from None
        except OSError as error:
            if error.errno not in NOT_ACCESSIBLE:
                raise
            raise InputError(
                f"--out {self.path}", f"cannot be written ({error.strerror})", "give another folder"
            ) from None
        try:
            if not (self.path / RUN).exists():
                self.record()
            yield
        finally:
            lock.release()

    def record(self, **more: Any) -> None:
        """Write ``run.json``: command, versions, configuration, and what is added to it."""
        path = self.path / RUN
        began = _read_record(path) if path.exists() else _beginning()
        now = {
            "version": exptilt.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": provenance.device_name(self.device),
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
        self._sync_log()
        metadata = {**state, "config": self.config}
        write_tensors(self._file(CHECKPOINT), tensors, metadata, earlier=self._file(EARLIER_CHECKPOINT))
        self._file(STOPPED_CHECKPOINT).unlink(missing_ok=True)

    def save_stopped(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write where a run stands that stops between two checkpoints; the next checkpoint removes it."""
        self._sync_log()
        write_tensors(self._file(STOPPED_CHECKPOINT), tensors, {**state, "config": self.config})

    def checkpoint(self, load: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Checkpoint | None:
        """Give ``load`` the newest checkpoint that it takes; one that is damaged is passed over, which a line tells.

        Args:
            load: Takes tensors and state; raises an error where they do not fit.

        Returns:
            What was loaded, or None where there is no checkpoint.

        Raises:
            InputError: There are checkpoints and all are damaged, or the run began with other settings.
        """
        files = [file for name in (CHECKPOINT, EARLIER_CHECKPOINT) if (file := self._file(name)).exists()]
        loaded = self._newest(files, load)
        if files and loaded is None:
            raise InputError(
                f"--resume {self.path}",
                f"no checkpoint there is whole ({', '.join(file.name for file in files)})",
                "restore one, or remove them to begin anew: the result will be the same",
            )
        return loaded

    def stopped(self, load: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Checkpoint | None:
        """As :meth:`checkpoint`, of where the run stood when it was asked to stop; None also where that is damaged."""
        file = self._file(STOPPED_CHECKPOINT)
        return self._newest([file] if file.exists() else [], load)

    def _newest(self, files: list[Path], load: Callable[[Any, Any], None]) -> Checkpoint | None:
        for path in files:
            try:
                tensors, state = read_tensors(path)
                same = state["config"] == self.config
                if same:
                    load(tensors, state)
            except (InputError, RuntimeError, LookupError, TypeError, ValueError) as error:
                fault = error.fault if isinstance(error, InputError) else "its tensors do not fit this run"
                print(f"exptilt: {path}: {fault}; going on with what was written before", file=sys.stderr)
                continue
            if not same:
                self._require_same(state["config"], path)
            return tensors, state
        return None

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to the log, its iteration counted from the start of the first stage."""
        if self.number:
            line = {**line, "stage": self.number, "iteration": self.first + line["iteration"]}
        with naming(self.path / LOG), (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate_log(self, iteration: int, rollbacks: int = 0) -> None:
        """Drop damaged lines, and what this stage logged after ``iteration`` and its ``rollbacks``: it repeats that."""
        path = self.path / LOG
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        places = [_place(line) for line in lines]
        reached = (self.number, self.first + iteration, rollbacks)
        kept = [
            line
            for line, place in zip(lines, places, strict=True)
            if place is not None and (place[0] != self.number or place <= reached)
        ]
        # The last line is cut off where a run was killed as it wrote it.
        if damaged := sum(place is None for place in places[:-1]):
            print(f"exptilt: {path}: {damaged} damaged lines are left out", file=sys.stderr)
        write_bytes(path, "".join(line + "\n" for line in kept).encode())

    def _file(self, name: str) -> Path:
        """Where this stage keeps what the first keeps under ``name``."""
        return self.path / (f"stage-{self.number}-{name}" if self.number else name)

    def _sync_log(self) -> None:
        """What a checkpoint follows on must not be lost where the checkpoint is kept."""
        path = self.path / LOG
        if path.exists():
            with naming(path), path.open("ab") as file:
                os.fsync(file.fileno())

    def _require_same(self, before: Any, source: Path) -> None:
        if before != self.config:
            before = before if isinstance(before, dict) else {}
            changed = sorted(k for k in before.keys() | self.config.keys() if before.get(k) != self.config.get(k))
            raise InputError(
                f"--resume {self.path}",
                f"the run there began with other settings ({', '.join(changed[:4])}), as {source.name} says",
                "repeat its settings, or give another folder",
            )


def _beginning() -> dict[str, Any]:
    """What is recorded once, when a run begins, and kept when it is resumed."""
    return {
        "command": provenance.command(),
        "commit": provenance.commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
        if isinstance(record, dict):
            return record
        fault = "is no JSON object"
    except InputError as error:
        fault = error.fault
    mend = "restore it, or remove it and repeat the command with --resume and the same settings"
    raise InputError(path, fault, mend)


def _place(line: str) -> tuple[float, float, float] | None:
    """Where in a run a line of its log belongs: stage, iteration, and the rollbacks before it; None if damaged."""
    try:
        read = json.loads(line)
        return float(read.get("stage", 0)), float(read["iteration"]), float(read.get("rollbacks", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
