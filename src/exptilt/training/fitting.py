"""An energy in training: where its positives and negatives come from, and what tells its quality."""

from __future__ import annotations

import math

import torch
from torch import nn

from exptilt.config import TiltConfig
from exptilt.data import MIRRORED, DataSet, batch_indices
from exptilt.density import LatentPotential
from exptilt.energies import make_energy
from exptilt.fast import for_chains
from exptilt.generators.base import Generator
from exptilt.generators.pixel import dequantized
from exptilt.precision import autocast, resolve
from exptilt.sampling import warm_up
from exptilt.sampling.chains import make_kernel, run, start
from exptilt.sampling.random import BatchStreams
from exptilt.sampling.weights import effective_size
from exptilt.tilted import TiltedGenerator
from exptilt.training import objectives
from exptilt.training.calibrate import SAMPLES, Monitor, Trial, calibrate
from exptilt.training.calibrate import gradients as calibration_gradients
from exptilt.training.negatives import JarzynskiWalkers, PersistentChains, ReplayBuffer
from exptilt.training.recognition import RecognitionNetwork, learn_encoder

# Samples that a check of quality looks at.
_MONITORED = 500
# Codes z ~ q(z|x) drawn of each training image ahead of training, and the most numbers that they may take together.
_CODES, _MOST_CODES = 4, 1 << 27
# Indices of samples in checks are kept apart from those of users' samples, so that none sees another's noise.
_CHECK_START = 1 << 40
# Index of the first batch of noise on data, apart from those of chains.
_DEQUANTIZATION = 1 << 42
# Index of the batch of the prior that held-out codes are told from.
_HELD_OUT = 1 << 44
# Fewer held-out images than this do not tell strengths apart: the first is kept.
_CALIBRATED_FROM = 500


