"""Energies by name, and what must hold between an energy and what it sees."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from exptilt.energies.fourier import FREQUENCY, FourierEnergy
from exptilt.energies.gated import GatedEnergy
from exptilt.energies.mlp import MLPEnergy
from exptilt.energies.relative import RelativeEnergy
from exptilt.energies.resnet import ResNetEnergy
from exptilt.energies.small import SmallEnergy
from exptilt.errors import InputError

# The classes that a saved model may name; nothing else is ever built from a file.
ENERGIES: dict[str, type[Any]] = {
    "ResNetEnergy": ResNetEnergy,
    "SmallEnergy": SmallEnergy,
    "MLPEnergy": MLPEnergy,
    "GatedEnergy": GatedEnergy,
    "FourierEnergy": FourierEnergy,
    "RelativeEnergy": RelativeEnergy,
}
_FULLY_CONNECTED: dict[str, type[Any]] = {"mlp": MLPEnergy, "gated": GatedEnergy, "fourier": FourierEnergy}


def make_energy(
    kind: str,
    shape: tuple[int, ...],
    width: int,
    normalization: str = "none",
    dropout: float = 0.0,
    deviation: float = 1.0,
) -> nn.Module:
    """A fresh energy of ``kind`` for inputs of ``shape``: (C, H, W), (D,) or a latent shape.

    Args:
        kind: ``"resnet"``, ``"small"``, ``"mlp"``, ``"gated"`` or ``"fourier"``.
        shape: Shape of one input.
        width: See the class.
        normalization: ``"none"`` or, of convolutional energies, ``"spectral"``.
        dropout: Of gated energies, in training.
        deviation: Standard deviation of the inputs, > 0, which the frequencies of a Fourier energy are chosen by.

    Raises:
        InputError: A convolutional energy is asked for on something that is no image, or a normalization or a dropout
            of an energy that has none.
    """
    if dropout and kind != "gated":
        raise InputError(f"dropout {dropout:g}", f"is not for energy {kind!r}", "use energy 'gated'")
    if kind in _FULLY_CONNECTED:
        if normalization != "none":
            fault = f"is not for energy {kind!r}"
            raise InputError(f"normalization {normalization!r}", fault, "use 'resnet' or 'small'")
        own = {"gated": {"dropout": dropout}, "fourier": {"frequency": FREQUENCY / deviation}}
        more = own.get(kind, {})
        return _FULLY_CONNECTED[kind](math.prod(shape), width, **more)
    if len(shape) != 3:
        raise InputError(f"energy {kind!r}", f"needs images, and this sees {shape}", "use energy 'mlp'")
    return (ResNetEnergy if kind == "resnet" else SmallEnergy)(shape[0], width, normalization)
