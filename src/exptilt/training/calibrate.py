"""Chooses strength λ and steps of a tilt, and whether E has a floor, on held-out data and without losing diversity."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from exptilt import distributed
from exptilt.config import SamplerConfig
from exptilt.energies.relative import RelativeEnergy
from exptilt.generators.base import Generator
from exptilt.sampling import warm_up
from exptilt.sampling.chains import ChainsDiverged
from exptilt.tilted import TiltedGenerator

Monitor = Callable[[torch.Tensor], dict[str, float]]

# Samples of each strength. Their indices are kept apart from those of users' samples and of checks in training.
SAMPLES = 1000
_START = 1 << 43
# From the largest strength to the next.
_STEP = 1.6
# A chain so many times as long is not to be worse.
_LONGER = 5
# What may not fall by more than NOTICED, or than two standard errors where those are more. Recall of so few samples
# deviates by 0.01 to 0.09 (benchmarks/diversity_noise.py): so several sets of the generator's tell how much.
_DIVERSITY, NOTICED = ("recall", "coverage", "entropy"), 0.04
GENERATOR_SETS = 4


@dataclass(frozen=True)
class Trial:
    """One strength, the chain with the step size that suits it and one of the lengths, and the quality of its samples.

    ``state`` is the number of the tilted generator among those that were calibrated, ``floor`` that of its energy on
    latents in nats, where it was given one. Where chains diverged, there are no figures.
    """

    strength: float
    sampler: SamplerConfig
    figures: dict[str, float]
    state: int = 0
    floor: float | None = None

    @property
    def distance(self) -> float:
        """What is minimised."""
        return distance(self.figures)


@dataclass(frozen=True)
class Calibration:
    """What a calibration tried.

    Attributes:
        trials: The strengths, in the order in which they were tried, the lengths of each from the shortest.
        best: The one that is chosen; None where none is nearer to held-out data than what was tilted.
        before: Figures of what was tilted; of a generator, means over several sets of samples.
        gradients: Gradients of U that it took, chains that diverged counted in full.
        least: Recall, coverage and class entropy that were asked for.
        longer: Strength, steps and figures of the best without a floor by chains five times as long, where one was
            tried; no figures where these diverged.
        is_narrow: Whether codes of the data decode to noticeably less diversity than both the data and the generator's
            samples have.
    """

    trials: list[Trial]
    best: Trial | None
    before: dict[str, float]
    gradients: int
    least: dict[str, float]
    longer: dict[str, float] | None = None
    is_narrow: bool = False

    def recorded(self, iterations: Sequence[int]) -> dict[str, Any]:
        """The figures of all, as JSON values; None for those that a trial has not.

        Args:
            iterations: Of each state of the energy.
        """
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.figures))
        trials = [
            {
                "iteration": iterations[trial.state],
                "strength": trial.strength,
                "floor": trial.floor,
                "steps": trial.sampler.steps,
                **{name: trial.figures.get(name) for name in names},
            }
            for trial in self.trials
        ]
        return {"before": self.before, "least": self.least, "calibration": trials, "longer": self.longer}


def calibrate(
    tilted: TiltedGenerator,
    strengths: tuple[float, ...],
    target_acceptance: float,
    monitor: Monitor,
    *,
    reachable: torch.Tensor | None = None,
    data: torch.Tensor | None = None,
    seed: int,
    largest: float = 0.0,
    lengths: Sequence[float] = (1.0,),
    base: TiltedGenerator | None = None,
    other: TiltedGenerator | None = None,
    floor_of: Callable[[TiltedGenerator], float] | None = None,
) -> Calibration:
    """The best of some strengths by held-out images, among those that keep recall, coverage and class entropy.

    A ratio is the better calibrated the nearer λ = 1 is to the best; what a classifier could not tell apart, a larger
    λ makes up for in part. Each strength gets its own step size. Where the largest is the best, larger ones are tried
    until one is not. Where none is nearer to held-out data than what was tilted, none is chosen.

    The quality of a chain's states is looked at after some shares of its steps, which costs no gradients. Where the
    energy is not exact, more steps are not always better.

    Longer chains find where an energy is too low, and a larger strength makes more of that. So the strengths are tried
    again with a floor under the energy, and the best of them is taken if it loses less diversity than the best without
    a floor, or as much and is nearer to the data than that one is in the mean over its own chain and one five times as
    long.

    Chains that diverge are worse than any others, and strengths above theirs are not tried.

    Args:
        tilted: The tilted generator; it is not changed.
        strengths: Candidates for λ.
        target_acceptance: Mean acceptance that the step size is adapted to; 0 leaves it.
        monitor: Figures of samples against held-out training images: ``"fid"`` or ``"kid"``, and those of
            ``"recall"``, ``"coverage"`` and ``"entropy"`` that there are.
        reachable: Samples G(z) for z ~ q(z|x) of data x, where there is an encoder. Diversity that they do not have
            either, the decoder cannot give, so none may be asked of its samples.
        data: These x.
        seed: Fixes the chains.
        largest: The largest strength that is tried beyond the candidates.
        lengths: Shares, in (0, 1], of the steps of the model's chain that are candidates for its length.
        base: What was tilted, if it was tilted already.
        other: The same by another state of the energy, number 1; it has the same candidates for λ.
        floor_of: The floor in nats that the energy on latents of such a model may get; without it there is none.

    Returns:
        What was tried, and the best. Where no trial keeps diversity, the one that loses least of it. Where the chains
        of all diverge, none is chosen.
    """
    generator, looks = tilted.generator, _looks(tilted.sampler.steps, lengths)

    untilted = _figures_of_generator(generator, monitor, seed)
    mean, tolerances = _means(untilted), _tolerances(untilted)
    by_codes = {} if reachable is None else distributed.same(monitor(reachable))
    # Where a decoder cannot reach what the generator has by codes of data, no more is asked for than it can.
    wanted = {name: min(mean[name], by_codes.get(name, math.inf)) - fall for name, fall in tolerances.items()}
    lacking = [name for name, fall in tolerances.items() if by_codes.get(name, math.inf) < mean[name] - fall]
    # Of few data, samples that are no data can have more recall than the data themselves.
    of_data = distributed.same(monitor(data)) if lacking and data is not None else mean
    is_narrow = any(by_codes[name] < of_data[name] - tolerances[name] for name in lacking)
    before = mean if base is None else _figures(base, monitor, seed)
    models = [tilted] if other is None else [tilted, other]

    def tried(state: int, floor: float | None) -> list[Trial]:
        model = models[state] if floor is None else above(models[state], floor)
        waiting, done = list(strengths), list[Trial]()
        while waiting:
            candidate = copy.copy(model)
            candidate.strength = waiting.pop(0)
            if target_acceptance:
                candidate.sampler = distributed.same(candidate.adapted_sampler(target_acceptance, seed=seed))
            try:
                seen = list(_along(candidate, looks, monitor, seed))
            except ChainsDiverged:
                seen = [(candidate.sampler.change(steps=looks[-1]), {})]
                waiting = [strength for strength in waiting if strength < candidate.strength]
            done += [Trial(candidate.strength, sampler, figures, state, floor) for sampler, figures in seen]
            best, top = choose(done, wanted), max(trial.strength for trial in done)
            is_at_top = best.strength == top and math.isfinite(best.distance)
            if not waiting and is_at_top and round(_STEP * top, 6) <= largest:
                waiting = [round(_STEP * top, 6)]
        return done

    trials = [trial for state in range(len(models)) for trial in tried(state, None)]
    best, longer, more = choose(trials, wanted), None, 0
    if floor_of is not None:
        long = copy.copy(models[best.state])
        long.strength, long.sampler = best.strength, best.sampler.change(steps=_LONGER * best.sampler.steps)
        longer = {"strength": best.strength, "steps": long.sampler.steps, **_figures(long, monitor, seed)}
        more = SAMPLES * long.sampler.gradients
        floored = tried(best.state, floor_of(models[best.state]))
        trials += floored
        nearest = choose(floored, wanted)
        # Above a floor both lengths are taken to be alike.
        of_both_lengths = 0.5 * (best.distance + distance(longer))
        if (_lacking(nearest, wanted), nearest.distance) < (_lacking(best, wanted), of_both_lengths):
            best = nearest
    # Those of one strength are looks at the same chains.
    runs = [trial.sampler for trial in trials if trial.sampler.steps == looks[-1]]
    gradients = sum(SAMPLES * run.gradients + (warm_up.gradients(run) if target_acceptance else 0) for run in runs)
    gradients += more + (0 if base is None else SAMPLES * base.sampler.gradients)
    chosen = best if best.distance < distance(before) else None
    return Calibration(trials, chosen, before, gradients, wanted, longer, is_narrow)


def above(tilted: TiltedGenerator, floor: float) -> TiltedGenerator:
    """The same with a floor in nats under its energy on latents."""
    assert tilted.latent_energy is not None
    energy = RelativeEnergy.above(tilted.latent_energy, floor)
    return TiltedGenerator(
        tilted.generator,
        tilted.energy,
        latent_energy=energy,
        sampler=tilted.sampler,
        strength=tilted.strength,
        precision=tilted.precision,
    )


def distance(figures: dict[str, float]) -> float:
    """The Fréchet distance, or KID where the reference is too small for it."""
    return figures.get("fid", figures.get("kid", float("inf")))


def choose(trials: list[Trial], wanted: dict[str, float]) -> Trial:
    """The trial of the least distance among those that reach ``wanted``; where none does, the one that lacks least."""
    least = min(_lacking(trial, wanted) for trial in trials)
    return min((trial for trial in trials if _lacking(trial, wanted) <= least), key=lambda trial: trial.distance)


def _figures(tilted: TiltedGenerator, monitor: Monitor, seed: int) -> dict[str, float]:
    """The quality of samples by the model's own chain, and the mean acceptance; none where it diverges."""
    try:
        ((_, figures),) = _along(tilted, [tilted.sampler.steps], monitor, seed)
    except ChainsDiverged:
        return {}
    return figures


