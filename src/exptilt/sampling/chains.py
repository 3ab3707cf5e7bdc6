"""Runs a kernel: many chains side by side, recorded, and stopped when they leave the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from exptilt.config import SamplerConfig
from exptilt.errors import RunError
from exptilt.sampling.ex2mcmc import Ex2MCMC
from exptilt.sampling.hmc import HMC
from exptilt.sampling.isir import ISIR
from exptilt.sampling.kernel import Info, Kernel, Noise, Potential, Proposal
from exptilt.sampling.langevin import Langevin
from exptilt.sampling.mala import MALA
from exptilt.sampling.resampling import resample
from exptilt.sampling.tempered import Tempered
from exptilt.sampling.underdamped import Underdamped

# Steps between two looks for positions that diverge; each look makes a GPU wait.
_CHECK_EVERY = 10
# A latent so many times as large as the largest at the start is on its way out of the numbers: a chain with too long a
# step grows by a constant factor a step, and none that samples a density grows like that.
_EXPLODED = 1e6
# An acceptance this near 0 or 1 tells that a step size is far off, not how far.
_FAR = 0.02


@dataclass
class ChainRun:
    """What a run of N chains leaves.

    Attributes:
        position: Latents after the last step, (N, *latent).
        acceptance: Mean acceptance probability of each chain, (N,).
        trajectory: Latents at ``recorded_steps``, (K, N, *latent); empty (0, …) if none were asked for.
        recorded_steps: Step numbers of the trajectory; 0 is the start.
    """

    position: torch.Tensor
    acceptance: torch.Tensor
    trajectory: torch.Tensor
    recorded_steps: list[int] = field(default_factory=list)


class ChainsDiverged(RunError):  # noqa: N818 - named after what happened
    """Some chains left the finite numbers, or were about to.

    Attributes:
        chains: Their positions in the batch.
        step: When it was seen.
    """

    def __init__(self, chains: list[int], step: int, step_size: float) -> None:
        self.chains, self.step = chains, step
        named = ", ".join(map(str, chains[:5])) + (", …" if len(chains) > 5 else "")
        super().__init__(
            f"{len(chains)} chains exploded: they left the finite numbers or grew a million-fold by step {step} "
            f"(chains {named}); "
            f"use a step size smaller than {step_size:g}"
        )


def make_kernel(config: SamplerConfig, potential: Potential, prior: Proposal) -> Kernel:
    """The kernel that ``config`` names, on ``potential`` U = λE − log p; ``prior`` is p(z)."""

    def on(potential: Potential) -> Kernel:
        ε = config.step_size
        match config.kernel:
            case "langevin":
                return Langevin(potential, ε, config.noise_scale, config.gradient_limit)
            case "mala":
                return MALA(potential, ε)
            case "hmc":
                return HMC(potential, ε, config.leapfrog_steps)
            case "underdamped":
                return Underdamped(potential, ε, config.friction)
            case "isir":
                return ISIR(potential, prior, config.candidates)
            case "ex2mcmc":
                return Ex2MCMC(potential, prior, ε, config.candidates)

    return on(potential) if config.replicas == 1 else Tempered(on, potential, prior, config.replicas)


def start(
    config: SamplerConfig, potential: Potential, prior: Proposal, noise: Noise
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the chains start: the latent of the prior that comes first, or one of ``config.resample`` by weight.

    Returns:
        Latents (N, *latent), and for how many equal ones each chain's weights count, (N,); (0,) if none were chosen.
    """
    z = prior.sample(noise)
    return resample(potential, prior, noise, z, config.resample) if config.resample > 1 else (z, z.new_empty(0))


def run(
    kernel: Kernel,
    position: torch.Tensor,
    steps: int,
    noise: Noise,
    *,
    record_every: int | None = None,
    callback: Callable[[int, Info], None] | None = None,
) -> ChainRun:
    """Run every chain for ``steps`` transitions.

    Args:
        kernel: One transition.
        position: Where the chains start, (N, *latent).
        steps: Number of transitions, ≥ 0.
        noise: Random numbers for N chains.
        record_every: Keep the latents of the start, of every so many steps, and of the end.
        callback: Called as ``callback(step, info)`` after each step, counted from 1.

    Raises:
        ChainsDiverged: A position is not finite, or a million times as large as those at the start.
    """
    recorded_steps, trajectory = ([0], [position]) if record_every else ([], [])
    acceptance = torch.zeros(len(position), device=position.device)
    end = position
    for step, end, info in walk(kernel, position, steps, noise):
        acceptance += info.acceptance.float()
        if callback is not None:
            callback(step, info)
        if record_every and (step % record_every == 0 or step == steps):
            recorded_steps.append(step)
            trajectory.append(end)
    kept = torch.stack(trajectory) if trajectory else position.new_empty(0, *position.shape)
    return ChainRun(end, acceptance / max(steps, 1), kept, recorded_steps)


def walk(kernel: Kernel, position: torch.Tensor, steps: int, noise: Noise) -> Iterator[tuple[int, torch.Tensor, Info]]:
    """The transitions of :func:`run`, each as soon as it is made; arguments as there.

    Yields:
        Its number, counted from 1; the latents after it, (N, *latent); what it tells.

    Raises:
        ChainsDiverged: A position is not finite, or a million times as large as those at the start.
    """
    if steps == 0:
        return
    most = _EXPLODED * position.detach().abs().max().clamp(min=1.0)
    state = kernel.init(position)
    for step in range(1, steps + 1):
        state, info = kernel.step(state, noise)
        if step % _CHECK_EVERY == 0 or step == steps:
            _require_bounded(state.position, most, step, kernel.step_size)
        yield step, state.position, info


def adapt_step_size(
    kernel: Kernel, position: torch.Tensor, noise: Noise, target: float, steps: int
) -> tuple[float, torch.Tensor]:
    """Warm-up: tune ``kernel.step_size`` to a mean acceptance of ``target`` by stochastic approximation.

    It is for kernels whose acceptance falls as ε grows (``exptilt.config.ADAPTABLE``). The logarithm of ε moves by
    (acceptance − target)/√t at step t (Robbins and Monro 1951), and the mean over the second half is kept. Where next
    to all or nothing is accepted, ε is doubled or halved. The result is to be frozen: a chain that adapts for ever does
    not sample its target.

    Returns:
        The step size, and the position after the warm-up, (N, *latent).
    """
    state, logs = kernel.init(position), []
    log_step = torch.tensor(kernel.step_size).log().item()
    for t in range(1, steps + 1):
        state, info = kernel.step(state, noise)
        acceptance = info.acceptance.mean().item()
        if _FAR < acceptance < 1 - _FAR:
            log_step += (acceptance - target) / t**0.5
        else:
            log_step += math.copysign(math.log(2), acceptance - target)
        kernel.step_size = float(torch.tensor(log_step).exp())
        logs.append(log_step)
    settled = logs[len(logs) // 2 :]
    kernel.step_size = float(torch.tensor(settled).mean().exp())
    return kernel.step_size, state.position


def _require_bounded(position: torch.Tensor, most: torch.Tensor, step: int, step_size: float) -> None:
    # Also false where a position is not a number.
    within = (position.abs() <= most).flatten(1).all(1)
    if not bool(within.all()):
        raise ChainsDiverged(torch.nonzero(~within).flatten().tolist(), step, step_size)
