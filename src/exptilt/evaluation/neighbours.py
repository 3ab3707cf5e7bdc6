"""Fidelity and diversity from nearest neighbours in feature space, in bounded memory.

Computed in float64: squared distances are differences of products, which float32 would not resolve.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from exptilt.errors import InputError, require_at_least

# Entries of a distance matrix that are in memory at once (64 MiB in float64).
_BLOCK = 1 << 23


class Neighbours:
    """Precision, recall, density and coverage against a fixed reference.

    Args:
        reference: Features (M, F).
        k: Which nearest neighbour (itself not counted) gives an image its radius.

    Raises:
        InputError: k < 1 or M ≤ k.
    """

    def __init__(self, reference: torch.Tensor, k: int = 5) -> None:
        require_at_least(1, neighbours=k)
        # Distances do not depend on the origin, and rounding is least with it in the middle of the data.
        self._origin = reference.double().mean(0)
        self._reference = reference.double() - self._origin
        self._k = k
        self._radii = _squared_radii(self._reference, k)

    def __call__(self, features: torch.Tensor) -> dict[str, float]:
        """Metrics of features (N, F) of samples.

        Returns:
            precision: Fraction of samples within the radius of some reference image, and recall: the converse
            (Kynkäänniemi et al. 2019, eq. 1 and 2); density: mean number of reference radii that a sample is within,
            over k (Naeem et al. 2020, eq. 3), about 1 for equal distributions; coverage: fraction of reference images
            with a sample within their radius (eq. 4).

        Raises:
            InputError: N ≤ k.
        """
        samples = features.double() - self._origin
        sample_radii = _squared_radii(samples, self._k)
        within_count = torch.zeros(len(samples), dtype=torch.int64)
        recalled = covered = 0
        for rows, squared in _squared_distances(self._reference, samples):
            within = squared < self._radii[rows, None]
            within_count += within.sum(0)
            covered += int(within.any(1).sum())
            recalled += int((squared < sample_radii).any(1).sum())
        return {
            "precision": float((within_count > 0).double().mean()),
            "recall": recalled / len(self._reference),
            "density": float(within_count.double().mean()) / self._k,
            "coverage": covered / len(self._reference),
        }


def _squared_radii(features: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance (N,) of each point to its k-th nearest neighbour."""
    if len(features) <= k:
        raise InputError(f"n={len(features)}", f"{k} neighbours need more than {k} images", "give more images")
    radii = torch.empty(len(features), dtype=features.dtype)
    for rows, squared in _squared_distances(features, features):
        # The smallest is the point itself.
        radii[rows] = squared.topk(k + 1, largest=False).values[:, -1]
    return radii


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of x (N, F), and their squared distances (rows, M) to all of y (M, F), a block at a time."""
    x_norms, y_norms = x.square().sum(1), y.square().sum(1)
    height = max(1, _BLOCK // len(y))
    for first in range(0, len(x), height):
        rows = slice(first, first + height)
        yield rows, torch.addmm(y_norms, x[rows], y.T, alpha=-2).add_(x_norms[rows, None]).clamp_(min=0)
