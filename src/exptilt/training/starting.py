"""What the training of an energy starts from: a fresh one, or that of a tilted generator."""

from __future__ import annotations

import copy

import torch
from torch import nn

from exptilt.config import TiltConfig
from exptilt.data import DataSet
from exptilt.energies import ENERGIES, make_energy
from exptilt.energies.relative import RelativeEnergy
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.tilted import TiltedGenerator


def energy_to_train(
    base: Generator | TiltedGenerator, data: DataSet | None, config: TiltConfig
) -> tuple[nn.Module, nn.Module | None]:
    """The energy that is trained, and the one of ``base`` that it goes on from, if it has one in this space.

    Args:
        base: What is tilted.
        data: Training set, whose scale an energy of Fourier features is made for.
        config: Settings.

    Raises:
        InputError: The energy of ``base`` is not a class of exptilt, so that its training cannot go on.
    """
    on_x = config.space != "z"
    if isinstance(base, TiltedGenerator):
        generator, before = base.generator, base.energy if on_x else base.latent_energy
    else:
        generator, before = base, None
    if before is None:
        shape = generator.data_shape if on_x else generator.latent_shape
        deviation = _deviation(data) if on_x else 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            settings = (config.energy_width, config.normalization, config.dropout, deviation)
            parts = () if on_x else generator.latent_parts
            return make_energy(config.energy, shape, *settings, parts), None
    if not isinstance(before, tuple(ENERGIES.values())):
        fault = f"{type(before).__name__} is not a class of exptilt, so its training cannot go on"
        raise InputError("energy", fault, "tilt the generator itself, and add this energy to the result")
    # Without its floor: the calibration gives what comes of it another.
    learned = before.energy if isinstance(before, RelativeEnergy) else before
    energy = copy.deepcopy(learned).train().requires_grad_(True)
    for layer in energy.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = config.dropout
    return energy, before


def _deviation(data: DataSet | None) -> float:
    """The standard deviation of an axis of points; 1 of all else, and where they do not differ."""
    if data is None or data.stored.dim() != 2:
        return 1.0
    return float(data.stored.double().var(0, correction=0).mean().sqrt()) or 1.0
