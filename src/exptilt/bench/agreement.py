"""Whether what is timed gives equal samples: the same chains with the same noise, in several arithmetics."""

from __future__ import annotations

import dataclasses

import torch

from exptilt.bench.methods import Exptilt
from exptilt.bench.plain import plain_langevin, plain_mala, plain_potential
from exptilt.bench.workloads import Parts, Workload
from exptilt.config import Precision
from exptilt.sampling.random import SampleStreams

STEPS, CHAINS = 3, 8
_PRECISIONS: tuple[Precision, Precision] = ("float32", "bfloat16")


def agreement(workload: Workload, device: torch.device, seed: int = 0) -> dict[str, float]:
    """Differences of latents, and of U, after a few steps of a few chains of ``workload``.

    Returns:
        ``float32_max``, ``float32_rms``: of z, between exptilt in float32 and the plain loop in float32. ``plain_max``,
        ``plain_rms``: the plain loop in float32 against float64, to judge those by. ``bfloat16_max``,
        ``bfloat16_rms``: exptilt in bfloat16 against the plain loop in float64. ``bfloat16_potential``: largest
        relative error of U in bfloat16 at the last latents; ``bfloat16_energy``: largest error of E there, in nats
        (over the prior, E has unit deviation). And ``steps`` and ``chains``.
    """
    sampler = dataclasses.replace(workload.sampler, steps=STEPS)
    short = dataclasses.replace(workload, sampler=sampler, chains=min(CHAINS, workload.chains))
    plain, exact = (plain_chain(short, device, dtype, seed) for dtype in (torch.float32, torch.float64))
    ours, half = (Exptilt(short, device, precision)(seed) for precision in _PRECISIONS)
    figures: dict[str, float] = {"steps": STEPS, "chains": short.chains}
    for name, one, other in (("float32", ours, plain), ("plain", plain, exact), ("bfloat16", half, exact)):
        difference = one.double() - other.double()
        figures |= {
            f"{name}_max": float(difference.abs().max()),
            f"{name}_rms": float(difference.square().mean().sqrt()),
        }
    return figures | _errors_of_potential(short, device, exact)


def plain_chain(workload: Workload, device: torch.device, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """The plain loop in ``dtype``, with the noise that exptilt draws for the same seed: latents (N, D)."""
    streams = SampleStreams(seed, 0, workload.chains, workload.generator.latent_shape, device)
    potential = plain_potential(*_in(dtype, workload.parts(device)))

    def normal() -> torch.Tensor:
        return streams.normal().to(dtype)

    def uniform() -> torch.Tensor:
        return streams.uniform().to(dtype)

    steps, step_size = workload.sampler.steps, workload.sampler.step_size
    if workload.sampler.kernel == "mala":
        return plain_mala(potential, normal(), steps, step_size, normal, uniform)
    return plain_langevin(potential, normal(), steps, step_size, normal)


def _in(dtype: torch.dtype, parts: Parts) -> Parts:
    for part in parts:
        if part is not None:
            part.to(dtype)
    return parts


@torch.no_grad()
def _errors_of_potential(workload: Workload, device: torch.device, z: torch.Tensor) -> dict[str, float]:
    half = Exptilt(workload, device, "bfloat16").tilted.chain_potential().energy(z.float())
    exact = plain_potential(*_in(torch.float64, workload.parts(device)))(z)
    error = (half.double() - (exact - 0.5 * z.square().sum(1))).abs()
    return {"bfloat16_potential": float((error / exact.abs()).max()), "bfloat16_energy": float(error.max())}
