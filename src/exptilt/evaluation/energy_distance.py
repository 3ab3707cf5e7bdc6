"""The energy distance of two sets of points, and the permutation test for equal distributions that goes with it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from exptilt.errors import InputError, require_at_least

# Permutations whose sums are taken at once.
_AT_ONCE = 250


class EnergyTest(NamedTuple):
    """The distance D ≥ 0, in the unit of the points, and the p-value of "both sets have one distribution"."""

    distance: float
    p_value: float


def energy_test(x: torch.Tensor, y: torch.Tensor, permutations: int = 999, seed: int = 0) -> EnergyTest:
    """Energy distance D² = 2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ with its permutation test (Székely and Rizzo 2004, 2013).

    D is that of the two empirical distributions, so it is above 0 also for two sets from one distribution; in one
    dimension it is ``scipy.stats.energy_distance``. The p-value is (1 + #{D*² ≥ D²}) / (1 + permutations), where D*
    is the distance after points were dealt anew to the two sets: uniform for sets from one distribution.

    Args:
        x: Points (N, D).
        y: Points (M, D).
        permutations: Number of random deals, ≥ 1.
        seed: Fixes them.

    Raises:
        InputError: A set is empty, or there is no permutation.
    """
    n, m = len(x), len(y)
    if n < 1 or m < 1:
        raise InputError("energy distance", f"sets of {n} and {m} points", "give two sets with points")
    require_at_least(1, permutations=permutations)
    points = torch.cat([x, y]).double()
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    sums, total = distances.sum(1), float(distances.sum())
    generator = torch.Generator().manual_seed(seed)

    def squared(chosen: torch.Tensor) -> torch.Tensor:
        """D² of the sets that columns of ``chosen``, (N + M, P), are 1 on, (P,)."""
        within = (chosen * (distances @ chosen)).sum(0)
        across = sums @ chosen - within
        # What is within the second set is all that is neither within the first nor across, counted both ways round.
        return 2 * across / (n * m) - within / n**2 - (total - within - 2 * across) / m**2

    identity = torch.zeros(n + m, 1, dtype=torch.float64, device=points.device)
    identity[:n] = 1
    observed = float(squared(identity))
    at_least = 0
    for first in range(0, permutations, _AT_ONCE):
        count = min(_AT_ONCE, permutations - first)
        order = torch.rand(n + m, count, generator=generator).argsort(dim=0).to(points.device)
        # Rounding must not tell equal distances apart: small sets have few different deals.
        at_least += int((squared((order < n).double()) >= observed * (1 - 1e-9) - 1e-12).sum())
    return EnergyTest(max(0.0, observed) ** 0.5, (1 + at_least) / (1 + permutations))
