"""Objectives for a training loop of one's own: what ``tilt`` minimises, a batch of data at a time."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal

import torch
from torch import nn

from exptilt import distributed, rows
from exptilt.config import Precision, SamplerConfig, TiltConfig
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.precision import autocast
from exptilt.tilted import TiltedGenerator
from exptilt.training.fit import as_data_set
from exptilt.training.fitting import Fitting


class Objective(nn.Module):
    """The loss of an energy against a frozen generator, for any loop that minimises it; see its two subclasses.

    Its modules are the generator and the energy, so that it is moved and saved as one; :meth:`train` leaves the
    generator in evaluation mode. Its state dict also holds what else a run needs to go on to the same result: the
    number of the next batch, and chains that last.

    Attributes:
        generator: The generator, frozen.
        energy: What is trained; its ``parameters()`` are for the optimizer.
        figures: Of the last loss, for a log: mean energies of data and of negatives, their difference, and more.
    """

    def __init__(
        self, generator: Generator, energy: nn.Module | None, latent_energy: nn.Module | None, config: TiltConfig
    ) -> None:
        super().__init__()
        given = energy if latent_energy is None else latent_energy
        if given is None or (energy is not None and latent_energy is not None):
            raise InputError(type(self).__name__, "needs one energy", "give energy or latent_energy")
        if latent_energy is not None and not generator.has_encoder:
            fault = "needs latents of data, and this generator has no encoder"
            raise InputError("latent_energy", fault, "give an energy on samples, or wrap(encode=…)")
        # What a tilted generator asks of its parts is asked here too; it also freezes them.
        TiltedGenerator(generator, energy, latent_energy=latent_energy)
        self.generator = generator
        self.energy = given.train().requires_grad_(True)
        self.figures: dict[str, float] = {}
        self._config = dataclasses.replace(config, space="x" if latent_energy is None else "z")
        self._iteration = 0
        self._fitting: Fitting | None = None
        self._chains: dict[str, torch.Tensor] = {}

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """The loss of a batch of data, differentiable by the energy's weights.

        There are as many negatives as samples in the batch, unless chains last.

        Args:
            batch: Images (N, C, H, W) in [−1, 1], or points (N, D).

        Returns:
            The loss, ().

        Raises:
            InputError: The batch does not fit the generator, is not finite, or lies outside of [−1, 1].
            RunError: Chains left the finite numbers.
        """
        data = as_data_set(batch, is_batch=True)
        data.require_shape(self.generator.data_shape)
        fitting = self._at_work(len(batch))
        x = data.batch(slice(None)).to(fitting.device, memory_format=fitting.layout)
        # Where several processes train, each has a batch of its own, and the loop that calls this adds gradients up.
        with distributed.alone():
            loss, self.figures = fitting.loss_on(self._positives(fitting, x), self._iteration)
        self._iteration += 1
        return loss

    def tilted(self, sampler: SamplerConfig | None = None) -> TiltedGenerator:
        """The generator tilted by a copy of the present energy: training may go on.

        Args:
            sampler: Its chain; unless given, as :class:`~exptilt.TiltedGenerator` has it.
        """
        energy, config = copy.deepcopy(self.energy), self._config
        on_x, on_z = (energy, None) if config.space == "x" else (None, energy)
        return TiltedGenerator(self.generator, on_x, latent_energy=on_z, sampler=sampler, precision=config.precision)

    def train(self, mode: bool = True) -> Objective:
        """Training mode for the energy; the generator stays as it is."""
        super().train(mode)
        self.generator.eval()
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """What a state dict holds beside the weights."""
        return {"iteration": self._iteration, "chains": self._lasting()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`get_extra_state` gave."""
        self._iteration, self._chains, self._fitting = state["iteration"], state["chains"], None

    def _lasting(self) -> dict[str, torch.Tensor]:
        working = self._fitting
        return self._chains if working is None or working.chains is None else working.chains.state()

    def _at_work(self, batch_size: int) -> Fitting:
        """Made at the first batch, when the modules are where they will stay."""
        if self._fitting is None or self._fitting.device != self.generator.device:
            chains = self._lasting()
            self._fitting = Fitting(self.generator, None, self._config, energy=self.energy)
            if self._fitting.chains is not None and chains:
                self._fitting.chains.load(chains)
        if self._fitting.config.batch_size != batch_size:
            self._fitting.config = dataclasses.replace(self._config, batch_size=batch_size)
        return self._fitting

    @torch.no_grad()
    def _positives(self, fitting: Fitting, x: torch.Tensor) -> torch.Tensor:
        """The batch where the energy is: as it is, or as latents z ~ q(z|x)."""
        if fitting.on_x:
            return x
        random = torch.Generator().manual_seed(rows.seed_of(self._config.seed, self._iteration))
        with autocast(fitting.dtype, fitting.device):
            return self.generator.encode(x, generator=random).float()


