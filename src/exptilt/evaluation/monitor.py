"""Quality of a few samples, cheap enough to look at while an energy is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from exptilt.data.types import to_uint8
from exptilt.evaluation.features import FeatureExtractor, load_features
from exptilt.evaluation.metrics import FrechetDistance, kernel_distance

_SUBSETS, _SUBSET_SIZE = 10, 1000


def quality_monitor(
    features: str | Path | nn.Module | FeatureExtractor, reference: torch.Tensor, batch_size: int = 500
) -> Callable[[torch.Tensor], dict[str, float]]:
    """A function that tells how good samples are.

    Args:
        features: Feature network, see :func:`~exptilt.evaluation.features.load_features`.
        reference: Held-out images, uint8 (M, C, H, W), M ≥ 2; their features are computed here, once.
        batch_size: Images that pass through the network at once.

    Returns:
        A function of images (N, C, H, W) in [−1, 1], N ≥ 2, that gives ``{"kid": …}``, and ``"fid"`` where samples
        and reference are both more than the features are many. KID is unbiased, so sets of different N compare; FID
        does not. Images that are not finite have no quality: the result is empty.

    Raises:
        InputError: The network does not fit the reference.
    """
    extractor = load_features(features)
    reference_features = extractor(reference, batch_size)
    frechet = FrechetDistance(reference_features) if len(reference) > extractor.size else None

    def monitor(images: torch.Tensor) -> dict[str, float]:
        if not images.isfinite().all():
            return {}
        samples = extractor(to_uint8(images.detach()), batch_size)
        subset_size = min(_SUBSET_SIZE, len(samples), len(reference_features))
        figures = {"kid": kernel_distance(reference_features, samples, subset_size, _SUBSETS)}
        if frechet is not None and len(samples) > extractor.size:
            figures["fid"] = frechet(samples)
        return figures

    return monitor
