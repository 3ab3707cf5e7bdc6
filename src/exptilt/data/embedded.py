"""The sets that come with the package: scikit-learn's digits and the paper's two toy sets. They need no network."""

from __future__ import annotations

import functools

import numpy as np
import torch

from exptilt.data import toy

NAMES = ("digits", "gaussians", "swissroll")

DIGITS_TEST_COUNT = 500
TOY_COUNTS = {"train": 20_000, "test": 10_000}

_TOY_SEEDS = {"train": 0, "test": 1}


def read_embedded(name: str, split: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Make a split of an embedded set.

    Args:
        name: One of :data:`NAMES`.
        split: ``"train"`` or ``"test"``.

    Returns:
        digits: images, uint8 (N, 1, 32, 32). gaussians, swissroll: points, float32 (N, 2). And labels,
        int64 (N,), for digits (the digit) and gaussians (the component).
    """
    if name == "digits":
        images, labels = _digits(split)
        return images.clone(), labels.clone()
    if name == "gaussians":
        return toy.sample_gaussians(TOY_COUNTS[split], _TOY_SEEDS[split])
    return toy.sample_swissroll(TOY_COUNTS[split], _TOY_SEEDS[split]), None


@functools.lru_cache(maxsize=2)
def _digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    small, labels = load_digits(return_X_y=True)  # (1797, 64), ink from 0 to 16
    small = np.round(small.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    # Pillow enlarges uint8 in integer arithmetic, with clipping: the same pixels on every machine.
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in small]
    rows = train_test_split(np.arange(len(labels)), test_size=DIGITS_TEST_COUNT, stratify=labels, random_state=0)
    chosen = rows[1 if split == "test" else 0]
    return torch.from_numpy(np.stack(large)[chosen][:, None]), torch.from_numpy(labels[chosen].astype(np.int64))
