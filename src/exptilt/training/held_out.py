"""How well a ratio on latents does on codes of data that it does not see."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from exptilt import distributed
from exptilt.sampling.weights import effective_size
from exptilt.training import objectives


class HeldOutCodes:
    """Codes z ~ q(z|x) of held-out data, and the latents of samples that a ratio has to tell them from.

    Args:
        codes: Of the data, (K, *latent).
        negatives: Of samples, (M, *latent), where the energy is.
    """

    def __init__(self, codes: torch.Tensor, negatives: torch.Tensor) -> None:
        self.codes, self.negatives = codes, negatives

    @torch.no_grad()
    def figures(self, values: Callable[[torch.Tensor], torch.Tensor], relative: float) -> dict[str, float]:
        """The loss of a ratio on them, what it tells apart, and how even the weights of the negatives are.

        Args:
            values: What the objective sees of latents, (N, *latent) to (N,).
            relative: α of the ratio.
        """
        on_data, on_base = (_of_all(values, z) for z in (self.codes, self.negatives))
        loss, figures = objectives.logistic_ratio(on_data, on_base, 0.0, relative)
        named = {f"held_out_{name}": figures[name] for name in ("energy_gap", "accuracy")}
        return {
            "held_out_loss": float(loss),
            **named,
            "effective_share": float(effective_size(-on_base)) / len(on_base),
        }

    @torch.no_grad()
    def quantile(self, energy: nn.Module, share: float) -> float:
        """The E(z) in nats that a share of the codes is below."""
        device = self.negatives.device
        return float(_of_all(lambda z: energy(z.to(device)).float().cpu(), self.codes).quantile(share))


def _of_all(values: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """Values of all rows, of which each process computes its share."""
    return distributed.rows(len(z), lambda mine: values(z[mine.start : mine.stop]))
