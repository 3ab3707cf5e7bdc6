"""An energy in training: where its positives and negatives come from, and what tells its quality."""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import nn

from exptilt import distributed, rows
from exptilt.config import TiltConfig
from exptilt.data import DataSet, batch_indices
from exptilt.errors import RunError
from exptilt.generators.base import Generator, lay_out
from exptilt.generators.pixel import dequantized
from exptilt.precision import autocast, resolve
from exptilt.sampling.chains import make_kernel, run, start
from exptilt.sampling.random import BatchStreams
from exptilt.tilted import TiltedGenerator
from exptilt.training import objectives
from exptilt.training.calibrate import Monitor
from exptilt.training.codes import Codes
from exptilt.training.held_out import HeldOutCodes
from exptilt.training.loop import own_rows
from exptilt.training.negatives import JarzynskiWalkers, lasting_chains
from exptilt.training.pool import draw_pool, pool_gradients
from exptilt.training.potential import PotentialInTraining
from exptilt.training.starting import energy_to_train

# Samples that a check of quality looks at.
MONITORED = 500
# Indices of samples in checks are kept apart from those of users' samples, so that none sees another's noise.
_CHECK_START = 1 << 40
# The most samples of a tilted model that held-out data are told from.
_TOLD = 2000
# Index of the first batch of noise on data, apart from those of chains.
_DEQUANTIZATION = 1 << 42
# Index of the batch of the prior that held-out codes are told from.
_HELD_OUT = 1 << 44


