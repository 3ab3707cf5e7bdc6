"""The paper's toy distributions in the plane (§5.1), with everything about them that is known exactly."""

from __future__ import annotations

import math

import numpy as np
import torch

GAUSSIAN_SCALE = 1 / math.sqrt(8)
"""Turns the grid {−4, −2, 0, 2, 4}², whose standard deviation is √8 an axis, into one of standard deviation 1."""
GAUSSIAN_STD = 0.05 * GAUSSIAN_SCALE
"""Standard deviation of a component, an axis."""

SWISSROLL_SCALE = 1 / 7.5
"""Turns scikit-learn's roll, of radius 1.5π to 4.5π, into one of radius 0.63 to 1.88."""
SWISSROLL_ANGLES = (1.5 * math.pi, 4.5 * math.pi)
"""Range of the angle t, in radians; t is uniform in it."""
SWISSROLL_STD = 0.25 * SWISSROLL_SCALE
"""Standard deviation of the noise around the curve, an axis."""

# So many that the polygon is within 2e-6 of the curve.
_CURVE_SEGMENTS = 4096
_PANELS, _PANEL_NODES = 64, 24
_CHUNK_POINTS = 1024


def gaussian_centres() -> torch.Tensor:
    """The centres of the 25 components, which have equal weights: float32 (25, 2)."""
    axis = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0]) * GAUSSIAN_SCALE
    return torch.cartesian_prod(axis, axis)


def sample_gaussians(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the mixture of 25 Gaussians.

    Args:
        count: Number of points.
        seed: Fixes them.

    Returns:
        Points, float32 (count, 2), and the component that each came from, int64 (count,).
    """
    generator = torch.Generator().manual_seed(seed)
    component = torch.randint(25, (count,), generator=generator)
    noise = torch.randn(count, 2, generator=generator)
    return gaussian_centres()[component] + GAUSSIAN_STD * noise, component


def gaussians_log_density(points: torch.Tensor) -> torch.Tensor:
    """Log density of the mixture: points (N, 2) to nats (N,)."""
    centres = gaussian_centres().to(points)
    return _log_mixture(points, centres, centres.new_full((25,), -math.log(25)), GAUSSIAN_STD)


def nearest_centre(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The component whose centre is nearest: points (N, 2) to its index, int64 (N,), and its distance, (N,)."""
    distance, index = _distances(points, gaussian_centres().to(points)).min(dim=1)
    return index, distance


def swissroll_curve(angles: torch.Tensor) -> torch.Tensor:
    """The noiseless roll: angles t (N,) in :data:`SWISSROLL_ANGLES` to points (N, 2)."""
    return SWISSROLL_SCALE * torch.stack([angles * angles.cos(), angles * angles.sin()], dim=-1)


def sample_swissroll(count: int, seed: int) -> torch.Tensor:
    """Draw from the Swiss roll: ``count`` points, float32 (count, 2), that ``seed`` fixes."""
    generator = torch.Generator().manual_seed(seed)
    low, high = SWISSROLL_ANGLES
    angles = low + (high - low) * torch.rand(count, generator=generator)
    return swissroll_curve(angles) + SWISSROLL_STD * torch.randn(count, 2, generator=generator)


def swissroll_log_density(points: torch.Tensor) -> torch.Tensor:
    """Log density of the noisy roll: points (N, 2) to nats (N,).

    Its integral over t is taken by Gauss-Legendre quadrature, in panels only a few times as long as the noise.
    """
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(_PANEL_NODES))
    starts = torch.arange(_PANELS, dtype=torch.float64)[:, None]
    low, high = SWISSROLL_ANGLES
    curve = swissroll_curve(low + (high - low) * (starts + (nodes + 1) / 2).flatten() / _PANELS)
    log_weights = (weights / (2 * _PANELS)).log().repeat(_PANELS)
    chunks = [
        _log_mixture(chunk, curve.to(points), log_weights.to(points), SWISSROLL_STD)
        for chunk in points.split(_CHUNK_POINTS)
    ]
    return torch.cat(chunks)


def swissroll_distance(points: torch.Tensor) -> torch.Tensor:
    """Distance of points (N, 2) to the noiseless curve, (N,), to within 2e-6."""
    angles = torch.linspace(*SWISSROLL_ANGLES, _CURVE_SEGMENTS + 1, dtype=torch.float64)
    curve = swissroll_curve(angles).to(points)
    return torch.cat([_polygon_distance(chunk, curve) for chunk in points.split(_CHUNK_POINTS)])


def _polygon_distance(points: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    nearest = _distances(points, corners).argmin(dim=1)
    last = len(corners) - 2
    sides = [nearest.sub(1).clamp(0, last), nearest.clamp(0, last)]  # the two that meet in the nearest corner
    return torch.stack([_segment_distance(points, corners[i], corners[i + 1]) for i in sides]).amin(dim=0)


def _segment_distance(points: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    along = end - start
    position = ((points - start) * along).sum(dim=1) / along.square().sum(dim=1)
    foot = start + position.clamp(0, 1)[:, None] * along
    return (points - foot).norm(dim=1)


def _log_mixture(points: torch.Tensor, centres: torch.Tensor, log_weights: torch.Tensor, std: float) -> torch.Tensor:
    exponents = -_distances(points, centres).square() / (2 * std**2)
    return (exponents + log_weights).logsumexp(dim=1) - math.log(2 * math.pi * std**2)


def _distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    # cdist's fast way subtracts large squares, and loses the small distances that matter here.
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
