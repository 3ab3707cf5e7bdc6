"""``exptilt.tilt``: an energy for a generator, its quality told by features of the data set, or by random ones."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from exptilt import distributed
from exptilt.config import TiltConfig
from exptilt.data import DataSet, to_uint8, train_validation_split
from exptilt.errors import InputError
from exptilt.evaluation.features import AUTO, FeatureExtractor, features_for, shipped_names
from exptilt.evaluation.monitor import quality_monitor
from exptilt.evaluation.random_features import NAME as RANDOM
from exptilt.generators.base import Generator
from exptilt.tilted import TiltedGenerator
from exptilt.training.calibrate import Monitor
from exptilt.training.fit import as_data_set
from exptilt.training.fit import tilt as fit_tilt

# Held-out images whose features are computed, once.
_REFERENCE = 2000
# Of fewer images random features tell too little.
RANDOM_FROM = 5000


def tilt(
    generator: Generator | TiltedGenerator,
    images: torch.Tensor | DataSet,
    recipe: str = "default",
    *,
    features: str | Path | nn.Module | FeatureExtractor = "auto",
    seed: int | None = None,
    config: TiltConfig | None = None,
    quiet: bool = True,
) -> TiltedGenerator:
    """Learn an energy that turns the generator's samples into data, and return the tilted generator.

    The generator is frozen: its parameters and buffers do not change. A tilted one is tilted on, from the samples that
    it gives now: an energy in the same space goes on from where it is, one in the other stays beside the new one.
    Where no tilt that was tried brings samples nearer to held-out images, a line on standard error says so and the
    result samples as what was given does.

    Args:
        generator: A generator of exptilt, :func:`exptilt.wrap` of any decoder, or a tilted generator.
        images: Training data: images (N, C, H, W) in [−1, 1] or of bytes, points (N, D), or a data set.
        recipe: ``"default"``, ``"paper"`` or another of the README's table.
        features: What the quality of samples is told by, against a tenth of the images, which is held out: see
            :func:`exptilt.evaluate`. ``"auto"`` takes the network that is shipped for the data set, for 5,000 other
            images or more one with random weights, and else none; ``"none"`` takes none. Without, the strength of the
            tilt is not calibrated.
        seed: Fixes initialisation, order of the data and all chains; unless given, that of ``config``, or 0.
        config: Settings in place of the recipe's.
        quiet: No progress bar.

    Raises:
        InputError: There is no generator, the data do not fit it, or the settings do not fit each other.
        RunError: The training diverged, also after rollbacks.
    """
    if not isinstance(generator, (Generator, TiltedGenerator)):
        raise InputError("generator", f"is a {type(generator).__name__}", "give exptilt.wrap(decoder, latent_shape)")
    data = images if isinstance(images, DataSet) else as_data_set(images)
    # Before anything is computed.
    data.require_shape(generator.data_shape)
    monitor, fitted, held_out = held_out_quality(features, data)
    return fit_tilt(
        generator, fitted, recipe, seed=seed, config=config, held_out=held_out, monitor=monitor, quiet=quiet
    )


def held_out_quality(
    features: str | Path | nn.Module | FeatureExtractor, train: DataSet
) -> tuple[Monitor | None, DataSet, DataSet | None]:
    """Quality against held-out training images, which the energy then never sees; what is left, what is held out.

    Args:
        features: See :func:`tilt`.
        train: Training set.

    Raises:
        InputError: No such features, or they do not fit the images.
    """
    if features == AUTO and train.name not in shipped_names():
        features = _for_unknown(train)
    if features == "none":
        return None, train, None
    fitted, held_out = train_validation_split(train)
    reference = held_out.select(slice(0, _REFERENCE))
    stored = reference.stored if reference.stored.dtype == torch.uint8 else to_uint8(reference.stored)
    return quality_monitor(features_for(features, train), stored), fitted, held_out


def _for_unknown(train: DataSet) -> str:
    """Features for data that none is shipped for: random ones for images that are enough for them."""
    is_pictures = len(train.shape) == 3 and train.shape[0] in (1, 3)
    if not is_pictures or len(train) < RANDOM_FROM:
        return "none"
    distributed.say(
        f"quality is judged by a network with random weights, as none is shipped for data {train.name!r}; one trained "
        "on such images judges better: give features= (--features)"
    )
    return RANDOM
