"""Chooses the strength λ of a tilt, exp(−λE), after training, on held-out data and without losing diversity."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from exptilt import distributed
from exptilt.config import SamplerConfig
from exptilt.sampling import warm_up
from exptilt.tilted import TiltedGenerator

Monitor = Callable[[torch.Tensor], dict[str, float]]

# Samples of each strength. Their indices are kept apart from those of users' samples and of checks in training.
SAMPLES = 1000
_START = 1 << 43
# What may not fall: by how much each may, which is about two standard errors of the difference at this many samples.
_DIVERSITY = {"recall": 0.04, "coverage": 0.04, "entropy": 0.04}


@dataclass(frozen=True)
class Trial:
    """One strength, the chain with the step size that suits it, and the quality of its samples."""

    strength: float
    sampler: SamplerConfig
    figures: dict[str, float]

    @property
    def distance(self) -> float:
        """What is minimised: the Fréchet distance, or KID where the reference is too small for it."""
        return self.figures.get("fid", self.figures.get("kid", float("inf")))


def calibrate(
    tilted: TiltedGenerator,
    strengths: tuple[float, ...],
    target_acceptance: float,
    monitor: Monitor,
    *,
    reachable: torch.Tensor | None,
    seed: int,
) -> tuple[Trial, list[Trial]]:
    """The best of some strengths by held-out images, among those that keep recall, coverage and class entropy.

    A ratio is the better calibrated the nearer λ = 1 is to the best; what a classifier could not tell apart, a larger
    λ makes up for in part. Each strength gets its own step size.

    Args:
        tilted: The tilted generator; it is not changed.
        strengths: Candidates for λ.
        target_acceptance: Mean acceptance that the step size is adapted to; 0 leaves it.
        monitor: Figures of samples against held-out training images: ``"fid"`` or ``"kid"``, and those of
            ``"recall"``, ``"coverage"`` and ``"entropy"`` that there are.
        reachable: Samples G(z) for z ~ q(z|x), where there is an encoder. Diversity that they do not have either, the
            decoder cannot give, so none may be asked of its samples.
        seed: Fixes the chains.

    Returns:
        The best trial, and all. Where none keeps diversity, the one that loses least of it.
    """
    generator = tilted.generator
    start_of_chain = distributed.rows(
        SAMPLES, lambda mine: generator.sample(len(mine), seed=seed, start=_START + mine.start)
    )
    wanted = _least(monitor(start_of_chain), {} if reachable is None else monitor(reachable))
    trials = []
    for strength in strengths:
        candidate = copy.copy(tilted)
        candidate.strength = strength
        if target_acceptance:
            candidate.sampler = distributed.same(candidate.adapted_sampler(target_acceptance, seed=seed))
        samples = distributed.rows(SAMPLES, functools.partial(_samples, candidate, seed))
        trials.append(Trial(strength, candidate.sampler, distributed.same(monitor(samples))))
    return choose(trials, wanted), trials


def choose(trials: list[Trial], wanted: dict[str, float]) -> Trial:
    """The trial of the least distance among those that reach ``wanted``; where none does, the one that lacks least."""
    lacking = {trial.strength: _lacking(trial, wanted) for trial in trials}
    least = min(lacking.values())
    return min((trial for trial in trials if lacking[trial.strength] <= least), key=lambda trial: trial.distance)


def gradients(sampler: SamplerConfig, strengths: tuple[float, ...], adapts: bool) -> int:
    """Gradients of U that :func:`calibrate` takes."""
    return len(strengths) * (SAMPLES * sampler.gradients + (warm_up.gradients(sampler) if adapts else 0))


def _samples(tilted: TiltedGenerator, seed: int, indices: range) -> torch.Tensor:
    return tilted.sample(len(indices), seed=seed, start=_START + indices.start)


def _least(base: dict[str, float], reachable: dict[str, float]) -> dict[str, float]:
    """The diversity that is asked for: the base's, or what the decoder can reach where that is less."""
    return {
        name: min(base[name], reachable.get(name, base[name])) - tolerance
        for name, tolerance in _DIVERSITY.items()
        if name in base
    }


def _lacking(trial: Trial, wanted: dict[str, float]) -> float:
    return max((max(0.0, least - trial.figures.get(name, least)) for name, least in wanted.items()), default=0.0)
