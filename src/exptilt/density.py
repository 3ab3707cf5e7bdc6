"""Densities of a tilted generator: U on latents, log p on samples of a flow, and the log Z that the latter needs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from exptilt.config import from_dict
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.precision import autocast


class LatentPotential:
    """U(z) = λ E(G(z)) + λ E_z(z) − log p(z), up to a constant; what the samplers see.

    Args:
        generator: Frozen generator.
        energy: E on samples, or None.
        latent_energy: E_z on latents, or None.
        strength: λ; 1 is eq. 6, 0 is the prior.
        dtype: What decoder and energies run in; the prior is always float32.
    """

    def __init__(
        self,
        generator: Generator,
        energy: nn.Module | None,
        latent_energy: nn.Module | None = None,
        strength: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.generator, self.energy_on_x, self.energy_on_z = generator, energy, latent_energy
        self.strength, self.dtype = strength, dtype

    def energy(self, z: torch.Tensor) -> torch.Tensor:
        """E(G(z)) + E_z(z) of latents (N, *latent), (N,)."""
        total = torch.zeros(len(z), device=z.device, dtype=z.dtype)
        with autocast(self.dtype, z.device):
            if self.energy_on_x is not None:
                total = total + self.energy_on_x(self.generator.decode(z)).reshape(len(z)).to(z.dtype)
            if self.energy_on_z is not None:
                total = total + self.energy_on_z(z).reshape(len(z)).to(z.dtype)
        return total

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """U of latents (N, *latent), (N,)."""
        return self.strength * self.energy(z) - self.generator.prior.log_prob(z)


@dataclass(frozen=True)
class LogZ:
    """log Z of a tilted generator in nats, Z = E_{z~p}[exp(−λE(G(z)) − λE_z(z))], estimated or known.

    Attributes:
        value: log Z.
        standard_error: Of ``value``; 0 if it is known.
        interval: 95% confidence interval.
        ess: Effective sample size of the weights, (Σw)²/Σw²; for ``smc`` that of the particles that arrive at β = 1,
            summed over its populations.
        lower: log Z is above this with 95% confidence.
        upper: log Z is below this with 95% confidence, as far as the samples behind it have the tilted distribution.
        method: What made it; ``"given"`` if it was passed in.
        n: Samples of the prior that it was made from.
        steps: Distributions between prior and tilted distribution, the latter included.
        gradient_evaluations: Gradients of U, over all chains.
        seconds: Wall-clock time.
        strength: λ.

    Raises:
        InputError: A number is not finite, or the error is negative.
    """

    value: float
    standard_error: float = 0.0
    interval: tuple[float, float] | None = None
    ess: float | None = None
    lower: float | None = None
    upper: float | None = None
    method: str = "given"
    n: int = 0
    steps: int = 0
    gradient_evaluations: int = 0
    seconds: float = 0.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        numbers = dataclasses.asdict(self)
        low, high = numbers.pop("interval") or (0.0, 0.0)
        for name, value in {**numbers, "interval (low)": low, "interval (high)": high}.items():
            if name != "method" and value is not None and not (_is_number(value) and math.isfinite(value)):
                raise InputError("log_z", f"{name} = {value!r} is no finite number", "estimate it anew")
        if self.standard_error < 0:
            raise InputError("log_z", f"standard_error = {self.standard_error} is negative", "estimate it anew")

    @classmethod
    def read(cls, values: Any, source: object) -> LogZ:
        """From JSON values, as :func:`dataclasses.asdict` gave them.

        Raises:
            InputError: A name is unknown, or a value is of the wrong type or not finite.
        """
        if not isinstance(values, dict):
            raise InputError(source, "log_z is no JSON object", "restore the file, or estimate log Z anew")
        interval = values.get("interval")
        if interval is not None and (not isinstance(interval, list) or len(interval) != 2):
            raise InputError(source, f"log_z: interval {interval!r} is malformed", "it must be two numbers")
        return from_dict(cls, {**values, "interval": None if interval is None else tuple(interval)}, f"{source}: log_z")


def log_tilt(
    generator: Generator,
    energy: nn.Module | None,
    latent_energy: nn.Module | None,
    log_z: LogZ | None,
    strength: float,
    x: torch.Tensor,
) -> torch.Tensor:
    """−λE(x) − λE_z(f(x)) − log Z in nats, (N,): the logarithm of a tilted flow's density over the flow's.

    With z = f(x), the change of variables x = G(z) takes p(z)·exp(−λE(G(z)) − λE_z(z))/Z to p(x) times the exponential
    of this, which is normalised over x.

    Raises:
        InputError: There is no log Z for this λ, or E_z is there and the generator is no flow.
    """
    if log_z is None:
        raise InputError("log_prob", "log Z is not known", "call exptilt.estimate_log_z(tilted), or set tilted.log_z")
    if log_z.strength != strength:
        fault = f"was estimated for strength {log_z.strength:g}, and this is {strength:g}"
        raise InputError("log_z", fault, "call exptilt.estimate_log_z(tilted) again")
    x = x.to(next((p.dtype for p in generator.parameters()), x.dtype))
    value = x.new_full((len(x),), -log_z.value)
    if energy is not None:
        value = value - strength * energy(x).reshape(len(x))
    if latent_energy is not None:
        value = value - strength * latent_energy(generator.latent(x)).reshape(len(x))
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
