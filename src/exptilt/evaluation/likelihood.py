"""How likely a tilted generator makes things: log Z, and bits per dimension of test images before and after."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from exptilt.data.types import DataSet
from exptilt.errors import InputError
from exptilt.evaluation.images import as_data_set
from exptilt.evaluation.partition import Method, estimate_log_z
from exptilt.generators.base import Generator
from exptilt.generators.flow import FlowGenerator
from exptilt.generators.glow import X_PER_H, Glow
from exptilt.generators.pixel import BIN, EDGE, PixelSpace
from exptilt.tilted import TiltedGenerator

# Images are dequantised in blocks of this size whatever the memory, so that their noise is the same.
_BLOCK = 100
# Just short of the outer bins' ends, where a flow through a logit has no density.
_INSIDE = EDGE - 1e-6


def likelihood(
    tilted: TiltedGenerator,
    test: DataSet | None = None,
    *,
    method: Method = "smc",
    n: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """log Z, which is set in ``tilted``, and bits per dimension of test images, if there are some and it has a density.

    Returns:
        ``{"log_z", "bits_per_dim", "seed", "data"}`` in JSON values: the fields of :class:`exptilt.LogZ`; what
        :func:`bits_per_dim` returns, and the name of the set, or None for both.

    Raises:
        InputError: See :func:`exptilt.estimate_log_z` and :func:`bits_per_dim`.
    """
    test = test if tilted.generator.has_density and len(tilted.data_shape) == 3 else None
    if test is not None:
        # Said now, and not after minutes of chains.
        test.require_shape(tilted.data_shape)
    log_z = estimate_log_z(tilted, method, n=n, seed=seed, progress=progress)
    bits = None if test is None else bits_per_dim(tilted, test, seed)
    name = None if test is None else test.name
    return {"log_z": dataclasses.asdict(log_z), "bits_per_dim": bits, "seed": seed, "data": name}


@torch.no_grad()
def bits_per_dim(model: Generator | TiltedGenerator, data: DataSet | torch.Tensor, seed: int = 0) -> dict[str, Any]:
    """Upper bounds of −log₂ P(image)/D of discrete images, for a flow and, if it is tilted, for the tilted flow.

    Both models are densities over continuous x, normalised over all of it: p of the flow, and the tilted density
    p(x)·exp(−λE(x) − λE_z(f(x)))/Z of :meth:`TiltedGenerator.log_prob`. The probability of a discrete image is the
    integral of the density over its bin, in each of the D dimensions of x of width w = 2/255, around the byte's place
    in [−1, 1]; of a :class:`Glow` of fewer bits, w = (2/2^bits)·(256/255). With one uniform x of the bin for an image,
    −(log p(x) + D log w)/(D log 2) is, in the mean over the noise, an upper bound of −log₂ P/D (Theis et al. 2016,
    §3.1). Both models see the same x: the energy is evaluated at the dequantised image. For a Glow alone this is what
    ``Glow.metrics`` gives. A border that :func:`exptilt.from_zuko` or :func:`exptilt.from_normflows` adds is no part of
    the density, and its pixels do not count in D.

    Args:
        model: A generator of images with a density (a flow), or a tilted one whose log Z is known.
        data: Test images.
        seed: Fixes the noise.

    Returns:
        ``{"n", "seed", "base", "base_error", "tilted", "tilted_error", "change", "change_error"}`` in bits per
        dimension: means over the images and their standard errors; those of ``tilted`` and of ``change`` (tilted −
        base, paired) include the error of log Z. The last four are None for a flow that is not tilted.

    Raises:
        InputError: The generator has no density of images, the images do not fit it, or log Z is not known.
    """
    tilted = model if isinstance(model, TiltedGenerator) else None
    flow = model.generator if isinstance(model, TiltedGenerator) else model
    if not flow.has_density or len(flow.data_shape) != 3:
        raise InputError(type(flow).__name__, "has no density of images", "bits per dimension need a flow of images")
    test = as_data_set(data, "test")
    test.require_shape(flow.data_shape)
    noise = torch.Generator().manual_seed(seed)
    bins = _bins(flow)
    to_bits = 1 / (bins.dimensions * math.log(2))
    log_width = bins.dimensions * math.log(bins.width)
    base, change = [], []
    for start in range(0, len(test), _BLOCK):
        x = bins.dequantize(test.batch(slice(start, start + _BLOCK)).to(flow.device), noise)
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


class _Bins(NamedTuple):
    """The sets of continuous images that stand for one discrete image each."""

    dimensions: int
    width: float
    dequantize: Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def _bins(generator: Generator) -> _Bins:
    flow = generator.flow if isinstance(generator, PixelSpace) else generator
    if isinstance(flow, Glow):
        return _Bins(flow.dimensions, X_PER_H * 2 / 2**flow.bits, lambda x, noise: X_PER_H * flow.dequantize(x, noise))

    def dequantize(x: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
        u = torch.rand(x.shape, generator=noise).to(x)
        x = (x + BIN * (u - 0.5)).clamp(-_INSIDE, _INSIDE)
        # The border stays black, as in the flow's own samples.
        return flow.format.sample(flow.format.native(x)) if isinstance(flow, FlowGenerator) else x

    dimensions = flow.dimensions if isinstance(flow, FlowGenerator) else math.prod(flow.data_shape)
    return _Bins(dimensions, BIN, dequantize)


def _error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