class Fitting:
    """An energy in training: where its positives and negatives come from.

    Args:
        base: What is tilted. Of a tilted generator, an energy that is there in the same space goes on from where it is;
            one in the other space stays, and the new energy is added to it. Its strength multiplies both.
        data: Training set; without one, positives are given to :meth:`loss_on`.
        config: Settings.
        codes: Codes of the data, where the energy is on latents.
        monitor: Quality of samples.
        stage: Number of the stage, from 0, apart from whose pools this one's is drawn.
        energy: What is trained; unless given, a fresh one by the settings, or that of ``base``.

    Raises:
        InputError: The energy of ``base`` is not a class of exptilt, so that its training cannot go on.
    """

    def __init__(
        self,
        base: Generator | TiltedGenerator,
        data: DataSet | None,
        config: TiltConfig,
        codes: Codes | None = None,
        monitor: Monitor | None = None,
        stage: int = 0,
        *,
        energy: nn.Module | None = None,
    ) -> None:
        self.base = base if isinstance(base, TiltedGenerator) else None
        self.generator = base.generator if isinstance(base, TiltedGenerator) else base
        self.data, self.config, self.codes, self.monitor, self.stage = data, config, codes, monitor, stage
        self.strength = 1.0 if self.base is None else self.base.strength
        self.device = self.generator.device
        self.on_x = config.space != "z"
        is_image = len(self.generator.data_shape) == 3
        self.layout = torch.channels_last if is_image and self.on_x else torch.contiguous_format
        self.energy, self.before = energy_to_train(base, data, config) if energy is None else (energy, None)
        self.energy.to(self.device)
        lay_out(self.energy, self.layout)
        self.dtype = resolve(config.precision, self.device) if is_image else torch.float32
        self.potential = PotentialInTraining(
            self.generator, lambda: self._energies(self.energy), self.strength, self.dtype
        )
        self.recent_negatives: list[torch.Tensor] = []
        is_ratio = config.objective == "logistic_ratio"
        self.pool = self.held_out = None
        if self.base is not None and is_ratio:
            self.pool = draw_pool(self.base, config.pool, config.seed, stage, 0).to(self.device)
        if codes is not None and codes.held_out is not None and is_ratio:
            self.held_out = HeldOutCodes(codes.held_out, self._held_out_negatives(len(codes.held_out)))
        # Whether the energy told any two samples of an update apart since the last check.
        self.tells_apart = False
        self.chain = config.chain
        self.chains = lasting_chains(config, self.generator)

    def loss(self, iteration: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of one batch; everything random in it follows from (seed, iteration)."""
        with torch.no_grad():
            positive = self._positive(iteration)
        return self.loss_on(positive, iteration)

    def loss_on(self, positive: torch.Tensor, iteration: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of positives that are where the energy is, against the negatives of this iteration."""
        config = self.config
        with torch.no_grad():
            negative, weighting = self._negative(iteration)
        of_data, of_model = self._positives, self._negatives
        parts = [distributed.share(of_data), range(of_data, of_data + of_model)[_slice(distributed.share(of_model))]]
        # Dropout draws from torch's global stream.
        with torch.random.fork_rng(devices=[], enabled=config.dropout > 0):
            if config.dropout > 0:
                torch.manual_seed(rows.seed_of(config.seed, iteration))
            # One pass over both: the energy has no normalisation that could mix them.
            with rows.part(parts, of_data + of_model):
                values = self._values(torch.cat([positive, negative]))
        on_data, on_model = values.split([len(positive), len(negative)])
        on_data = distributed.values_of_all(on_data, of_data)
        on_model = distributed.values_of_all(on_model, of_model)
        values = torch.cat([on_data, on_model]).detach()
        self.tells_apart |= bool(values.max() > values.min())
        if config.objective == "logistic_ratio":
            return objectives.logistic_ratio(on_data, on_model, config.energy_regularization, config.relative)
        weights = self.chains.weights if isinstance(self.chains, JarzynskiWalkers) else None
        loss, figures = objectives.maximum_likelihood(on_data, on_model, config.energy_regularization, weights)
        return loss, figures | weighting

    def check(self, iteration: int) -> dict[str, float]:
        """The loss on held-out data, or the monitor's figures of samples by the present energy.

        Raises:
            RunError: The energy was constant in all updates since the last check, or the chains diverged.
        """
        if not self.tells_apart:
            raise RunError("the energy gave the same value for all data and samples since the last check: it is dead")
        self.tells_apart = False
        if self.held_out is not None:
            self.energy.eval()
            figures = self.held_out.figures(lambda z: self._values(z.to(self.device)), self.config.relative)
            self.energy.train()
            return figures
        if self.monitor is None:
            return {}
        if self.recent_negatives:
            # The chains that training has just run: a look at them costs nothing.
            negatives = torch.cat([distributed.gather(x, self._negatives) for x in self.recent_negatives])
            # Started anew at each check, as a resumed run must: the figures are then the same.
            self.recent_negatives = []
            return self.monitor(negatives)
        tilted, seed = self.tilted(), self.config.seed
        try:
            samples = distributed.rows(
                MONITORED, lambda mine: tilted.sample(len(mine), seed=seed, start=_CHECK_START + mine.start)
            )
        finally:
            self.energy.train().requires_grad_(True)
        return self.monitor(samples)

    def learned(self, loss: float) -> bool:
        """Whether held-out data confirm what was learned: not, if a ratio's loss on them is that of E = 0."""
        return self.held_out is None or loss < 2 * math.log(2)

    def state(self) -> dict[str, torch.Tensor]:
        """What an update needs beside the weights: chains that go on, and what the next check looks at."""
        recent = {
            f"recent/{index}": distributed.gather(x, self._negatives) for index, x in enumerate(self.recent_negatives)
        }
        chains = {} if self.chains is None else {f"chains/{name}": x for name, x in self.chains.state().items()}
        return {"tells_apart": torch.tensor(self.tells_apart), **recent, **chains}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        self.tells_apart = bool(state["tells_apart"])
        recent = sum(name.startswith("recent/") for name in state)
        mine = _slice(distributed.share(self._negatives))
        self.recent_negatives = [state[f"recent/{index}"][mine].to(self.device) for index in range(recent)]
        if self.chains is not None:
            prefix = "chains/"
            self.chains.load({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})

    def shorten_steps(self, times: int) -> None:
        """Give the chains of training 2^(−times) of their step size, because they have diverged so often."""
        self.chain = dataclasses.replace(self.config.chain, step_size=self.config.chain.step_size * 0.5**times)
        if self.chains is not None:
            self.chains.chain = self.chain

    def tilted(self, weights: dict[str, torch.Tensor] | None = None) -> TiltedGenerator:
        """The tilted generator by the present energy, or by a copy of it with these weights."""
        energy = self.energy
        if weights is not None:
            energy = copy.deepcopy(energy)
            energy.load_state_dict(weights)
        on_x, on_z = self._energies(energy)
        config, strength = self.config, self.strength
        return TiltedGenerator(
            self.generator,
            on_x,
            latent_energy=on_z,
            sampler=config.sampler,
            strength=strength,
            precision=config.precision,
        )

    def floor(self, tilted: TiltedGenerator) -> float:
        """The E(z) of a model that a share ``floor`` of held-out codes is below, in nats."""
        assert self.held_out is not None
        assert tilted.latent_energy is not None
        return self.held_out.quantile(tilted.latent_energy, self.config.floor)

    def gradient_evaluations(self) -> int:
        """Gradients of U that all chains took: those of training, of the pool and of the quality checks."""
        config, total = self.config, 0
        if self.base is not None:
            drawn = 0 if self.pool is None else len(self.pool)
            told = 0 if self.held_out is None else len(self.held_out.negatives)
            total += sum(pool_gradients(self.base.sampler, n) for n in (drawn, told))
        if config.objective == "maximum_likelihood":
            chains = config.batch_size if self.chains is None else self.chains.size
            total += config.iterations * chains * config.chain.gradients
        if self.monitor is not None and not self._checks_chains and self.held_out is None:
            total += math.ceil(config.iterations / config.check_every) * MONITORED * config.sampler.gradients
        return total

    @property
    def _checks_chains(self) -> bool:
        """Whether quality checks look at the images that training has just made: those of unweighted chains."""
        likelihood = self.config.objective == "maximum_likelihood" and self.on_x
        return likelihood and self.monitor is not None and not isinstance(self.chains, JarzynskiWalkers)

    def _energies(self, energy: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
        """On samples and on latents: the given one, and the base's in the other space."""
        if self.on_x:
            return energy, None if self.base is None else self.base.latent_energy
        return None if self.base is None else self.base.energy, energy

    def _values(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the objectives see, float32 (N,): λE, of a ratio to a tilted model less the λE that it is tilted by."""
        with autocast(self.dtype, self.device):
            values = self.energy(inputs).float()
            if self.before is not None and self.config.objective == "logistic_ratio":
                with torch.no_grad():
                    known = self.before(inputs).float()
                values = values - known
        return self.strength * values

    def _held_out_negatives(self, n: int) -> torch.Tensor:
        if self.base is not None:
            return draw_pool(self.base, min(n, _TOLD), self.config.seed, self.stage, self.config.pool).to(self.device)
        streams = BatchStreams(self.config.seed, _HELD_OUT, n, self.generator.latent_shape, self.device)
        return self.generator.prior.sample(streams)

    def _positive(self, iteration: int) -> torch.Tensor:
        config, source = self.config, self._source
        assert source is not None
        mine = own_rows(self._positives)
        indices = batch_indices(len(source), config.batch_size, config.seed, iteration)[_slice(mine)]
        if isinstance(source, torch.Tensor):
            return source[indices].to(self.device)
        x = source.batch(indices)
        if config.dequantize and x.dim() == 4:
            batch, shape = _DEQUANTIZATION + iteration, tuple(x.shape[1:])
            x = dequantized(x, BatchStreams(config.seed, batch, self._positives, shape, rows=mine))
        return x.to(self.device, memory_format=self.layout)

    def _negative(self, iteration: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Negatives in the energy's space, and what the chains that made them tell."""
        config, figures = self.config, {}
        if config.objective == "maximum_likelihood":
            with distributed.failing_together():
                z, figures = self._run_chains(iteration)
        elif self.pool is not None:
            chosen = batch_indices(len(self.pool), config.batch_size, config.seed, iteration)
            z = self.pool[chosen[_slice(own_rows(len(chosen)))]]
        else:
            z = self.generator.prior.sample(self._streams(iteration))
        if not self.on_x:
            return z, figures
        with autocast(self.dtype, self.device):
            x = self.generator.decode(z)
        if self._checks_chains:
            self.recent_negatives = [*self.recent_negatives, x.float()][-math.ceil(MONITORED / self._negatives) :]
        return x, figures

    def _run_chains(self, iteration: int) -> tuple[torch.Tensor, dict[str, float]]:
        """z⁻ of eq. 7, under the present energy, whose weights the chains need no gradient of."""
        # In evaluation mode, in which spectral norms do not change from step to step.
        self.energy.eval().requires_grad_(False)
        try:
            potential = self.potential.present()
            if self.chains is not None:
                z = self.chains.advance(potential, iteration)
                if not isinstance(self.chains, JarzynskiWalkers):
                    return z, {}
                return z, {"effective_share": self.chains.effective_share, "log_z": self.chains.log_z}
            streams, prior = self._streams(iteration), self.generator.prior
            z, _ = start(self.chain, potential, prior, streams)
            kernel = make_kernel(self.chain, potential, prior)
            return run(kernel, z, self.chain.steps, streams).position, {}
        finally:
            self.energy.train().requires_grad_(True)

    def _streams(self, iteration: int) -> BatchStreams:
        n, shape = self.config.batch_size, self.generator.latent_shape
        return BatchStreams(self.config.seed, iteration, n, shape, self.device, rows=own_rows(n))

    @property
    def _positives(self) -> int:
        """Data in an update, of all processes."""
        return min(self.config.batch_size, self.config.batch_size if self._source is None else len(self._source))

    @property
    def _negatives(self) -> int:
        """Samples in an update, of all processes."""
        if self.pool is not None:
            return min(self.config.batch_size, len(self.pool))
        return self.config.batch_size if self.chains is None else self.chains.size

    @property
    def _source(self) -> DataSet | torch.Tensor | None:
        """Where positives come from; None where they are given."""
        return self.data if self.codes is None else self.codes.fitted


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)
