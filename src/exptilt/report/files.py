"""Samples as files' content."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file's content."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def image_png(image: torch.Tensor) -> bytes:
    """One image, uint8 (C, H, W) with C 1 or 3, as a PNG file's content."""
    array = image.permute(1, 2, 0).numpy()
    return png(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array))


def archive(samples: torch.Tensor) -> bytes:
    """Samples as an .npz file's content: ``images``, uint8 (N, H, W, C), or float32 points (N, D)."""
    array = samples.numpy() if samples.dim() == 2 else samples.permute(0, 2, 3, 1).numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=array)
    return buffer.getvalue()
