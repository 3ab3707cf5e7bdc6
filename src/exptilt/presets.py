"""The named settings: recipes of tilting, presets of training at the paper's scale or a laptop's. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from exptilt.config import PretrainConfig, SamplerConfig, TiltConfig

Scale = Literal["paper", "laptop"]

# Du and Mordatch (2019) take x − 10 ∇E + 0.005 ω for x in [0, 1], each entry of ∇E cut to ±0.01. In [−1, 1] that is a
# step of 40 on ∇E cut to ±0.005, and noise of deviation 0.01; here ε/2 = 40 and √ε · scale = 0.01.
_NOISY_DESCENT = SamplerConfig(steps=60, step_size=80.0, noise_scale=0.01 / 80.0**0.5, gradient_limit=0.005)
_PIXEL_EBM = TiltConfig(
    recipe="pixel-ebm",
    normalization="spectral",
    dequantize=True,
    iterations=20_000,
    batch_size=128,
    beta1=0.0,
    gradient_clip=0.1,
    chain=_NOISY_DESCENT,
    chains="replay",
    restart=0.05,
    walkers=10_000,
    # As long as a chain of the buffer lasts in the mean: 60 steps in each of 1/0.05 visits.
    sampler=dataclasses.replace(_NOISY_DESCENT, steps=1200),
    check_every=500,
)
# A flow's density has a scale of about a thousandth in [−1, 1]: with ε = 1e-5 a MALA step on one of MNIST is never
# accepted, with 1e-6 in 73%.
_FINE = SamplerConfig(steps=60, step_size=1e-6)

_LATENT_RATIO = TiltConfig(
    recipe="default",
    objective="logistic_ratio",
    space="z",
    encoder="best",
    code_noise=0.3,
    energy="gated",
    energy_width=256,
    dropout=0.3,
    iterations=3000,
    batch_size=512,
    learning_rate=1e-3,
    schedule="cosine",
    energy_regularization=0.0,
    ema_decay=0.999,
    sampler=SamplerConfig(kernel="mala", steps=100, step_size=0.1),
    target_acceptance=0.6,
    floor=0.1,
    strengths=(1.0, 1.6, 2.5),
    lengths=(0.5, 1.0),
    check_every=250,
)

RECIPES: dict[str, TiltConfig] = {
    # The paper's numbers (§5, B.2); the paper gives neither batch size nor learning rate of E.
    "paper": TiltConfig(recipe="paper"),
    # With an encoder, positives exist in z: a ratio between q(z|x) and p(z) needs no decoder and no chain.
    "default": _LATENT_RATIO,
    # What "default" becomes on GLOW, whose latent consists of images of several resolutions.
    "default-flow": dataclasses.replace(
        _LATENT_RATIO,
        recipe="default-flow",
        # That of a flow is its inverse.
        encoder="own",
        energy="pyramid",
        energy_width=32,
        dropout=0.4,
        batch_size=256,
        sampler=dataclasses.replace(_LATENT_RATIO.sampler, steps=50),
    ),
    # What "default" becomes where the generator has no encoder: one is learned from its samples first.
    "default-no-encoder": dataclasses.replace(_LATENT_RATIO, recipe="default-no-encoder", encoder="learned"),
    # And where its prior is not standard normal: the classifier works on images.
    "default-x": TiltConfig(
        recipe="default-x",
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
    # What "default" becomes on points of few numbers, with any prior. The ratio is nowhere above 1/α, so that i-SIR,
    # whose proposals are latents of the prior, converges as fast wherever it starts.
    "default-points": TiltConfig(
        recipe="default-points",
        objective="logistic_ratio",
        relative=0.01,
        space="x",
        energy="fourier",
        energy_width=256,
        iterations=1000,
        batch_size=512,
        learning_rate=1e-3,
        schedule="cosine",
        energy_regularization=0.0,
        ema_decay=0.99,
        sampler=SamplerConfig(kernel="isir", steps=10, candidates=32),
    ),
    # After a ratio: its energy goes on by likelihood, with the very chain that samples.
    "likelihood": TiltConfig(
        recipe="likelihood",
        space="z",
        energy="gated",
        energy_width=256,
        iterations=300,
        batch_size=1024,
        learning_rate=1e-4,
        schedule="cosine",
        beta1=0.0,
        energy_regularization=1e-3,
        ema_decay=0.99,
        chain=SamplerConfig(kernel="mala", steps=10, step_size=0.1),
        chains="persistent",
        sampler=SamplerConfig(kernel="mala", steps=100, step_size=0.1),
        target_acceptance=0.6,
        # Flatter than a ratio's energy: the best λ is larger.
        strengths=(1.0, 1.6, 2.5),
        largest_strength=16.0,
        lengths=(0.5, 1.0),
        check_every=100,
    ),
    # §3.1: the paper's objective with chains in pixel space; its numbers are those on GLOW, but for ε.
    "pixel": TiltConfig(
        recipe="pixel",
        space="pixel",
        dequantize=True,
        iterations=200,
        chain=_FINE,
        sampler=dataclasses.replace(_FINE, steps=100),
    ),
    # §5.2, B.2: an energy-based model on pixels, on uniform noise; 20,000 iterations for MNIST and Fashion-MNIST.
    "pixel-ebm": _PIXEL_EBM,
    "pixel-ebm-cifar10": dataclasses.replace(_PIXEL_EBM, recipe="pixel-ebm-cifar10", iterations=100_000),
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


def _mixture(name: str, data: str) -> PretrainConfig:
    # Epochs are iterations of expectation maximisation.
    return PretrainConfig(preset=name, model="MixtureGenerator", arguments={"components": 10}, data=data, epochs=100)


def _toy(name: str, data: str) -> PretrainConfig:
    arguments = {"data_size": 2, "latent_size": 2, "width": 256, "deviation": 0.1}
    return PretrainConfig(preset=name, model="ToyVAE", arguments=arguments, data=data, epochs=40, batch_size=500)


def _features(
    name: str, data: str, channels: int, width: int, epochs: int, augment: Literal["shift", "shift-flip"]
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
        weight_decay=0.02,
        augment=augment,
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
    "mixture-mnist": _mixture("mixture-mnist", "mnist"),
    "mixture-fashion": _mixture("mixture-fashion", "fashion"),
    "mixture-cifar10": _mixture("mixture-cifar10", "cifar10"),
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
    # Settings of airbench94 (Jordan 2024) for a mean over 500 images, without its label smoothing and its Lookahead; a
    # third of the epochs come after a warm restart.
    "features-cifar10": PretrainConfig(
        preset="features-cifar10",
        model="WhitenedNetwork",
        arguments={"channels": 3, "width": 64, "classes": 10, "feature_size": 256},
        data="cifar10",
        epochs=40,
        batch_size=500,
        optimizer="sgd",
        learning_rate=0.73,
        bias_factor=64.0,
        momentum=0.85,
        schedule="triangles",
        weight_decay=1.33e-3,
        augment="shift-alternate",
    ),
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
    if scale == "paper" or config.data == "digits":
        return config
    arguments = config.arguments | (_LAPTOP_GLOW if config.model == "Glow" else {})
    return dataclasses.replace(config, arguments=arguments, **_LAPTOP.get(config.model, {}))


# What `reproduce --scale laptop` changes in a recipe. Chains in training and at sampling stay the paper's but for those
# on pixels, whose buffer is smaller by as much as there are fewer updates.
_LAPTOP_TILT: dict[str, dict[str, Any]] = {
    "paper": {"iterations": 200, "energy": "small"},
    "pixel-ebm": {
        "iterations": 300,
        "energy": "small",
        "walkers": 1000,
        "check_every": 50,
        "chain": dataclasses.replace(_NOISY_DESCENT, steps=20),
        "sampler": dataclasses.replace(_NOISY_DESCENT, steps=400),
    },
}
# The paper's number of updates on flows (§5.2); the recipe's own is that on VAEs.
_PAPER_FLOW_ITERATIONS = 200
# Energies on the images of digits are as narrow as their VAE is.
_DIGITS_TILT = {"energy_width": PRESETS["vae-digits"].arguments["width"]}


def tilt_changes(recipe: str, model: str, scale: Scale, data: str) -> dict[str, Any]:
    """What a scale, and the digits, change in a recipe for a generator of class ``model``; empty where nothing."""
    changes: dict[str, Any] = {}
    if scale == "laptop":
        changes |= _LAPTOP_TILT.get(recipe.removesuffix("-cifar10"), {})
    elif recipe == "paper" and model in ("Glow", "GLF"):
        changes |= {"iterations": _PAPER_FLOW_ITERATIONS}
    if data == "digits" and RECIPES[recipe].energy in ("resnet", "small"):
        changes |= _DIGITS_TILT
    return changes
