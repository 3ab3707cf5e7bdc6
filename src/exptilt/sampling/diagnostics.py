"""What chains tell of themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from exptilt.config import ADAPTABLE, SamplerConfig
from exptilt.sampling.kernel import Info, Proposal

# Random directions that latents are projected on; chains that R-hat and ESS look at; least draws of a chain for them.
_DIRECTIONS, _MOST_CHAINS, _FEWEST_DRAWS = 3, 1000, 10
# Least numbers, of all chains and coordinates, that a correlation is told of.
_FEWEST_NUMBERS = 10
# Above this R-hat the chains, taken one by one, differ (Vehtari et al. 2021).
_MIXED = 1.01
# Above this correlation with the start it is told to be short. Outside of these acceptances ε is to change first.
_CORRELATED, _LOW, _HIGH = 0.1, 0.3, 0.9


@dataclass
class SampleInfo:
    """What is known of N samples beside themselves.

    Attributes:
        energy: E along the chains, (steps, N): at the position before each step for ``langevin``, after it for the
            other kernels.
        acceptance: Mean acceptance probability of each chain, (N,); 1 for kernels without a test. For ``isir`` it is
            the probability to leave, for ``ex2mcmc`` that of its MALA part.
        trajectory: Latents at ``recorded_steps``, (K, N, *latent); (0, …) unless ``record_every`` was given.
        recorded_steps: Step numbers; 0 is the start.
        sums: Of the numbers a of the first latents and b of the last, over chains and coordinates, the sums of 1, a, b,
            a², b² and ab, float64 (6,).
        projections: The latents that ``energy`` is of, along random directions, (steps, N, 3).
        equal_candidates: For how many equal ones the weights of ``resample`` candidates count, (N,); (0,) without.
        sampler: The chain.
    """

    energy: torch.Tensor
    acceptance: torch.Tensor
    trajectory: torch.Tensor
    recorded_steps: list[int] = field(default_factory=list)
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))
    projections: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0, _DIRECTIONS))
    equal_candidates: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    @property
    def correlation(self) -> float:
        """Correlation of the last latents with the first, over chains and coordinates.

        nan for less than 10 numbers, and where all of a kind are the same.
        """
        n, a, b, aa, bb, ab = self.sums.tolist()
        if n < _FEWEST_NUMBERS:
            return math.nan
        scale = math.sqrt(max(0.0, aa - a * a / n) * max(0.0, bb - b * b / n))
        return (ab - a * b / n) / scale if scale > 0 else math.nan

    @cached_property
    def rhat(self) -> float:
        """Largest rank-normalised split R-hat of energy and projections, over the second half of the steps.

        1 where every chain by itself has covered what all cover (Vehtari et al. 2021, by arviz-stats). nan for less
        than 19 steps or 2 chains. At most 1,000 chains are looked at.
        """
        return float(np.max(self._statistics("rhat")))

    @cached_property
    def ess(self) -> float:
        """Smallest effective sample size of energy and projections, a chain, over the second half of the steps.

        So many independent draws one chain's positions are worth: about 1 where the chains hardly move, steps/2 where
        each position is a new one. nan where :attr:`rhat` is.
        """
        return float(np.min(self._statistics("ess"))) / max(1, min(len(self.acceptance), _MOST_CHAINS))

    @property
    def sentence(self) -> str:
        """One sentence of diagnosis, and what to do."""
        if not len(self.projections):
            return f"No step was taken: {self._start()}."
        short = self.correlation > _CORRELATED
        if math.isnan(self.correlation):
            findings = ["there are too few numbers to tell how far the chains are from their start"]
        elif short:
            share = f"{100 * self.correlation:.0f}% correlated with their start"
            findings = [f"the chains are {share}, so the samples are those of a short run, not of the limit"]
        else:
            # A correlation of −0.3% is 0%, not −0%.
            findings = [f"the chains have left their start behind ({round(100 * self.correlation)}% correlation)"]
        kernel, accepted = self.sampler.kernel, float(self.acceptance.mean())
        if accepted < 1:
            findings.append(f"mean {'probability to move' if kernel == 'isir' else 'acceptance'} {accepted:.2f}")
        unmixed = self.rhat > _MIXED
        if math.isfinite(self.rhat):
            fault = ", so single chains have not mixed" if unmixed else ""
            findings.append(f"R-hat {self.rhat:.3g} with {self.ess:.2g} effective samples a chain{fault}")
        advice = _advice(kernel, accepted, short or unmixed)
        return f"After {len(self.projections)} steps {'; '.join(findings)}{advice and f': {advice}'}."

    def _start(self) -> str:
        if not len(self.equal_candidates):
            return "these are samples of the prior"
        worth = f"{float(self.equal_candidates.mean()):.1f}"
        return f"each sample is one of {self.sampler.resample} of the prior, whose weights have ESS {worth}"

    def _statistics(self, name: str) -> np.ndarray:
        """R-hat or ESS of the energy, where it is known, and of each projection."""
        known = [self.energy[..., None]] if len(self.energy) else []
        draws = torch.cat([*known, self.projections], dim=2)[len(self.projections) // 2 :, :_MOST_CHAINS]
        if len(draws) < _FEWEST_DRAWS or draws.shape[1] < 2 or not bool(torch.isfinite(draws).all()):
            return np.array([math.nan])
        # Slow to import, and nothing else needs it.
        from arviz_stats.base.array import array_stats

        # Chains that never move divide by zero.
        with np.errstate(all="ignore"):
            return getattr(array_stats, name)(draws.double().numpy(), chain_axis=1, draw_axis=0)


class Recorder:
    """Follows chains, and keeps what :class:`SampleInfo` tells of their way.

    Args:
        prior: p(z).
        strength: λ in U = λE − log p; 0 leaves E unknown.
        start: Latents that the chains start at, (N, *latent).
    """

    def __init__(self, prior: Proposal, strength: float, start: torch.Tensor) -> None:
        self._prior, self._strength = prior, strength
        self._directions = directions(start[0].numel()).to(start)
        self._energy, self._projections = list[torch.Tensor](), list[torch.Tensor]()
        self._unknown = torch.empty(0, len(start))

    def follow(self, info: Info) -> None:
        """Keep what one transition tells."""
        self._projections.append(info.evaluated.flatten(1) @ self._directions)
        if self._strength:
            self._energy.append((info.potential + self._prior.log_prob(info.evaluated)) / self._strength)

    def energy(self) -> torch.Tensor:
        """E along the chains, (steps, N), on the CPU."""
        return torch.stack(self._energy).cpu() if self._energy else self._unknown

    def projections(self) -> torch.Tensor:
        """Latents along fixed random directions, (steps, N, 3), on the CPU."""
        kept = self._projections
        return torch.stack(kept).cpu() if kept else self._unknown[..., None].expand(-1, -1, _DIRECTIONS)


def directions(size: int) -> torch.Tensor:
    """The directions, of length 1, that latents of ``size`` numbers are projected on: (size, 3), always the same."""
    drawn = np.random.default_rng(0).standard_normal((size, _DIRECTIONS))
    return torch.from_numpy(drawn / np.linalg.norm(drawn, axis=0)).float()


def sums(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """What a :class:`SampleInfo` keeps of latents (N, *latent), and of those of the same chains later: (6,)."""
    a, b = start.flatten().double(), end.flatten().double()
    return torch.stack([a.new_tensor(len(a)), a.sum(), b.sum(), a @ a, b @ b, a @ b]).cpu()


def join(infos: list[SampleInfo], latent_shape: tuple[int, ...]) -> SampleInfo:
    """One info of all the chains of several batches, which took the same steps."""
    if not infos:
        return SampleInfo(torch.empty(0, 0), torch.empty(0), torch.empty(0, 0, *latent_shape))
    return SampleInfo(
        energy=torch.cat([info.energy for info in infos], dim=1),
        acceptance=torch.cat([info.acceptance for info in infos]),
        trajectory=torch.cat([info.trajectory for info in infos], dim=1),
        recorded_steps=infos[0].recorded_steps,
        sums=torch.stack([info.sums for info in infos]).sum(0),
        projections=torch.cat([info.projections for info in infos], dim=1),
        equal_candidates=torch.cat([info.equal_candidates for info in infos]),
        sampler=infos[0].sampler,
    )


def _advice(kernel: str, accepted: float, slow: bool) -> str:
    if kernel in ADAPTABLE and accepted < _LOW:
        return "lower ε"
    if not slow:
        return ""
    if kernel == "isir":
        return "raise candidates, or use kernel ex2mcmc" if accepted < _LOW else "raise steps"
    if kernel in ADAPTABLE:
        return "raise ε" if accepted > _HIGH else "raise steps"
    return "raise steps or ε"
