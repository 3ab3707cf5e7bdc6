"""Samples beside their nearest training images: a file for a run's folder, and a section for its page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from exptilt.errors import InputError
from exptilt.report.figures import image_grid
from exptilt.report.files import png
from exptilt.report.numbers import number, protocol_hash
from exptilt.report.page import Block, Picture, Section, Table
from exptilt.storage import write_bytes

NEIGHBOURS = "neighbours.png"

_ROWS = ("base", "tilted", "images")


def write_nearest(folder: Path, samples: torch.Tensor, nearest: torch.Tensor) -> Path:
    """Write ``neighbours.png``: a column for each sample, the sample above, its nearest training images below.

    Args:
        folder: Of the run.
        samples: uint8 (K, C, H, W).
        nearest: uint8 (K, 3, C, H, W).

    Returns:
        The file.
    """
    columns = torch.cat([samples[:, None], nearest], 1)
    images = columns.transpose(0, 1).flatten(0, 1)
    scale = max(1, 64 // images.shape[-1])
    write_bytes(folder / NEIGHBOURS, png(image_grid(images, len(samples), scale, gap=2 * scale)))
    return folder / NEIGHBOURS


def nearest_section(result: Mapping[str, Any], picture: bytes | None = None) -> Section | None:
    """The figures of a result's ``neighbours``, and the picture if there is one; None where there are none."""
    told = result.get("neighbours")
    if not isinstance(told, Mapping):
        return None
    rows = [[name, *_cells(part)] for name in _ROWS if isinstance(part := told.get(name), Mapping)]
    if not rows:
        return None
    header = ["", "median distance, relative", "nearer than 99% of test images"]
    n_train, n_held_out = number(told.get("n_train")), number(told.get("n_held_out"))
    note = (
        f"Distances in feature space to the nearest of {n_train:,.0f} training images, of samples and of "
        f"{n_held_out:,.0f} test images; new images of the same kind would have 1.00 and 1.0%."
    )
    blocks: list[Block] = [
        Table(
            "Nearest training images",
            header,
            rows,
            note=note,
            protocol=protocol_hash(result),
            command=str(result.get("command") or ""),
        )
    ]
    if picture is not None and _is_picture(picture):
        alt = "samples above their nearest training images"
        caption = "Above: the samples nearest to a training image. Below each: its nearest training images."
        blocks.append(Picture(picture, alt, caption=caption, pixelated=True))
    text = (
        "A model that has memorised training images gives samples nearer to them than new images are. "
        "Blurred and typical samples are nearer too: the picture shows whether a sample is a copy."
    )
    return Section("Nearest training images", text, blocks)


def _cells(part: Mapping[str, Any]) -> list[str]:
    ratio, share = number(part.get("median_ratio")), number(part.get("share_below"))
    return [
        f"{ratio:.2f}" if math.isfinite(ratio) else "–",
        f"{100 * share:.1f}%" if math.isfinite(share) else "–",
    ]


def _is_picture(content: bytes) -> bool:
    try:
        size = Picture(content, "").size
    except (InputError, Image.DecompressionBombError):
        return False
    return min(size) > 0