def _along(
    tilted: TiltedGenerator, looks: Sequence[int], monitor: Monitor, seed: int
) -> Iterator[tuple[SamplerConfig, dict[str, float]]]:
    """The quality of samples by chains of these numbers of steps, which rise, and their mean acceptance.

    All are states of the same chains, of which each process runs its share.

    Raises:
        ChainsDiverged: A chain left the finite numbers.
    """
    mine, sampler = distributed.share(SAMPLES), tilted.sampler.change(steps=looks[-1])
    with distributed.failing_together():
        _, info = tilted.sample(
            len(mine),
            seed=seed,
            start=_START + mine.start,
            sampler=sampler,
            return_latents=True,
            return_info=True,
            record_every=max(math.gcd(*looks), 1),
        )
    acceptance = float(distributed.gather(info.acceptance, SAMPLES).mean())
    for steps in looks:
        samples = tilted.generator.decode_many(info.trajectory[info.recorded_steps.index(steps)])
        figures = monitor(distributed.gather(samples, SAMPLES))
        yield sampler.change(steps=steps), distributed.same(figures | {"acceptance": acceptance})


def _looks(steps: int, lengths: Sequence[float]) -> list[int]:
    """Numbers of steps that are these shares of all, rising."""
    return sorted({max(min(steps, 1), round(share * steps)) for share in lengths})


