"""Figures 5.2 and C of the paper, samples of the prior and of the tilt from the same z₀; and 5.3, a chain in time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from exptilt import provenance
from exptilt.data import to_uint8
from exptilt.errors import InputError
from exptilt.report.figures import before_after, chain_strip, image_grid
from exptilt.report.files import png
from exptilt.report.samples import formula
from exptilt.report.theme import THEMES
from exptilt.reproduce.models import load_tilted, short_names
from exptilt.storage import write_bytes, write_json
from exptilt.tilted import TiltedGenerator

# Images in a grid: of the main text's figure, and of the appendix's.
IN_TEXT, IN_APPENDIX = 64, 144
# Chains of figure 5.3, and steps between two of its columns.
CHAINS, EVERY = 8, 10
_MARGIN = 24


def draw_grids(
    figure: str, folders: Sequence[Path], out: Path, *, n: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """Figure 5.2 or C: of each model a grid of G(z₀) and one of the ends of the chains from the same z₀.

    Leaves ``FIGURE.png`` with all models, for each model ``FIGURE/NAME-prior.png`` and ``-tilted.png``, one pixel a
    pixel without a gap, and ``FIGURE.json``.

    Args:
        figure: ``"fig5.2"`` or ``"figC"``; names the files.
        folders: Folders of the tilted models.
        out: Where the files go.
        n: Images in a grid.
        seed: Of the samples.
        device: Where the chains run.

    Returns:
        What the JSON file holds: of each model its chain, mean E before and after, and of each grid the SHA-256 of its
        images as bytes.

    Raises:
        InputError: A model is not tilted, or does not make images.
    """
    columns = max(1, round(n**0.5))
    panels, told = [], []
    for folder, name in zip(folders, short_names(folders), strict=True):
        model = _images_model(folder, device)
        z0 = model.generator.sample_prior(n, seed=seed)
        with torch.no_grad():
            prior = model.generator.decode(z0)
            z, info = model.sample(n, seed=seed, return_latents=True, return_info=True)
            tilted = model.generator.decode(z)
        grids = {"prior": prior, "tilted": tilted}
        for kind, images in grids.items():
            write_bytes(out / figure / f"{name}-{kind}.png", png(image_grid(images, columns, gap=0)))
        captions = (f"{name}: G(z), z ~ p(z)", f"z ~ {formula(model)}")
        panels.append(before_after(prior, tilted, columns, captions=captions))
        told.append(
            {
                "model": str(folder),
                "name": name,
                **model.describe(),
                "energy": {"prior": _mean_energy(model, z0), "tilted": _mean_energy(model, z)},
                "sentence": info.sentence,
                "sha256": {kind: _digest(images) for kind, images in grids.items()},
            }
        )
    write_bytes(out / f"{figure}.png", png(stacked(panels)))
    result = {"figure": figure, "n": n, "columns": columns, "seed": seed, "models": told, **provenance.origin()}
    write_json(out / f"{figure}.json", result)
    return result


def draw_chains(folders: Sequence[Path], out: Path, *, seed: int, device: torch.device) -> dict[str, Any]:
    """Figure 5.3: chains of each model, a column every 10 steps.

    Leaves ``fig5.3.png``, ``fig5.3/NAME.png`` for each model, and ``fig5.3.json``.

    Returns:
        What the JSON file holds: of each model its chain, the steps of the columns, and E of each chain there.

    Raises:
        InputError: A model is not tilted, does not make images, or its chain takes no steps.
    """
    panels, told = [], []
    for folder, name in zip(folders, short_names(folders), strict=True):
        model = _images_model(folder, device)
        if not model.sampler.steps:
            raise InputError(folder, "has a chain without steps", "give a model whose sampler takes some")
        _, info = model.sample(CHAINS, seed=seed, return_latents=True, return_info=True, record_every=EVERY)
        states = [z.to(device) for z in info.trajectory]
        with torch.no_grad():
            trajectory = torch.stack([model.generator.decode(z).cpu() for z in states])
            energy = [[round(value, 4) for value in _energies(model, z)] for z in states]
        panels.append(chain_strip(trajectory, info.recorded_steps, caption=f"{name}: chain step"))
        write_bytes(out / "fig5.3" / f"{name}.png", png(panels[-1]))
        told.append(
            {
                "model": str(folder),
                "name": name,
                **model.describe(),
                "steps": [int(step) for step in info.recorded_steps],
                "energy": energy,
            }
        )
    write_bytes(out / "fig5.3.png", png(stacked(panels)))
    result = {"figure": "fig5.3", "chains": CHAINS, "seed": seed, "models": told, **provenance.origin()}
    write_json(out / "fig5.3.json", result)
    return result


def stacked(panels: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, pixel for pixel."""
    width = max(panel.width for panel in panels)
    height = sum(panel.height for panel in panels) + _MARGIN * (len(panels) - 1)
    canvas, top = Image.new("RGB", (width, height), THEMES["light"].background), 0
    for panel in panels:
        canvas.paste(panel, (0, top))
        top += panel.height + _MARGIN
    return canvas


def _images_model(folder: Path, device: torch.device) -> TiltedGenerator:
    model = load_tilted(folder, device)
    if len(model.data_shape) != 3 or model.data_shape[0] not in (1, 3):
        raise InputError(folder, "makes no grey or colour images", "leave it out")
    return model


@torch.no_grad()
def _energies(model: TiltedGenerator, z: torch.Tensor) -> list[float]:
    """λE at latents, all energies of the model together: U + log p(z)."""
    return (model.potential(z) + model.generator.prior.log_prob(z)).tolist()


def _mean_energy(model: TiltedGenerator, z: torch.Tensor) -> float:
    values = [value for part in z.split(64) for value in _energies(model, part)]
    return sum(values) / len(values)


def _digest(images: torch.Tensor) -> str:
    return hashlib.sha256(to_uint8(images).cpu().contiguous().numpy().tobytes()).hexdigest()
