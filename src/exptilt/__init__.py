"""exptilt: better samples from a generative model that already exists.

The model is frozen, an energy E(x) is learned on its outputs, and its latent space is sampled from
p(z) · exp(−E(G(z))) / Z (Xiao, Yan, Amit: Exponential Tilting of Generative Models, arXiv 2006.08100, eq. 6).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The whole public API, and where each part lives. Loaded on first use, so that `import exptilt` needs no torch.
_HOME = {
    "load": "exptilt.hub",
    "push_to_hub": "exptilt.push",
    "wrap": "exptilt.generators.wrap",
    "from_autoencoder": "exptilt.generators.autoencoder",
    "from_diffusers": "exptilt.generators.diffusers_autoencoder",
    "from_gan": "exptilt.generators.gan",
    "from_normflows": "exptilt.generators.normflows_flow",
    "from_torchscript": "exptilt.generators.torchscript",
    "from_zuko": "exptilt.generators.zuko_flow",
    "tilt": "exptilt.tilting",
    "LogisticRatio": "exptilt.training.own_loop",
    "MaximumLikelihood": "exptilt.training.own_loop",
    "evaluate": "exptilt.evaluation.evaluate",
    "bits_per_dim": "exptilt.evaluation.likelihood",
    "estimate_log_z": "exptilt.evaluation.partition",
    "LogZ": "exptilt.density",
    "Generator": "exptilt.generators.base",
    "VAE": "exptilt.generators.vae",
    "ToyVAE": "exptilt.generators.vae",
    "Glow": "exptilt.generators.glow",
    "GLF": "exptilt.generators.glf",
    "TwoStageVAE": "exptilt.generators.two_stage",
    "LatentFlowVAE": "exptilt.generators.latent_flow",
    "MixtureGenerator": "exptilt.generators.mixture",
    "PixelSpace": "exptilt.generators.pixel",
    "UniformPixels": "exptilt.generators.pixel",
    "TiltedGenerator": "exptilt.tilted",
    "ResNetEnergy": "exptilt.energies.resnet",
    "SmallEnergy": "exptilt.energies.small",
    "MLPEnergy": "exptilt.energies.mlp",
    "GatedEnergy": "exptilt.energies.gated",
    "PyramidEnergy": "exptilt.energies.pyramid",
    "FourierEnergy": "exptilt.energies.fourier",
    "RelativeEnergy": "exptilt.energies.relative",
    "SumEnergy": "exptilt.energies.compose",
    "DiscriminatorEnergy": "exptilt.energies.compose",
    "ClassifierEnergy": "exptilt.energies.compose",
    "RewardEnergy": "exptilt.energies.compose",
    "SamplerConfig": "exptilt.config",
    "TiltConfig": "exptilt.config",
    "load_dataset": "exptilt.data",
    "InputError": "exptilt.errors",
    "RunError": "exptilt.errors",
}
__all__ = [
    "GLF",
    "VAE",
    "ClassifierEnergy",
    "DiscriminatorEnergy",
    "FourierEnergy",
    "GatedEnergy",
    "Generator",
    "Glow",
    "InputError",
    "LatentFlowVAE",
    "LogZ",
    "LogisticRatio",
    "MLPEnergy",
    "MaximumLikelihood",
    "MixtureGenerator",
    "PixelSpace",
    "PyramidEnergy",
    "RelativeEnergy",
    "ResNetEnergy",
    "RewardEnergy",
    "RunError",
    "SamplerConfig",
    "SmallEnergy",
    "SumEnergy",
    "TiltConfig",
    "TiltedGenerator",
    "ToyVAE",
    "TwoStageVAE",
    "UniformPixels",
    "__version__",
    "bits_per_dim",
    "estimate_log_z",
    "evaluate",
    "from_autoencoder",
    "from_diffusers",
    "from_gan",
    "from_normflows",
    "from_torchscript",
    "from_zuko",
    "load",
    "load_dataset",
    "push_to_hub",
    "tilt",
    "wrap",
]

if TYPE_CHECKING:
    from exptilt.config import SamplerConfig, TiltConfig
    from exptilt.data import load_dataset
    from exptilt.density import LogZ
    from exptilt.energies.compose import ClassifierEnergy, DiscriminatorEnergy, RewardEnergy, SumEnergy
    from exptilt.energies.fourier import FourierEnergy
    from exptilt.energies.gated import GatedEnergy
    from exptilt.energies.mlp import MLPEnergy
    from exptilt.energies.pyramid import PyramidEnergy
    from exptilt.energies.relative import RelativeEnergy
    from exptilt.energies.resnet import ResNetEnergy
    from exptilt.energies.small import SmallEnergy
    from exptilt.errors import InputError, RunError
    from exptilt.evaluation.evaluate import evaluate
    from exptilt.evaluation.likelihood import bits_per_dim
    from exptilt.evaluation.partition import estimate_log_z
    from exptilt.generators.autoencoder import from_autoencoder
    from exptilt.generators.base import Generator
    from exptilt.generators.diffusers_autoencoder import from_diffusers
    from exptilt.generators.gan import from_gan
    from exptilt.generators.glf import GLF
    from exptilt.generators.glow import Glow
    from exptilt.generators.latent_flow import LatentFlowVAE
    from exptilt.generators.mixture import MixtureGenerator
    from exptilt.generators.normflows_flow import from_normflows
    from exptilt.generators.pixel import PixelSpace, UniformPixels
    from exptilt.generators.torchscript import from_torchscript
    from exptilt.generators.two_stage import TwoStageVAE
    from exptilt.generators.vae import VAE, ToyVAE
    from exptilt.generators.wrap import wrap
    from exptilt.generators.zuko_flow import from_zuko
    from exptilt.hub import load
    from exptilt.push import push_to_hub
    from exptilt.tilted import TiltedGenerator
    from exptilt.tilting import tilt
    from exptilt.training.own_loop import LogisticRatio, MaximumLikelihood


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'exptilt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
