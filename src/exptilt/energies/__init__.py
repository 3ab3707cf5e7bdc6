"""Energies by name, and what must hold between an energy and what it sees."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from exptilt.energies.gated import GatedEnergy
from exptilt.energies.mlp import MLPEnergy
from exptilt.energies.multiscale import MultiscaleEnergy
from exptilt.energies.resnet import ResNetEnergy
from exptilt.energies.small import SmallEnergy
from exptilt.errors import InputError

# The classes that a saved model may name; nothing else is ever built from a file.
ENERGIES: dict[str, type[Any]] = {
    "ResNetEnergy": ResNetEnergy,
    "SmallEnergy": SmallEnergy,
    "MLPEnergy": MLPEnergy,
    "GatedEnergy": GatedEnergy,
    "MultiscaleEnergy": MultiscaleEnergy,
}
_FULLY_CONNECTED: dict[str, type[Any]] = {"mlp": MLPEnergy, "gated": GatedEnergy}


def make_energy(
    kind: str, shape: tuple[int, ...], width: int, normalization: str = "none", dropout: float = 0.0, parts: str = ""
) -> nn.Module:
    """A fresh energy of ``kind`` for inputs of ``shape``: (C, H, W), (D,) or a latent shape.

    Args:
        kind: ``"resnet"``, ``"small"``, ``"mlp"``, ``"gated"`` or ``"multiscale"``.
        shape: Shape of one input.
        width: See the class.
        normalization: ``"none"`` or, of convolutional energies, ``"spectral"``.
        dropout: Of gated and multiscale energies, in training.
        parts: Of multiscale energies: see the class.

    Raises:
        InputError: A convolutional energy is asked for on something that is no image, a multiscale one on something
            that has no parts, or a normalization or a dropout of an energy that has none.
    """
    if dropout and kind not in ("gated", "multiscale"):
        raise InputError(f"dropout {dropout:g}", f"is not for energy {kind!r}", "use energy 'gated'")
    if kind == "multiscale":
        if not parts:
            raise InputError("energy 'multiscale'", "needs latents in parts, as GLOW has them", "use energy 'gated'")
        return MultiscaleEnergy(parts, width, dropout)
    if kind in _FULLY_CONNECTED:
        if normalization != "none":
            fault = f"is not for energy {kind!r}"
            raise InputError(f"normalization {normalization!r}", fault, "use 'resnet' or 'small'")
        more = {"dropout": dropout} if kind == "gated" else {}
        return _FULLY_CONNECTED[kind](math.prod(shape), width, **more)
    if len(shape) != 3:
        raise InputError(f"energy {kind!r}", f"needs images, and this sees {shape}", "use energy 'mlp'")
    return (ResNetEnergy if kind == "resnet" else SmallEnergy)(shape[0], width, normalization)
