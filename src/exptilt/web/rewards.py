"""Rewards to try on a tilted model: simple functions of a sample, larger for samples that they like better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from exptilt.energies.compose import ClassifierEnergy, RewardEnergy, SumEnergy
from exptilt.evaluation.features import load_features, shipped_names
from exptilt.evaluation.network import ImageClassifier
from exptilt.tilted import TiltedGenerator

_CLASS_NAMES = {
    "fashion": (
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


@dataclass(frozen=True)
class Reward:
    """A reward r.

    Attributes:
        symbol: r in a formula.
        energy: −r as an energy, samples (N, *data_shape) to (N,).
    """

    symbol: str
    energy: nn.Module

    @torch.no_grad()
    def mean(self, samples: torch.Tensor) -> float:
        """Mean of r over samples (N, *data_shape)."""
        return -float(self.energy(samples).mean())


def rewards_for(shape: tuple[int, ...], data: str | None, device: torch.device) -> dict[str, Reward]:
    """What the samples of a model can be rewarded for, by name.

    ``brightness`` is the mean pixel in tenths of white; ``position`` of points is their first coordinate. Where the
    feature network of the data set is shipped, ``class k`` is log p(k|x) by it (:class:`~exptilt.ClassifierEnergy`).

    Args:
        shape: Of one sample.
        data: Canonical name of the data set, or None.
        device: Where the samples are.
    """
    if len(shape) == 1:
        return {"position": Reward("x₁", RewardEnergy(_first_coordinate))}
    rewards = {"brightness": Reward("brightness(x)", RewardEnergy(_brightness))}
    network = load_features(data).to(device).module if data is not None and data in shipped_names() else None
    if isinstance(network, ImageClassifier) and (network.channels, *network.image_size) == shape:
        names = _CLASS_NAMES.get(str(data))
        for label in range(network.head.out_features):
            name = f"class {label}" if names is None else f"class {label}: {names[label]}"
            rewards[name] = Reward(f"log p({label}|x)", ClassifierEnergy(network, label))
    return rewards


def with_reward(tilted: TiltedGenerator, strength: float, reward: Reward | None, weight: float) -> TiltedGenerator:
    """The model tilted by λE − wr in place of E.

    Args:
        tilted: The model.
        strength: λ ≥ 0.
        reward: r, or None.
        weight: w; below 0 it keeps away from what r likes.
    """
    if reward is None or weight == 0:
        parts = {"energy": tilted.energy, "latent_energy": tilted.latent_energy, "strength": strength}
    else:
        on_x = [] if tilted.energy is None else [(tilted.energy, strength)]
        energies, weights = zip(*on_x, (reward.energy, weight), strict=True)
        on_z = None if tilted.latent_energy is None else SumEnergy([tilted.latent_energy], [strength])
        parts = {"energy": SumEnergy(energies, weights), "latent_energy": on_z}
    return TiltedGenerator(tilted.generator, **parts, sampler=tilted.sampler, precision=tilted.precision)


def _brightness(images: torch.Tensor) -> torch.Tensor:
    return 5 * (images + 1).flatten(1).mean(1)


def _first_coordinate(points: torch.Tensor) -> torch.Tensor:
    return points[:, 0]
