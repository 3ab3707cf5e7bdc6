"""Updates and cost until chains reach a given FID: an energy on latents' images against one on pixels (§5.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from exptilt import provenance
from exptilt.errors import InputError
from exptilt.report.curves import Series
from exptilt.report.files import png
from exptilt.reproduce import operations
from exptilt.reproduce.grids import stacked
from exptilt.reproduce.logs import lines_with
from exptilt.reproduce.models import data_set_of, load_tilted, short_names
from exptilt.reproduce.paper import DATA_SETS
from exptilt.reproduce.plots import line_picture
from exptilt.storage import RUN, read_json, write_bytes, write_json
from exptilt.training.fitting import MONITORED

_COSTS = ("iterations", "gradients", "operations", "seconds")


def measure_reach(
    folders: Sequence[Path], out: Path, *, levels: Sequence[float] = (), device: torch.device
) -> dict[str, Any]:
    """What each run had cost when its chains first were at or below each of some FIDs.

    The FIDs are those of the quality checks of training: of the chains' last whole batches with at least
    :data:`~exptilt.training.fitting.MONITORED` images, against held-out training images. What the generator had cost is
    not in it. Leaves ``reach.json``, ``reach.md`` and ``reach.png``.

    Args:
        folders: Folders of tilts by maximum likelihood of an energy on images, whose checks cost nothing.
        out: Where the files go.
        levels: The FIDs; unless given, the least of each run.
        device: Where operations are counted.

    Returns:
        What the JSON file holds: of each run its checks with their costs (updates, gradients of U of all chains,
        floating-point operations, seconds), and of each data set and level the costs of each run, None where it
        never was there.

    Raises:
        InputError: A run has no FID in its log, or is trained by another objective.
    """
    runs = [_run(folder, name, device) for folder, name in zip(folders, short_names(folders), strict=True)]
    sets = {data: [run for run in runs if run["data"] == data] for data in dict.fromkeys(run["data"] for run in runs)}
    reached = [
        {"data": data, "fid": level, "runs": {run["name"]: _costs_at(run, level) for run in here}}
        for data, here in sets.items()
        for level in levels or sorted({min(run["fid"]) for run in here}, reverse=True)
    ]
    result = {"figure": "reach", "runs": runs, "reached": reached, **provenance.origin()}
    pictures = []
    for data, here in sets.items():
        lines = [Series(label=run["name"], x=run["operations"], y=run["fid"]) for run in here]
        ylabel, xlabel = f"FID of the chains, {data}", "floating-point operations of training"
        pictures.append(line_picture(lines, xlabel=xlabel, ylabel=ylabel, logarithmic=True))
    write_bytes(out / "reach.png", png(stacked(pictures)))
    write_bytes(out / "reach.md", markdown(result).encode())
    write_json(out / "reach.json", result)
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """The costs as a page: a table for each data set."""
    runs = {run["name"]: run for run in result["runs"]}
    lines = [
        "# Cost to reach a FID, in latent space and on pixels",
        "",
        f"FID of the last images of the chains of training (whole batches, at least {MONITORED}) against held-out "
        "training images, at the quality checks. "
        "*Never*: not in all updates of the run. The training of the generator is not in it.",
    ]
    for data in dict.fromkeys(told["data"] for told in result["reached"]):
        lines += [
            "",
            f"## {DATA_SETS.get(data, data)}",
            "",
            "| FID ≤ | run | chains in | updates | gradients of U | operations | s |",
            "|---|---|---|---|---|---|---|",
        ]
        for told in (told for told in result["reached"] if told["data"] == data):
            for name, costs in told["runs"].items():
                run = runs[name]
                if costs is None:
                    columns = [f"never ({run['iterations'][-1]:,} made)", "", "", ""]
                else:
                    columns = [f"{costs['iterations']:,}", f"{costs['gradients']:,}", f"{costs['operations']:.2g}"]
                    columns.append(f"{costs['seconds']:,.0f}")
                lines.append(f"| {told['fid']:.1f} | {name} | {run['space']} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _run(folder: Path, name: str, device: torch.device) -> dict[str, Any]:
    _, checks = lines_with(folder, "fid")
    record, model = read_json(folder / RUN), load_tilted(folder, device)
    config = record["config"]
    if config["objective"] != "maximum_likelihood" or config["space"] == "z":
        raise InputError(folder, "is no tilt by maximum likelihood of an energy on images", "give others")
    if "gradient_evaluations" not in record:
        raise InputError(folder, "is not finished", "finish it with exptilt tilt --resume")
    total = {
        "gradients": record["gradient_evaluations"],
        "operations": operations.of_tilt(model, record, 0)["training"],
    }
    iterations = [line["iteration"] for line in checks]
    # Each update costs the same.
    costs = {key: [value * i // config["iterations"] for i in iterations] for key, value in total.items()}
    return {
        "run": str(folder),
        "name": name,
        "data": data_set_of(folder),
        "space": "pixels" if config["space"] == "pixel" or config["generator"] == "uniform" else "latents",
        "command": record.get("command"),
        "threads": record.get("threads"),
        "device": record.get("device"),
        "fid": [line["fid"] for line in checks],
        "iterations": iterations,
        **costs,
        "seconds": [line["seconds"] for line in checks],
    }


def _costs_at(run: Mapping[str, Any], level: float) -> dict[str, float] | None:
    """Costs at the first check at or below a FID; None where there is none."""
    first = next((index for index, fid in enumerate(run["fid"]) if fid <= level), None)
    return None if first is None else {key: run[key][first] for key in _COSTS}
