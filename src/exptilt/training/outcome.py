"""What a tilt comes to: its strength and its step size, or nothing where it does not help."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from exptilt import distributed
from exptilt.data import HELD_OUT_FRACTION, DataSet, batch_indices
from exptilt.generators.base import Generator
from exptilt.sampling import warm_up
from exptilt.tilted import TiltedGenerator
from exptilt.training.calibrate import SAMPLES, Calibration, Monitor, above, calibrate, distance
from exptilt.training.fitting import Fitting

CALIBRATED_FROM = 100
"""Fewer held-out images than this do not tell strengths apart: the first is kept."""
# So many training images leave as many to be held out.
_ENOUGH_IMAGES = round(CALIBRATED_FROM / HELD_OUT_FRACTION)
_NOT_USED = "the tilt is not used, and samples stay as they were"


@dataclass(frozen=True)
class Outcome:
    """What a stage has come to.

    Attributes:
        model: What the next stage starts from, or the result.
        helps: Whether the stage has brought samples nearer to data, as far as could be told.
        calibration: What was tried for that.
    """

    model: Generator | TiltedGenerator
    helps: bool
    calibration: Calibration

    @property
    def state(self) -> int:
        """Which state of the energy it is by: 0 the one that its checks chose, 1 the last."""
        return 0 if self.calibration.best is None else self.calibration.best.state


def nothing_tried(gradients: int = 0) -> Calibration:
    """A calibration without trials."""
    return Calibration([], None, {}, gradients, {})


def settled(
    before: Generator | TiltedGenerator,
    reached: TiltedGenerator | None,
    fitting: Fitting,
    held_out: DataSet | None,
    last: TiltedGenerator | None = None,
) -> Outcome:
    """What ``before`` is tilted to by a stage, strength and step size chosen; as it was, where that is no better.

    Args:
        before: What was tilted.
        reached: What the stage has made of it; None where held-out data have shown that it learned nothing.
        fitting: The stage.
        held_out: Data that the energy has not seen.
        last: What its last update has made of it, where that is another state. In many dimensions a ratio that is past
            its best on held-out codes may still give better images.
    """
    config, monitor = fitting.config, fitting.monitor
    if reached is None:
        distributed.say(f"what was learned does not tell held-out data from the samples: {_NOT_USED}")
        return Outcome(_unchanged(before, fitting), False, nothing_tried())
    enough = held_out is None or len(held_out) >= CALIBRATED_FROM
    strengths = tuple(reached.strength * strength for strength in config.strengths)
    floor_of = fitting.floor if config.floor and fitting.held_out is not None else None
    has_choice = max(len(strengths), len(config.lengths)) > 1 or floor_of is not None
    is_compared = has_choice or isinstance(before, TiltedGenerator)
    if monitor is None or not is_compared or not enough:
        reached.strength *= config.strengths[0]
        gradients = 0
        if config.target_acceptance:
            reached.sampler = reached.adapted_sampler(config.target_acceptance, seed=config.seed)
            gradients = warm_up.gradients(reached.sampler)
        if has_choice:
            chosen = f"λ = {reached.strength:g} and {reached.sampler.steps} steps are the recipe's"
            distributed.say(f"{chosen}, as quality is not measured: {_why_not_measured(monitor, held_out)}")
        return Outcome(reached, True, nothing_tried(gradients))
    found = calibrate(
        reached,
        strengths,
        config.target_acceptance,
        monitor,
        **_data_and_codes(fitting),
        seed=config.seed,
        largest=config.largest_strength if len(strengths) > 1 else 0.0,
        lengths=config.lengths,
        base=before if isinstance(before, TiltedGenerator) else None,
        other=last,
        floor_of=floor_of,
    )
    if found.best is None:
        nearest = min(trial.distance for trial in found.trials)
        at_best = f"{nearest:.4g} at best" if math.isfinite(nearest) else "and all chains of the tilt diverge"
        compared = f"(distance {distance(found.before):.4g} before, {at_best})"
        distributed.say(f"no strength brings the samples nearer to held-out data {compared}: {_NOT_USED}")
        return Outcome(_unchanged(before, fitting), False, found)
    chosen = reached if last is None or found.best.state == 0 else last
    if found.best.floor is not None:
        chosen = above(chosen, found.best.floor)
    chosen.strength, chosen.sampler = found.best.strength, found.best.sampler
    return Outcome(chosen, True, found)


def _unchanged(before: Generator | TiltedGenerator, fitting: Fitting) -> TiltedGenerator:
    """What samples as ``before`` does: itself, or a generator with λ = 0 and chains of no steps."""
    if isinstance(before, TiltedGenerator):
        return before
    tilted = fitting.tilted()
    tilted.strength, tilted.sampler = 0.0, tilted.sampler.change(steps=0)
    return tilted


def _data_and_codes(fitting: Fitting) -> dict[str, torch.Tensor]:
    """Training images, and what their codes decode to; nothing where there are no codes."""
    data, generator = fitting.data, fitting.generator
    if fitting.codes is None or data is None:
        return {}
    chosen = batch_indices(len(data), SAMPLES, fitting.config.seed, 0)
    # The first pass over the images, in their order, so that no image is twice among them.
    codes = fitting.codes.fitted[chosen]
    decoded = distributed.rows(len(codes), lambda mine: generator.decode_many(codes[mine.start : mine.stop]))
    return {"data": data.batch(chosen), "reachable": decoded}


def _why_not_measured(monitor: Monitor | None, held_out: DataSet | None) -> str:
    if monitor is None:
        needs = f"give features= (--features), and {_ENOUGH_IMAGES:,} images or more"
        return f"there is no feature network for these data; {needs}"
    assert held_out is not None
    return f"{len(held_out)} held-out images are less than {CALIBRATED_FROM}"