class Fitting:
    """An energy in training: where its positives and negatives come from.

    Without ``data``, positives are given to :meth:`loss_on`. The energy is a fresh one by ``config`` unless given.
    """

    def __init__(
        self,
        generator: Generator,
        data: DataSet | None,
        config: TiltConfig,
        held_out: DataSet | None = None,
        monitor: Monitor | None = None,
        quiet: bool = True,
        *,
        energy: nn.Module | None = None,
    ) -> None:
        self.generator, self.data, self.config, self.monitor = generator, data, config, monitor
        self.held_out = held_out
        self.device = generator.device
        is_image = len(generator.data_shape) == 3
        self.on_x = config.space != "z"
        shape = generator.data_shape if self.on_x else generator.latent_shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            kinds = (config.energy_width, config.normalization, config.dropout)
            self.energy = make_energy(config.energy, shape, *kinds) if energy is None else energy
        layout = torch.channels_last if is_image and self.on_x else torch.contiguous_format
        self.layout = layout
        self.energy.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.dtype = resolve(config.precision, self.device) if is_image else torch.float32
        if config.space == "z":
            learned = config.encoder == "learned"
            self.encode = (self._learn_encoder(quiet) if learned else generator).encode
        self.codes = self._encode(data, _CODES) if config.space == "z" and data is not None else None
        self.by_held_out_loss = held_out is not None and config.space == "z" and config.objective == "logistic_ratio"
        self.held_out_codes = self._encode(held_out, 1) if self.by_held_out_loss and held_out is not None else None
        # The generator does not change any more; the energy's copy is made in each update.
        self.fast_generator = for_chains(generator)
        self.recent_negatives: list[torch.Tensor] = []
        self.chains = self._lasting_chains()

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
        # Dropout draws from torch's global stream.
        with torch.random.fork_rng(devices=[], enabled=config.dropout > 0), autocast(self.dtype, self.device):
            if config.dropout > 0:
                torch.manual_seed(config.seed * 1_000_003 + iteration)
            # One pass over both: the energy has no normalisation that could mix them.
            values = self.energy(torch.cat([positive, negative]))
        on_data, on_model = values.float().split([len(positive), len(negative)])
        if config.objective == "logistic_ratio":
            return objectives.logistic_ratio(on_data, on_model, config.energy_regularization)
        weights = self.chains.weights if isinstance(self.chains, JarzynskiWalkers) else None
        loss, figures = objectives.maximum_likelihood(on_data, on_model, config.energy_regularization, weights)
        return loss, figures | weighting

    def check(self, iteration: int) -> dict[str, float]:
        """The loss on held-out data, or the monitor's figures of samples by the present energy."""
        if self.held_out_codes is not None:
            return self._held_out_figures(self.held_out_codes)
        if self.monitor is None:
            return {}
        if self.recent_negatives:
            # The chains that training has just run: a look at them costs nothing.
            negatives = torch.cat(self.recent_negatives)
            # Started anew at each check, as a resumed run must: the figures are then the same.
            self.recent_negatives = []
            return self.monitor(negatives)
        samples = self.tilted().sample(_MONITORED, seed=self.config.seed, start=_CHECK_START)
        self.energy.train().requires_grad_(True)
        return self.monitor(samples)

    @torch.no_grad()
    def _held_out_figures(self, codes: torch.Tensor) -> dict[str, float]:
        """Of a ratio: its loss on held-out codes and the prior, and how even the weights e^(−E) of the prior are."""
        codes = codes.to(self.device)
        streams = BatchStreams(self.config.seed, _HELD_OUT, len(codes), self.generator.latent_shape, self.device)
        self.energy.eval()
        with autocast(self.dtype, self.device):
            on_data, on_prior = (self.energy(z).float() for z in (codes, self.generator.prior.sample(streams)))
        self.energy.train()
        loss, figures = objectives.logistic_ratio(on_data, on_prior, 0.0)
        named = {f"held_out_{name}": figures[name] for name in ("energy_gap", "accuracy")}
        return {
            "held_out_loss": float(loss),
            **named,
            "effective_share": float(effective_size(-on_prior)) / len(on_prior),
        }

    def calibrate(self, tilted: TiltedGenerator) -> list[Trial]:
        """Give ``tilted`` its strength and step size; returns what was tried."""
        config = self.config
        if self.monitor is None or not self._calibrates:
            tilted.strength = config.strengths[0]
            if config.target_acceptance:
                tilted.sampler = tilted.adapted_sampler(config.target_acceptance, seed=config.seed)
            return []
        reachable = None
        if self.codes is not None:
            codes = self.codes[batch_indices(len(self.codes), SAMPLES, config.seed, 0)].to(self.device)
            with torch.no_grad():
                reachable = torch.cat([self.generator.decode(z) for z in codes.split(500)])
        best, trials = calibrate(
            tilted, config.strengths, config.target_acceptance, self.monitor, reachable=reachable, seed=config.seed
        )
        tilted.strength, tilted.sampler = best.strength, best.sampler
        return trials

    def tilted(self) -> TiltedGenerator:
        """The tilted generator by the present energy."""
        on_x, on_z = (self.energy, None) if self.on_x else (None, self.energy)
        return TiltedGenerator(
            self.generator, on_x, latent_energy=on_z, sampler=self.config.sampler, precision=self.config.precision
        )

    def gradient_evaluations(self) -> int:
        """Gradients of U that all chains took: those of training, of the quality checks and of the warm-up."""
        config = self.config
        adapts = config.target_acceptance > 0
        if self._calibrates:
            total = calibration_gradients(config.sampler, config.strengths, adapts)
        else:
            total = warm_up.gradients(config.sampler) if adapts else 0
        if config.objective == "maximum_likelihood":
            chains = config.batch_size if self.chains is None else self.chains.size
            total += config.iterations * chains * config.chain.gradients
        if self.monitor is not None and not self._checks_chains and not self.by_held_out_loss:
            total += math.ceil(config.iterations / config.check_every) * _MONITORED * config.sampler.gradients
        return total

    @property
    def _calibrates(self) -> bool:
        enough = self.held_out is None or len(self.held_out) >= _CALIBRATED_FROM
        return self.monitor is not None and len(self.config.strengths) > 1 and enough

    @property
    def _checks_chains(self) -> bool:
        """Whether quality checks look at the images that training has just made: those of unweighted chains."""
        likelihood = self.config.objective == "maximum_likelihood" and self.on_x
        return likelihood and self.monitor is not None and not isinstance(self.chains, JarzynskiWalkers)

    def _positive(self, iteration: int) -> torch.Tensor:
        source = self.data if self.codes is None else self.codes
        assert source is not None
        indices = batch_indices(len(source), self.config.batch_size, self.config.seed, iteration)
        if self.codes is not None:
            return self.codes[indices].to(self.device)
        assert self.data is not None
        x = self.data.batch(indices)
        if self.config.dequantize and x.dim() == 4:
            x = dequantized(x, BatchStreams(self.config.seed, _DEQUANTIZATION + iteration, len(x), self.data.shape))
        return x.to(self.device, memory_format=self.layout)

    def _negative(self, iteration: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Negatives in the energy's space, and what the chains that made them tell."""
        config, figures = self.config, {}
        if config.objective == "maximum_likelihood":
            z, figures = self._run_chains(iteration)
        else:
            z = self.generator.prior.sample(self._streams(iteration))
        if not self.on_x:
            return z, figures
        with autocast(self.dtype, self.device):
            x = self.generator.decode(z)
        if self._checks_chains:
            self.recent_negatives = [*self.recent_negatives, x.float()][-math.ceil(_MONITORED / len(z)) :]
        return x, figures

    def _run_chains(self, iteration: int) -> tuple[torch.Tensor, dict[str, float]]:
        """z⁻ of eq. 7, under the present energy, whose weights the chains need no gradient of."""
        # In evaluation mode, in which spectral norms do not change from step to step.
        self.energy.eval().requires_grad_(False)
        energy = for_chains(self.energy)
        on_x, on_z = (energy, None) if self.on_x else (None, energy)
        potential = LatentPotential(self.fast_generator, on_x, on_z, dtype=self.dtype)
        try:
            if self.chains is not None:
                z = self.chains.advance(potential, iteration)
                if not isinstance(self.chains, JarzynskiWalkers):
                    return z, {}
                return z, {"effective_share": self.chains.effective_share, "log_z": self.chains.log_z}
            streams, prior = self._streams(iteration), self.generator.prior
            z, _ = start(self.config.chain, potential, prior, streams)
            kernel = make_kernel(self.config.chain, potential, prior)
            return run(kernel, z, self.config.chain.steps, streams).position, {}
        finally:
            self.energy.train().requires_grad_(True)

    def _streams(self, iteration: int) -> BatchStreams:
        config = self.config
        return BatchStreams(config.seed, iteration, config.batch_size, self.generator.latent_shape, self.device)

    def _learn_encoder(self, quiet: bool) -> RecognitionNetwork:
        iterations = self.config.encoder_iterations
        return learn_encoder(self.generator, iterations, seed=self.config.seed, dtype=self.dtype, quiet=quiet)

    def _lasting_chains(self) -> PersistentChains | ReplayBuffer | JarzynskiWalkers | None:
        config, prior, shape = self.config, self.generator.prior, self.generator.latent_shape
        if config.objective != "maximum_likelihood" or config.chains == "short_run":
            return None
        if config.chains == "replay":
            at_once, restart = config.batch_size, config.restart
            return ReplayBuffer(config.walkers, at_once, config.chain, restart, prior, config.seed, shape, self.device)
        if config.chains == "jarzynski":
            return JarzynskiWalkers(config.walkers, config.chain, prior, config.seed, shape, self.device)
        return PersistentChains(config.walkers, config.chain, config.restart, prior, config.seed, shape, self.device)

    @torch.no_grad()
    def _encode(self, data: DataSet, passes: int) -> torch.Tensor:
        """Codes z ~ q(z|x) of data, (M, *latent), several of each where memory allows, some of mirror images."""
        random = torch.Generator().manual_seed(self.config.seed)
        per_pass = len(data) * self.generator.sample_prior(1).numel()
        passes = max(1, min(passes, _MOST_CODES // per_pass))
        mirrors = self.config.mirror if self.config.mirror is not None else data.name in MIRRORED
        codes = []
        for index in range(passes):
            for first in range(0, len(data), 500):
                x = data.batch(slice(first, first + 500)).to(self.device)
                if mirrors and index % 2 == 1:
                    x = x.flip(3)
                with autocast(self.dtype, self.device):
                    codes.append(self.encode(x, generator=random).float().cpu())
        return torch.cat(codes)
