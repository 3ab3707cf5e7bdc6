"""Every setting of exptilt as frozen dataclasses. Imports no torch: ``--help`` is instant.

A value of these classes is what a run is reproduced from; it is saved as JSON beside the run's results.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from exptilt.errors import InputError

EnergyName = Literal["resnet", "small", "mlp", "gated", "pyramid", "fourier"]
Precision = Literal["auto", "float32", "bfloat16"]
KernelName = Literal["langevin", "mala", "hmc", "underdamped", "isir", "ex2mcmc"]

_SEEDS = "a whole number in [0, 2**64)"


def _require(holds: bool, name: str, value: object, right: str) -> None:
    if not holds:
        raise InputError(name, f"{value} is out of range", f"give {right}")


def require_known(name: str, value: object, names: Any) -> None:
    """Check that a value is one of a ``Literal``'s.

    Raises:
        InputError: It is not.
    """
    options = typing.get_args(names)
    if value not in options:
        raise InputError(name, f"{value!r} is not known", f"use one of {', '.join(map(str, options))}")


def _require_known_names(config: Any) -> None:
    """The same for every field of a configuration that has such names."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            require_known(name, getattr(config, name), hint)


# The settings that each kernel uses, beside those that all use: the others are refused where a user gives them.
KERNEL_SETTINGS: dict[str, tuple[str, ...]] = {
    "langevin": ("step_size", "noise_scale", "gradient_limit"),
    "mala": ("step_size", "replicas"),
    "hmc": ("step_size", "leapfrog_steps", "replicas"),
    "underdamped": ("step_size", "friction", "replicas"),
    "isir": ("candidates",),
    "ex2mcmc": ("step_size", "candidates"),
}
# Kernels whose acceptance tells whether the step size is right.
ADAPTABLE = ("mala", "hmc", "ex2mcmc")


