"""The curve of §5.3: quality on held-out data while an energy is trained, and the state that was kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exptilt import provenance
from exptilt.errors import InputError
from exptilt.report.curves import Series
from exptilt.report.files import png
from exptilt.reproduce.grids import stacked
from exptilt.reproduce.logs import lines_with
from exptilt.reproduce.models import short_names
from exptilt.reproduce.plots import line_picture
from exptilt.storage import RUN, read_json, write_bytes, write_json

# Figures of a check, the first of which a run has: what its state was chosen by, and what a reader knows.
_SHOWN = {"kid": "KID of the chains against held-out images", "held_out_loss": "loss on held-out data"}


def draw_overfitting(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the curve of each run, its chosen iteration marked.

    Leaves ``overfitting.png`` and ``overfitting.json``.

    Args:
        folders: Folders of tilts, with their logs.
        out: Where the files go.

    Returns:
        What the JSON file holds: of each run the figure, its value at every check, the chosen iteration, and by how
        much the last state is worse than the chosen one.

    Raises:
        InputError: A run has no log, or its log no checks of quality, or it is not finished.
    """
    runs, panels = [], []
    for folder, name in zip(folders, short_names(folders), strict=True):
        told = {"run": str(folder), "name": name, **_curve(folder)}
        runs.append(told)
        line = Series(label=name, x=told["iterations"], y=told["values"])
        mark = (told["chosen"], f"kept: iteration {told['chosen']:,}")
        panels.append(line_picture([line], xlabel="iteration", ylabel=_SHOWN[told["figure"]], marks=[mark]))
    write_bytes(out / "overfitting.png", png(stacked(panels)))
    result = {"figure": "overfitting", "runs": runs, **provenance.origin()}
    write_json(out / "overfitting.json", result)
    return result


def _curve(folder: Path) -> dict[str, Any]:
    figure, lines = lines_with(folder, *_SHOWN)
    record = read_json(folder / RUN)
    if "chosen_iteration" not in record:
        raise InputError(folder, "is not finished", "finish it with exptilt tilt --resume")
    chosen = record["chosen_iteration"]
    stage_of = {line["iteration"]: line.get("stage", 0) for line in lines}
    # Losses of stages are of other negatives or codes, and do not compare.
    stage = stage_of.get(chosen)
    checks = [(at, line[figure]) for line in lines if stage in (None, stage_of[at := line["iteration"]])]
    at_chosen = dict(checks).get(chosen)
    return {
        "figure": figure,
        "iterations": [iteration for iteration, _ in checks],
        "values": [value for _, value in checks],
        "chosen": chosen,
        "last_less_chosen": None if at_chosen is None else checks[-1][1] - at_chosen,
    }
