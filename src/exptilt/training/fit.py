"""Tilting: trains an energy against a frozen generator, by a recipe."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from exptilt.config import ADAPTABLE, TiltConfig, override
from exptilt.data import DataSet, train_validation_split
from exptilt.energies import GATED
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.generators.checks import require_units
from exptilt.generators.pixel import PixelSpace, UniformPixels, in_pixel_space
from exptilt.generators.prior import StandardNormal
from exptilt.presets import RECIPES
from exptilt.tilted import TiltedGenerator
from exptilt.training.calibrate import Monitor
from exptilt.training.latents import require_variety
from exptilt.training.run_folder import RunFolder
from exptilt.training.stages import Task, tilt_in_stages
from exptilt.training.trackers import Tracker

# Data sets of at least this many elements lose a tenth to the choice of the best state.
_SPLIT_FROM = 1000
# Points of at most so many numbers have random frequencies enough.
_FEW_NUMBERS = 3


def resolve_recipe(recipe: str, generator: Generator | TiltedGenerator, **changes: Any) -> TiltConfig:
    """The settings that ``recipe`` means for this generator, with ``changes`` made to them.

    ``"default"`` without an encoder becomes ``"default-no-encoder"`` (``"default-x"`` if the prior is not standard
    normal), on flows with latents of several resolutions ``"default-flow"``, on points of up to three numbers
    ``"default-points"``, in pixel space ``"pixel"``, and on uniform noise ``"pixel-ebm"``; on points, and on other
    latents, the energy is fully connected. A tilted generator keeps its chain, and chains in training that go on have
    its step size.

    Raises:
        InputError: The recipe is unknown, it needs an encoder or a density that the generator has not, or mirror images
            are asked for where there are none.
    """
    if recipe not in RECIPES:
        raise InputError(f"--recipe {recipe}", "is not known", f"use one of {', '.join(RECIPES)}")
    chains = {}
    if isinstance(generator, TiltedGenerator):
        chains = _chains_of(generator)
        generator = generator.generator
    config = RECIPES[
        _default(generator, changes.get("space"), changes.get("energy")) if recipe == "default" else recipe
    ]
    if config.energy in ("resnet", "small") and len(generator.data_shape) != 3:
        config = override(config, energy="mlp", energy_width=256, batch_size=256, learning_rate=1e-3)
        if config.space == "pixel":
            # No bins of bytes, within which a density of images is this narrow.
            wider = {name: getattr(config, name).change(step_size=0.01) for name in ("chain", "sampler")}
            config = override(config, **wider)
    if changes.get("energy", config.energy) not in (None, *GATED, config.energy):
        config = override(config, dropout=0.0)
    if changes.get("space") == "z" and config.space != "z":
        config = override(config, energy="mlp", energy_width=512)
    if chains and config.chains == "persistent":
        chains["chain"] = dataclasses.replace(config.chain, step_size=chains["sampler"].step_size)
    config = override(override(config, **chains), **changes)
    if config.space == "pixel":
        in_pixel_space(generator)
    if config.space == "z" and config.encoder != "learned" and not generator.has_encoder:
        raise InputError(
            "space 'z'", "needs an encoder, and this generator has none", "use encoder 'learned', or wrap(encode=…)"
        )
    if config.space == "z" and config.encoder == "learned" and not isinstance(generator.prior, StandardNormal):
        fault = "needs a standard normal prior, and this generator has another"
        raise InputError("encoder 'learned'", fault, "use recipe 'default-x', or wrap(encode=…)")
    _require_use_of_mirror(config, generator)
    return config


def tilt(
    generator: Generator | TiltedGenerator,
    images: torch.Tensor | DataSet,
    recipe: str = "default",
    *,
    seed: int | None = None,
    config: TiltConfig | None = None,
    held_out: DataSet | None = None,
    monitor: Monitor | None = None,
    folder: RunFolder | None = None,
    tracker: Tracker | None = None,
    quiet: bool = True,
) -> TiltedGenerator:
    """Learn an energy that turns the generator's samples into data, and return the tilted generator.

    The generator is frozen: its parameters and buffers do not change. One that is tilted already is tilted on, from the
    samples that it gives now: an energy in the same space goes on from where it is, one in the other stays beside it.

    Args:
        generator: A generator of exptilt, :func:`exptilt.wrap` of any decoder, or a tilted generator.
        images: Training data: images (N, C, H, W) in [−1, 1] or of bytes, points (N, D), or a data set.
        recipe: ``"paper"`` or ``"default"``.
        seed: Fixes initialisation, order of the data and all chains; unless given, that of ``config``, or 0.
        config: Settings in place of the recipe's; see :func:`resolve_recipe`.
        held_out: Data that the energy does not see. Of a ratio on latents, the state with the least loss on it is
            kept; a tenth of ``images`` is held out for that unless it is given.
        monitor: Figures of the quality of samples (N, *data_shape). Of other objectives they are computed at every
            check, and the state with the least ``"kid"`` is kept (paper, §5.3: stop when the samples deteriorate). Of
            all, the strength of the tilt is calibrated by them where the settings give several. Where none brings
            samples nearer to the data, a line says so, and what was tilted comes back (of a generator, with λ = 0).
        folder: Where log and checkpoints go, and from where a run is resumed.
        tracker: Receives the figures of the log.
        quiet: No progress bar.

    Raises:
        InputError: The data do not fit the generator or are not finite, the settings do not fit each other, or latents
            make no difference to the generator or to its encoder.
        RunError: The training diverged, or the energy did not learn, also after rollbacks.
    """
    config = resolve_recipe(recipe, generator, seed=seed) if config is None else override(config, seed=seed)
    if isinstance(generator, TiltedGenerator) and generator.strength == 0:
        generator = generator.generator
    plain = generator.generator if isinstance(generator, TiltedGenerator) else generator
    if config.space == "pixel":
        if isinstance(generator, TiltedGenerator):
            raise InputError("space 'pixel'", "is for a generator that is not tilted", "use space 'x' or 'z'")
        generator = plain = in_pixel_space(generator)
    _require_use_of_mirror(config, plain)
    data = images if isinstance(images, DataSet) else as_data_set(images)
    data.require_shape(plain.data_shape)
    data.require_finite()
    told = config.objective == "logistic_ratio" and config.space == "z"
    if held_out is None and told and len(data) >= _SPLIT_FROM:
        # Not by the seed: data of an energy that is tilted on would be held out after it was fitted to them.
        data, held_out = train_validation_split(data)
    plain.freeze()
    require_variety(plain, config.seed)
    return tilt_in_stages(Task(generator, data, held_out, monitor, folder, tracker, quiet), config).model


def _require_use_of_mirror(config: TiltConfig, generator: Generator) -> None:
    """Refuse mirror images as data where nothing would take them.

    Raises:
        InputError: They are asked for, and the energy is not on latents or the data are no images.
    """
    if config.mirror and config.space != "z":
        raise InputError("mirror", f"is of no use in space {config.space!r}", "leave it out, or use space 'z'")
    if config.mirror and len(generator.data_shape) != 3:
        raise InputError("mirror", f"is for images, and these data have shape {generator.data_shape}", "leave it out")


def _chains_of(tilted: TiltedGenerator) -> dict[str, Any]:
    """The settings by which a tilted generator samples, as a recipe's; none where it samples as its generator does."""
    if tilted.strength == 0:
        return {}
    return {"sampler": tilted.sampler, "target_acceptance": 0.6 if tilted.sampler.kernel in ADAPTABLE else 0.0}