@dataclass(frozen=True)
class SamplerConfig:
    """A Markov chain in latent space, started from the prior.

    The step size ε means one thing for all kernels, that of eq. 8: a move of length √ε. Those that integrate a motion
    (hmc, underdamped) take time steps h = √ε, so that hmc with one leapfrog step is mala.
    """

    kernel: KernelName = "langevin"
    """langevin: unadjusted Langevin dynamics (paper, eq. 8). mala: the same proposal with a Metropolis test.
    hmc: Hamiltonian Monte Carlo. underdamped: Langevin dynamics with momentum, unadjusted. isir: choose by weight
    between the chain's latent and new ones of the prior. ex2mcmc: isir, then mala."""
    steps: int = 100
    """Number of transitions; see `gradients` and `evaluations` for what they cost."""
    step_size: float = 0.01
    """ε in z ← z − ε/2 ∇U(z) + √ε ω."""
    noise_scale: float = 1.0
    """Factor on √ε ω; 1 is Langevin dynamics, 0 is gradient descent (langevin)."""
    gradient_limit: float = 0.0
    """Each entry of ∇U is clipped to ± this, as by Du and Mordatch (2019); 0 clips none (langevin)."""
    leapfrog_steps: int = 5
    """Leapfrog steps, each of one gradient, in one transition (hmc)."""
    friction: float = 1.0
    """Rate γ at which momentum is forgotten: a step keeps exp(−γ√ε) of it (underdamped)."""
    candidates: int = 8
    """Latents that a step chooses from: the chain's own, the others new from the prior (isir, ex2mcmc)."""
    resample: int = 0
    """Latents of the prior among which each chain's start is chosen by weight; 0 and 1 take the first. With no steps
    this is sampling-importance-resampling."""
    replicas: int = 1
    """Copies of each chain at temperatures from the target to the prior, which exchange places; 1 is none
    (mala, hmc, underdamped). Costs that many times the gradients."""

    def __post_init__(self) -> None:
        require_known("kernel", self.kernel, KernelName)
        _require(self.steps >= 0, "steps", self.steps, "a whole number ≥ 0")
        _require(0 < self.step_size < math.inf, "step_size", self.step_size, "a number > 0")
        _require(self.noise_scale >= 0, "noise_scale", self.noise_scale, "a number ≥ 0")
        _require(self.gradient_limit >= 0, "gradient_limit", self.gradient_limit, "a number ≥ 0")
        _require(self.leapfrog_steps >= 1, "leapfrog_steps", self.leapfrog_steps, "a whole number ≥ 1")
        _require(self.friction >= 0, "friction", self.friction, "a number ≥ 0")
        _require(self.candidates >= 2, "candidates", self.candidates, "a whole number ≥ 2")
        _require(self.resample >= 0, "resample", self.resample, "a whole number ≥ 0")
        _require(self.replicas >= 1, "replicas", self.replicas, "a whole number ≥ 1")
        if self.replicas > 1 and "replicas" not in KERNEL_SETTINGS[self.kernel]:
            raise _unused("replicas", self.kernel)

    @property
    def gradients(self) -> int:
        """Gradients of U that one sample costs."""
        per_chain = {
            "langevin": self.steps,
            "mala": self.steps + 1,
            "hmc": self.steps * self.leapfrog_steps + 1,
            "underdamped": self.steps + 1,
            "isir": 0,
            "ex2mcmc": 2 * self.steps,
        }[self.kernel]
        if self.steps == 0 or self.replicas == 1:
            return per_chain if self.steps else 0
        # All replicas but that of the prior move by the kernel; that one is drawn where it may be exchanged.
        return (self.replicas - 1) * per_chain + (self.steps + (self.replicas + 1) % 2) // 2

    @property
    def evaluations(self) -> int:
        """Values of U without a gradient that one sample costs, beside the gradients."""
        chosen = self.steps * (self.candidates - 1) + 1 if self.kernel in ("isir", "ex2mcmc") and self.steps else 0
        return chosen + (self.resample if self.resample > 1 else 0)

    def change(self, **changes: Any) -> SamplerConfig:
        """The same chain with every change that is not None.

        What a new kernel does not use goes back to its default.

        Raises:
            InputError: The kernel does not use a setting that is to change, or a value is out of range.
        """
        kernel = changes.get("kernel") or self.kernel
        foreign = set().union(*KERNEL_SETTINGS.values()) - set(KERNEL_SETTINGS.get(kernel, changes))
        for name in sorted(foreign):
            if changes.get(name) is not None:
                raise _unused(name, kernel)
        given = {name: value for name, value in changes.items() if value is not None}
        unused = {f.name: f.default for f in dataclasses.fields(self) if f.name in foreign}
        return dataclasses.replace(self, **(unused | given if kernel != self.kernel else given))


def _unused(name: str, kernel: str) -> InputError:
    users = [user for user, settings in KERNEL_SETTINGS.items() if name in settings]
    return InputError(name, f"is of no use to kernel {kernel}", f"leave it out, or use kernel {' or '.join(users)}")


