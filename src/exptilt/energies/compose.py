"""Energies made of what a user has: a discriminator, a classifier, a reward, and sums of energies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.errors import InputError
from exptilt.methods import as_module
from exptilt.precision import without_autocast

Function = Callable[[torch.Tensor], torch.Tensor]


class SumEnergy(nn.Module):
    """E(x) = Σ wᵢ Eᵢ(x): the product of the tilts, exp(−E) = Π exp(−wᵢ Eᵢ).

    Args:
        energies: Samples (N, *shape) to (N,) each.
        weights: wᵢ; 1 each unless given. A negative weight tilts away from what an energy prefers.

    Raises:
        InputError: There is no energy, one is no module, or weights and energies are not equally many.
    """

    def __init__(self, energies: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not energies:
            raise InputError("SumEnergy", "has no energy", "give one or more")
        for energy in energies:
            require_module("SumEnergy", energy)
        self.weights = [1.0] * len(energies) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(energies):
            raise InputError("weights", f"are {len(self.weights)} for {len(energies)} energies", "give one for each")
        self.energies = nn.ModuleList(energies)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """E of samples (N, *shape), (N,)."""
        values = [w * energy(x).reshape(len(x)) for w, energy in zip(self.weights, self.energies, strict=True)]
        return torch.stack(values).sum(0)


class DiscriminatorEnergy(nn.Module):
    """E(x) = −d(x) with the logit d of a GAN's discriminator: discriminator driven latent sampling.

    A discriminator at its optimum has d = log p_data/p_G, so that p(z) exp(d(G(z))) gives data, and nothing has to be
    trained (Che et al. 2020, "Your GAN is secretly an energy-based model", eq. 5).

    Args:
        discriminator: Samples (N, *shape) in the units of exptilt to logits, or probabilities of being real, (N,) or
            (N, 1).
        probability: It gives probabilities in [0, 1]; their logit is taken, cut at ±16.
    """

    def __init__(self, discriminator: nn.Module | Function, probability: bool = False) -> None:
        super().__init__()
        self.discriminator, self.probability = as_module(discriminator), probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """E of samples (N, *shape), (N,)."""
        if not self.probability:
            return -_one_number_each(self.discriminator(x), x, "discriminator")
        # In full precision under autocast too: in bfloat16 a probability above 0.998 is 1.
        with without_autocast(x.device):
            value = self.discriminator(x.to(torch.promote_types(x.dtype, torch.float32)))
            return -torch.logit(_one_number_each(value, x, "discriminator"), eps=1e-7)


class ClassifierEnergy(nn.Module):
    """E(x) = −log p(y|x) of a classifier: samples of class y from an unconditional generator.

    p(z) p(y|G(z)) is the posterior of z given the class, up to a constant (Nguyen et al. 2017, "Plug & play generative
    networks", eq. 1).

    Args:
        classifier: Samples (N, *shape) in the units of exptilt to logits (N, K).
        label: y, a class in 0 … K − 1.
        temperature: T > 0 of the softmax; below 1 the class counts more.

    Raises:
        InputError: The label or the temperature is out of range.
    """

    def __init__(self, classifier: nn.Module | Function, label: int, temperature: float = 1.0) -> None:
        super().__init__()
        if label < 0:
            raise InputError("label", f"{label} is out of range", "give a class ≥ 0")
        _require_positive("temperature", temperature)
        self.classifier, self.label, self.temperature = as_module(classifier), label, temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """E of samples (N, *shape), (N,)."""
        logits = self.classifier(x)
        if logits.dim() != 2 or len(logits) != len(x):
            raise InputError("classifier", f"gives {tuple(logits.shape)} for {len(x)} samples", "return logits (N, K)")
        if self.label >= logits.shape[1]:
            raise InputError("label", f"{self.label} is not among {logits.shape[1]} classes", "give a smaller one")
        return -F.log_softmax(logits.float() / self.temperature, dim=1)[:, self.label]


class RewardEnergy(nn.Module):
    """E(x) = −r(x)/T: samples with a large reward r, or that keep a constraint.

    p(z) exp(r(G(z))/T) maximises the expected reward less T times the divergence from the generator.

    Args:
        reward: Samples (N, *shape) in the units of exptilt to (N,), differentiable.
        temperature: T > 0; the smaller, the more the reward counts.

    Raises:
        InputError: The temperature is out of range.
    """

    def __init__(self, reward: nn.Module | Function, temperature: float = 1.0) -> None:
        super().__init__()
        _require_positive("temperature", temperature)
        self.reward, self.temperature = as_module(reward), temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """E of samples (N, *shape), (N,)."""
        return -_one_number_each(self.reward(x), x, "reward") / self.temperature


def require_module(subject: str, energy: object) -> None:
    """Check that an energy is a module.

    Raises:
        InputError: It is none.
    """
    if not isinstance(energy, nn.Module):
        mend = "give an nn.Module; RewardEnergy(reward) makes one of a function, with E = −reward"
        raise InputError(subject, f"is given a {type(energy).__name__} as energy", mend)


def _one_number_each(value: torch.Tensor, x: torch.Tensor, name: str) -> torch.Tensor:
    if value.numel() != len(x):
        raise InputError(name, f"gives {tuple(value.shape)} for {len(x)} samples", "return one number a sample, (N,)")
    return value.reshape(len(x))


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise InputError(name, f"{value} is out of range", "give a number > 0")
