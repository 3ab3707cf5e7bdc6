"""What a page shows of a model: its samples before and after tilting, and the chains between them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from exptilt.report.curves import Series, curves
from exptilt.report.figures import BEFORE_AFTER, Array, chain_strip, image_grid, toy_panels
from exptilt.report.page import Block, KeyValues, Picture, Row, Section, Svg
from exptilt.report.theme import ThemeName

POINTS = 2000  # points that a cloud needs to show its shape
STRIP_CHAINS, STRIP_STEPS = 8, 11
_RECORD_EVERY = 10


@dataclass(frozen=True)
class Drawings:
    """Samples of a model, ready to be drawn: arrays only, so that pages are made and tested without a model.

    Attributes:
        base: G(z₀), (N, C, H, W) in [−1, 1] or (N, D).
        tilted: G(z) at the end of the chain from the same z₀; None for a plain generator.
        trajectory: Some of the chains, decoded, (K, M, *data_shape); None where there are none.
        steps: The K step numbers of the trajectory.
        energy: E along the chains, (steps, N), or None.
        first_energy_step: Step number of its first row.
        acceptance: Mean acceptance of each chain, (N,), or None.
        sentence: One sentence of diagnosis, may be empty.
        seed: Seed of the samples.
        captions: Names of the two distributions.
        data: Points of the data set that the samples are to resemble, or None.
    """

    base: np.ndarray
    tilted: np.ndarray | None = None
    trajectory: np.ndarray | None = None
    steps: Sequence[int] = field(default_factory=list)
    energy: np.ndarray | None = None
    first_energy_step: int = 1
    acceptance: np.ndarray | None = None
    sentence: str = ""
    seed: int = 0
    captions: tuple[str, str] = BEFORE_AFTER
    data: np.ndarray | None = None

    @property
    def are_images(self) -> bool:
        """Whether the samples are images (else points)."""
        return self.base.ndim == 4

    @property
    def are_drawable(self) -> bool:
        """Whether there is a way to draw them: grey or colour images, or points of the plane."""
        return self.base.shape[1:2] in ((1,), (3,)) if self.are_images else self.base.shape[1:] == (2,)


@torch.no_grad()
def collect(model: Any, *, seed: int = 0, n: int = 64, quiet: bool = True) -> Drawings:
    """Sample a generator or a tilted generator for a page.

    Args:
        model: What ``exptilt.load`` returns; a tilted model is one with an attribute ``generator``.
        seed: Of the samples.
        n: Number of images; of points at least 2,000 are drawn.
        quiet: No line on standard error.
    """
    tilted, generator = hasattr(model, "generator"), getattr(model, "generator", model)
    if len(generator.data_shape) == 1:
        n = max(n, POINTS)
    if not quiet:
        print(f"exptilt: drawing {n} samples for the report", file=sys.stderr)
    base = _array(generator.sample(n, seed=seed))
    if not tilted:
        return Drawings(base, seed=seed, captions=(BEFORE_AFTER[0].removeprefix("before: "), ""))
    z, info = model.sample(n, seed=seed, return_latents=True, return_info=True, record_every=_RECORD_EVERY)
    chosen = evenly(len(info.recorded_steps), STRIP_STEPS)
    followed = STRIP_CHAINS if len(generator.data_shape) == 3 else n
    records = [_array(generator.decode(info.trajectory[k, :followed].to(z))) for k in chosen]
    kernel = getattr(getattr(model, "sampler", None), "kernel", "mala")
    return Drawings(
        base,
        tilted=_array(generator.decode(z)),
        trajectory=np.stack(records) if records else None,
        steps=[int(info.recorded_steps[k]) for k in chosen],
        energy=_array(info.energy),
        first_energy_step=0 if kernel == "langevin" else 1,
        acceptance=_array(info.acceptance) if kernel not in ("langevin", "underdamped") else None,
        sentence=info.sentence,
        seed=seed,
        captions=(BEFORE_AFTER[0], f"after: z ~ {formula(model)}"),
    )


def formula(model: Any) -> str:
    """The tilted density of a model in the paper's symbols, with the energies that it has."""
    on_x, on_z = getattr(model, "energy", True) is not None, getattr(model, "latent_energy", None) is not None
    energy = " − ".join(term for term, there in (("E(G(z))", on_x), ("E(z)", on_z)) if there)
    strength = getattr(model, "strength", 1.0)
    if strength != 1:
        energy = f"{strength:g}·{energy.replace(' − ', f' − {strength:g}·')}"
    return f"p(z)·exp(−{energy})/Z"


def themed(draw: Callable[[ThemeName], Image.Image], alt: str, **options: Any) -> Picture:
    """A picture in a light and a dark rendering; ``options`` are those of :class:`Picture`."""
    return Picture(draw("light"), alt, dark=draw("dark"), **options)


def before_after_block(base: Array, tilted: Array, captions: tuple[str, str], command: str = "") -> Row:
    """The two grids side by side (below each other on a phone), each with its caption.

    Args:
        base: G(z₀), (N, C, H, W).
        tilted: G(z) from the same z₀, of the same shape.
        captions: Name of each.
        command: The command that draws the second again.
    """
    pictures = []
    for images, caption, again in zip((base, tilted), captions, ("", command), strict=True):
        alt = f"{len(images)} images, {caption}"
        pictures.append(_grid(images, 8, alt=alt, title=caption, width=480, command=again))
    return Row(pictures)