@dataclass(frozen=True)
class TiltConfig:
    """How an energy is trained against a frozen generator: a recipe, resolved."""

    recipe: str = "paper"
    """Name of the recipe that these settings started from."""
    objective: Literal["maximum_likelihood", "logistic_ratio"] = "maximum_likelihood"
    """maximum_likelihood: eq. 5 and 7, negatives from short chains. logistic_ratio: a classifier, without chains."""
    relative: float = 0.0
    """α of the relative ratio p/(αp + (1−α)q), which is nowhere above 1/α; 0 is the plain ratio p/q
    (logistic_ratio)."""
    space: Literal["x", "z", "pixel"] = "x"
    """What the energy sees: x = G(z), or the latent z itself (which needs a generator with an encoder). pixel: x, and
    chains move in x as well, by E(x) − log p(x) (paper, §3.1; needs a generator with a density)."""
    encoder: Literal["own", "learned", "best"] = "own"
    """Of an energy on latents, where the data's latents come from: the generator's encoder, or one that is first
    learned from the generator's samples (needs a standard normal prior). best: the generator's; if codes by it decode
    to noticeably less diversity than both the data and its samples have, there is a second tilt by a learned one, and
    the better of both on held-out data is the result."""
    encoder_iterations: int = 1000
    """Updates of an encoder that is learned."""
    code_noise: float = 0.0
    """a in √(1 − a²)·z + a·ω, ω ~ N(0, I), which codes become where an encoder gives one code for an image, as a latent
    flow's does: a ratio would learn so few points by heart (images, space z, standard normal prior). Codes that are
    drawn have noise of their own, and those of a flow on the data get none."""
    energy: EnergyName = "resnet"
    """resnet: the paper's E. small: a cheaper convolutional E. mlp: for points and for latents. gated: for latents.
    pyramid: for latents of images of several resolutions. fourier: for points of few numbers."""
    energy_width: int = 64
    """Channels of the first convolutional stage (resnet, small, pyramid), or units of a hidden layer (mlp, gated,
    fourier)."""
    dropout: float = 0.0
    """Dropout rate in training (gated, pyramid)."""
    normalization: Literal["none", "spectral"] = "none"
    """spectral: each layer's weights are divided by their spectral norm (Miyato et al. 2018; resnet, small)."""
    dequantize: bool = False
    """Uniform dequantisation of training images of bytes, as a density of continuous images needs."""
    iterations: int = 1000
    """Number of parameter updates (of the first stage)."""
    stages: int = 1
    """Rounds of a ratio. In each after the first, negatives are samples of the model as it is tilted by then, and the
    energy goes on from where it is (logistic_ratio)."""
    stage_iterations: int = 500
    """Updates of each stage after the first."""
    stage_learning_rate: float = 1e-4
    """Adam's learning rate at the start of each of them."""
    pool: int = 4096
    """Samples of the tilted model that are drawn as negatives for a stage that starts from one."""
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
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; 0 is Adam."""
    mirror: bool | None = None
    """Count mirror images as data too (space z); None does so where a mirror image is as likely (CIFAR-10)."""
    gradient_clip: float = 0.0
    """Largest gradient norm in an update; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of weights that is the result; 0 keeps the last weights."""
    chain: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=60))
    """The chain that makes negatives in training (maximum_likelihood only)."""
    chains: Literal["short_run", "persistent", "replay", "jarzynski"] = "short_run"
    """short_run: chains start at the prior in each update (paper). persistent: they go on from update to update.
    replay: a random batch of many kept ones goes on in each update. jarzynski: they go on and are reweighted, which
    makes gradients unbiased and tracks log Z; needs an exact kernel."""
    restart: float = 0.02
    """Probability with which a chain that goes on (persistent, replay) starts anew at the prior."""
    walkers: int = 1024
    """Chains that go on; all are the negatives of an update (persistent, jarzynski), or ``batch_size`` of them
    (replay)."""
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=100))
    """The chain that samples from the result; stored with it."""
    target_acceptance: float = 0.0
    """Step size of ``sampler`` is adapted to this mean acceptance after training (mala, hmc, ex2mcmc); 0 leaves it."""
    floor: float = 0.0
    """Share of held-out codes whose E is below the floor that the calibration tries to give E, so that long chains find
    no places where a ratio is too low (logistic_ratio on latents); 0 tries none."""
    strengths: tuple[float, ...] = (1.0,)
    """Strengths λ in exp(−λE) that the calibration after training chooses from, by held-out data; one is not
    calibrated, nor are several with less than 100 held-out images: the first is kept."""
    largest_strength: float = 4.0
    """Where the largest of several strengths is the best, larger ones are tried up to this, each 1.6 times the last."""
    lengths: tuple[float, ...] = (1.0,)
    """Shares of the steps of ``sampler`` after which the calibration looks at its chains. It keeps the number of steps
    that is best, with the strength."""
    check_every: int = 50
    """Updates between two checks of sample quality; the best state seen is the result."""
    precision: Precision = "auto"
    """Arithmetic of convolutions; auto is bfloat16 where the processor has it, else float32."""
    seed: int = 0
    """Fixes initialisation, order of the data and every chain."""

    def __post_init__(self) -> None:
        _require_known_names(self)
        counts = ("iterations", "encoder_iterations", "batch_size", "energy_width", "check_every", "walkers")
        for name in (*counts, "stages", "stage_iterations", "pool"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number ≥ 1")
        for name in ("learning_rate", "stage_learning_rate"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")
        shares = ("relative", "floor", "ema_decay", "target_acceptance", "beta1", "restart", "dropout", "code_noise")
        for name in shares:
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
        _require(0 <= self.seed < 2**64, "seed", self.seed, _SEEDS)
        for name in ("energy_regularization", "gradient_clip", "weight_decay"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number ≥ 0")
        _require(
            bool(self.strengths) and min(self.strengths) > 0, "strengths", self.strengths, "one or more numbers > 0"
        )
        in_range = bool(self.lengths) and 0 < min(self.lengths) <= max(self.lengths) <= 1
        _require(in_range, "lengths", self.lengths, "one or more numbers in (0, 1]")
        if self.stages > 1 and self.objective != "logistic_ratio":
            fault = f"{self.stages} are for logistic_ratio, and this is {self.objective}"
            raise InputError("stages", fault, "give 1, or tilt with a ratio first and then the result by likelihood")
        if self.chains == "replay" and self.walkers < self.batch_size:
            fault = f"{self.walkers} are less than a batch of {self.batch_size}"
            raise InputError("walkers", fault, "keep more chains, or give a smaller batch_size")
        if self.chains == "jarzynski" and self.chain.kernel in ("langevin", "underdamped"):
            raise InputError("chains", f"jarzynski is biased with kernel {self.chain.kernel}", "use kernel mala or hmc")
        if self.target_acceptance and self.sampler.kernel not in ADAPTABLE:
            fault = f"is of no use to kernel {self.sampler.kernel}: no step size changes its acceptance"
            raise InputError("target_acceptance", fault, f"give 0, or use kernel {' or '.join(ADAPTABLE)}")


@dataclass(frozen=True)
class PretrainConfig:
    """How a generator (or a feature network) is trained from data."""

    preset: str
    """Name of the preset that these settings started from."""
    model: str
    """Class of the model: a key of the registry of generators, or of the feature networks."""
    arguments: dict[str, Any]
    """Arguments of that class."""
    data: str
    """Data set that the preset is meant for."""
    epochs: int
    """Passes over the training set."""
    batch_size: int = 128
    """Images in one update."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent with Nesterov's momentum."""
    learning_rate: float = 1e-3
    """The optimizer's learning rate."""
    bias_factor: float = 1.0
    """Factor on the learning rate of one-dimensional parameters, which are biases and norms."""
    momentum: float = 0.9
    """Of sgd; the first moment's decay of adamw."""
    schedule: Literal["constant", "cosine", "triangles"] = "constant"
    """How the learning rate goes on: to zero at the end; triangles: over two thirds of the updates up from a fifth and
    then to zero, and again with 0.4 of that rate over the rest."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, 0 is Adam; of sgd, that is added to the gradient."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of weights that is the result; 0 keeps the last weights."""
    augment: Literal["none", "shift", "shift-flip", "shift-alternate"] = "none"
    """Random translations of the training images by up to 2 pixels, and horizontal flips: at random, or of each image
    in every second epoch. Borders are black, or with shift-alternate the image's reflection."""
    precision: Precision = "auto"
    """Arithmetic of convolutions; auto is bfloat16 where the processor has it, else float32."""
    seed: int = 0
    """Fixes initialisation, order of the data and all noise."""

    def __post_init__(self) -> None:
        _require_known_names(self)
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number ≥ 1")
        for name in ("learning_rate", "bias_factor"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")
        for name in ("momentum", "ema_decay"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
        _require(0 <= self.seed < 2**64, "seed", self.seed, _SEEDS)


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
        require_known(source, value, hint)
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _read(next(o for o in options if o is not types.NoneType), value, source)
    if origin is tuple and isinstance(value, list):
        # JSON has no tuples.
        return tuple(_read(options[0], item, source) for item in value)
    kind = origin or hint
    if kind is float and type(value) is int:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(source, f"{value!r} is not {kind.__name__}", f"give a {kind.__name__}")
    return value
