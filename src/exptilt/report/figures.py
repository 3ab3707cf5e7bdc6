"""Figures made of samples: grids of images, chains over time, clouds of points. Arrays in, a PIL image out.

Nothing here touches matplotlib's global state. Each function takes ``theme``, so that a page can carry a light
and a dark rendering of the same figure. Line plots are in :mod:`exptilt.report.curves`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from exptilt.data.types import to_uint8
from exptilt.errors import InputError, require_at_least
from exptilt.report.theme import THEMES, ThemeName, font, text_width

Array: TypeAlias = "np.ndarray | torch.Tensor"

BEFORE_AFTER = ("before: G(z), z ~ p(z)", "after: z ~ p(z)·exp(−E(G(z)))/Z")
"""Captions of :func:`before_after` for an energy on images."""

_NOT_A_NUMBER = (255, 0, 255)  # colour of a pixel that is NaN or infinite: no image looks like this by chance


def image_grid(
    images: Array, columns: int = 8, scale: int = 1, gap: int = 2, *, theme: ThemeName = "light"
) -> Image.Image:
    """Images in rows, every pixel a square of ``scale`` × ``scale`` pixels (nearest neighbour).

    Args:
        images: (N, C, H, W) with C 1 or 3, float in [−1, 1] or uint8. Non-finite pixels are drawn magenta.
        columns: Images in a row; fewer where N is smaller.
        scale: Side of a drawn pixel.
        gap: Pixels of background between neighbours (none at the border).
        theme: Gives the background.

    Returns:
        RGB image of columns·W·scale + (columns − 1)·gap by rows·H·scale + (rows − 1)·gap pixels.
        Without images: one empty cell.
    """
    require_at_least(1, columns=columns, scale=scale)
    require_at_least(0, gap=gap)
    cells = _pixels(images)
    count, height, width = cells.shape[:3]
    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    cell_height, cell_width = height * scale, width * scale
    size = (rows * (cell_height + gap) - gap, columns * (cell_width + gap) - gap)
    canvas = np.full((*size, 3), _rgb(THEMES[theme].background), dtype=np.uint8)
    for index, cell in enumerate(cells.repeat(scale, axis=1).repeat(scale, axis=2)):
        top, left = (index // columns) * (cell_height + gap), (index % columns) * (cell_width + gap)
        canvas[top : top + cell_height, left : left + cell_width] = cell
    return Image.fromarray(canvas)


def before_after(
    base: Array,
    tilted: Array,
    columns: int = 8,
    scale: int = 2,
    *,
    captions: tuple[str, str] = BEFORE_AFTER,
) -> Image.Image:
    """Two grids side by side, a caption above each; the same place in both is the same initial latent z₀.

    Args:
        base: G(z₀), (N, C, H, W), float in [−1, 1] or uint8.
        tilted: G(z) at the end of the chain from z₀, of the same shape.
        columns: Images in a row of each grid.
        scale: Side of a drawn pixel.
        captions: What stands above the left and the right grid.
    """
    if tuple(base.shape) != tuple(tilted.shape):
        raise InputError(
            "tilted", f"shape {tuple(tilted.shape)} differs from {tuple(base.shape)}", "give pairs of images"
        )
    colours = THEMES["light"]
    grids = [image_grid(images, columns, scale) for images in (base, tilted)]
    face = _fitting_font(captions, grids[0].width)
    widths = [max(grid.width, math.ceil(face.getlength(c))) for grid, c in zip(grids, captions, strict=True)]
    line = sum(face.getmetrics())
    margin, between = max(8, line // 2), max(16, line)
    top = margin + line + max(4, line // 3)
    size = (2 * margin + sum(widths) + between, top + grids[0].height + margin)
    canvas = Image.new("RGB", size, colours.background)
    draw = ImageDraw.Draw(canvas)
    left = margin
    for grid, caption, width in zip(grids, captions, widths, strict=True):
        draw.text((left, margin), caption, font=face, fill=colours.ink)
        canvas.paste(grid, (left, top))
        left += width + between
    return canvas


def chain_strip(
    trajectory: Array,
    steps: Sequence[int],
    scale: int = 2,
    *,
    gap: int = 2,
    caption: str = "chain step",
    theme: ThemeName = "light",
) -> Image.Image:
    """Chains as rows, recorded steps as columns, the step's number above each column (paper, Figure 5.3).

    Args:
        trajectory: (T, N, C, H, W), float in [−1, 1] or uint8.
        steps: The T step numbers.
        scale: Side of a drawn pixel.
        gap: Pixels between images.
        caption: What stands above the numbers.
        theme: Colours of background and numbers.
    """
    count, chains = trajectory.shape[:2]
    if count != len(steps):
        raise InputError("steps", f"{len(steps)} numbers for {count} recorded steps", "give one for each")
    by_chain = trajectory.swapaxes(0, 1).reshape(count * chains, *trajectory.shape[2:])
    grid = image_grid(by_chain, max(1, count), scale, gap, theme=theme)
    cell = (grid.width + gap) / max(1, count)
    labels = [str(step) for step in steps]
    face = _fitting_font(labels, int(0.8 * cell), largest=round(0.26 * cell), smallest=8)
    line = sum(face.getmetrics())
    top = 2 * line + line // 3
    canvas = Image.new("RGB", (max(grid.width, 6 * line), top + grid.height), THEMES[theme].background)
    draw = ImageDraw.Draw(canvas)
    draw.text((0, 0), caption, font=face, fill=THEMES[theme].muted)
    for index, label in enumerate(labels):
        draw.text((index * cell + (cell - gap) / 2, line), label, font=face, fill=THEMES[theme].ink, anchor="ma")
    canvas.paste(grid, (0, top))
    return canvas


def toy_panels(
    rows: Mapping[str, Sequence[tuple[str, Array]]],
    *,
    palette: Sequence[int] = (0, 1, 2),
    theme: ThemeName = "light",
) -> Image.Image:
    """Clouds of points, one toy set a row, for example data | VAE | VAE + EBM (paper, Figure 5.1).

    Args:
        rows: Name of a toy set (may be empty) to its panels, each a title and points (N, 2). A row has the range of its
            first panel and a margin. How many points lie outside (or are not finite) is written below the panel.
        palette: Series colour of each column; the last counts for all that follow.
        theme: Colours.
    """
    colours = THEMES[theme]
    count = max((len(panels) for panels in rows.values()), default=0)
    if count == 0:
        raise InputError("rows", "no panels", "give at least one title and points (N, 2)")
    # In inches: a panel and its margin, names of sets on the left, and the line below a panel.
    side, gutter, line = 2.15, 0.36 if any(rows) else 0.06, 0.17
    pitch = side + line
    figure = Figure(figsize=(gutter + count * side, len(rows) * pitch + 0.3), dpi=144, facecolor=colours.background)
    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()
    # The longest title is to stay within its panel; a font's size is in 1/72 inch.
    longest = max((text_width(title) for title, _ in next(iter(rows.values()))), default=0.0)
    title_size = min(13.0, 72 * (side - 0.08) / max(longest, 1.0))
    for row, (name, panels) in enumerate(rows.items()):
        clouds = [np.asarray(torch.as_tensor(points).detach().cpu(), dtype=float) for _, points in panels]
        centre, half = _frame(clouds[0])
        for column, ((title, _), points) in enumerate(zip(panels, clouds, strict=True)):
            left, bottom = gutter + column * side, (len(rows) - 1 - row) * pitch + line + 0.04
            axes = figure.add_axes((left / width, bottom / height, (side - 0.08) / width, (side - 0.08) / height))
            inside = np.isfinite(points).all(axis=1) & (np.abs(points - centre) <= half).all(axis=1)
            visible = points[inside]
            axes.plot(
                *visible.T,
                linestyle="none",
                marker="o",
                markersize=float(np.clip(90 / math.sqrt(max(1, len(visible))), 1.6, 4)),
                markeredgewidth=0,
                alpha=float(np.clip(900 / max(1, len(visible)), 0.22, 0.8)),
                color=colours.series[palette[min(column, len(palette) - 1)]],
            )
            axes.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half))
            axes.set(xticks=[], yticks=[], aspect="equal", facecolor=colours.background)
            axes.spines[:].set_color(colours.muted)
            axes.spines[:].set_linewidth(0.6)
            if row == 0:
                axes.set_title(title, color=colours.ink, fontsize=title_size, pad=5, parse_math=False)
            if column == 0:
                axes.set_ylabel(name, color=colours.ink, fontsize=13, labelpad=6, parse_math=False)
            if outside := int(len(points) - inside.sum()):
                axes.set_xlabel(f"{outside} outside", loc="right", color=colours.ink, fontsize=9, labelpad=2)
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")  # type: ignore[attr-defined]


def _pixels(images: Array) -> np.ndarray:
    """(N, C, H, W) to uint8 (N, H, W, 3)."""
    tensor = torch.as_tensor(images).detach().cpu()
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        raise InputError("images", f"shape {tuple(tensor.shape)} is not drawable", "give (N, C, H, W) with C 1 or 3")
    broken = torch.zeros(tensor.shape[0], *tensor.shape[2:], dtype=torch.bool)
    if tensor.dtype != torch.uint8:
        broken = ~tensor.isfinite().all(dim=1)
        tensor = to_uint8(tensor.float().nan_to_num())
    pixels = tensor.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy().copy()
    pixels[broken.numpy()] = _NOT_A_NUMBER
    return pixels


def _frame(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and half side of the square that a row of panels shows."""
    finite = points[np.isfinite(points).all(axis=1)]
    if not len(finite):
        return np.zeros(2), 1.0
    low, high = finite.min(axis=0), finite.max(axis=0)
    return (low + high) / 2, max(0.56 * float((high - low).max()), 1e-6)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def _fitting_font(texts: Sequence[str], width: int, largest: int = 32, smallest: int = 12) -> ImageFont.FreeTypeFont:
    """The largest font in which every text fits into ``width``; not below ``smallest``, which may not fit."""
    longest = max(map(text_width, texts), default=1)
    return font(max(smallest, min(largest, int(width / max(longest, 0.1)))))
