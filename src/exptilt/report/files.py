"""Samples as files: pictures and archives."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from exptilt.data import to_uint8
from exptilt.report.figures import image_grid
from exptilt.storage import atomic, require_place, write_bytes


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file's content."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def image_png(image: torch.Tensor) -> bytes:
    """One image, uint8 (C, H, W) with C 1 or 3, as a PNG file's content."""
    array = image.permute(1, 2, 0).numpy()
    return png(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array))


def write_samples(out: Path, blocks: Iterable[torch.Tensor], n: int, *, columns: int = 8) -> None:
    """Write samples as they come: to an ``.npz`` any number, in the memory of one block.

    Args:
        out: A ``.png`` (a grid, kept in memory as uint8) or a ``.npz``.
        blocks: Images (B, C, H, W) in [−1, 1], or points (B, D) for an ``.npz``.
        n: How many samples the blocks hold together.
        columns: Columns of the grid.
    """
    stored = (to_uint8(x).cpu() if x.dim() == 4 else x.cpu() for x in blocks)
    if out.suffix.lower() == ".npz":
        write_archive(out, stored, n)
    else:
        require_place(out)
        write_bytes(out, png(image_grid(torch.cat(list(stored)), columns)))


def write_archive(path: Path, blocks: Iterable[torch.Tensor], n: int) -> None:
    """Write an ``.npz`` with ``images``, block by block and atomically.

    Args:
        path: The file.
        blocks: uint8 (B, C, H, W), stored as (n, H, W, C), or float32 points (B, D).
        n: How many samples the blocks hold together.
    """
    with (
        atomic(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as entry,
    ):
        for number, block in enumerate(blocks):
            array = block.numpy() if block.dim() == 2 else block.permute(0, 2, 3, 1).numpy()
            if number == 0:
                descr = np.lib.format.dtype_to_descr(array.dtype)
                header = {"descr": descr, "fortran_order": False, "shape": (n, *array.shape[1:])}
                np.lib.format.write_array_header_1_0(cast(Any, entry), header)
            entry.write(array.tobytes())
