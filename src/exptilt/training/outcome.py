"""What a tilt comes to: its strength and its step size, or nothing where it does not help."""

from __future__ import annotations

import dataclasses
import sys

import torch

from exptilt.config import TiltConfig
from exptilt.data import DataSet, batch_indices
from exptilt.generators.base import Generator
from exptilt.sampling import warm_up
from exptilt.tilted import TiltedGenerator
from exptilt.training.calibrate import SAMPLES, Calibration, calibrate, distance
from exptilt.training.fitting import Fitting

# Fewer held-out images than this do not tell strengths apart: the first is kept.
_CALIBRATED_FROM = 500


def adapt(tilted: Generator | TiltedGenerator, config: TiltConfig) -> int:
    """Give the chain the step size of the settings' acceptance, if they have one; the gradients that it took."""
    if not (isinstance(tilted, TiltedGenerator) and config.target_acceptance):
        return 0
    tilted.sampler = tilted.adapted_sampler(config.target_acceptance, seed=config.seed)
    return warm_up.gradients(tilted.sampler)


def settled(
    before: Generator | TiltedGenerator,
    reached: Generator | TiltedGenerator,
    fitting: Fitting,
    held_out: DataSet | None,
) -> tuple[TiltedGenerator, Calibration]:
    """What ``before`` is tilted to in the end, strength and step size chosen; itself, where that is no better.

    Args:
        before: What was tilted.
        reached: What the last stage that counts has made of it; the same where there was none.
        fitting: The last stage.
        held_out: Data that the energy has not seen.

    Returns:
        The result, and what the calibration tried; nothing where there was no quality to tell strengths by.
    """
    config, monitor = fitting.config, fitting.monitor
    nothing = Calibration([], None, {}, 0)
    if reached is before:
        _say("what was learned does not tell held-out data from the samples")
        return _unchanged(before, fitting), nothing
    assert isinstance(reached, TiltedGenerator)
    enough = held_out is None or len(held_out) >= _CALIBRATED_FROM
    strengths = tuple(reached.strength * strength for strength in config.strengths)
    is_compared = len(strengths) > 1 or isinstance(before, TiltedGenerator)
    if monitor is None or not is_compared or not enough:
        reached.strength *= config.strengths[0]
        return reached, dataclasses.replace(nothing, gradients=adapt(reached, config))
    found = calibrate(
        reached,
        strengths,
        config.target_acceptance,
        monitor,
        reachable=_reachable(fitting),
        seed=config.seed,
        largest=config.largest_strength,
        base=before if isinstance(before, TiltedGenerator) else None,
    )
    if found.best is None:
        nearest = min(trial.distance for trial in found.trials)
        distances = f"{distance(found.before):.4g} before, {nearest:.4g} at best"
        _say(f"no strength brings the samples nearer to held-out data ({distances})")
        return _unchanged(before, fitting), found
    reached.strength, reached.sampler = found.best.strength, found.best.sampler
    return reached, found


def _unchanged(before: Generator | TiltedGenerator, fitting: Fitting) -> TiltedGenerator:
    """What samples as ``before`` does: itself, or a generator with λ = 0 and chains of no steps."""
    if isinstance(before, TiltedGenerator):
        return before
    tilted = fitting.tilted()
    tilted.strength, tilted.sampler = 0.0, tilted.sampler.change(steps=0)
    return tilted


def _reachable(fitting: Fitting) -> torch.Tensor | None:
    """Decoded codes of training images, where there are codes."""
    if fitting.codes is None:
        return None
    fitted, generator = fitting.codes.fitted, fitting.generator
    codes = fitted[batch_indices(len(fitted), SAMPLES, fitting.config.seed, 0)].to(generator.device)
    with torch.no_grad():
        return torch.cat([generator.decode(z) for z in codes.split(500)])


def _say(found: str) -> None:
    print(f"exptilt: {found}: the tilt is not used, and samples are what they were", file=sys.stderr)
