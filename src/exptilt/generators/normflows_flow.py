"""Flows of normflows as generators. The package is unmaintained since 2024: its models are wrapped, none is made."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from exptilt.errors import InputError
from exptilt.generators.checks import attempt
from exptilt.generators.flow import FlowGenerator
from exptilt.generators.latent_map import LatentMap, Same, UniformMap
from exptilt.generators.prior import DistributionPrior, StandardNormal
from exptilt.precision import without_autocast
from exptilt.sampling.random import SampleStreams


def from_normflows(
    model: nn.Module,
    *,
    label: int | None = None,
    output_range: tuple[float, float] = (-1.0, 1.0),
    data_shape: tuple[int, ...] | None = None,
    pad: int | None = None,
    dequantize: bool = True,
) -> FlowGenerator:
    """Make a generator with an exact density of a ``NormalizingFlow`` or ``MultiscaleFlow`` of normflows.

    A Gaussian base with independent coordinates, whose mean and scale are mostly trained, is written as a function of
    z ~ N(0, I), and a uniform one too; any other base is the prior itself. The latents of a multiscale flow are one
    vector, level by level.

    Args:
        model: The model, trained. It is frozen.
        label: The class y of a class-conditional multiscale flow p(x|y).
        output_range: As in :func:`exptilt.from_zuko`.
        data_shape: As there.
        pad: As there.
        dequantize: As there.

    Returns:
        A generator with ``log_prob``, ``latent`` and ``encode``.

    Raises:
        InputError: It has another interface, or no inverse (planar and radial flows, which ``wrap`` takes), or a check
            of :func:`exptilt.wrap` fails.
    """
    latent_map = NormflowsMap(model, label)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    z = latent_map.prior.sample(SampleStreams(0, 0, 2, latent_map.latent_shape, device))
    x = attempt("model", lambda: latent_map.code(z), "to sample", "check its parts")
    return FlowGenerator(latent_map, tuple(x.shape[1:]), output_range, data_shape, pad, dequantize)


class NormflowsMap(LatentMap):
    """Codes of a normflows model: x = model(z₀) for z₀ of its base distributions.

    Args:
        model: A ``NormalizingFlow`` or ``MultiscaleFlow``.
        label: The class of a class-conditional one.

    Raises:
        InputError: It has another interface, or lacks a label.
    """

    def __init__(self, model: nn.Module, label: int | None = None) -> None:
        super().__init__()
        if not all(hasattr(model, name) for name in ("q0", "forward_and_log_det", "inverse_and_log_det")):
            fault = f"is a {type(model).__name__}"
            raise InputError("model", fault, "give a NormalizingFlow or a MultiscaleFlow of normflows")
        if bool(getattr(model, "class_cond", False)) != (label is not None):
            fault = "is given and the model has no classes" if label is not None else "is needed by the model"
            raise InputError("label", fault, "give label=y if, and only if, the model is class-conditional")
        self.model, self._label = model, label
        self.is_multiscale = isinstance(model.q0, nn.ModuleList)
        bases = [*model.q0] if self.is_multiscale else [model.q0]  # type: ignore[misc]
        maps = [_base_map(_Base(base, label)) for base in bases]
        self.bases = nn.ModuleList(maps)
        self._shapes = [base.latent_shape for base in maps]
        if not self.is_multiscale:
            self.prior, self.latent_shape = maps[0].prior, maps[0].latent_shape
        elif all(isinstance(base.prior, StandardNormal) for base in maps):
            self.prior, self.latent_shape = StandardNormal(), (sum(math.prod(shape) for shape in self._shapes),)
        else:
            raise InputError("model", "has a base that is not Gaussian at a level", "use exptilt.wrap(…, prior=…)")

    def code(self, z: torch.Tensor) -> torch.Tensor:
        """x of latents (N, *latent_shape), (N, *code)."""
        parts = [z]
        if self.is_multiscale:
            sizes = [math.prod(shape) for shape in self._shapes]
            parts = [part.reshape(len(z), *shape) for part, shape in zip(z.split(sizes, 1), self._shapes, strict=True)]
        codes = [base.code(part) for base, part in zip(self.bases, parts, strict=True)]  # type: ignore[operator]
        with without_autocast(z.device):
            return self.model.forward_and_log_det(codes if self.is_multiscale else codes[0])[0]  # type: ignore[operator]

    def latent(self, code: torch.Tensor) -> torch.Tensor:
        """z of codes (N, *code), (N, *latent_shape)."""
        with without_autocast(code.device):
            codes = self.model.inverse_and_log_det(code)[0]  # type: ignore[operator]
        if not self.is_multiscale:
            return self.bases[0].latent(codes)  # type: ignore[operator]
        return torch.cat([base.latent(part).flatten(1) for base, part in zip(self.bases, codes, strict=True)], 1)  # type: ignore[operator]

    def code_log_prob(self, code: torch.Tensor) -> torch.Tensor:
        """The model's log-density, (N,)."""
        with without_autocast(code.device):
            if not self.is_multiscale:
                return self.model.log_prob(code)  # type: ignore[operator]
            return self.model.log_prob(code, _labels(self._label, code))  # type: ignore[operator]


