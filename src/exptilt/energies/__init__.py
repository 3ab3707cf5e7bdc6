"""Energies by name, and what must hold between an energy and what it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from exptilt.energies.fourier import FREQUENCY, FourierEnergy
from exptilt.energies.gated import GatedEnergy
from exptilt.energies.mlp import MLPEnergy
from exptilt.energies.pyramid import PyramidEnergy, part_shapes
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
    "PyramidEnergy": PyramidEnergy,
    "RelativeEnergy": RelativeEnergy,
}
GATED = ("gated", "pyramid")
"""Names of those with dropout in training."""
_ON_IMAGES = ("resnet", "small")
_FULLY_CONNECTED: dict[str, type[Any]] = {"mlp": MLPEnergy, "gated": GatedEnergy, "fourier": FourierEnergy}


def make_energy(
    kind: str,
    shape: tuple[int, ...],
    width: int,
    normalization: str = "none",
    dropout: float = 0.0,
    deviation: float = 1.0,
    parts: Sequence[tuple[int, int, int]] = (),
) -> nn.Module:
    """A fresh energy of ``kind`` for inputs of ``shape``: (C, H, W), (D,) or a latent shape.

    Args:
        kind: ``"resnet"``, ``"small"``, ``"mlp"``, ``"gated"``, ``"pyramid"`` or ``"fourier"``.
        shape: Shape of one input.
        width: See the class.
        normalization: ``"none"`` or, of convolutional energies, ``"spectral"``.
        dropout: Of gated energies and pyramids, in training.
        deviation: Standard deviation of the inputs, > 0, which the frequencies of a Fourier energy are chosen by.
        parts: Shapes (C, H, W) of the images that a latent consists of, which a pyramid is for.

    Raises:
        InputError: The kind is not known, a pyramid is asked for on what has no such parts, a convolutional energy on
            something that is no image, or a normalization or a dropout of an energy that has none.
    """
    if dropout and kind not in GATED:
        raise InputError(f"dropout {dropout:g}", f"is not for energy {kind!r}", "use energy 'gated'")
    if normalization != "none" and kind not in _ON_IMAGES:
        fault = f"is not for energy {kind!r}"
        raise InputError(f"normalization {normalization!r}", fault, "use 'resnet' or 'small'")
    if kind in _FULLY_CONNECTED:
        own = {"gated": {"dropout": dropout}, "fourier": {"frequency": FREQUENCY / deviation}}
        more = own.get(kind, {})
        return _FULLY_CONNECTED[kind](math.prod(shape), width, **more)
    if kind == "pyramid":
        if len(parts) < 2 or list(parts) != part_shapes(parts[0][0], parts[0][1], len(parts)):
            fault = "needs a latent of images of several resolutions, as GLOW's is"
            raise InputError("energy 'pyramid'", fault, "use energy 'gated'")
        return PyramidEnergy(parts[0][0], parts[0][1], len(parts), width, dropout=dropout)
    if kind not in _ON_IMAGES:
        known = (*_ON_IMAGES, *_FULLY_CONNECTED, "pyramid")
        raise InputError(f"energy {kind!r}", "is not known", f"use one of {', '.join(known)}")
    if len(shape) != 3:
        raise InputError(f"energy {kind!r}", f"needs images, and this sees {shape}", "use energy 'mlp'")
    return (ResNetEnergy if kind == "resnet" else SmallEnergy)(shape[0], width, normalization)
