"""Figures of generators of points, for the toy sets, of which everything is known in closed form."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.special import stdtrit

from exptilt import distributed
from exptilt.data import toy
from exptilt.data.types import DataSet
from exptilt.errors import InputError, RunError, require_at_least
from exptilt.evaluation.energy_distance import energy_test
from exptilt.evaluation.images import Sampler, images_digest, untilted
from exptilt.evaluation.protocol import Hashed, require_seeds

RADIUS = 3.0
"""A point is of high quality within so many standard deviations of a mode, or of the curve."""

_DRAWN = 2000


class Truth(NamedTuple):
    """What is known of a toy set.

    Attributes:
        log_density: Points (N, 2) to nats (N,).
        distance: Points (N, 2) to their distance from the nearest mode, or from the curve, (N,).
        mode: Points (N, 2) to the index of the nearest mode, (N,); None for a curve.
        modes: Number of modes, which have equal weights; 0 for a curve.
        std: Standard deviation of a mode, or around the curve, an axis.
    """

    log_density: Callable[[torch.Tensor], torch.Tensor]
    distance: Callable[[torch.Tensor], torch.Tensor]
    mode: Callable[[torch.Tensor], torch.Tensor] | None
    modes: int
    std: float


TRUTHS = {
    "gaussians": Truth(
        toy.gaussians_log_density,
        lambda points: toy.nearest_centre(points)[1],
        lambda points: toy.nearest_centre(points)[0],
        25,
        toy.GAUSSIAN_STD,
    ),
    "swissroll": Truth(toy.swissroll_log_density, toy.swissroll_distance, None, 0, toy.SWISSROLL_STD),
}


@dataclass(frozen=True)
class PointProtocol(Hashed):
    """Everything that the figures of a generator of points depend on, beside the generator."""

    data: str
    """The toy set."""
    data_digest: str
    """SHA-256 of the reference points."""
    split: str
    """Split of the toy set that they come from."""
    n: int
    """Samples in a set."""
    n_reference: int
    """Reference points."""
    seeds: tuple[int, ...]
    """A set of samples was drawn from each."""
    radius: float = RADIUS
    """Standard deviations within which a point is of high quality."""
    compared: int = 2000
    """Samples in the energy distance, the first, and test points: those of set j are the j-th block of so many."""
    permutations: int = 999
    """Random deals of its permutation test."""
    metrics_seed: int = 0
    """Fixes them."""
    metrics_version: int = 1
    """Version of the metrics' definitions."""


def point_figures(name: str, points: torch.Tensor) -> dict[str, float | None]:
    """Figures of points (N, 2), N ≥ 1, against the true distribution of a toy set.

    ``high_quality``: share of points within 3σ of a mode (of the curve, for the Swiss roll); 98.9% of a mode's own
    points are. ``modes``: modes with at least one such point. ``weight_kl``: KL(ŵ ‖ w) in nats from the shares ŵ of
    the modes among points of high quality to the true w; of n points from the truth it is about (modes − 1)/(2n).
    ``log_density``: mean log-density under the truth, in nats; it falls without bound as points leave the support.
    None stands for what does not exist: modes of the Swiss roll, shares where no point is near.

    Raises:
        InputError: The toy set is not known, or these are no points of the plane.
    """
    truth = _truth(name)
    if points.dim() != 2 or points.shape[1] != 2 or not len(points):
        raise InputError("points", f"have shape {tuple(points.shape)}", "give (N, 2), N ≥ 1")
    points = points.double()
    near = truth.distance(points) < RADIUS * truth.std
    figures: dict[str, float | None] = {"high_quality": float(near.double().mean()), "modes": None, "weight_kl": None}
    if truth.mode is not None:
        counts = torch.bincount(truth.mode(points)[near], minlength=truth.modes)
        figures["modes"] = float((counts > 0).sum())
        figures["weight_kl"] = weight_divergence(counts)
    return {**figures, "log_density": float(truth.log_density(points).mean())}


def weight_divergence(counts: torch.Tensor) -> float | None:
    """KL(ŵ ‖ uniform) in nats of counts (K,); log(K/J) for J equally frequent of K modes. None if all are 0."""
    if not int(counts.sum()):
        return None
    shares = (counts.double() / counts.sum()).tolist()
    return max(0.0, math.fsum(share * math.log(share * len(shares)) for share in shares if share > 0))


