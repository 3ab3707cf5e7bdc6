"""The named settings: recipes of tilting, presets of training at the paper's scale or a laptop's. Imports no torch."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from exptilt.config import PretrainConfig, SamplerConfig, TiltConfig

Scale = Literal["paper", "laptop"]

RECIPES: dict[str, TiltConfig] = {
    # The paper's numbers (§5, B.2); the paper gives neither batch size nor learning rate of E.
    "paper": TiltConfig(recipe="paper"),
    # With an encoder, positives exist in z: a ratio between q(z|x) and p(z) needs no decoder and no chain.
    "default": TiltConfig(
        recipe="default",
        objective="logistic_ratio",
        space="z",
        energy="mlp",
        energy_width=512,
        iterations=3000,
        batch_size=512,
        learning_rate=1e-3,
        schedule="cosine",
        energy_regularization=0.0,
        ema_decay=0.999,
        sampler=SamplerConfig(kernel="mala", steps=100, step_size=0.1),
        target_acceptance=0.6,
        check_every=500,
    ),
    # What "default" becomes where the generator has no encoder: the classifier works on images.
    "default-no-encoder": TiltConfig(
        recipe="default-no-encoder",
        objective="logistic_ratio",
        space="x",
        energy="small",
        energy_width=32,
        iterations=400,
        batch_size=128,
        learning_rate=3e-4,
        schedule="cosine",
        energy_regularization=0.01,
        ema_decay=0.99,
        sampler=SamplerConfig(kernel="langevin", steps=60, step_size=0.01),
        check_every=100,
    ),
}


def _vae(name: str, data: str, channels: int, likelihood: str) -> PretrainConfig:
    arguments = {"channels": channels, "latent_size": 100, "width": 64, "likelihood": likelihood}
    return PretrainConfig(preset=name, model="VAE", arguments=arguments, data=data, epochs=256)


def _glow(name: str, data: str, channels: int, levels: int, steps: int, hidden: int, epochs: int) -> PretrainConfig:
    arguments = {"channels": channels, "levels": levels, "steps": steps, "hidden": hidden}
    return PretrainConfig(
        preset=name, model="Glow", arguments=arguments, data=data, epochs=epochs, batch_size=64, learning_rate=5e-4
    )


def _glf(name: str, data: str, channels: int, likelihood: str) -> PretrainConfig:
    arguments = {"channels": channels, "latent_size": 64, "width": 64, "likelihood": likelihood}
    return PretrainConfig(preset=name, model="GLF", arguments=arguments, data=data, epochs=256)


def _second_stage(name: str, data: str, model: str, learning_rate: float) -> PretrainConfig:
    # The first stage's arguments are those of the VAE that --vae names. The paper gives no length for this stage.
    return PretrainConfig(
        preset=name,
        model=model,
        arguments={},
        data=data,
        epochs=100,
        learning_rate=learning_rate,
        schedule="cosine",
        ema_decay=0.999,
    )


def _toy(name: str, data: str) -> PretrainConfig:
    arguments = {"data_size": 2, "latent_size": 2, "width": 256, "deviation": 0.1}
    return PretrainConfig(preset=name, model="ToyVAE", arguments=arguments, data=data, epochs=40, batch_size=500)


def _features(
    name: str, data: str, channels: int, width: int, epochs: int, augment: str, weight_decay: float = 0.02
) -> PretrainConfig:
    arguments = {"channels": channels, "width": width, "classes": 10}
    return PretrainConfig(
        preset=name,
        model="FeatureNetwork",
        arguments=arguments,
        data=data,
        epochs=epochs,
        learning_rate=2e-3,
        schedule="cosine",
        weight_decay=weight_decay,
        augment=typing.cast(Literal["none", "shift", "shift-flip"], augment),
    )


PRESETS: dict[str, PretrainConfig] = {
    "vae-mnist": _vae("vae-mnist", "mnist", 1, "bernoulli"),
    "vae-fashion": _vae("vae-fashion", "fashion", 1, "bernoulli"),
    "vae-cifar10": _vae("vae-cifar10", "cifar10", 3, "gaussian"),
    "glow-mnist": _glow("glow-mnist", "mnist", 1, 2, 16, 64, 128),
    "glow-fashion": _glow("glow-fashion", "fashion", 1, 2, 16, 64, 128),
    "glow-cifar10": _glow("glow-cifar10", "cifar10", 3, 3, 32, 256, 256),
    "glf-mnist": _glf("glf-mnist", "mnist", 1, "bernoulli"),
    "glf-fashion": _glf("glf-fashion", "fashion", 1, "bernoulli"),
    "glf-cifar10": _glf("glf-cifar10", "cifar10", 3, "gaussian"),
    "two-stage-mnist": _second_stage("two-stage-mnist", "mnist", "TwoStageVAE", 1e-4),
    "two-stage-fashion": _second_stage("two-stage-fashion", "fashion", "TwoStageVAE", 1e-4),
    "two-stage-cifar10": _second_stage("two-stage-cifar10", "cifar10", "TwoStageVAE", 1e-4),
    "vae-flow-mnist": _second_stage("vae-flow-mnist", "mnist", "LatentFlowVAE", 1e-3),
    "vae-flow-fashion": _second_stage("vae-flow-fashion", "fashion", "LatentFlowVAE", 1e-3),
    "vae-flow-cifar10": _second_stage("vae-flow-cifar10", "cifar10", "LatentFlowVAE", 1e-3),
    "vae-digits": PretrainConfig(
        preset="vae-digits",
        model="VAE",
        arguments={"channels": 1, "latent_size": 16, "width": 24, "likelihood": "bernoulli"},
        data="digits",
        epochs=100,
        batch_size=64,
    ),
    "toy": _toy("toy", "gaussians"),
    "toy-gaussians": _toy("toy-gaussians", "gaussians"),
    "toy-swissroll": _toy("toy-swissroll", "swissroll"),
    "features-mnist": _features("features-mnist", "mnist", 1, 32, 12, "shift"),
    "features-fashion": _features("features-fashion", "fashion", 1, 48, 16, "shift-flip"),
    "features-cifar10": _features("features-cifar10", "cifar10", 3, 48, 24, "shift-flip", weight_decay=0.05),
    "features-digits": _features("features-digits", "digits", 1, 16, 60, "shift"),
}

# What --scale laptop changes. The networks of VAE and GLF stay the paper's; GLOW's couplings are fewer, and their
# highway layers 1×1.
_LAPTOP: dict[str, dict[str, Any]] = {
    "VAE": {"epochs": 20},
    "GLF": {"epochs": 10, "schedule": "cosine"},
    "Glow": {"epochs": 10, "learning_rate": 1e-3, "schedule": "cosine", "ema_decay": 0.999},
    "TwoStageVAE": {"epochs": 30},
    "LatentFlowVAE": {"epochs": 30},
}
_LAPTOP_GLOW = {"levels": 3, "steps": 8, "hidden": 64, "highway_kernel": 1}


def preset(name: str, scale: Scale = "paper") -> PretrainConfig:
    """The preset ``name`` at a scale: the paper's settings, or shorter and smaller ones for 2 cores.

    Toy sets, digits and feature networks have one size, the same at both scales.
    """
    config = PRESETS[name]
    if scale == "paper":
        return config
    arguments = config.arguments | (_LAPTOP_GLOW if config.model == "Glow" else {})
    return dataclasses.replace(config, arguments=arguments, **_LAPTOP.get(config.model, {}))