def sample_section(drawings: Drawings, *, command: str = "") -> Section:
    """The samples of a model, before and after where it is tilted."""
    d, title = drawings, "Samples"
    if not d.are_drawable:
        shape = "×".join(map(str, d.base.shape[1:]))
        return Section(title, f"Samples of shape {shape} are neither grey or colour images nor points of the plane.")
    if not d.are_images:
        named = [("data", d.data), ("base", d.base), ("tilted", d.tilted)]
        clouds = [(name, points) for name, points in named if points is not None]
        palette = (0, 1, 2) if d.data is not None else (1, 2)
        caption = f"{len(d.base):,} samples each, seed {d.seed}."
        return Section(title, "", [toy_picture({"": clouds}, caption, palette=palette, command=command)])
    if d.tilted is None:
        text = f"{len(d.base)} samples, {d.captions[0]}, seed {d.seed}."
        grid = _grid(d.base, 16, alt=f"{len(d.base)} samples", width=920, caption=text, command=command)
        return Section(title, "", [grid])
    text = (
        f"{len(d.base)} samples, seed {d.seed}. The same place in both grids is the same initial latent: "
        "an image of the second is where the chain took that of the first."
    )
    return Section(title, text, [before_after_block(d.base, d.tilted, d.captions, command)])


def chain_section(drawings: Drawings) -> Section | None:
    """Chains step by step and the energy along them; None where no chain was recorded."""
    d, blocks = drawings, list[Block]()
    if d.acceptance is not None and len(finite := d.acceptance[np.isfinite(d.acceptance)]):
        low, high = np.quantile(finite, (0.1, 0.9))
        value = f"mean {finite.mean():.2f}; {low:.2f} to {high:.2f} for the middle 80% of the chains"
        blocks.append(KeyValues([("acceptance", value)]))
    if d.trajectory is not None and len(d.steps) > 1 and d.are_drawable:
        blocks.append(_trajectory(d.trajectory, d.steps, d.are_images))
    if d.energy is not None and d.energy.size:
        blocks.append(energy_curve(d.energy, first_step=d.first_energy_step))
    return Section("Chains", d.sentence, blocks) if blocks else None


def energy_curve(energy: np.ndarray, *, first_step: int = 1) -> Svg:
    """Mean energy along the chains with the band of their middle 80%; energy is (steps, N)."""
    energy = np.where(np.isfinite(energy), energy, np.nan)
    rows = np.isfinite(energy).any(axis=1)
    mean, low, high = (np.full(len(energy), np.nan) for _ in range(3))
    mean[rows] = np.nanmean(energy[rows], axis=1)
    low[rows], high[rows] = np.nanquantile(energy[rows], (0.1, 0.9), axis=1)
    line = Series(label="mean", x=np.arange(len(energy)) + first_step, y=mean, lo=low, hi=high)
    lost = int(np.isnan(energy).sum())
    caption = "Energy E along the chains; band: the middle 80% of them."
    caption += f" {lost} values that are not finite are left out." if lost else ""
    ends = [value for value in mean if math.isfinite(value)] or [math.nan]
    alt = f"mean energy along the chain, from {ends[0]:.3g} to {ends[-1]:.3g}"
    return Svg(curves([line], xlabel="chain step", ylabel="energy E"), alt, caption)


def strip_picture(trajectory: Array, steps: Sequence[int], **options: Any) -> Picture:
    """Chains as rows, steps as columns; arguments as in :func:`chain_strip`, ``options`` of :class:`Picture`."""
    if "caption" not in options:
        options["caption"] = "Each row is one chain, each column a step; step 0 is the base sample."
    chains, side = int(trajectory.shape[1]), max(1, int(trajectory.shape[-1]))
    scale = max(1, 96 // side)  # large enough to be reduced on every screen
    alt = f"{chains} chains at steps {', '.join(map(str, steps))}"
    width = min(920, len(steps) * 80)
    return themed(
        lambda theme: chain_strip(trajectory, steps, scale, gap=2 * scale, theme=theme), alt, width=width, **options
    )


def toy_picture(
    rows: Mapping[str, Sequence[tuple[str, Array]]], caption: str, *, palette: Sequence[int] = (0, 1, 2), **options: Any
) -> Picture:
    """Clouds of points; ``rows`` and ``palette`` as in :func:`toy_panels`, ``options`` of :class:`Picture`."""
    named = [f"{name}: {', '.join(title for title, _ in row)}" if name else row[0][0] for name, row in rows.items()]
    count = max((len(row) for row in rows.values()), default=1)
    width = min(920, 260 * count)
    alt = f"scatter plots, {'; '.join(named)}"
    return themed(
        lambda theme: toy_panels(rows, palette=palette, theme=theme), alt, caption=caption, width=width, **options
    )


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of the indices 0 … count − 1, evenly spread, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def _grid(images: Array, columns: int, *, width: int, **options: Any) -> Picture:
    """A grid whose file has one pixel a pixel, for the browser to enlarge."""
    side = max(1, int(images.shape[-1]))
    return themed(
        lambda theme: image_grid(images, columns, gap=max(1, side // 16), theme=theme),
        options.pop("alt"),
        pixelated=side * columns <= 2 * width,
        width=width,
        **options,
    )


def _trajectory(trajectory: np.ndarray, steps: Sequence[int], are_images: bool) -> Picture:
    if are_images:
        return strip_picture(trajectory, steps)
    chosen = evenly(len(steps), 4)
    row = [(f"step {steps[k]}", trajectory[k]) for k in chosen]
    return toy_picture({"": row}, "The chains at four of their steps; step 0 is the base.", palette=(1, 2))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
