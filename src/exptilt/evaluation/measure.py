"""All figures of one model: sets of features in, the JSON object of a result out."""

from __future__ import annotations

import math
from typing import Any

import torch

from exptilt.evaluation.features import FeatureExtractor
from exptilt.evaluation.metrics import FrechetDistance, class_entropy, class_histogram, kernel_distance
from exptilt.evaluation.neighbours import Neighbours
from exptilt.evaluation.protocol import Protocol

# 97.5% quantile of the standard normal distribution: a 95% interval is ± this many standard errors.
_QUANTILE = 1.96


class Measure:
    """Figures of sets of features against a fixed reference.

    Args:
        reference: Features (M, F) of the reference images.
        protocol: Settings of the metrics.
        extractor: Where the features come from; it predicts classes.

    Raises:
        InputError: There are not more reference images than features.
    """

    def __init__(self, reference: torch.Tensor, protocol: Protocol, extractor: FeatureExtractor) -> None:
        self._reference, self._protocol, self._extractor = reference, protocol, extractor
        self._frechet = FrechetDistance(reference)
        self._neighbours = Neighbours(reference, protocol.neighbours)

    def __call__(self, sets: list[torch.Tensor], seconds: float) -> dict[str, Any]:
        """Figures, each the mean over the sets.

        FID's interval is its mean over the sets ± 1.96 × the bootstrap standard error of that mean: images are
        resampled within each set, and the sets are independent. The reference is held fixed, and the bias that a
        finite number of samples gives FID is part of the figure, not of its error. No distance is below 0, so the
        interval is cut there; close to 0, where the distance is quadratic, it is wider than it need be.

        Args:
            sets: Features (N, F) of the samples of each seed.
            seconds: What making the images took.

        Raises:
            InputError: A set has too few images.
        """
        protocol = self._protocol
        fids = [self._frechet(features) for features in sets]
        errors = [
            self._frechet.standard_error(features, protocol.bootstrap_replicates, protocol.metrics_seed)
            for features in sets
        ]
        fid = math.fsum(fids) / len(sets)
        kids = [self._kid(features) for features in sets]
        neighbours = [self._neighbours(features) for features in sets]
        return {
            "n": len(sets[0]),
            "fid": fid,
            "fid_ci": _interval(fid, math.hypot(*errors) / len(sets)),
            "kid": math.fsum(kids) / len(sets),
            **{name: math.fsum(each[name] for each in neighbours) / len(sets) for name in neighbours[0]},
            **self.classes(torch.cat(sets)),
            "fid_per_seed": fids,
            "fid_ci_per_seed": [_interval(*pair) for pair in zip(fids, errors, strict=True)],
            "seconds": seconds,
        }

    def classes(self, features: torch.Tensor) -> dict[str, Any]:
        """Entropy (nats) and fractions of the classes predicted from features (N, F); None where there are none."""
        predicted = self._extractor.predict(features)
        if predicted is None:
            return {"class_entropy": None, "class_histogram": None}
        histogram = class_histogram(*predicted)
        return {"class_entropy": class_entropy(histogram), "class_histogram": histogram}

    def _kid(self, features: torch.Tensor) -> float:
        protocol = self._protocol
        subset_size = min(protocol.kid_subset_size, len(features))
        return kernel_distance(self._reference, features, subset_size, protocol.kid_subsets, seed=protocol.metrics_seed)


def _interval(centre: float, error: float) -> list[float]:
    return [max(0.0, centre - _QUANTILE * error), centre + _QUANTILE * error]
