"""GAN generators: normal or uniform noise, with labels or without."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.errors import InputError
from exptilt.generators.latent_map import UniformMap
from exptilt.generators.wrap import WrappedGenerator, frozen


def from_gan(
    network: Callable[..., torch.Tensor],
    latent_shape: int | tuple[int, ...],
    *,
    prior: Literal["normal", "uniform"] = "normal",
    label: int | None = None,
    classes: int | Sequence[float] | None = None,
    one_hot: bool = False,
    output_range: tuple[float, float] = (-1.0, 1.0),
    data_shape: tuple[int, ...] | None = None,
    pad: int | None = None,
) -> GANGenerator:
    """Make a generator of a GAN's generator network.

    The latents are N(0, I) in any case: uniform noise is 2 Φ(z) − 1, Φ the distribution function of N(0, 1), and a
    label that is drawn is one more number of the latent, whose range is divided among the classes by their
    probabilities. So a sample's label depends on (seed, i) alone, as its noise does. A chain moves that number too:
    kernels with a test of acceptance (mala, hmc, isir, ex2mcmc) thereby tilt the classes as well; langevin and
    underdamped, which see only the gradient, leave the classes to the prior.

    The discriminator is an energy that needs no training (Che et al. 2020, arXiv 2003.06060):
    ``TiltedGenerator(gan, DiscriminatorEnergy(gan.native(discriminator)))``.

    Args:
        network: Noise (N, *latent_shape) to images or points; with labels, ``network(noise, labels)``.
        latent_shape: Shape of the noise, for example 64 or ``(100, 1, 1)``.
        prior: Of the noise: N(0, I), or uniform on [−1, 1].
        label: The class of every sample, for a conditional generator.
        classes: Number of classes, or their probabilities, of which each sample's label is drawn.
        one_hot: The network takes labels as (N, K) zeros and ones, and not as (N,) integers; ``classes`` gives K.
        output_range: As in :func:`exptilt.wrap`.
        data_shape: As there.
        pad: As there.

    Raises:
        InputError: An argument is out of range, or a check of :func:`exptilt.wrap` fails.
    """
    shape = (latent_shape,) if isinstance(latent_shape, int) else tuple(latent_shape)
    if prior not in ("normal", "uniform"):
        raise InputError("prior", f"{prior!r} is not known", "give normal or uniform, or use exptilt.wrap(…, prior=…)")
    if not shape or min(shape) < 1:
        raise InputError("latent_shape", f"{latent_shape} is out of range", "give whole numbers ≥ 1")
    return GANGenerator(_Labelled(network, shape, prior, label, classes, one_hot), output_range, data_shape, pad)


class GANGenerator(WrappedGenerator):
    """A GAN's generator network; see :func:`from_gan`."""

    decoder: _Labelled

    def __init__(
        self,
        network: _Labelled,
        output_range: tuple[float, float],
        data_shape: tuple[int, ...] | None,
        pad: int | None,
    ) -> None:
        super().__init__(network, network.latent_shape, None, None, output_range, data_shape, pad)

    def labels(self, z: torch.Tensor) -> torch.Tensor:
        """The classes of latents (N, *latent_shape), int64 (N,).

        Raises:
            InputError: The generator is not conditional.
        """
        labels = self.decoder.labels(z)
        if labels is None:
            raise InputError("labels", "this generator has none", "give from_gan(…, label=…) or classes=…")
        return labels


class _Labelled(nn.Module):
    """The network on latents: noise, and behind it the number that a drawn label is read from."""

    boundaries: torch.Tensor

    def __init__(
        self,
        network: Callable[..., torch.Tensor],
        noise_shape: tuple[int, ...],
        prior: str,
        label: int | None,
        classes: int | Sequence[float] | None,
        one_hot: bool,
    ) -> None:
        super().__init__()
        probabilities = (
            [1 / max(classes, 1)] * classes if isinstance(classes, int) else [float(p) for p in classes or ()]
        )
        count = len(probabilities)
        if classes is not None and not (count and min(probabilities) >= 0 and math.isclose(sum(probabilities), 1)):
            raise InputError("classes", f"{classes} is wrong", "give a number ≥ 1, or probabilities that sum to 1")
        if label is not None and not 0 <= label < (count or math.inf):
            raise InputError(
                "label", f"{label} is out of range", f"give a class in 0 … {count - 1 if count else 'K − 1'}"
            )
        if one_hot and not count:
            raise InputError("one_hot", "needs the number of classes", "give classes=K")
        self.network = frozen(network)
        self._noise_shape, self._label, self._one_hot, self._classes = noise_shape, label, one_hot, count
        self._is_drawn = label is None and count > 0
        self.latent_shape = (math.prod(noise_shape) + 1,) if self._is_drawn else noise_shape
        one = torch.ones(())
        self.noise = UniformMap(-one, one, noise_shape) if prior == "uniform" else None
        self.register_buffer("boundaries", torch.tensor([*itertools.accumulate(probabilities)][:-1]))
        self.to(next((p.device for p in self.parameters()), torch.device("cpu")))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        noise = (z[:, :-1] if self._is_drawn else z).reshape(len(z), *self._noise_shape)
        if self.noise is not None:
            noise = self.noise.code(noise)
        labels = self.labels(z)
        if labels is None:
            return self.network(noise)
        return self.network(noise, F.one_hot(labels, self._classes).to(noise) if self._one_hot else labels)

    def labels(self, z: torch.Tensor) -> torch.Tensor | None:
        """The classes of latents (N, *latent_shape), int64 (N,)."""
        if self._is_drawn:
            return torch.bucketize(torch.special.ndtr(z[:, -1].float()), self.boundaries)
        return None if self._label is None else torch.full((len(z),), self._label, device=z.device)
