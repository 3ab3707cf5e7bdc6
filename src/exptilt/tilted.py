"""The tilted generator: p(z) · exp(−E(G(z))) / Z on the latent space of a frozen generator (paper, eq. 6)."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
from torch import nn
from tqdm import tqdm

from exptilt.captured import captured
from exptilt.compiled import CompiledPotential
from exptilt.config import Precision, SamplerConfig, require_known
from exptilt.density import LatentPotential, LogZ, log_tilt
from exptilt.energies import ENERGIES
from exptilt.energies.compose import SumEnergy, require_module
from exptilt.errors import InputError, first_line, require_at_least
from exptilt.fast import for_chains
from exptilt.generators import GENERATORS
from exptilt.generators.base import Generator, lay_out, require_float32, require_range
from exptilt.generators.checks import FAULTS
from exptilt.memory import in_parts
from exptilt.precision import resolve
from exptilt.sampling.chunks import candidates, fastest, trial
from exptilt.sampling.diagnostics import SampleInfo, join
from exptilt.sampling.random import SampleStreams
from exptilt.sampling.samples import run_samples
from exptilt.sampling.warm_up import adapted
from exptilt.sharing import Shared
from exptilt.storage import save_module, write_json

INDEX = "model_index.json"
PARTS = ("generator", "energy", "latent_energy")

# Chains that run side by side unless told otherwise: what a cache holds with convolutions in the loop, and without.
_BATCH_IMAGES, _BATCH_OTHERS = 64, 1000
# A GPU is busy only with so many times as many.
_ON_GPU = 16


class TiltedGenerator(Shared, nn.Module):
    """A generator tilted by an energy: samples like a generator, from z ~ p(z) · exp(−E(G(z))) / Z (paper, eq. 6).

    Args:
        generator: The generator; it is frozen here (evaluation mode, no gradients for its weights).
        energy: E: samples (N, *data_shape) to (N,). A scalar ``nn.Module``, for example a discriminator.
        latent_energy: An energy on latents, (N, *latent_shape) to (N,), added to E(G(z)).
        sampler: The chain; unless given, the paper's at sampling: 100 Langevin steps with ε = 0.01.
        strength: λ in exp(−λE).
        precision: Arithmetic of decoder and energy in the chain. Samples are always decoded in float32.
        log_z: log Z where it is known, in nats. :func:`exptilt.estimate_log_z` sets it.
        compile: Run the chains of :meth:`sample` through ``torch.compile``, see
            :class:`~exptilt.compiled.CompiledPotential`. It suits the machine and not the model, so it is not stored.
            Compiling takes minutes, and on the CPU it was measured slower than without.

    Attributes:
        batch_size: Chains side by side where :meth:`sample` is not told; None is its default. It is not stored.

    Raises:
        InputError: There is no generator or no energy, an energy fails or does not give one number a sample, the
            strength is no finite number, or the precision is not known.
    """

    def __init__(
        self,
        generator: Generator,
        energy: nn.Module | None = None,
        *,
        latent_energy: nn.Module | None = None,
        sampler: SamplerConfig | None = None,
        strength: float = 1.0,
        precision: Precision = "auto",
        log_z: LogZ | float | None = None,
        compile: bool = False,  # noqa: A002 - named after torch.compile
    ) -> None:
        super().__init__()
        if energy is None and latent_energy is None:
            raise InputError("TiltedGenerator", "has no energy", "give energy or latent_energy")
        if not isinstance(generator, Generator):
            mend = "give exptilt.wrap(decoder, latent_shape), or another generator"
            raise InputError("generator", f"is a {type(generator).__name__}", mend)
        for part in (energy, latent_energy):
            if part is not None:
                require_module("TiltedGenerator", part)
        _require_strength(strength)
        require_known("precision", precision, Precision)
        self.generator = generator.freeze()
        self.energy, self.latent_energy = energy, latent_energy
        for part in (energy, latent_energy):
            if part is not None:
                part.eval().requires_grad_(False)
        if len(generator.data_shape) == 3:
            # The same numbers in the order that convolutions are fastest in.
            for part in (generator, energy):
                if part is not None:
                    lay_out(part, torch.channels_last)
        self.sampler = sampler or SamplerConfig()
        self.strength = strength
        self.precision: Precision = precision
        self.compile_chains = compile
        self.batch_size: int | None = None
        self.log_z = LogZ(float(log_z), strength=strength) if isinstance(log_z, (int, float)) else log_z
        self._check()

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.generator.data_shape

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.generator.device

    def train(self, mode: bool = True) -> Self:
        """Nothing: generator and energies stay frozen, in evaluation mode, also inside of a module that is trained."""
        return super().train(False)

    def __add__(self, energy: nn.Module) -> TiltedGenerator:
        """The same generator tilted by λE plus another energy on samples, for example a reward; the sampler stays.

        λ does not multiply the new energy, whose weight in the sum is 1/λ. Where λ = 0 (a generator that no tilt made
        better), the new energy stands alone, with λ = 1 and the paper's chain.
        """
        if self.strength == 0:
            return TiltedGenerator(self.generator, energy, precision=self.precision, compile=self.compile_chains)
        own = [] if self.energy is None else [self.energy]
        return TiltedGenerator(
            self.generator,
            SumEnergy([*own, energy], [1.0] * len(own) + [1 / self.strength]),
            latent_energy=self.latent_energy,
            sampler=self.sampler,
            strength=self.strength,
            precision=self.precision,
            compile=self.compile_chains,
        )

    def potential(self, z: torch.Tensor) -> torch.Tensor:
        """U(z) = λE(G(z)) − log p(z) in float32 (float64 for float64 weights and latents), (N,)."""
        return LatentPotential(self.generator, self.energy, self.latent_energy, self.strength)(z)

    @overload
    def log_prob(self, x: torch.Tensor, *, return_error: Literal[False] = ...) -> torch.Tensor: ...

    @overload
    def log_prob(self, x: torch.Tensor, *, return_error: Literal[True]) -> tuple[torch.Tensor, float]: ...

    def log_prob(self, x: torch.Tensor, *, return_error: bool = False) -> torch.Tensor | tuple[torch.Tensor, float]:
        """log p(x) − λE(x) − λE_z(f(x)) − log Z in nats of continuous x, of generators with a density: (N,).

        With ``return_error``, also the standard error of log Z, which all values share.

        Raises:
            InputError: The generator has no density, or log Z is not known: see :func:`exptilt.estimate_log_z`.
        """
        value = self.generator.log_prob(x) + self.log_tilt(x)
        return (value, self.log_z.standard_error) if return_error and self.log_z is not None else value

    def log_tilt(self, x: torch.Tensor) -> torch.Tensor:
        """log_prob(x) less that of the generator: −λE(x) − λE_z(f(x)) − log Z in nats, (N,)."""
        return log_tilt(self.generator, self.energy, self.latent_energy, self.log_z, self.strength, x)

    @overload
    def sample(
        self,
        n: int,
        *,
        seed: int = ...,
        start: int = ...,
        batch_size: int | Literal["auto"] | None = ...,
        sampler: SamplerConfig | None = ...,
        return_latents: bool = ...,
        return_info: Literal[False] = ...,
        record_every: int | None = ...,
        progress: bool = ...,
    ) -> torch.Tensor: ...

    @overload
    def sample(
        self,
        n: int,
        *,
        seed: int = ...,
        start: int = ...,
        batch_size: int | Literal["auto"] | None = ...,
        sampler: SamplerConfig | None = ...,
        return_latents: bool = ...,
        return_info: Literal[True],
        record_every: int | None = ...,
        progress: bool = ...,
    ) -> tuple[torch.Tensor, SampleInfo]: ...

    @torch.inference_mode(False)
    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        start: int = 0,
        batch_size: int | Literal["auto"] | None = None,
        sampler: SamplerConfig | None = None,
        return_latents: bool = False,
        return_info: bool = False,
        record_every: int | None = None,
        progress: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, SampleInfo]:
        """Samples ``start … start + n − 1`` of ``seed``: chains from the prior, decoded.

        Sample i depends on (seed, i) alone, up to the rounding of a batch's arithmetic; its chain starts at the
        latent of the generator's own sample i of the same seed (with ``resample``, that is its first candidate).
        Where the memory does not hold that many chains side by side, half as many are run, and :attr:`batch_size`
        becomes what it held.

        Args:
            n: Number of samples, ≥ 0.
            seed: Whole number in [0, 2⁶⁴).
            start: Index of the first sample.
            batch_size: Chains side by side; by default :attr:`batch_size`, and where that is None 64 with images in the
                chain, else 1,000, on a GPU 16 times as many. ``"auto"`` is :meth:`fastest_batch_size`, measured anew in
                each call.
            sampler: Another chain than the stored one.
            return_latents: Return z in place of G(z).
            return_info: Return (samples, :class:`SampleInfo`).
            record_every: Keep the latents of every so many steps in the info.
            progress: Show a progress bar on standard error.

        Returns:
            Samples (n, *data_shape) in float32, or latents (n, *latent_shape); with the info if asked for.

        Raises:
            InputError: n, start, batch_size, record_every or the strength is out of range, or the kernel needs the
                gradient of an energy that has none.
            ChainsDiverged: A chain left the finite numbers; the error names the samples.
        """
        sampler = sampler or self.sampler
        _require_strength(self.strength)
        self._require_gradients(sampler)
        require_float32(self)
        if batch_size == "auto":
            batch_size = self.fastest_batch_size(n, sampler=sampler)
        if batch_size is None:
            batch_size = self.side_by_side
        if isinstance(batch_size, str):
            raise InputError("batch_size", f"{batch_size!r} is no number", "give a whole number ≥ 1, or 'auto'")
        if record_every is not None:
            require_at_least(1, record_every=record_every)
        plain = self.chain_potential()
        potential = CompiledPotential(plain) if self.compile_chains else captured(plain)
        prior, latent_shape = self.generator.prior, self.generator.latent_shape
        require_range(n, start, batch_size)
        with tqdm(total=n * sampler.steps, unit="step", desc="sampling", disable=not progress, leave=False) as bar:

            def make(first: int, size: int) -> tuple[torch.Tensor, SampleInfo]:
                bar.n = (first - start) * sampler.steps
                z, info = run_samples(
                    sampler,
                    potential,
                    prior,
                    SampleStreams(seed, first, size, latent_shape, self.device),
                    self.strength,
                    record_every=record_every,
                    diagnose=return_info,
                    on_step=functools.partial(bar.update, size),
                )
                return (z if return_latents else self.generator.decode(z)), info

            made = list(in_parts(n, start, batch_size, make, self._hold_to))
        samples, infos = [x for x, _ in made], [info for _, info in made]
        shape = latent_shape if return_latents else self.data_shape
        result = torch.cat(samples) if samples else torch.empty(0, *shape)
        return (result, join(infos, latent_shape)) if return_info else result

    @torch.inference_mode(False)
    def fastest_batch_size(self, n: int, *, sampler: SamplerConfig | None = None) -> int:
        """How many chains to run side by side here for n samples, by the clock: the number at which one takes least.

        A few numbers up to n are tried, for two steps each. On a CPU that costs at most about as much as 50 samples of
        100 steps with the default of 64 chains, and as 700 with that of 1,000. Where numbers are about equally fast,
        the answer differs from one measurement to the next. Compilation is left out of it.

        Args:
            n: Samples of one call of :meth:`sample`, ≥ 1; a smaller n counts as 1.
            sampler: Another chain than the stored one.
        """
        prior, shape = self.generator.prior, self.generator.latent_shape
        plain = self.chain_potential()
        # One for each size: what was recorded for another would fill up to it.
        of_size = functools.cache(lambda _: captured(plain))
        run_chains = trial(sampler or self.sampler, of_size, prior, shape, self.device)
        return fastest(run_chains, candidates(self.default_batch_size, n, self.device))

    def _hold_to(self, batch_size: int) -> None:
        self.batch_size = batch_size

    @property
    def default_batch_size(self) -> int:
        """Chains side by side where nothing else was asked for, see :meth:`sample`."""
        size = _BATCH_IMAGES if self.energy is not None and len(self.data_shape) == 3 else _BATCH_OTHERS
        return size * _ON_GPU if self.device.type == "cuda" else size

    @property
    def side_by_side(self) -> int:
        """Chains side by side where :meth:`sample` is not told how many: ``batch_size``, or the default."""
        return self.default_batch_size if self.batch_size is None else self.batch_size

    @torch.inference_mode(False)
    def adapted_sampler(self, target_acceptance: float, *, seed: int = 0) -> SamplerConfig:
        """The chain with the step size that gives this mean acceptance, tuned on chains that are no samples.

        Raises:
            InputError: The kernel has no acceptance that its step size changes, or needs the gradient of an energy that
                has none, or the target is not in (0, 1).
        """
        self._require_gradients(self.sampler)
        potential, prior, shape = captured(self.chain_potential()), self.generator.prior, self.generator.latent_shape
        return adapted(
            self.sampler, potential, prior, target_acceptance, seed=seed, latent_shape=shape, device=self.device
        )

    def chain_potential(self) -> LatentPotential:
        """U as the chains see it: the weights of now, in the arithmetic of ``precision``."""
        dtype = resolve(self.precision, self.device)
        # Made anew for each call, in milliseconds: a kept copy would not see weights that somebody changes. What is to
        # be compiled stays as torch wrote it.
        by_hand = None if self.compile_chains else dtype
        generator = for_chains(self.generator, by_hand)
        energy, latent_energy = (
            None if part is None else for_chains(part, by_hand) for part in (self.energy, self.latent_energy)
        )
        return LatentPotential(generator, energy, latent_energy, self.strength, dtype)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``folder``: a folder for each part, and last the index with the sampler, which names the parts.

        A generator that is not a class of exptilt (a wrapped decoder) is left out; give it to ``load`` again.
        Weights are written as ``dtype`` if given, and widened again on loading.

        Raises:
            InputError: An energy is not one of exptilt's networks, so its construction cannot be written down.
        """
        folder = Path(folder)
        parts = {name: part for name in PARTS if (part := getattr(self, name)) is not None}
        known = {*GENERATORS.values(), *ENERGIES.values()}
        nested = {name: [getattr(part, inner) for inner in getattr(part, "nested", ())] for name, part in parts.items()}
        foreign = [name for name, part in parts.items() if not {type(p) for p in (part, *nested[name])} <= known]
        if set(foreign) - {"generator"}:
            raise InputError(
                foreign[-1], "is of a class that is not saved", "save its weights, and build TiltedGenerator anew"
            )
        saved = [name for name in parts if name not in foreign]
        for name in saved:
            save_module(parts[name], folder / name, dtype)
        known_z = {} if self.log_z is None else {"log_z": dataclasses.asdict(self.log_z)}
        write_json(folder / INDEX, {"class": "TiltedGenerator", "parts": saved, **self.describe(), **known_z})

    @torch.inference_mode(False)
    def _check(self) -> None:
        z = self.generator.sample_prior(2)
        self._without_gradient: list[str] = []
        for name, part, make in (
            ("energy", self.energy, self.generator.decode),
            ("latent_energy", self.latent_energy, nn.Identity()),
        ):
            if part is None:
                continue
            with torch.no_grad():
                x = make(z.to(next((p.dtype for p in self.generator.parameters()), z.dtype)))
            x = x.detach().requires_grad_(True)
            try:
                with torch.enable_grad():
                    value = part(x)
            except InputError:
                raise
            except FAULTS as error:
                raise InputError(
                    name, f"fails on inputs of shape {tuple(x.shape)}: {first_line(error)}", "check its input"
                ) from error
            if not isinstance(value, torch.Tensor) or value.numel() != 2:
                given = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise InputError(name, f"gives {given} for 2 inputs", "return one number a sample, (N,)")
            # Weights that nobody froze have a gradient where the input has none.
            if not value.requires_grad or torch.autograd.grad(value.sum(), x, allow_unused=True)[0] is None:
                self._without_gradient.append(name)

    def _require_gradients(self, sampler: SamplerConfig) -> None:
        """Refuse chains that would follow the prior alone."""
        if sampler.gradients and self.strength and self._without_gradient:
            mend = f"remove no_grad(), detach() and step functions, or use kernel isir in place of {sampler.kernel}"
            raise InputError(self._without_gradient[0], "has no gradient in its input, which the chains follow", mend)

    def describe(self) -> dict[str, Any]:
        """The settings that sampling uses, as JSON values."""
        return {
            "sampler": dataclasses.asdict(self.sampler),
            "strength": self.strength,
            "precision": self.precision,
        }


def _require_strength(strength: float) -> None:
    """Check λ, which a user may have set since: a chain by no number would be the prior's, without a complaint.

    Raises:
        InputError: It is no finite number.
    """
    if not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise InputError("strength", f"{strength!r} is no finite number", "give λ, for example 1.0")
