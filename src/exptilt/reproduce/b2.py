"""What B.2 of the paper says of its recipe, checked by short runs that change one setting each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exptilt import hub, provenance
from exptilt.config import SamplerConfig
from exptilt.errors import InputError, RunError
from exptilt.report.log import last_figure
from exptilt.reproduce.cells import Cells
from exptilt.reproduce.paper import Row
from exptilt.reproduce.verdict import verdict
from exptilt.storage import write_bytes, write_json
from exptilt.tilted import TiltedGenerator

REFERENCE = "reference"
# Kind of generator.
_GENERATOR = "vae"


@dataclass(frozen=True)
class Variant:
    """The paper's recipe with a setting changed.

    Attributes:
        label: What is changed.
        changes: Settings of the tilt, by their names in ``TiltConfig``.
        chain: Settings of the chain in training, and with them of the one at sampling, but for their lengths.
        training_steps: Length of the chain in training, unless it is the recipe's.
        sampling_steps: Length of the chain at sampling, unless it is the recipe's; only that is changed, so the
            reference's energy is measured again.
    """

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    chain: Mapping[str, Any] = field(default_factory=dict)
    training_steps: int | None = None
    sampling_steps: int | None = None


VARIANTS = {
    REFERENCE: Variant("the recipe: ε = 0.01, noise and gradient balanced, 60 steps in training"),
    "no-noise": Variant("no noise: gradient descent", chain={"noise_scale": 0.0}),
    "less-noise": Variant("a tenth of the noise", chain={"noise_scale": 0.1}),
    "small-steps": Variant("ε = 0.001", chain={"step_size": 0.001}),
    "large-steps": Variant("ε = 0.1", chain={"step_size": 0.1}),
    "short-training": Variant("20 steps in training", training_steps=20),
    "long-training": Variant("100 steps in training", training_steps=100),
    "sampling-20": Variant("20 steps at sampling", sampling_steps=20),
    "sampling-60": Variant("60 steps at sampling, as in training", sampling_steps=60),
    "sampling-200": Variant("200 steps at sampling", sampling_steps=200),
    "no-regularization": Variant("no energy regularisation", {"energy_regularization": 0.0}),
    "regularization-1": Variant("energy regularisation 1", {"energy_regularization": 1.0}),
    "small-energy": Variant("the smaller energy network", {"energy": "small"}),
    "resnet-energy": Variant("the larger energy network", {"energy": "resnet"}),
}

# Each statement: FID of the first is below that of the second.
STATEMENTS = (
    ("noise and gradient are to be balanced", REFERENCE, "less-noise"),
    ("noise and gradient are to be balanced", REFERENCE, "no-noise"),
    ("ε = 0.01 is better than a smaller one", REFERENCE, "small-steps"),
    ("ε = 0.01 is better than a larger one", REFERENCE, "large-steps"),
    ("60 steps in training are better than fewer", REFERENCE, "short-training"),
    ("chains at sampling that are longer than in training help", REFERENCE, "sampling-60"),
    ("still longer chains at sampling help", "sampling-200", REFERENCE),
    ("the energy regularisation helps", REFERENCE, "no-regularization"),
    ("the larger energy network is better than the smaller one", "resnet-energy", "small-energy"),
)


def check_statements(cells: Cells, data: str, *, only: Sequence[str] = ()) -> dict[str, Any]:
    """Make the runs on one generator and data set, and write ``b2.json`` and ``b2.md`` after each.

    Args:
        cells: Makes the runs.
        data: The data set.
        only: Variants to make; all unless any is given. A variant of sampling alone makes the reference too.

    Returns:
        ``{"dataset", "generator", "runs", "statements", "failed"}``: of each run figures, cost and the last energies of
        its log; of each statement its verdict, see :func:`~exptilt.reproduce.verdict.verdict`.

    Raises:
        InputError: A variant is not known, or an input of a run is wrong.
    """
    for name in only:
        if name not in VARIANTS:
            raise InputError(f"--only {name}", "is no run of b2", f"use some of {', '.join(VARIANTS)}")
    runs: dict[str, Any] = {}
    failed: dict[str, str] = {}
    made: dict[str, Any] = {}
    for name in only or VARIANTS:
        try:
            runs[name] = _run(cells, name, data)
        except RunError as error:
            failed[name] = str(error)
        made = {
            "dataset": data,
            "generator": _GENERATOR,
            "settings": cells.settings.recorded(),
            "runs": runs,
            "statements": [
                {"statement": text, "better": a, "worse": b, "verdict": verdict(-1.0, runs.get(a), runs.get(b))}
                for text, a, b in STATEMENTS
            ],
            "failed": failed,
            **provenance.origin(),
        }
        write_json(cells.out / "b2.json", made)
        write_bytes(cells.out / "b2.md", markdown(made).encode())
    return made


def markdown(made: Mapping[str, Any]) -> str:
    """The runs and the statements as a page."""
    settings = made["settings"]
    lines = [
        "# The statements of B.2",
        "",
        f"{made['generator']} on {made['dataset']}, scale {settings['scale']}, N = {settings['n']:,}, sampling seeds "
        f"{' '.join(map(str, settings['seeds']))}.",
        "FID with its 95% bootstrap interval, from one training seed: the spread over trainings is not in it.",
        "",
        "| run | FID | recall | coverage | last E(x⁻) − E(x⁺) | gradients of U in training | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in made["runs"].items():
        low, high = run["fid_ci"]
        gap = "–" if run["energy_gap"] is None else f"{run['energy_gap']:.3g}"
        cost = run["cost"]
        lines.append(
            f"| {VARIANTS[name].label} | {run['fid']:.2f} [{low:.2f}, {high:.2f}] | {run['recall']:.3f} | "
            f"{run['coverage']:.3f} | {gap} | {cost['gradient_evaluations']:,} | {cost['seconds'] or 0:.0f} |"
        )
    lines += [f"| {VARIANTS[name].label} | failed: {reason} | | | | | |" for name, reason in made["failed"].items()]
    lines += ["", "| statement | compared | verdict |", "|---|---|---|"]
    lines += [
        f"| {told['statement']} | {VARIANTS[told['better']].label} · {VARIANTS[told['worse']].label} | "
        f"{told['verdict']} |"
        for told in made["statements"]
    ]
    return "\n".join(lines) + "\n"


def _run(cells: Cells, name: str, data: str) -> dict[str, Any]:
    variant = VARIANTS[name]
    row = Row(variant.label, _GENERATOR, "paper", _GENERATOR)
    if variant.sampling_steps is not None:
        return _sampled_anew(cells, name, row, data, variant.sampling_steps)
    changes = _changes(cells, variant)
    if name != REFERENCE and cells.kept(f"b2-{name}", data) is None:
        generator, _, recipe = cells.tilted_from(row, data)
        settings, unchanged = (
            cells.tilt_config(generator, recipe, data, each) for each in (changes, _changes(cells, VARIANTS[REFERENCE]))
        )
        # At each scale one of the two energies is the reference's own.
        if settings == unchanged:
            return _run(cells, REFERENCE, data)
    cell = cells.make(f"b2-{name}", row, data, changes)
    return {**cell, "energy_gap": _energy_gap(cells, name, data)}


def _sampled_anew(cells: Cells, name: str, row: Row, data: str, steps: int) -> dict[str, Any]:
    """The reference's energy with chains of another length."""
    if (cell := cells.kept(f"b2-{name}", data)) is None:
        _run(cells, REFERENCE, data)
        trained = cells.out / data / f"b2-{REFERENCE}"
        model = hub.load(trained, device=cells.settings.device)
        assert isinstance(model, TiltedGenerator)
        model.sampler = model.sampler.change(steps=steps)
        cell = cells.keep(f"b2-{name}", row, data, model, trained)
    return {**cell, "energy_gap": _energy_gap(cells, REFERENCE, data)}


def _energy_gap(cells: Cells, name: str, data: str) -> float | None:
    return last_figure(cells.out / data / f"b2-{name}", "energy_gap")


def _changes(cells: Cells, variant: Variant) -> dict[str, Any]:
    """Settings of a variant's tilt in place of the scale's."""
    chain = _changed(cells, "chain", variant.chain, variant.training_steps)
    sampler = _changed(cells, "sampler", variant.chain, None)
    return {**variant.changes, "chain": chain, "sampler": sampler}


def _changed(cells: Cells, which: str, changes: Mapping[str, Any], steps: int | None) -> SamplerConfig:
    """The chain of the cells' settings, or the paper's, with a variant's changes."""
    paper = SamplerConfig(steps=60 if which == "chain" else 100)
    chain = cells.settings.changes.get(which, paper)
    return dataclasses.replace(chain, **changes, **({} if steps is None else {"steps": steps}))
