"""Ways to run the same chains. Each prepares its own copy of a workload's modules, and is then called once a round."""

# pyright: reportMissingImports=false
# JAX is an extra; everything works without.

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from typing import Any, Protocol

import torch

from exptilt.bench.plain import plain_langevin, plain_mala, plain_potential
from exptilt.bench.workloads import Workload
from exptilt.config import Precision
from exptilt.precision import resolve
from exptilt.tilted import TiltedGenerator

INSTALL = "pip install 'exptilt[bench]' (with -c constraints.txt in a checkout, to keep torch as it is)"


class LeftOut(Exception):  # noqa: N818 - no error: the other methods are run without this one
    """A method cannot run a workload here; the message says why, and what to do."""


class Method(Protocol):
    """One way to run the chains of a workload.

    Attributes:
        kernel: What its transitions are, ``langevin`` or ``mala``.
        dtype: What its convolutions run in.
        version: Version of the library that runs them.
    """

    kernel: str
    dtype: str
    version: str

    def __call__(self, seed: int) -> torch.Tensor:
        """Run all chains from the prior once; their last latents, (N, *latent), on any device."""
        ...


class Exptilt:
    """:class:`exptilt.TiltedGenerator` as it comes: frozen, channels-last, in chunks, bfloat16 where that is native."""

    def __init__(
        self, workload: Workload, device: torch.device, precision: Precision = "auto", compiled: bool = False
    ) -> None:
        generator, energy, latent_energy = workload.parts(device)
        self.chains = workload.chains
        self.kernel = workload.sampler.kernel
        self.dtype = str(resolve(precision, device)).removeprefix("torch.")
        self.version = importlib.metadata.version("exptilt")
        self.tilted = TiltedGenerator(
            generator, energy, latent_energy=latent_energy, sampler=workload.sampler, precision=precision
        )
        self.tilted.compile_chains = compiled
        self.chunk = min(self.chains, self.tilted.default_batch_size)

    def __call__(self, seed: int) -> torch.Tensor:
        return self.tilted.sample(self.chains, seed=seed, return_latents=True)


class Plain:
    """The loop that a reader of the paper would write: eager, float32, all chains in one batch, weights as they are."""

    dtype = "float32"
    version = str(torch.__version__)

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.potential = plain_potential(*workload.parts(device))
        self.workload, self.device = workload, device
        self.kernel = workload.sampler.kernel

    def __call__(self, seed: int) -> torch.Tensor:
        sampler, shape = self.workload.sampler, (self.workload.chains, *self.workload.generator.latent_shape)
        generator = torch.Generator(self.device).manual_seed(seed)

        def normal() -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self.device)

        def uniform() -> torch.Tensor:
            return torch.rand(shape[0], generator=generator, device=self.device)

        if self.kernel == "mala":
            return plain_mala(self.potential, normal(), sampler.steps, sampler.step_size, normal, uniform)
        return plain_langevin(self.potential, normal(), sampler.steps, sampler.step_size, normal)


class TorchEBM:
    """torchebm's ``LangevinDynamics`` with its defaults: float32, all chains in one batch.

    It has no MALA; there it takes Langevin steps, as many as the others make gradients.
    """

    kernel, dtype = "langevin", "float32"

    def __init__(self, workload: Workload, device: torch.device) -> None:
        try:
            from torchebm.core import BaseModel  # type: ignore[import-not-found]
            from torchebm.samplers import LangevinDynamics  # type: ignore[import-not-found]
        except ModuleNotFoundError as error:
            raise _missing("torchebm", error) from None
        potential = plain_potential(*workload.parts(device))

        class Model(BaseModel):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return potential(x)

        self.version = importlib.metadata.version("torchebm")
        self.workload, self.device = workload, device
        # Its step is η = ε/2, with noise √(2η).
        self.sampler = LangevinDynamics(Model(device=device), step_size=workload.sampler.step_size / 2, device=device)

    def __call__(self, seed: int) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return self.sampler.sample(
            dim=self.workload.generator.latent_shape,
            n_samples=self.workload.chains,
            n_steps=self.workload.gradients_per_chain,
            generator=generator,
        )


class Blackjax:
    """blackjax's MALA on the same network in JAX: compiled, float32, all chains in one batch.

    Of n gradients its chain takes one at the start, and n − 1 transitions.
    """

    kernel, dtype = "mala", "float32"

    def __init__(self, workload: Workload, device: torch.device) -> None:
        # As many threads as torch has; XLA reads this when it starts.
        os.environ.setdefault("NPROC", str(torch.get_num_threads()))
        try:
            import blackjax  # type: ignore[import-not-found]
            import jax

            from exptilt.bench.jax_modules import Unconvertible, to_jax
        except ModuleNotFoundError as error:
            raise _missing("blackjax", error) from None
        if device.type != jax.default_backend().replace("gpu", "cuda"):
            raise LeftOut(f"blackjax: this JAX has no {device.type}; install JAX for it, or use --device cpu")
        generator, energy, latent_energy = workload.parts(torch.device("cpu"))
        try:
            decode = None if energy is None else to_jax(generator)
            evaluate = to_jax(latent_energy if energy is None else energy)
        except Unconvertible as error:
            raise LeftOut(f"blackjax: {error}; it runs the other workloads") from None
        self.version = importlib.metadata.version("blackjax")
        self._jax = jax
        self._shape = (workload.chains, *workload.generator.latent_shape)
        self._parameters = (None if decode is None else decode.parameters, evaluate.parameters)
        steps, step_size = workload.gradients_per_chain - 1, workload.sampler.step_size / 2
        kernel = blackjax.mala.build_kernel()

        def density(parameters: Any) -> Callable[[Any], Any]:
            def log_density(z: Any) -> Any:
                x = z[None] if decode is None else decode.function(parameters[0], z[None])
                return -evaluate.function(parameters[1], x)[0] - 0.5 * (z * z).sum()

            return log_density

        def start(parameters: Any, z: Any) -> Any:
            return jax.vmap(lambda z: blackjax.mala.init(z, density(parameters)))(z)

        def step(parameters: Any, state: Any, key: Any) -> Any:
            log_density, keys = density(parameters), jax.random.split(key, workload.chains)
            return jax.vmap(lambda key, state: kernel(key, state, log_density, step_size)[0])(keys, state)

        # A loop around a compiled step: XLA's convolutions take three times as long inside of a compiled loop.
        self._start, self._step, self._steps = jax.jit(start), jax.jit(step), steps

    def __call__(self, seed: int) -> torch.Tensor:
        random = self._jax.random
        first, *keys = random.split(random.key(seed), self._steps + 1)
        state = self._start(self._parameters, random.normal(first, self._shape))
        for key in keys:
            state = self._step(self._parameters, state, key)
        return torch.tensor(self._jax.device_get(state.position))


def _missing(method: str, error: ModuleNotFoundError) -> LeftOut:
    library = (error.name or method).partition(".")[0]
    return LeftOut(f"{method}: {library} is not installed; {INSTALL}")


METHODS: dict[str, Callable[[Workload, torch.device], Method]] = {
    "exptilt": Exptilt,
    "exptilt-float32": lambda workload, device: Exptilt(workload, device, "float32"),
    "exptilt-compiled": lambda workload, device: Exptilt(workload, device, compiled=True),
    "plain": Plain,
    "torchebm": TorchEBM,
    "blackjax": Blackjax,
}
