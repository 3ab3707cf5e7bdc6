"""Distances between two sets of features. FID and KID are torchmetrics'; the neighbour metrics are in neighbours.py.

Every function takes features as (N, F) tensors of any floating-point type and computes in float64, in its own process:
left alone (``sync_on_compute``), torchmetrics would wait for the other processes of a distributed run to take part.
"""

from __future__ import annotations

import functools
import math
import warnings

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from exptilt.errors import InputError


class FrechetDistance:
    """FID from a fixed reference (Heusel et al. 2017, eq. 6).

    d² = ‖μ − m‖² + tr(Σ + S − 2 (Σ S)^½), with means μ, m and covariances Σ, S of the features of samples and
    reference. That of a set is torchmetrics'. Of its bootstrap replicates the same is computed by eigenvalues of a
    symmetric matrix, those of Lᵀ Σ L with S = L Lᵀ, in a fraction of the time.

    The figure of N samples is biased upwards by about a constant / N, so only figures of equal N compare.

    Args:
        reference: Features (M, F).

    Raises:
        InputError: M ≤ F, so the covariance would be singular.
    """

    def __init__(self, reference: torch.Tensor) -> None:
        count = len(reference)
        require_enough(count, reference.shape[1], f"reference of {count} images", "take a larger set")
        self._metric = FrechetInceptionDistance(
            feature=_Identity(reference.shape[1]),
            reset_real_features=False,
            compute_with_cache=False,
            sync_on_compute=False,
        )
        self._metric.update(reference.double(), real=True)

    def __call__(self, features: torch.Tensor) -> float:
        """FID of features (N, F) from the reference.

        Raises:
            InputError: N ≤ F.
        """
        require_enough(len(features), features.shape[1])
        self._metric.reset()
        self._metric.update(features.double(), real=False)
        # Rounding takes the distance of equal sets a little below 0.
        return max(0.0, float(self._metric.compute()))

    def standard_error(self, features: torch.Tensor, replicates: int = 100, seed: int = 0) -> float:
        """Bootstrap standard error of :meth:`__call__` (Efron 1979).

        The N samples are drawn anew from themselves, with replacement, ``replicates`` times; the result is the
        standard deviation of the replicates' figures. Their mean lies above the figure itself (a resampled set is
        twice as far from its population), so intervals are built as figure ± 1.96 × this, and the mean is not used.
        It counts the randomness of the samples; the reference is held fixed. A replicate is a weighted mean and
        covariance with multinomial weights, so nothing is copied but one weighted set.

        Args:
            features: (N, F).
            replicates: Number of resampled sets, ≥ 2.
            seed: Fixes the resampling.

        Raises:
            InputError: N ≤ F, or too few replicates.
        """
        if replicates < 2:
            raise InputError("bootstrap", f"{replicates} replicates", "give a whole number ≥ 2")
        require_enough(len(features), features.shape[1])
        features, n = features.double(), len(features)
        generator = torch.Generator().manual_seed(seed)
        figures = torch.empty(replicates, dtype=torch.float64)
        for i in range(replicates):
            draws = torch.randint(n, (n,), generator=generator)
            counts = torch.bincount(draws, minlength=n).double()
            weighted = features * counts[:, None]
            figures[i] = self._from_moments(*_moments(weighted.sum(0), weighted.T @ features, n))
        return float(figures.std())

    def _from_moments(self, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        """d² of samples with this mean (F,) and covariance (F, F), which may be singular."""
        reference_mean, reference_trace, factor = self._reference
        shared = torch.linalg.eigvalsh(factor.T @ covariance @ factor).clamp(min=0).sqrt().sum()
        return (mean - reference_mean).square().sum() + reference_trace + covariance.trace() - 2 * shared

    @functools.cached_property
    def _reference(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean m (F,) of the reference, trace of its covariance S, and a factor L (F, F) with S = L Lᵀ."""
        metric = self._metric
        mean, covariance = _moments(
            metric.real_features_sum, metric.real_features_cov_sum, metric.real_features_num_samples
        )
        # By eigenvalues, as features that never vary make it singular.
        values, vectors = torch.linalg.eigh(covariance)
        return mean, covariance.trace(), vectors * values.clamp(min=0).sqrt()


def kernel_distance(
    reference: torch.Tensor,
    features: torch.Tensor,
    subset_size: int = 1000,
    subsets: int = 100,
    seed: int = 0,
) -> float:
    """KID: squared maximum mean discrepancy under (x·y / F + 1)³ (Bińkowski et al. 2018, §4); unbiased, may be < 0.

    Args:
        reference: Features (M, F).
        features: Features (N, F) of samples.
        subset_size: Images of each set in a subset; at most min(M, N).
        subsets: Number of random subsets that the figure is the mean over.
        seed: Fixes the subsets.

    Raises:
        InputError: ``subset_size`` is below 2 or above min(M, N).
    """
    largest = min(len(reference), len(features))
    if not 2 <= subset_size <= largest:
        raise InputError("KID subsets", f"{subset_size} images of {largest}", f"give a number in [2, {largest}]")
    with warnings.catch_warnings():
        # It keeps every feature, which is what is wanted here: they are in memory already.
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all", UserWarning)
        metric = KernelInceptionDistance(
            feature=_Identity(reference.shape[1]), subsets=subsets, subset_size=subset_size, sync_on_compute=False
        )
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    # torchmetrics draws its subsets from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        mean, _ = metric.compute()
    return float(mean)


def class_histogram(classes: torch.Tensor, count: int) -> list[float]:
    """Fraction of each class 0 … count − 1 among predicted classes, int64 (N,)."""
    return (torch.bincount(classes, minlength=count).double() / len(classes)).tolist()


def class_entropy(histogram: list[float]) -> float:
    """−Σ p log p of a histogram, in nats: log K where K classes are equally frequent, 0 where only one occurs."""
    return max(0.0, -math.fsum(p * math.log(p) for p in histogram if p > 0))


def require_enough(n: int, size: int, subject: str | None = None, mend: str | None = None) -> None:
    """Refuse n images for a Fréchet distance on ``size`` features: the covariance would be singular.

    Args:
        n: Number of images.
        size: Number of features F.
        subject: What the images are; samples, and so the option -n, unless given.
        mend: What to do about it.

    Raises:
        InputError: n ≤ F.
    """
    if n <= size:
        raise InputError(
            subject or f"n={n}",
            f"a Fréchet distance on {size} features needs more than {size} images",
            mend or f"give -n {10 * size} or more",
        )


def _moments(total: torch.Tensor, products: torch.Tensor, n: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (F,) and covariance (F, F) of n features, from their sum (F,) and that of their products (F, F)."""
    mean = total / n
    return mean, (products - n * torch.outer(mean, mean)) / (n - 1)


class _Identity(nn.Module):
    """Features, passed through as the features that torchmetrics asks a network for."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features
