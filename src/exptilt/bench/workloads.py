"""What is timed: generators and energies at their real sizes, with random weights (speed does not depend on them)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from exptilt.config import SamplerConfig
from exptilt.energies import MLPEnergy, ResNetEnergy
from exptilt.generators import GENERATORS, GLF, VAE, Generator, Glow
from exptilt.presets import preset

# Times as many chains on a GPU, which fewer leave idle, and times as many steps where a chain has few: a chain of ten
# would be over before what surrounds it.
_ON_GPU, _STEPS_ON_GPU, _FEW_STEPS = 16, 5, 10
# Chains that E's scale is taken from.
_PROBES = 64
# Deviation of a VAE's logits: most pixels then are near black or white.
_CONTRAST = 4.0

# Generator, energy and latent energy.
Parts = tuple[Generator, nn.Module | None, nn.Module | None]


@dataclass(frozen=True)
class Workload:
    """A generator, an energy and a chain; exactly one of the energies is given.

    Attributes:
        name: Key of :data:`WORKLOADS`.
        generator: The generator, in evaluation mode.
        energy: E on samples, (N, *data_shape) to (N,), or None.
        latent_energy: E on latents, (N, *latent_shape) to (N,), or None.
        sampler: The chain.
        chains: Number of chains.
    """

    name: str
    generator: Generator
    energy: nn.Module | None
    latent_energy: nn.Module | None
    sampler: SamplerConfig
    chains: int

    @property
    def gradients_per_chain(self) -> int:
        """Gradients that one chain costs; MALA needs one more, where it starts."""
        return self.sampler.steps + (self.sampler.kernel == "mala")

    @property
    def gradient_evaluations(self) -> int:
        """Gradients of all chains, which every method makes as many of."""
        return self.chains * self.gradients_per_chain

    def parts(self, device: torch.device) -> Parts:
        """Copies of generator, energy and latent energy on ``device``, for a method to prepare in its own way."""
        generator, energy, latent_energy = copy.deepcopy((self.generator, self.energy, self.latent_energy))
        for part in (generator, energy, latent_energy):
            if part is not None:
                part.to(device)
        return generator, energy, latent_energy


def make(name: str, quick: bool = False, seed: int = 0, device: torch.device | str = "cpu") -> Workload:
    """The workload ``name``, at a size for tests if ``quick``; its weights follow from ``seed``.

    On a GPU there are more chains, and longer ones of images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        workload = WORKLOADS[name](quick)
    if quick or torch.device(device).type != "cuda":
        return workload
    steps = workload.sampler.steps
    sampler = workload.sampler.change(steps=steps * _STEPS_ON_GPU if steps <= _FEW_STEPS else steps)
    return dataclasses.replace(workload, chains=workload.chains * _ON_GPU, sampler=sampler)


def on_images(name: str, generator: Generator, width: int, chains: int, steps: int) -> Workload:
    """A workload with the paper's E of ``width`` on a fresh generator of images, and the paper's Langevin chain."""
    energy = ResNetEnergy(generator.data_shape[0], width)
    _make_typical(generator)
    _unit_scale(energy, generator.sample(_PROBES))
    return Workload(name, generator, energy.eval(), None, SamplerConfig(steps=steps), chains)


def _vae(quick: bool) -> Workload:
    if quick:
        return on_images("vae", VAE(1, 8, 8), width=8, chains=6, steps=2)
    return on_images("vae", _preset("vae-mnist"), width=64, chains=128, steps=10)


def _glf(quick: bool) -> Workload:
    arguments = {"latent_size": 8, "width": 8, "flow_width": 16} if quick else {}
    generator = _preset("glf-mnist", **arguments)
    return on_images("glf", generator, 8, 6, 2) if quick else on_images("glf", generator, 64, 128, 10)


def _glow(quick: bool) -> Workload:
    arguments = {"steps": 2, "hidden": 8} if quick else {}
    generator = _preset("glow-mnist", **arguments)
    return on_images("glow", generator, 8, 4, 2) if quick else on_images("glow", generator, 64, 64, 5)


def _toy(quick: bool) -> Workload:
    generator = _preset("toy-gaussians", **({"width": 16} if quick else {}))
    energy = MLPEnergy(2, 16 if quick else 256)
    _make_typical(generator)
    _unit_scale(energy, generator.sample(_PROBES))
    sampler = SamplerConfig(steps=3 if quick else 60)
    return Workload("toy", generator, energy.eval(), None, sampler, 16 if quick else 2000)


def _latent(quick: bool) -> Workload:
    generator = VAE(1, 8, 8) if quick else _preset("vae-mnist")
    energy = MLPEnergy(generator.latent_shape[0], 16 if quick else 512)
    _make_typical(generator)
    _unit_scale(energy, generator.sample_prior(_PROBES))
    sampler = SamplerConfig(kernel="mala", steps=3 if quick else 100, step_size=0.1)
    return Workload("latent", generator, None, energy.eval(), sampler, 16 if quick else 4000)


WORKLOADS: dict[str, Callable[[bool], Workload]] = {
    "vae": _vae,
    "glf": _glf,
    "glow": _glow,
    "toy": _toy,
    "latent": _latent,
}


def _preset(name: str, **changes: object) -> Generator:
    config = preset(name)
    return GENERATORS[config.model](**(config.arguments | changes))


@torch.no_grad()
def _make_typical(generator: Generator) -> None:
    """Statistics of BatchNorm as data leave them, images with contrast, and couplings that are not the identity."""
    if isinstance(generator, Glow):
        for layer in generator.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=0.01)
    norms = [layer for layer in generator.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        # The statistics become those of the next batch.
        layer.momentum = 1.0
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, std=0.1)
    if norms:
        generator.train()
        generator.decode(torch.randn(_PROBES, *generator.latent_shape))
    generator.eval()
    vae = generator.autoencoder if isinstance(generator, GLF) else generator
    if isinstance(vae, VAE):
        last = vae.decoder[-1]
        assert isinstance(last, nn.ConvTranspose2d)
        last.weight *= _CONTRAST / vae.logits(torch.randn(_PROBES, *vae.latent_shape)).std()


@torch.no_grad()
def _unit_scale(energy: nn.Module, inputs: torch.Tensor) -> None:
    """Make E's last layer such that E has mean 0 and deviation 1 over ``inputs``: chains then stay finite."""
    last = [layer for layer in energy.modules() if isinstance(layer, nn.Linear)][-1]
    last.weight /= energy(inputs).std().clamp(min=1e-6)
    last.bias.zero_()
    last.bias -= energy(inputs).mean()
