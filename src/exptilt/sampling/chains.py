"""Runs a kernel: many chains side by side, recorded, and stopped when they leave the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from exptilt.config import SamplerConfig
from exptilt.errors import RunError
from exptilt.sampling.kernel import Info, Kernel, Noise, Potential
from exptilt.sampling.langevin import Langevin
from exptilt.sampling.mala import MALA

# Steps between two looks for non-finite positions; each look makes a GPU wait.
_CHECK_EVERY = 10


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
    """Some chains left the finite numbers. ``chains`` holds their positions in the batch."""

    def __init__(self, chains: list[int], step: int, step_size: float) -> None:
        self.chains = chains
        named = ", ".join(map(str, chains[:5])) + (", …" if len(chains) > 5 else "")
        super().__init__(
            f"{len(chains)} chains left the finite numbers by step {step} (chains {named}); "
            f"use a step size smaller than {step_size:g}"
        )


def make_kernel(config: SamplerConfig, potential: Potential) -> Kernel:
    """The kernel that ``config`` names, on ``potential``."""
    if config.kernel == "mala":
        return MALA(potential, config.step_size)
    return Langevin(potential, config.step_size, config.noise_scale)


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
        ChainsDiverged: A position is not finite.
    """
    recorded_steps, trajectory = ([0], [position]) if record_every else ([], [])
    acceptance = torch.zeros(len(position), device=position.device)
    if steps > 0:
        state = kernel.init(position)
        for step in range(1, steps + 1):
            state, info = kernel.step(state, noise)
            acceptance += info.acceptance.float()
            if callback is not None:
                callback(step, info)
            if step % _CHECK_EVERY == 0 or step == steps:
                _require_finite(state.position, step, kernel.step_size)
            if record_every and (step % record_every == 0 or step == steps):
                recorded_steps.append(step)
                trajectory.append(state.position)
        position = state.position
    kept = torch.stack(trajectory) if trajectory else position.new_empty(0, *position.shape)
    return ChainRun(position, acceptance / max(steps, 1), kept, recorded_steps)


def adapt_step_size(
    kernel: Kernel, position: torch.Tensor, noise: Noise, target: float, steps: int
) -> tuple[float, torch.Tensor]:
    """Warm-up: tune ``kernel.step_size`` to a mean acceptance of ``target`` by stochastic approximation.

    The logarithm of ε moves by (acceptance − target)/√t at step t (Robbins and Monro 1951), and the mean over the
    second half is kept. The result is to be frozen: a chain that adapts for ever does not sample its target.

    Returns:
        The step size, and the position after the warm-up, (N, *latent).
    """
    state, logs = kernel.init(position), []
    log_step = torch.tensor(kernel.step_size).log().item()
    for t in range(1, steps + 1):
        state, info = kernel.step(state, noise)
        log_step += (info.acceptance.mean().item() - target) / t**0.5
        kernel.step_size = float(torch.tensor(log_step).exp())
        logs.append(log_step)
    settled = logs[len(logs) // 2 :]
    kernel.step_size = float(torch.tensor(settled).mean().exp())
    return kernel.step_size, state.position


def _require_finite(position: torch.Tensor, step: int, step_size: float) -> None:
    finite = torch.isfinite(position).flatten(1).all(1)
    if not bool(finite.all()):
        raise ChainsDiverged(torch.nonzero(~finite).flatten().tolist(), step, step_size)
