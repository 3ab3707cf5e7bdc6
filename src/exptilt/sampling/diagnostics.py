"""What chains tell of themselves."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class SampleInfo:
    """What is known of N samples beside themselves.

    Attributes:
        energy: E along the chains, (steps, N): at the position before each step for ``langevin``, after it for
            ``mala``.
        acceptance: Mean acceptance probability of each chain, (N,); 1 for ``langevin``.
        trajectory: Latents at ``recorded_steps``, (K, N, *latent); (0, …) unless ``record_every`` was given.
        recorded_steps: Step numbers; 0 is the start.
        correlation: Correlation of the last latents with the first, over chains and coordinates.
        sentence: One sentence of diagnosis.
    """

    energy: torch.Tensor
    acceptance: torch.Tensor
    trajectory: torch.Tensor
    recorded_steps: list[int] = field(default_factory=list)
    correlation: float = float("nan")

    @property
    def sentence(self) -> str:
        if not len(self.energy):
            return "No step was taken: these are samples of the prior."
        share = f"{100 * self.correlation:.0f}%"
        moved = (
            f"the chains are {share} correlated with their start, so they describe a short run and not its limit"
            if self.correlation > 0.1
            else f"the chains have left their start behind ({share} correlation)"
        )
        accepted = float(self.acceptance.mean())
        tested = f"; mean acceptance {accepted:.2f}" if accepted < 1 else ""
        return f"After {len(self.energy)} steps {moved}{tested}."


def correlation(start: torch.Tensor, end: torch.Tensor) -> float:
    """Correlation of latents (N, *latent) with those of the same chains later, over chains and coordinates."""
    pairs = torch.stack([start.flatten(), end.flatten()]).double()
    return float(torch.corrcoef(pairs)[0, 1]) if pairs.shape[1] > 1 else float("nan")


def join(infos: list[SampleInfo], latent_shape: tuple[int, ...]) -> SampleInfo:
    """One info of all the chains of several batches, which took the same steps."""
    if not infos:
        return SampleInfo(torch.empty(0, 0), torch.empty(0), torch.empty(0, 0, *latent_shape))
    sizes = torch.tensor([float(len(info.acceptance)) for info in infos])
    correlations = torch.tensor([info.correlation for info in infos])
    return SampleInfo(
        energy=torch.cat([info.energy for info in infos], dim=1),
        acceptance=torch.cat([info.acceptance for info in infos]),
        trajectory=torch.cat([info.trajectory for info in infos], dim=1),
        recorded_steps=infos[0].recorded_steps,
        correlation=float((sizes * correlations).sum() / sizes.sum()),
    )
