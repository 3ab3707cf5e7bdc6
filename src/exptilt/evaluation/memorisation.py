"""Whether samples lie nearer to training images than new images do: a sign of training images learned by heart."""

from __future__ import annotations

from typing import Any

import torch

QUERIES = 2000
"""Samples, and held-out images, whose nearest training images are looked for."""
SHOWN = 8
"""Samples that are told one by one: those nearest to a training image."""
NEAREST = 3
"""Training images that are told for each of them."""

_QUANTILE = 0.01
# Entries of a distance matrix that are in memory at once (32 MiB in float64).
_BLOCK = 1 << 22


class Memorisation:
    """Distances to the nearest training image, of samples relative to those of held-out images.

    Everything is in feature space. A model that has learned training images by heart gives samples nearer to them
    than new images of the same distribution are. Blurred or typical samples are nearer too, for they lack what tells
    images apart: look at the pictures before saying that a model copies.

    Args:
        train: Features (T, F) of the whole training set.
        held_out: Features (M, F) of images that the model has not seen; at most :data:`QUERIES` of them, evenly
            spread, are used.

    Attributes:
        facts: ``{"n_train", "n_held_out", "held_out_median", "held_out_quantile"}``: numbers of images, and median
            and 1% quantile of the held-out images' distances to their nearest training image.
    """

    def __init__(self, train: torch.Tensor, held_out: torch.Tensor) -> None:
        self._train = train
        # Distances do not depend on the origin, and rounding is least with it in the middle of the data.
        self._origin = train.mean(0, dtype=torch.float64)
        distances = self._nearest(held_out[spread(len(held_out))])[0][:, 0]
        self._median, self._low = float(distances.median()), float(distances.quantile(_QUANTILE))
        self.facts = {
            "n_train": len(train),
            "n_held_out": len(distances),
            "held_out_median": self._median,
            "held_out_quantile": self._low,
        }

    def __call__(self, features: torch.Tensor) -> dict[str, Any]:
        """Figures of samples' features (N, F), of which at most :data:`QUERIES`, evenly spread, are used.

        Returns:
            ``n``: samples used; ``median_ratio``: the median of their distances to the nearest training image over
            that of the held-out images (None where that is 0); ``share_below``: share of samples no farther from
            their nearest training image than the 1% quantile of the held-out images, so 0.01 for samples that are as
            new as those; ``nearest``: of the :data:`SHOWN` samples nearest to a training image ``{"sample", "train",
            "distances"}``: index of the sample, indices of its :data:`NEAREST` nearest training images, distances.
        """
        chosen = spread(len(features))
        distances, indices = self._nearest(features[chosen])
        first = distances[:, 0]
        order = first.argsort(stable=True)[:SHOWN].tolist()
        return {
            "n": len(chosen),
            "median_ratio": float(first.median()) / self._median if self._median > 0 else None,
            "share_below": float((first <= self._low).double().mean()),
            "nearest": [
                {"sample": int(chosen[i]), "train": indices[i].tolist(), "distances": distances[i].tolist()}
                for i in order
            ],
        }

    def _nearest(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances and indices, both (Q, NEAREST), of the nearest training images of features (Q, F)."""
        queries = features.double() - self._origin
        norms = queries.square().sum(1, keepdim=True)
        count = min(NEAREST, len(self._train))
        squared = torch.full((len(queries), count), torch.inf, dtype=torch.float64)
        indices = torch.zeros(len(queries), count, dtype=torch.int64)
        height = max(1, _BLOCK // len(queries))
        for first in range(0, len(self._train), height):
            block = self._train[first : first + height].double() - self._origin
            distances = torch.addmm(block.square().sum(1), queries, block.T, alpha=-2).add_(norms).clamp_(min=0)
            values, places = distances.topk(min(count, len(block)), largest=False)
            squared, order = torch.cat([squared, values], 1).topk(count, largest=False)
            indices = torch.cat([indices, places + first], 1).gather(1, order)
        return squared.sqrt(), indices


def spread(count: int) -> torch.Tensor:
    """At most :data:`QUERIES` indices below ``count``, evenly spread and in order; int64."""
    chosen = min(QUERIES, count)
    return torch.arange(chosen) * count // chosen