class AffineMap(LatentMap):
    """Gaussian codes with independent numbers: code = loc + scale ⊙ z, z ~ N(0, I).

    Args:
        loc: Mean of the codes.
        scale: Their standard deviations, > 0.
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.prior, self.latent_shape = StandardNormal(), tuple(loc.shape)
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def code(self, z: torch.Tensor) -> torch.Tensor:
        """loc + scale ⊙ z, (N, *latent_shape)."""
        return self.loc + self.scale * z

    def latent(self, code: torch.Tensor) -> torch.Tensor:
        """(code − loc)/scale, (N, *latent_shape)."""
        return (code - self.loc) / self.scale

    def code_log_prob(self, code: torch.Tensor) -> torch.Tensor:
        """Log-density in nats, (N,)."""
        return self.prior.log_prob(self.latent(code)) - self.scale.log().sum()


class _Base(nn.Module):
    """A base distribution of normflows, its label fixed, with the methods of a torch distribution."""

    def __init__(self, base: Any, label: int | None) -> None:
        super().__init__()
        self.base, self._label = base, label

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008 - it is immutable
        y = [] if self._label is None else [torch.tensor([self._label])]
        return self.base(max(1, math.prod(sample_shape)), *y)[0][0]

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return (
            self.base.log_prob(value) if self._label is None else self.base.log_prob(value, _labels(self._label, value))
        )


def _base_map(base: _Base) -> LatentMap:
    shape = tuple(attempt("model", base.sample, "to sample its base", "check its q0").shape)
    if type(base.base).__name__ == "Uniform":
        return UniformMap(torch.as_tensor(base.base.low), torch.as_tensor(base.base.high), shape)
    return _as_gaussian(base, shape) or Same(DistributionPrior(base, shape), shape)


def _as_gaussian(base: _Base, shape: tuple[int, ...]) -> AffineMap | None:
    """The base as an affine function of N(0, I), if its density is Gaussian with independent numbers.

    Of such a density the gradient of log p at z is (loc − z)/scale², so two gradients give both, whatever the class of
    the base; then they must give log p elsewhere too.
    """
    device = next((p.device for p in base.parameters()), None)
    slope_at_0, slope_at_1 = (_slope(base, torch.full((1, *shape), place, device=device)) for place in (0.0, 1.0))
    curvature = slope_at_0 - slope_at_1
    if not bool((curvature > 0).all()):
        return None
    candidate = AffineMap((slope_at_0 / curvature)[0], curvature[0].rsqrt())
    probes = candidate.code(2 * torch.randn((8, *shape), generator=torch.Generator().manual_seed(0)).to(slope_at_0))
    expected, actual = candidate.code_log_prob(probes), base.log_prob(probes).detach()
    return candidate if torch.allclose(expected, actual.to(expected), rtol=1e-3, atol=1e-2) else None


def _slope(base: _Base, z: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        z.requires_grad_(True)
        return torch.autograd.grad(base.log_prob(z).sum(), z)[0].float()


def _labels(label: int | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if label is None else torch.full((len(like),), label, device=like.device)
