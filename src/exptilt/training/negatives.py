"""Where the negatives of maximum likelihood come from: latent chains that go on from one update to the next."""

from __future__ import annotations

import numpy as np
import torch

from exptilt import distributed
from exptilt.config import SamplerConfig, TiltConfig
from exptilt.generators.base import Generator
from exptilt.generators.prior import Prior
from exptilt.sampling.chains import make_kernel, run
from exptilt.sampling.kernel import Potential
from exptilt.sampling.random import BatchStreams
from exptilt.sampling.weights import effective_size, log_mean_exp, resample
from exptilt.training.loop import own_rows

# Walkers are resampled when fewer than this share of them carry the weights.
_LEAST_ESS = 0.5


class LatentChains:
    """Chains from the prior that are moved under the potential of each update.

    Where several processes share the work, each has some of the chains, ``mine``.

    Args:
        size: Number of chains.
        chain: Their kernel and the steps between two updates.
        prior: p(z).
        seed: With the number of the update it fixes all noise.
        shape: Shape of a latent.
        device: Where the chains are.
    """

    def __init__(
        self,
        size: int,
        chain: SamplerConfig,
        prior: Prior,
        seed: int,
        shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.size, self.chain, self.prior, self.seed, self.shape, self.device = size, chain, prior, seed, shape, device
        self.mine = own_rows(size)
        self.position = prior.sample(self._streams(-1))

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs: the chains of all processes."""
        return {"position": distributed.gather(self.position.clone(), self.size)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` gave, to any number of processes."""
        self.position = self._own(state["position"]).to(self.device)

    def _own(self, of_all: torch.Tensor) -> torch.Tensor:
        return of_all[self.mine.start : self.mine.stop]

    def _streams(self, iteration: int) -> BatchStreams:
        """Random numbers of an update; those of −1 are for the start."""
        return BatchStreams(self.seed, 1 + iteration, self.size, self.shape, self.device, rows=self.mine)

    def _move(self, potential: Potential, streams: BatchStreams) -> None:
        kernel = make_kernel(self.chain, potential, self.prior)
        self.position = run(kernel, self.position, self.chain.steps, streams).position


class PersistentChains(LatentChains):
    """Chains that are not started anew in each update (Tieleman 2008), in latent space.

    After each update a chain goes on where it stood, or with probability ``restart`` anew from the prior.

    Args:
        size: Number of chains.
        chain: Their kernel and the steps between two updates.
        restart: Probability with which a chain starts anew, in [0, 1).
        prior: p(z).
        seed: With the number of the update it fixes all noise.
        shape: Shape of a latent.
        device: Where the chains are.
    """

    def __init__(
        self,
        size: int,
        chain: SamplerConfig,
        restart: float,
        prior: Prior,
        seed: int,
        shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        super().__init__(size, chain, prior, seed, shape, device)
        self.restart = restart

    def advance(self, potential: Potential, iteration: int) -> torch.Tensor:
        """Move every chain under the potential of this update; latents of those of this process, (N, *shape)."""
        streams = self._streams(iteration)
        if self.restart:
            anew = (streams.uniform() < self.restart).view(-1, *[1] * len(self.shape))
            self.position = torch.where(anew, self.prior.sample(streams), self.position)
        self._move(potential, streams)
        return self.position


class ReplayBuffer(LatentChains):
    """Many chains of which a random batch goes on in each update (Du and Mordatch 2019).

    A chain of the batch goes on where it stood, or with probability ``restart`` anew from the prior, and is written
    back. The buffer fills up as it is used: a chain that is chosen for the first time starts at the prior.

    Where several processes share the work, each keeps a part of the buffer and moves a part of the batch, whichever
    process keeps it.

    Args:
        size: Number of chains that are kept.
        batch_size: Chains that go on in an update, ≤ ``size``.
        chain: Their kernel and the steps that an update takes.
        restart: Probability with which a chain starts anew, in [0, 1).
        prior: p(z).
        seed: With the number of the update it fixes all noise.
        shape: Shape of a latent.
        device: Where the chains are.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        chain: SamplerConfig,
        restart: float,
        prior: Prior,
        seed: int,
        shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        super().__init__(batch_size, chain, prior, seed, shape, device)
        self.restart = restart
        self.kept_of_all, self.kept_here = size, distributed.share(size)
        self.kept = torch.zeros(len(self.kept_here), *shape, device=device)
        self.begun = torch.zeros(len(self.kept_here), dtype=torch.bool, device=device)

    def advance(self, potential: Potential, iteration: int) -> torch.Tensor:
        """Move a random batch under the potential of this update; latents of this process's part, (N, *shape)."""
        streams, places = self._streams(iteration), self._places(iteration)
        here = (places >= self.kept_here.start) & (places < self.kept_here.stop)
        own = places[here] - self.kept_here.start
        kept, begun = self.position.new_zeros(self.size, *self.shape), self.position.new_zeros(self.size)
        kept[here], begun[here] = self.kept[own], self.begun[own].to(begun.dtype)
        # A chain is kept by one process, so that the sum over all is its position.
        distributed.add_up([kept, begun])
        goes_on = (self._own(begun) > 0) & (streams.uniform() >= self.restart)
        start = self.prior.sample(streams)
        self.position = torch.where(goes_on.view(-1, *[1] * len(self.shape)), self._own(kept), start)
        self._move(potential, streams)
        self.kept[own], self.begun[own] = distributed.gather(self.position, self.size)[here], True
        return self.position

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs."""
        kept, begun = (distributed.gather(part.clone(), self.kept_of_all) for part in (self.kept, self.begun))
        return {"kept": kept, "begun": begun}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        # Copied, as the buffer is written to: a snapshot may be loaded twice.
        here = slice(self.kept_here.start, self.kept_here.stop)
        self.kept, self.begun = (state[name][here].to(self.device, copy=True) for name in ("kept", "begun"))

    def _places(self, iteration: int) -> torch.Tensor:
        """Which chains go on in an update, all different, (batch_size,)."""
        random = np.random.default_rng([self.seed, iteration])
        return torch.from_numpy(random.permutation(self.kept_of_all)[: self.size]).to(self.device)


class JarzynskiWalkers(LatentChains):
    r"""Walkers that stay properly weighted while the energy is trained (Carbone et al. 2023, arXiv 2305.19414).

    They start at the exact prior, where E is taken as 0. When an update changes U to U', a walker at z takes the
    weight exp(U(z) − U'(z)), and then moves by a kernel that leaves exp(−U') as it is. So weighted means over the
    walkers are unbiased up to normalisation, however short the chains, and the mean weight is Z (their eq. 13, in the
    form for kernels that are exact; this is annealed importance sampling along the path of the training).

    Args:
        size: Number of walkers.
        chain: An exact kernel (mala, hmc, ex2mcmc, isir), and the steps between two updates.
        prior: p(z).
        seed: With the number of the update it fixes all noise.
        shape: Shape of a latent.
        device: Where the walkers are.
    """

    def __init__(
        self,
        size: int,
        chain: SamplerConfig,
        prior: Prior,
        seed: int,
        shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        super().__init__(size, chain, prior, seed, shape, device)
        self._potential = -prior.log_prob(self.position)
        # Those of all walkers, on every process.
        self._log_weights = torch.zeros(size, device=device)
        self._log_z = 0.0

    def advance(self, potential: Potential, iteration: int) -> torch.Tensor:
        """Reweight for the potential of this update, resample if need be, move; latents here, (N, *shape)."""
        streams = self._streams(iteration)
        with torch.no_grad():
            change = self._potential - potential(self.position)
            self._log_weights = self._log_weights + distributed.gather(change, self.size)
            if self.effective_share < _LEAST_ESS:
                self._resample(distributed.gather(streams.uniform(), self.size)[:1])
        self._move(potential, streams)
        with torch.no_grad():
            self._potential = potential(self.position)
        return self.position

    @property
    def weights(self) -> torch.Tensor:
        """Weights of all walkers, (size,), with sum 1."""
        return torch.softmax(self._log_weights, 0)

    @property
    def effective_share(self) -> float:
        """Effective sample size over the number of walkers, in (0, 1]."""
        return float(effective_size(self._log_weights)) / self.size

    @property
    def log_z(self) -> float:
        """Estimate of log Z of the energy that the walkers last moved under, in nats."""
        return self._log_z + float(log_mean_exp(self._log_weights))

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs."""
        return super().state() | {
            "potential": distributed.gather(self._potential.clone(), self.size),
            "log_weights": self._log_weights.clone(),
            "log_z": torch.tensor(self._log_z, dtype=torch.float64),
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        super().load(state)
        self._potential = self._own(state["potential"]).to(self.device)
        self._log_weights = state["log_weights"].to(self.device)
        self._log_z = float(state["log_z"])

    def _resample(self, uniform: torch.Tensor) -> None:
        self._log_z = self.log_z
        chosen = self._own(resample(self._log_weights[None].double(), uniform)[0])
        position, potential = (distributed.gather(part, self.size) for part in (self.position, self._potential))
        self.position, self._potential = position[chosen], potential[chosen]
        self._log_weights = torch.zeros_like(self._log_weights)


def lasting_chains(
    config: TiltConfig, generator: Generator
) -> PersistentChains | ReplayBuffer | JarzynskiWalkers | None:
    """The chains of a training that go on from update to update; None where there are none, or each starts anew."""
    if config.objective != "maximum_likelihood" or config.chains == "short_run":
        return None
    size, chain, restart = config.walkers, config.chain, config.restart
    rest = (generator.prior, config.seed, generator.latent_shape, generator.device)
    if config.chains == "replay":
        return ReplayBuffer(size, config.batch_size, chain, restart, *rest)
    if config.chains == "jarzynski":
        return JarzynskiWalkers(size, chain, *rest)
    return PersistentChains(size, chain, restart, *rest)
