"""What each choice of the default recipe is worth: the recipe with one of them switched off, cell by cell."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exptilt import provenance
from exptilt.config import SamplerConfig
from exptilt.errors import InputError, RunError
from exptilt.presets import RECIPES
from exptilt.reproduce.cells import Cells
from exptilt.reproduce.paper import DATA_SETS, Row
from exptilt.storage import write_bytes, write_json

REFERENCE = "default"
GENERATORS = ("vae", "glf")
_ITERATIONS, _SAMPLER = RECIPES["default"].iterations, RECIPES["default"].sampler


@dataclass(frozen=True)
class Choice:
    """A choice of the recipe, undone.

    Attributes:
        label: What is there in its place.
        changes: Settings of the tilt, by their names in ``TiltConfig``.
        recipe: Another recipe, where the choice is no single setting.
    """

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = "default"


CHOICES = {
    REFERENCE: Choice("the default recipe"),
    "plain-energy": Choice("a fully connected E(z), 3 × 512, without gates", {"energy": "mlp", "energy_width": 512}),
    "no-dropout": Choice("no dropout", {"dropout": 0.0}),
    "no-code-noise": Choice("no noise on codes of an encoder that draws none", {"code_noise": 0.0}),
    "last-state": Choice("the last state, not the best on held-out codes", {"check_every": _ITERATIONS}),
    "no-average": Choice("no running mean of the weights", {"ema_decay": 0.0}),
    "constant-rate": Choice("a constant learning rate", {"schedule": "constant"}),
    "no-floor": Choice("no floor under E", {"floor": 0.0}),
    "one-length": Choice(f"{_SAMPLER.steps} steps, not calibrated", {"lengths": (1.0,)}),
    "one-strength": Choice("λ = 1, not calibrated", {"strengths": (1.0,)}),
    "three-stages": Choice("three stages, not one", {"stages": 3}),
    "fixed-step": Choice(f"ε = {_SAMPLER.step_size:g}, not adapted", {"target_acceptance": 0.0}),
    "unadjusted": Choice(
        "Langevin chains without a Metropolis test, ε = 0.05",
        {"sampler": SamplerConfig(kernel="langevin", steps=100, step_size=0.05), "target_acceptance": 0.0},
    ),
    "own-encoder": Choice("the generator's encoder, whatever its codes decode to", {"encoder": "own"}),
    "learned-encoder": Choice("an encoder learned from samples, not the generator's", {"encoder": "learned"}),
    "on-images": Choice("E(x) on images, not E(z)", recipe="default-x"),
}


def run_ablation(
    cells: Cells,
    data_sets: Sequence[str],
    *,
    generators: Sequence[str] = GENERATORS,
    seeds: Sequence[int] = (0, 1, 2),
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Make the cells, and write ``ablation.json`` and ``ablation.md`` after each.

    Args:
        cells: Makes them; of each training seed in a folder ``ablation/seed-…`` of its own.
        data_sets: The data sets.
        generators: Kinds of generators.
        seeds: Seeds of training: of the tilts, and of generators that are not given.
        only: Choices to make; all unless any is given.

    Returns:
        What the JSON file holds: ``{"settings", "seeds", "cells", "failed"}``; a cell has ``"choice"``,
        ``"generator"`` and ``"training_seed"`` beside what :meth:`Cells.make` gives.

    Raises:
        InputError: A choice is not known, or an input of a cell is wrong.
    """
    for name in only:
        if name not in CHOICES:
            raise InputError(
                f"--only {name}", "is no choice of the default recipe", f"use some of {', '.join(CHOICES)}"
            )
    out = cells.out / "ablation"
    made: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    told: dict[str, Any] = {}
    # All choices of one generator before the next: what is cut off can be read.
    plan = [(d, g, s, c) for d in data_sets for g in generators for s in seeds for c in only or CHOICES]
    for data, generator, seed, name in plan:
        choice = CHOICES[name]
        row = Row(choice.label, generator, choice.recipe, generator)
        of_seed = Cells(out / f"seed-{seed}", dataclasses.replace(cells.settings, seed=seed), cells.say)
        try:
            cell = of_seed.make(f"{generator}-{name}", row, data, choice.changes)
            made.append({**cell, "choice": name, "generator": generator, "training_seed": seed})
        except RunError as error:
            failed[f"{data}/{generator}/{name}/seed {seed}"] = str(error)
        told = {
            "settings": cells.settings.recorded(),
            "seeds": list(seeds),
            "cells": made,
            "failed": failed,
            **provenance.origin(),
        }
        write_json(out / "ablation.json", told)
        write_bytes(out / "ablation.md", markdown(told).encode())
    return told


