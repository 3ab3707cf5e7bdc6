"""What an energy is trained to minimise: one function an equation, with figures for the log."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def maximum_likelihood(
    positive: torch.Tensor, negative: torch.Tensor, regularization: float, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Eq. 5 and 7 of the paper: the gradient of −log likelihood, negatives being chains' samples G(z⁻).

    Args:
        positive: E(x⁺) on data, (N,).
        negative: E(G(z⁻)), (N,), of latents through which no gradient flows.
        regularization: Weight of the mean of E(x⁺)² + E(x⁻)² (B.2 of the paper: 0.1).
        weights: Weights of the negatives with sum 1, (N,); equal ones unless given.

    Returns:
        The loss, (), and figures for the log.
    """
    expected = negative.mean() if weights is None else (weights * negative).sum()
    loss = positive.mean() - expected
    loss = loss + regularization * (positive.square().mean() + negative.square().mean())
    return loss, _figures(positive, negative)


def logistic_ratio(
    positive: torch.Tensor, negative: torch.Tensor, regularization: float, relative: float = 0.0
) -> tuple[torch.Tensor, dict[str, float]]:
    """Logistic regression of data (label 1) against the generator's own samples (label 0), with logit −E.

    At the optimum E = −log p_data/p_generator, up to nothing: then exp(−E) turns the one into the other and Z = 1
    (Sugiyama et al. 2012, ch. 4). No chain is needed.

    With α > 0 label 0 are a share α of data beside 1 − α of the generator's samples: at the optimum exp(−E) is the
    relative density ratio p_data/(α p_data + (1 − α) p_generator), which is nowhere above 1/α (Yamada et al. 2013,
    "Relative density-ratio estimation for robust distribution comparison"). So no few samples where the generator is
    all but absent can take the whole weight.

    Args:
        positive: E on data (or on their codes z ~ q(z|x)), (N,).
        negative: E on the generator's samples (or on z ~ p(z)), (N,).
        regularization: Weight of the mean of E(x⁺)² + E(x⁻)².
        relative: α, in [0, 1).

    Returns:
        The loss, (), and figures for the log.
    """
    loss = F.softplus(positive).mean() + (1 - relative) * F.softplus(-negative).mean()
    if relative:
        loss = loss + relative * F.softplus(-positive).mean()
    figures = _figures(positive, negative)
    with torch.no_grad():
        figures["accuracy"] = 0.5 * float((positive < 0).float().mean() + (negative > 0).float().mean())
    return loss + regularization * (positive.square().mean() + negative.square().mean()), figures


def _figures(positive: torch.Tensor, negative: torch.Tensor) -> dict[str, float]:
    data, model = float(positive.detach().mean()), float(negative.detach().mean())
    return {"energy_data": data, "energy_model": model, "energy_gap": model - data}
