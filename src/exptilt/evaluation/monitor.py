"""Quality of a few samples, cheap enough to look at while an energy is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from exptilt import distributed
from exptilt.data.types import to_uint8
from exptilt.errors import InputError
from exptilt.evaluation.features import FeatureExtractor, load_features
from exptilt.evaluation.metrics import FrechetDistance, class_entropy, class_histogram, kernel_distance
from exptilt.evaluation.neighbours import Neighbours

_SUBSETS, _SUBSET_SIZE = 10, 1000
# So many held-out images to a feature, or more, give a covariance that a Fréchet distance can be told by.
_IMAGES_A_FEATURE = 2
# Which nearest neighbour gives an image its radius; that of evaluate.
_NEIGHBOURS = 5


def quality_monitor(
    features: str | Path | nn.Module | FeatureExtractor, reference: torch.Tensor
) -> Callable[[torch.Tensor], dict[str, float]]:
    """A function that tells how good samples are.

    Args:
        features: Feature network, see :func:`~exptilt.evaluation.features.load_features`.
        reference: Held-out images, uint8 (M, C, H, W), M ≥ 2; their features are computed here, once.

    Returns:
        A function of images (N, C, H, W) in [−1, 1], N ≥ 2, that gives ``{"kid": …}``; ``"fid"`` where samples are more
        than the features, and the reference twice as many or more; ``"recall"`` and ``"coverage"`` where both are more
        than five; ``"entropy"`` (nats) of predicted classes where the network classifies. KID is unbiased, so sets of
        different N compare; the others do not. Images that are not finite have no quality: the result is empty.

    Raises:
        InputError: The network does not fit the reference, or that has fewer than two images.
    """
    if len(reference) < 2:
        raise InputError(f"reference of {len(reference)} images", "tells no quality", "hold out two or more")

    def by_all(extractor: FeatureExtractor, images: torch.Tensor) -> torch.Tensor:
        """Features of the same images on every process, of which each computes its share."""
        return distributed.rows(len(images), lambda mine: extractor(images[mine.start : mine.stop]))

    extractor = load_features(features)
    reference_features = by_all(extractor, reference)
    frechet = FrechetDistance(reference_features) if len(reference) >= _IMAGES_A_FEATURE * extractor.size else None
    neighbours = Neighbours(reference_features, _NEIGHBOURS) if len(reference) > _NEIGHBOURS else None

    def monitor(images: torch.Tensor) -> dict[str, float]:
        if not images.isfinite().all():
            return {}
        samples = by_all(extractor, to_uint8(images.detach()))
        subset_size = min(_SUBSET_SIZE, len(samples), len(reference_features))
        figures = {"kid": kernel_distance(reference_features, samples, subset_size, _SUBSETS)}
        if frechet is not None and len(samples) > extractor.size:
            figures["fid"] = frechet(samples)
        if neighbours is not None and len(samples) > _NEIGHBOURS:
            found = neighbours(samples)
            figures |= {name: found[name] for name in ("recall", "coverage")}
        if (predicted := extractor.predict(samples)) is not None:
            figures["entropy"] = class_entropy(class_histogram(*predicted))
        return figures

    return monitor