def markdown(told: Mapping[str, Any]) -> str:
    """The cells as a page: a table for each generator and data set."""
    settings, cells = told["settings"], told["cells"]
    lines = [
        "# What each choice of the default recipe is worth",
        "",
        "Each row is the default recipe with one choice undone. FID, recall and coverage are means over training seeds "
        f"(± their standard deviation where there are several), N = {settings['n']:,} samples for each of the sampling "
        f"seeds {' '.join(map(str, settings['seeds']))} against the test set; *change* is that of FID against the "
        "first row, over the training seeds that both have. λ is the strength that was chosen, for each training seed.",
    ]
    for data, generator in dict.fromkeys((cell["dataset"], cell["generator"]) for cell in cells):
        here = [cell for cell in cells if (cell["dataset"], cell["generator"]) == (data, generator)]
        # Beside all choices of a seed stands the same generator.
        bases = list({cell["training_seed"]: cell["base"] for cell in here}.values())
        fid, recall, coverage = (_spread([base[key] for base in bases], digits) for key, digits in _COLUMNS[:3])
        lines += [
            "",
            f"## {generator.upper()}, {DATA_SETS.get(data, data)}",
            "",
            f"Without a tilt: FID {fid}, recall {recall}, coverage {coverage}.",
            "",
            "| | FID ↓ | change | recall ↑ | coverage ↑ | class entropy | λ | s of training |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(here, name) for name in CHOICES if any(cell["choice"] == name for cell in here)]
    lines += ["", *(f"- {name} failed: {reason}" for name, reason in told["failed"].items())] if told["failed"] else []
    if settings["changes"]:
        changes = ", ".join(f"{name} {value}" for name, value in settings["changes"].items())
        lines += ["", f"In all tilts, other than the recipe has it: {changes}."]
    if settings["limit"]:
        lines += ["", f"Only the first {settings['limit']:,} training images were used."]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[Mapping[str, Any]], name: str) -> str:
    of_choice = [cell for cell in cells if cell["choice"] == name]
    change = "" if name == REFERENCE else _change(of_choice, [cell for cell in cells if cell["choice"] == REFERENCE])
    figures = [_spread([cell[key] for cell in of_choice], digits) for key, digits in _COLUMNS]
    strengths = " ".join(f"{cell['strength']:g}" for cell in of_choice)
    seconds = statistics.fmean(cell["cost"]["seconds"] or 0.0 for cell in of_choice)
    columns = [CHOICES[name].label, figures[0], change, *figures[1:], strengths, f"{seconds:.0f}"]
    return f"| {' | '.join(columns)} |"


_COLUMNS = (("fid", 2), ("recall", 3), ("coverage", 3), ("class_entropy", 2))


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _change(of_choice: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> str:
    """Change of the mean FID over the training seeds that both have; nothing where there are none."""
    fids = [{cell["training_seed"]: cell["fid"] for cell in cells} for cells in (of_choice, reference)]
    if not (seeds := fids[0].keys() & fids[1].keys()):
        return ""
    mean, mean_of_reference = (statistics.fmean(of_seed[seed] for seed in seeds) for of_seed in fids)
    return f"{100 * (mean / mean_of_reference - 1):+.0f}%".replace("-", "−")