def _figures_of_generator(generator: Generator, monitor: Monitor, seed: int) -> list[dict[str, float]]:
    """The quality of some sets of the generator's own samples; of one where nothing of it is diversity.

    The first set has the latents that the chains start at.
    """

    def of_set(number: int) -> dict[str, float]:
        def drawn(mine: range) -> torch.Tensor:
            return generator.sample(len(mine), seed=seed, start=_START + number * SAMPLES + mine.start)

        return distributed.same(monitor(distributed.rows(SAMPLES, drawn)))

    first = of_set(0)
    sets = GENERATOR_SETS if any(name in first for name in _DIVERSITY) else 1
    return [first, *map(of_set, range(1, sets))]


def _means(sets: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(figures[name] for figures in sets) for name in sets[0]}


def _tolerances(untilted: list[dict[str, float]]) -> dict[str, float]:
    """By how much each figure of diversity may fall, from several sets of the generator's samples."""
    # Of the difference between one set and the mean of these.
    scale = 2 * math.sqrt(1 + 1 / len(untilted))
    names = [name for name in _DIVERSITY if name in untilted[0]]
    return {name: max(NOTICED, scale * statistics.stdev(figures[name] for figures in untilted)) for name in names}


def _lacking(trial: Trial, wanted: dict[str, float]) -> float:
    """How far a trial is below what is wanted, at most; infinitely where it has no figures."""
    below = (least - trial.figures.get(name, -math.inf) for name, least in wanted.items())
    return max(0.0, max(below, default=0.0))
