"""Table 1 of the paper, cell by cell, beside the paper's figures and what it says by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from exptilt.errors import InputError, RunError
from exptilt.reproduce.cells import Cells
from exptilt.reproduce.paper import CLAIMS, ROWS
from exptilt.reproduce.results import figures
from exptilt.reproduce.table_text import table_markdown
from exptilt.reproduce.verdict import verdict
from exptilt.storage import write_bytes, write_json


def make_table(cells: Cells, rows: Sequence[str], data_sets: Sequence[str]) -> dict[str, Any]:
    """Make the cells, and write the table after each.

    Args:
        cells: Makes them.
        rows: Names of the rows, all unless any is given.
        data_sets: The columns.

    Returns:
        What ``table1.json`` holds, see :func:`table`. A cell whose training failed is told of under ``"failed"``.

    Raises:
        InputError: A row is not known, or a cell's input is wrong.
    """
    for name in rows:
        if name not in ROWS:
            raise InputError(f"--only {name}", "is no row of table 1", f"use some of {', '.join(ROWS)}")
    failed: dict[str, str] = {}
    made = table(cells, data_sets, failed)
    for data in data_sets:
        for name in rows or ROWS:
            try:
                cells.make(name, ROWS[name], data)
            except RunError as error:
                failed[f"{data}/{name}"] = str(error)
            made = table(cells, data_sets, failed)
            write_table(made, cells.out)
    return made


def table(cells: Cells, data_sets: Sequence[str], failed: dict[str, str]) -> dict[str, Any]:
    """The table of the cells that are done, as JSON values.

    Returns:
        ``{"scale", "settings", "data_sets", "cells", "comparisons", "failed"}``. A cell has, beside what its folder
        tells, ``"paper"`` (the paper's FID), ``"change"`` and ``"paper_change"`` (relative, against the same frozen
        generator). A comparison is of two rows of the paper on one data set: ``{"dataset", "a", "b", "paper_change",
        "change", "verdict", "claim"}``, ``claim`` being whether the paper's text makes it.
    """
    done = {(name, data): cell for data in data_sets for name in ROWS if (cell := cells.kept(name, data)) is not None}
    return {
        "scale": cells.settings.scale,
        "settings": cells.settings.recorded(),
        "data_sets": list(data_sets),
        "cells": [
            {
                **cell,
                "paper": ROWS[name].paper_fid(data),
                "change": _change(cell, name, done.get((ROWS[name].base, data))),
                "paper_change": _paper_change(name, ROWS[name].base, data),
            }
            for (name, data), cell in done.items()
        ],
        "comparisons": [
            comparison
            for data in data_sets
            for a, b in _pairs()
            if (comparison := _comparison(a, b, data, done)) is not None
        ],
        "failed": failed,
    }


def write_table(made: dict[str, Any], out: Path) -> None:
    """Write ``table1.json``, ``table1.md`` and ``results.json``, the latter in the schema of docs/results.json."""
    write_json(out / "table1.json", made)
    write_bytes(out / "table1.md", table_markdown(made).encode())
    write_json(out / "results.json", entries(made))


def entries(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells as rows of docs/results.json."""
    return [
        {
            "generator": ROWS[cell["name"]].generator,
            "dataset": cell["dataset"],
            "method": ROWS[cell["name"]].method,
            "scale": made["scale"],
            **figures(cell, cell["base"] or cell),
            "fid_floor": cell.get("floor"),
            "fid_reconstruction": cell["reconstruction"],
            **{name: cell[name] for name in ("n", "seeds", "protocol")},
            **{name: cell["cost"][name] for name in ("gradient_evaluations", "seconds")},
            "command": cell["training_command"],
            "evaluation": cell["command"],
            "commit": cell["training_commit"],
            "note": cell["note"],
        }
        for cell in made["cells"]
    ]


def _pairs() -> list[tuple[str, str]]:
    """All pairs of the paper's rows; those that its text compares first, in its order."""
    others = [
        pair for pair in combinations([n for n in ROWS if ROWS[n].fid], 2) if not {pair, pair[::-1]} & set(CLAIMS)
    ]
    return [*CLAIMS, *others]


def _comparison(a: str, b: str, data: str, done: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any] | None:
    paper_change = _paper_change(a, b, data)
    if not paper_change:  # a data set, or a tie, that the paper says nothing of
        return None
    first, second = done.get((a, data)), done.get((b, data))
    if second is not None and first is not None and ROWS[a].base == b and first["base"] is not None:
        # The very samples that the tilt was measured beside.
        second = {**first["base"], "protocol": first["protocol"]}
    told = verdict(paper_change, first, second)
    known = first is not None and second is not None and told != "missing"
    return {
        "dataset": data,
        "a": a,
        "b": b,
        "paper_change": paper_change,
        "change": first["fid"] / second["fid"] - 1 if known and first and second else None,
        "verdict": told,
        "claim": (a, b) in CLAIMS,
    }


def _change(cell: dict[str, Any], name: str, base: dict[str, Any] | None) -> float | None:
    if ROWS[name].generator == "pixel":
        return None  # its base is noise
    if cell["base"] is not None:
        return cell["fid"] / cell["base"]["fid"] - 1
    same = base is not None and base["protocol"] == cell["protocol"]
    return cell["fid"] / base["fid"] - 1 if base is not None and same else None


def _paper_change(a: str, b: str, data: str) -> float | None:
    first, second = ROWS[a].paper_fid(data), ROWS[b].paper_fid(data) if b else None
    return first / second - 1 if first is not None and second is not None else None