def evaluate_points(
    model: Sampler,
    test: DataSet,
    *,
    n: int = 10_000,
    seeds: Sequence[int] = (0, 1, 2),
    train: DataSet | None = None,
    permutations: int = 999,
) -> dict[str, Any]:
    """Compare a generator of points, and the same generator tilted, with a toy set.

    Args:
        model: What to evaluate; base and tilted as in :func:`~exptilt.evaluation.evaluate.evaluate`.
        test: Test split of ``gaussians`` or ``swissroll``.
        n: Samples in a set.
        seeds: A set is drawn from each.
        train: Training split, for the floor: n of its points (all, if fewer) against the test points.
        permutations: Random deals of the permutation test.

    Returns:
        ``{"protocol", "n", "seeds", "base", "tilted", "floor"}`` in JSON values; a part that does not exist is None.
        The last three hold ``{"n", "high_quality", "modes", "weight_kl", "log_density", "energy_distance",
        "p_value", "seconds"}``, means over the seeds, and for each of these, except n and seconds, its values as
        ``…_per_seed``. ``…_ci`` is the mean ± Student's t × its standard error over the seeds, None for one seed.
        See :func:`point_figures` and :func:`~exptilt.evaluation.energy_distance.energy_test`; ``p_value`` is twice
        the mean over the seeds, cut at 1, which is a p-value whatever their dependence (Vovk and Wang 2020): each set
        is compared with a block of test points of its own, as long as there are enough.

    Raises:
        InputError: A setting is out of range, the set is not a toy set, or the model's samples are no points.
        RunError: Samples are not finite.
    """
    _truth(test.name)
    require_at_least(1, n=n)
    require_seeds(seeds)
    within = untilted(model)
    tilted, base = (None, model) if within is None else (model, within)
    test.require_shape(getattr(base, "data_shape", test.shape))
    protocol = PointProtocol(
        data=test.name,
        data_digest=images_digest(test),
        split=test.split,
        n=n,
        n_reference=len(test),
        seeds=tuple(seeds),
        compared=min(PointProtocol.compared, n, len(test)),
        permutations=permutations,
    )

    def sampled(source: Sampler, name: str) -> dict[str, Any]:
        began = time.perf_counter()
        sets = [_draw(source, n, seed, name) for seed in seeds]
        seconds = time.perf_counter() - began
        return distributed.from_main(lambda: _over_seeds(sets, test, protocol, seconds))

    return {
        "protocol": protocol.to_dict(),
        "n": n,
        "seeds": list(seeds),
        "base": sampled(base, "base"),
        "tilted": None if tilted is None else sampled(tilted, "tilted"),
        "floor": None if train is None else _over_seeds([train.stored[:n]], test, protocol, 0.0),
    }


def summary_rows(result: dict[str, Any]) -> list[list[str]]:
    """A result as the cells of a table: a header, then base, tilted and floor as far as it has them.

    Shares, log-density and distance stand with half their 95% interval.
    """
    names = [name for name in _COLUMNS if any(result[part] and result[part][name] is not None for part in _PARTS)]
    header = ["", *(name.replace("_", " ").replace("kl", "KL") for name in names)]
    return [header, *([part, *(_cell(result[part], name) for name in names)] for part in _PARTS if result[part])]


_PARTS = ("base", "tilted", "floor")
# Decimals of each figure, and whether its interval is shown.
_COLUMNS = {
    "high_quality": (3, True),
    "modes": (1, False),
    "weight_kl": (4, False),
    "log_density": (2, True),
    "energy_distance": (3, True),
    "p_value": (3, False),
}


def _cell(figures: dict[str, Any], name: str) -> str:
    value, (digits, with_interval) = figures[name], _COLUMNS[name]
    if value is None:
        return "–"
    interval = figures[f"{name}_ci"] if with_interval else None
    half = "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.{digits}f}"
    return f"{value:.{digits}f}{half}".replace("-", "−")


def _draw(source: Sampler, n: int, seed: int, name: str) -> torch.Tensor:
    def draw(indices: range) -> torch.Tensor:
        sizes = {first: min(_DRAWN, indices.stop - first) for first in indices[::_DRAWN]}
        return torch.cat([source.sample(size, seed=seed, start=first).cpu() for first, size in sizes.items()])

    points = distributed.rows(n, draw, multiple=_DRAWN)
    if not bool(points.isfinite().all()):
        raise RunError(f"{name}: samples of seed {seed} are not finite")
    return points


def _over_seeds(sets: list[torch.Tensor], test: DataSet, protocol: PointProtocol, seconds: float) -> dict[str, Any]:
    each: dict[str, list[Any]] = {}
    # A block of its own for each set, while there are enough: an unusual one would otherwise sway all the tests.
    blocks = test.stored.split(protocol.compared)[: len(test) // protocol.compared]
    for j, points in enumerate(sets):
        compared = points[: protocol.compared], blocks[j % len(blocks)]
        distance, p_value = energy_test(*compared, protocol.permutations, protocol.metrics_seed)
        figures = {**point_figures(test.name, points), "energy_distance": distance, "p_value": p_value}
        for name, value in figures.items():
            each.setdefault(name, []).append(value)
    result: dict[str, Any] = {"n": len(sets[0])}
    for name, values in each.items():
        known = None not in values
        result[name] = statistics.fmean(values) if known else None
        if name != "p_value":
            result[f"{name}_ci"] = _interval(values) if known else None
        elif len(values) > 1:
            result[name] = min(1.0, 2 * result[name])
        result[f"{name}_per_seed"] = values
    return {**result, "seconds": seconds}


def _interval(values: list[float]) -> list[float] | None:
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.fmean(values) - half, statistics.fmean(values) + half]


def _truth(name: str) -> Truth:
    if name not in TRUTHS:
        fault = "is not a toy set, whose distribution is known"
        raise InputError(f"data {name!r}", fault, f"points are evaluated on {' and '.join(TRUTHS)}")
    return TRUTHS[name]
