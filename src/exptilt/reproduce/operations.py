"""How many floating-point operations a training and its samples took, counted on a few and multiplied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from exptilt.bench.ceiling import flops_of_gradient
from exptilt.tilted import TiltedGenerator

# Samples that operations are counted on.
_COUNTED = 2


def counted(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call, by torch's counter: convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def of_tilt(tilted: TiltedGenerator, record: Mapping[str, Any], n: int) -> dict[str, int]:
    """Operations of a tilted generator.

    Args:
        tilted: The tilted generator.
        record: ``run.json`` of its training.
        n: Samples drawn from it for the figures, all seeds together.

    Returns:
        ``"gradient"``: of one ∇U. ``"training"``: of all chains up to the finished model and the energy's updates
        (forward and backward, on positives and negatives); quality checks' feature network is not in it.
        ``"sampling"``: of the chains of n samples.
    """
    z = tilted.generator.sample_prior(_COUNTED)
    with torch.enable_grad():
        gradient = flops_of_gradient(tilted.potential, z)
    with torch.no_grad():
        value = counted(lambda: tilted.potential(z)) // _COUNTED
    config = record["config"]
    on_x = tilted.energy is not None
    energy = tilted.energy if on_x else tilted.latent_energy
    assert energy is not None
    x = torch.zeros(_COUNTED, *(tilted.data_shape if on_x else tilted.generator.latent_shape), device=tilted.device)
    update = _forward_and_backward(energy, x) // _COUNTED
    # Runs of earlier versions do not tell their updates.
    of_stages = config["iterations"] + (config.get("stages", 1) - 1) * config.get("stage_iterations", 0)
    iterations = record.get("updates", of_stages)
    # Chains that go on are all negatives of each update, but for those of a buffer.
    lasting = config["objective"] == "maximum_likelihood" and config.get("chains") in ("persistent", "jarzynski")
    negatives = config["walkers"] if lasting else config["batch_size"]
    updates = iterations * (config["batch_size"] + negatives) * update
    return {
        "gradient": gradient,
        "training": record["gradient_evaluations"] * gradient + updates,
        "sampling": n * (tilted.sampler.gradients * gradient + tilted.sampler.evaluations * value),
    }


def of_generator(module: Any, record: Mapping[str, Any], n: int) -> dict[str, int]:
    """Operations of a generator: ``"training"``, all updates, and ``"sampling"``, decoding n samples."""
    config = record["config"]
    x = torch.zeros(_COUNTED, *module.data_shape, device=module.device)
    trained = [p for p in module.parameters() if p.requires_grad]
    module.requires_grad_(True)
    loss = counted(lambda: module.training_loss(x, None, torch.Generator().manual_seed(0)).mean().backward())
    for parameter in module.parameters():
        parameter.grad = None
    module.requires_grad_(bool(trained))
    per_epoch = max(1, config["n_train"] // config["batch_size"]) * config["batch_size"]
    with torch.no_grad():
        decode = counted(lambda: module.sample(_COUNTED))
    return {"training": config["epochs"] * per_epoch * loss // _COUNTED, "sampling": n * decode // _COUNTED}


def _forward_and_backward(energy: nn.Module, x: torch.Tensor) -> int:
    trained = [p.requires_grad for p in energy.parameters()]
    energy.requires_grad_(True)
    with torch.enable_grad():
        flops = counted(lambda: energy(x).sum().backward())
    for parameter, needed in zip(energy.parameters(), trained, strict=True):
        parameter.grad = None
        parameter.requires_grad_(needed)
    return flops
