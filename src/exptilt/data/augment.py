"""What is done to training images at random."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from exptilt import rows

_REACH = 2


def augment(x: torch.Tensor, kind: str, generator: torch.Generator, turns: torch.Tensor) -> torch.Tensor:
    """Random translations by up to 2 pixels, each image its own, and mirror images.

    Args:
        x: Images (N, C, H, W) in [−1, 1].
        kind: ``"none"``; ``"shift"``: translations, with black at the borders; ``"shift-flip"``: and half of the images
            mirrored; ``"shift-alternate"``: translations with the image's own reflection at the borders, and those
            images mirrored whose turn is odd (Jordan 2024, section 3.6: two epochs then show each image both ways).
        generator: Source of the random numbers.
        turns: Whole numbers (N,) that go up by one from one showing of an image to the next.

    Returns:
        Images of the same shape.
    """
    if kind == "none":
        return x
    n, _, height, width = x.shape
    if kind == "shift-flip":
        flip = rows.uniform((n,), generator) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
    if kind == "shift-alternate":
        x = torch.where((turns % 2 == 1)[:, None, None, None], x.flip(3), x)
        padded = F.pad(x, (_REACH,) * 4, mode="reflect")
    else:
        padded = F.pad(x, (_REACH,) * 4, value=-1.0)
    row, column = (rows.integers(0, 2 * _REACH + 1, n, generator) for _ in range(2))
    down = (row[:, None] + torch.arange(height))[:, None, :, None]
    across = (column[:, None] + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], down, across]