class LogisticRatio(Objective):
    """Logistic regression of data against the generator's own samples, with logit −E: no chain in training.

    At the optimum E = −log p_data/p_generator (Sugiyama et al. 2012, ch. 4). With ``latent_energy`` it tells z ~ q(z|x)
    from z ~ p(z), and the decoder is not used either: that is the objective of recipe ``"default"``.

    Args:
        generator: The generator; it is frozen here (evaluation mode, no gradients for its weights).
        energy: E on samples, (N, *data_shape) to (N,); all its weights are trained.
        latent_energy: In its place, E on latents, (N, *latent_shape) to (N,). Latents of data are drawn by the
            generator's encoder.
        regularization: Weight of the mean of E(x⁺)² + E(x⁻)², ≥ 0.
        relative: α of the relative ratio p/(αp + (1−α)q), which is nowhere above 1/α, in [0, 1); 0 is p/q
            (Yamada et al. 2013).
        seed: With the number of the batch it fixes negatives and latents of data. Dropout in an energy draws from
            torch's global stream.
        precision: Arithmetic of decoder and energy on images.

    Raises:
        InputError: Not one energy is given but none or two, it does not give one number a sample, or an energy on
            latents has a generator without encoder.
    """

    def __init__(
        self,
        generator: Generator,
        energy: nn.Module | None = None,
        *,
        latent_energy: nn.Module | None = None,
        regularization: float = 0.0,
        relative: float = 0.0,
        seed: int = 0,
        precision: Precision = "auto",
    ) -> None:
        config = TiltConfig(
            objective="logistic_ratio",
            energy_regularization=regularization,
            relative=relative,
            seed=seed,
            precision=precision,
        )
        super().__init__(generator, energy, latent_energy, config)


class MaximumLikelihood(Objective):
    """Maximum likelihood, with negatives from chains under the present energy (paper, eq. 5 and 7).

    Args:
        generator: As in :class:`LogisticRatio`.
        energy: As there.
        latent_energy: As there.
        chain: The chain that makes negatives; unless given the paper's: 60 Langevin steps with ε = 0.01.
        chains: ``"short_run"`` starts them at the prior for each batch; ``"persistent"`` lets them go on;
            ``"jarzynski"`` lets them go on with weights that keep gradients unbiased, and needs an exact kernel.
        walkers: Number of chains that go on, all of them negatives of each batch.
        restart: Probability with which a persistent chain starts anew at the prior, in [0, 1).
        regularization: Weight of the mean of E(x⁺)² + E(x⁻)², ≥ 0; 0.1 in the paper (B.2).
        seed: As there.
        precision: As there.

    Raises:
        InputError: As there, or the settings do not fit each other.
    """

    def __init__(
        self,
        generator: Generator,
        energy: nn.Module | None = None,
        *,
        latent_energy: nn.Module | None = None,
        chain: SamplerConfig | None = None,
        chains: Literal["short_run", "persistent", "jarzynski"] = "short_run",
        walkers: int = 1024,
        restart: float = 0.02,
        regularization: float = 0.1,
        seed: int = 0,
        precision: Precision = "auto",
    ) -> None:
        config = TiltConfig(
            chain=chain or SamplerConfig(steps=60),
            chains=chains,
            walkers=walkers,
            restart=restart,
            energy_regularization=regularization,
            seed=seed,
            precision=precision,
        )
        super().__init__(generator, energy, latent_energy, config)
