"""What the log of a run tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exptilt.errors import InputError
from exptilt.storage import LOG


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, in the order of its updates; none where there is no log."""
    log = folder / LOG
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def lines_with(folder: Path, *names: str) -> tuple[str, list[dict[str, Any]]]:
    """The first of the figures ``names`` that a run's log has, and the lines with it: its checks.

    Raises:
        InputError: There is no log, or none of the figures is in it.
    """
    lines = log_lines(folder)
    if not lines:
        raise InputError(folder, "has no log of its training", "give a folder that exptilt tilt has written")
    for name in names:
        if found := [line for line in lines if name in line]:
            return name, found
    raise InputError(
        folder / LOG, f"has no check of quality ({', '.join(names)})", "tilt with --features auto, or on more data"
    )


def last_figure(folder: Path, name: str) -> float | None:
    """The last value of a figure in a run's log; None where there is none."""
    return next((line[name] for line in reversed(log_lines(folder)) if name in line), None)
