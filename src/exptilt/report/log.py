"""What the log of a run tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exptilt.errors import InputError
from exptilt.storage import LOG

_LARGEST_LOG = 1 << 28


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a log, and how many could not be read (a killed run may leave half a line).

    Raises:
        InputError: It has hundreds of megabytes.
    """
    if not path.is_file():
        return [], 0
    if (size := path.stat().st_size) > _LARGEST_LOG:
        raise InputError(path, f"is too large for a log ({size:,} bytes)", "remove it")
    lines, damaged = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            damaged += 1
    return lines, damaged


def last_figure(folder: Path, name: str) -> float | None:
    """The last value of a figure in the log of a run's folder; None where there is none."""
    lines, _ = read_log(folder / LOG)
    return next((line[name] for line in reversed(lines) if name in line), None)


def training_seconds(run: Path, record: Mapping[str, Any]) -> float | None:
    """Seconds that a training took: of the record, or of the last line of the log; None where neither tells."""
    return record["seconds"] if "seconds" in record else last_figure(run, "seconds")
