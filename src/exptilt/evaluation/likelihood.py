"""How likely a tilted generator makes things: log Z, and bits per dimension of test images before and after."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import torch

from exptilt.data.types import DataSet
from exptilt.errors import InputError
from exptilt.evaluation.images import as_data_set
from exptilt.evaluation.partition import Method, estimate_log_z
from exptilt.generators.glow import X_PER_H, Glow
from exptilt.tilted import TiltedGenerator

# Images are dequantised in blocks of this size whatever the memory, so that their noise is the same.
_BLOCK = 100


def likelihood(
    tilted: TiltedGenerator,
    test: DataSet | None = None,
    *,
    method: Method = "smc",
    n: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """log Z, which is set in ``tilted``, and bits per dimension of test images, if there are some and it is a flow.

    Returns:
        ``{"log_z", "bits_per_dim", "seed", "data"}`` in JSON values: the fields of :class:`exptilt.LogZ`; what
        :func:`bits_per_dim` returns, and the name of the set, or None for both.

    Raises:
        InputError: See :func:`exptilt.estimate_log_z` and :func:`bits_per_dim`.
    """
    test = test if isinstance(tilted.generator, Glow) else None
    if test is not None:
        # Said now, and not after minutes of chains.
        test.require_shape(tilted.data_shape)
    log_z = estimate_log_z(tilted, method, n=n, seed=seed, progress=progress)
    bits = None if test is None else bits_per_dim(tilted, test, seed)
    name = None if test is None else test.name
    return {"log_z": dataclasses.asdict(log_z), "bits_per_dim": bits, "seed": seed, "data": name}


@torch.no_grad()
def bits_per_dim(model: Glow | TiltedGenerator, data: DataSet | torch.Tensor, seed: int = 0) -> dict[str, Any]:
    """Upper bounds of −log₂ P(image)/D of discrete images, for a flow and, if it is tilted, for the tilted flow.

    Both models are densities over continuous x, normalised over all of it: p of the flow, and the tilted density
    p(x)·exp(−λE(x) − λE_z(f(x)))/Z of :meth:`TiltedGenerator.log_prob`. The probability of a discrete image is the
    integral of the density over its bin, of width w = (2/2^bits)·(256/255) in each of the D dimensions of x (see
    :class:`Glow`). With one uniform x of the bin for each image, −(log p(x) + D log w)/(D log 2) is, in the mean over
    the noise, an upper bound of −log₂ P/D (Theis et al. 2016, §3.1). Both models see the same x: the energy is
    evaluated at the dequantised image. For the flow alone this is what ``Glow.metrics`` gives.

    Args:
        model: A :class:`Glow`, or a tilted one whose log Z is known.
        data: Test images.
        seed: Fixes the noise.

    Returns:
        ``{"n", "seed", "base", "base_error", "tilted", "tilted_error", "change", "change_error"}`` in bits per
        dimension: means over the images and their standard errors; those of ``tilted`` and of ``change`` (tilted −
        base, paired) include the error of log Z. The last four are None for a flow that is not tilted.

    Raises:
        InputError: The generator is no flow, the images do not fit it, or log Z is not known.
    """
    tilted = model if isinstance(model, TiltedGenerator) else None
    test = as_data_set(data, "test")
    flow = model.generator if isinstance(model, TiltedGenerator) else model
    if not isinstance(flow, Glow):
        raise InputError(type(flow).__name__, "has no density", "bits per dimension need a flow")
    test.require_shape(flow.data_shape)
    noise = torch.Generator().manual_seed(seed)
    to_bits = 1 / (flow.dimensions * math.log(2))
    log_width = flow.dimensions * math.log(X_PER_H * 2 / 2**flow.bits)
    base, change = [], []
    for start in range(0, len(test), _BLOCK):
        x = X_PER_H * flow.dequantize(test.batch(slice(start, start + _BLOCK)).to(flow.device), noise)
        base += (-to_bits * (flow.log_prob(x) + log_width)).tolist()
        if tilted is not None:
            change += (-to_bits * tilted.log_tilt(x)).tolist()
    result: dict[str, Any] = {"n": len(test), "seed": seed, "base": statistics.fmean(base), "base_error": _error(base)}
    if tilted is None or tilted.log_z is None:
        return result | dict.fromkeys(("tilted", "tilted_error", "change", "change_error"))
    of_log_z = to_bits * tilted.log_z.standard_error
    after = [a + b for a, b in zip(base, change, strict=True)]
    return result | {
        "tilted": statistics.fmean(after),
        "tilted_error": math.hypot(_error(after), of_log_z),
        "change": statistics.fmean(change),
        "change_error": math.hypot(_error(change), of_log_z),
    }


def _error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
