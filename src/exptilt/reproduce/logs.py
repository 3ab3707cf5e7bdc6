"""The checks of a training, from the log of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exptilt.errors import InputError
from exptilt.report.log import read_log
from exptilt.storage import LOG


def lines_with(folder: Path, *names: str) -> tuple[str, list[dict[str, Any]]]:
    """The first of the figures ``names`` that a run's log has, and the lines with it: its checks.

    Raises:
        InputError: There is no log, or none of the figures is in it.
    """
    lines, _ = read_log(folder / LOG)
    if not lines:
        raise InputError(folder, "has no log of its training", "give a folder that exptilt tilt has written")
    for name in names:
        if found := [line for line in lines if name in line]:
            return name, found
    raise InputError(
        folder / LOG, f"has no check of quality ({', '.join(names)})", "tilt with --features auto, or on more data"
    )
