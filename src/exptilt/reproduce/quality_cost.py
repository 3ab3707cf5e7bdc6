"""Quality against gradient evaluations: FID along the chains of each model, by each kernel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from exptilt import provenance
from exptilt.config import ADAPTABLE, KERNEL_SETTINGS, SamplerConfig
from exptilt.data import load_dataset, to_uint8
from exptilt.errors import InputError
from exptilt.evaluation.features import features_for
from exptilt.evaluation.metrics import FrechetDistance, require_enough
from exptilt.report.curves import Series
from exptilt.report.files import png
from exptilt.reproduce.models import data_set_of, load_tilted, short_names
from exptilt.reproduce.plots import line_picture
from exptilt.storage import write_bytes, write_json
from exptilt.tilted import TiltedGenerator

# Chain lengths at which the quality is looked at; a kernel's later states are those of its longer chains.
EVERY, STEPS = 20, 200
_TARGET_ACCEPTANCE = 0.6


def draw_cost(
    folders: Sequence[Path],
    out: Path,
    *,
    kernels: Sequence[str],
    n: int,
    seed: int,
    device: torch.device,
    steps: int = STEPS,
    every: int = EVERY,
) -> dict[str, Any]:
    """FID of the states of chains against what they cost, for each model and kernel.

    Leaves ``cost.png`` for one data set, else ``cost-DATA.png`` for each, and ``cost.json``.

    Args:
        folders: Folders of tilted models, for example of each recipe.
        out: Where the files go.
        kernels: Kernels; those with an acceptance have ε adapted to 60%, the others take the model's own, of which the
            energy was trained or chosen with.
        n: Chains of each.
        seed: Of the samples.
        device: Where the chains run.
        steps: Length of the longest chain.
        every: Steps between two looks.

    Returns:
        What the JSON file holds: for each curve its settings and, of each look, steps, gradients of U and values of U
        a sample, and FID.

    Raises:
        InputError: A kernel is not known, a model is not tilted or not of images, or n is too small for the features.
        ChainsDiverged: A chain left the finite numbers.
    """
    for kernel in kernels:
        if kernel not in KERNEL_SETTINGS:
            raise InputError(f"--kernels {kernel}", "is not known", f"use some of {', '.join(KERNEL_SETTINGS)}")
    measured = []
    for folder, name in zip(folders, short_names(folders), strict=True):
        model, data = load_tilted(folder, device), data_set_of(folder)
        test = load_dataset(data, "test")
        test.require_shape(model.data_shape)
        extractor = features_for("auto", test).to(device)
        require_enough(n, extractor.size)
        distance = FrechetDistance(extractor(test.stored))
        for kernel in kernels:
            sampler = _sampler(model, kernel, steps, seed)
            _, info = model.sample(
                n, seed=seed, sampler=sampler, return_latents=True, return_info=True, record_every=every
            )
            looks = []
            for step, z in zip(info.recorded_steps, info.trajectory, strict=True):
                there = sampler.change(steps=int(step))
                costs = {"steps": int(step), "gradients": there.gradients, "evaluations": there.evaluations}
                samples = to_uint8(model.generator.decode_many(z)).cpu()
                looks.append({**costs, "fid": distance(extractor(samples))})
            measured.append(
                {"model": str(folder), "name": name, "data": data, "sampler": to_json(sampler), "at": looks}
            )
    sets = list(dict.fromkeys(one["data"] for one in measured))
    for data in sets:
        lines = [_line(one) for one in measured if one["data"] == data]
        # A value of U costs about a third of a gradient with its forward and backward pass.
        axis = "gradients of U a sample, a value counted as a third"
        ylabel = f"FID, {data}, N = {n:,}"
        picture = line_picture(lines, xlabel=axis, ylabel=ylabel, logarithmic=True, logarithmic_y=True)
        write_bytes(out / ("cost.png" if len(sets) == 1 else f"cost-{data}.png"), png(picture))
    result = {"figure": "cost", "n": n, "seed": seed, "curves": measured, **provenance.origin()}
    write_json(out / "cost.json", result)
    return result


def to_json(sampler: SamplerConfig) -> dict[str, Any]:
    """A kernel and those of its settings that it uses."""
    return {name: getattr(sampler, name) for name in ("kernel", "steps", *KERNEL_SETTINGS[sampler.kernel])}


def _sampler(model: TiltedGenerator, kernel: str, steps: int, seed: int) -> SamplerConfig:
    sampler = model.sampler.change(kernel=kernel, steps=steps)
    if kernel not in ADAPTABLE:
        return sampler
    own, model.sampler = model.sampler, sampler
    try:
        return model.adapted_sampler(_TARGET_ACCEPTANCE, seed=seed)
    finally:
        model.sampler = own


def _line(one: dict[str, Any]) -> Series:
    cost = [look["gradients"] + look["evaluations"] / 3 for look in one["at"]]
    return Series(label=f"{one['name']}, {one['sampler']['kernel']}", x=cost, y=[look["fid"] for look in one["at"]])