def _default(generator: Generator, space: str | None, energy: str | None) -> str:
    """The recipe that ``"default"`` means for this generator, and this space and energy if one is asked for."""
    if isinstance(generator, UniformPixels):
        return "pixel-ebm"
    if space == "pixel" or isinstance(generator, PixelSpace):
        return "pixel"
    if space != "z" and len(generator.data_shape) == 1 and generator.data_shape[0] <= _FEW_NUMBERS:
        return "default-points"
    if space == "x":
        return "default-x"
    if generator.has_encoder:
        return "default-flow" if len(generator.latent_parts) > 1 and energy in (None, "pyramid") else "default"
    return "default-no-encoder" if isinstance(generator.prior, StandardNormal) else "default-x"


def as_data_set(images: torch.Tensor, *, is_batch: bool = False) -> DataSet:
    """Images (N, C, H, W) in [−1, 1] or of whole numbers in 0 … 255, or points (N, D), as a data set.

    Args:
        images: Images or points.
        is_batch: They are some of the data, which may be bright without those being of [0, 1].

    Raises:
        InputError: They are of another shape or type, empty, not finite or outside of [−1, 1], or all data are images
            without any value below 0: those are of [0, 1], as black is −1.
    """
    if not isinstance(images, torch.Tensor) or images.dim() not in (2, 4) or len(images) == 0:
        got = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise InputError("images", f"are {got}", "give a tensor (N, C, H, W) in [-1, 1], or points (N, D)")
    whole = not (images.is_floating_point() or images.is_complex() or images.dtype == torch.bool)
    if whole and images.dim() == 4 and 0 <= int(images.min()) <= int(images.max()) <= 255:
        return DataSet("tensor", "train", images.to(torch.uint8), None, "a tensor")
    if not images.is_floating_point():
        mend = "give floats in [-1, 1], or bytes" if images.dim() == 4 else "give floats"
        raise InputError("images", f"are {images.dtype}" + (" beyond 0 … 255" if whole else ""), mend)
    data = DataSet("tensor", "train", images.detach().float(), None, "a tensor")
    data.require_finite()
    if images.dim() == 4:
        require_units("images", images, is_batch=is_batch)
    return data
