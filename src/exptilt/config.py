"""Every setting of exptilt as frozen dataclasses. Imports no torch: ``--help`` is instant.

A value of these classes is what a run is reproduced from; it is saved as JSON beside the run's results.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from exptilt.errors import InputError

Precision = Literal["auto", "float32", "bfloat16"]


def _require(holds: bool, name: str, value: object, right: str) -> None:
    if not holds:
        raise InputError(name, f"{value} is out of range", f"give {right}")


@dataclass(frozen=True)
class SamplerConfig:
    """A Markov chain in latent space, started from the prior."""

    kernel: Literal["langevin", "mala"] = "langevin"
    """langevin: unadjusted Langevin dynamics (paper, eq. 8). mala: the same proposal with a Metropolis test."""
    steps: int = 100
    """Number of transitions; each costs one gradient of the potential."""
    step_size: float = 0.01
    """ε in z ← z − ε/2 ∇U(z) + √ε ω."""
    noise_scale: float = 1.0
    """Factor on √ε ω; 1 is Langevin dynamics, 0 is gradient descent. Used by the langevin kernel only."""

    def __post_init__(self) -> None:
        _require(self.steps >= 0, "steps", self.steps, "a whole number ≥ 0")
        _require(self.step_size > 0, "step_size", self.step_size, "a number > 0")
        _require(self.noise_scale >= 0, "noise_scale", self.noise_scale, "a number ≥ 0")


@dataclass(frozen=True)
class TiltConfig:
    """How an energy is trained against a frozen generator: a recipe, resolved."""

    recipe: str = "paper"
    """Name of the recipe that these settings started from."""
    objective: Literal["maximum_likelihood", "logistic_ratio"] = "maximum_likelihood"
    """maximum_likelihood: eq. 5 and 7, negatives from short chains. logistic_ratio: a classifier, without chains."""
    space: Literal["x", "z"] = "x"
    """What the energy sees: x = G(z), or the latent z itself (which needs a generator with an encoder)."""
    energy: Literal["resnet", "small", "mlp"] = "resnet"
    """resnet: the paper's E. small: a cheaper convolutional E. mlp: for points and for latents."""
    energy_width: int = 64
    """Channels of the first convolutional stage (resnet, small), or units of a hidden layer (mlp)."""
    iterations: int = 1000
    """Number of parameter updates."""
    batch_size: int = 64
    """Positives, and negatives, in one update."""
    learning_rate: float = 1e-4
    """Adam's learning rate at the start."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate goes on from there."""
    beta1: float = 0.9
    """Adam's first-moment decay."""
    energy_regularization: float = 0.1
    """Weight of E(x⁺)² + E(x⁻)² (paper, B.2)."""
    gradient_clip: float = 0.0
    """Largest gradient norm in an update; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Decay of the running mean of the weights that is kept as the result; 0 keeps the last weights."""
    chain: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=60))
    """The chain that makes negatives in training (maximum_likelihood only)."""
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=100))
    """The chain that samples from the result; stored with it."""
    target_acceptance: float = 0.0
    """Step size of ``sampler`` is adapted to this mean acceptance after training (mala); 0 leaves it."""
    check_every: int = 50
    """Updates between two checks of sample quality; the best state seen is the result."""
    precision: Precision = "auto"
    """Arithmetic of convolutions; auto is bfloat16 where the processor has it, else float32."""
    seed: int = 0
    """Fixes initialisation, order of the data and every chain."""

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "energy_width", "check_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number ≥ 1")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number > 0")
        for name in ("ema_decay", "target_acceptance", "beta1"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
        for name in ("energy_regularization", "gradient_clip", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number ≥ 0")


@dataclass(frozen=True)
class PretrainConfig:
    """How a generator (or a feature network) is trained from data."""

    preset: str
    """Name of the preset that these settings started from."""
    model: str
    """Class of the model: a key of the registry of generators, or FeatureNetwork."""
    arguments: dict[str, Any]
    """Arguments of that class."""
    data: str
    """Data set that the preset is meant for."""
    epochs: int
    """Passes over the training set."""
    batch_size: int = 128
    """Images in one update."""
    learning_rate: float = 1e-3
    """Adam's learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate goes on from there."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; 0 is Adam."""
    ema_decay: float = 0.0
    """Decay of the running mean of the weights that is kept as the result; 0 keeps the last weights."""
    augment: Literal["none", "shift", "shift-flip"] = "none"
    """Random translations by up to 2 pixels (and mirror images) of the training images."""
    precision: Precision = "auto"
    """Arithmetic of convolutions; auto is bfloat16 where the processor has it, else float32."""
    seed: int = 0
    """Fixes initialisation, order of the data and all noise."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number ≥ 1")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number > 0")
        _require(self.seed >= 0, "seed", self.seed, "a whole number ≥ 0")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    return dataclasses.asdict(config)


T = typing.TypeVar("T")


def from_dict(kind: type[T], values: dict[str, Any], source: object = "config") -> T:
    """Build a configuration from what :func:`to_dict` gave, every name and type checked.

    Raises:
        InputError: A name is unknown, a type is wrong, or a value is out of range.
    """
    if not isinstance(values, dict):
        raise InputError(source, f"{kind.__name__} is {type(values).__name__}", "it must be a JSON object")
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - names):
        raise InputError(source, f"{kind.__name__} has no setting {unknown[0]!r}", f"it has {', '.join(sorted(names))}")
    read = {name: _read(hints[name], value, f"{source}: {name}") for name, value in values.items()}
    try:
        return kind(**read)
    except TypeError as error:
        raise InputError(source, str(error), f"give every required setting of {kind.__name__}") from None


def override(config: T, **changes: Any) -> T:
    """The same configuration with every change that is not None."""
    return dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[type-var]


def _read(hint: Any, value: Any, source: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, source)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in options:
            raise InputError(source, f"{value!r} is not known", f"use one of {', '.join(map(str, options))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _read(next(o for o in options if o is not types.NoneType), value, source)
    kind = origin or hint
    if kind is float and type(value) is int:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(source, f"{value!r} is not {kind.__name__}", f"give a {kind.__name__}")
    return value
