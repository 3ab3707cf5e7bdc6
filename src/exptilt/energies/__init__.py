"""Energies by name, and what must hold between an energy and what it sees."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from exptilt.energies.mlp import MLPEnergy
from exptilt.energies.resnet import ResNetEnergy
from exptilt.energies.small import SmallEnergy
from exptilt.errors import InputError

# The classes that a saved model may name; nothing else is ever built from a file.
ENERGIES: dict[str, type[Any]] = {"ResNetEnergy": ResNetEnergy, "SmallEnergy": SmallEnergy, "MLPEnergy": MLPEnergy}


def make_energy(kind: str, shape: tuple[int, ...], width: int) -> nn.Module:
    """A fresh energy of ``kind`` (resnet, small or mlp) for inputs of ``shape``: (C, H, W), (D,) or a latent shape.

    Raises:
        InputError: A convolutional energy is asked for on something that is no image.
    """
    if kind == "mlp":
        return MLPEnergy(math.prod(shape), width)
    if len(shape) != 3:
        raise InputError(f"energy {kind!r}", f"needs images, and this sees {shape}", "use energy 'mlp'")
    return (ResNetEnergy if kind == "resnet" else SmallEnergy)(shape[0], width)
