"""Layers of Glow (Kingma and Dhariwal 2018, Table 1), each with its inverse and its log-determinant.

Every layer has ``forward(x) -> (y, log|det ∂y/∂x|)`` and ``inverse(y) -> x``. Only the convolutions of the coupling
networks follow autocast: everything that has to be inverted, and every log-determinant, stays in the dtype of x.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from exptilt.moments import of_channels
from exptilt.precision import without_autocast

# Largest |log s| of an ActNorm. Dequantisation noise alone has a standard deviation of 2/256/√12 = e^−6.1.
ACTNORM_BOUND = 7.0
# Bias of the highway gates at the start: negative, so that a layer first carries its input (Srivastava et al. 2015).
GATE_BIAS = -1.0
# Networks see 10 tanh(x/10), where x has about unit variance: a shift that grows with x, dozens of times over, is how
# samples of unlikely latents overflow. Any function of x_b leaves a coupling invertible; Glow has no such bound.
INPUT_BOUND = 10.0


def bounded(raw: torch.Tensor, bound: float) -> torch.Tensor:
    """A value in (−bound, bound): bound · tanh(raw / bound), which is raw near 0."""
    return bound * torch.tanh(raw / bound)


class _Cached(NamedTuple):
    """An inverse and what it was computed from."""

    sources: tuple[torch.Tensor, ...]
    # Aliases keep the storages of the sources alive, so that an equal address means the same storage.
    aliases: tuple[torch.Tensor, ...]
    versions: tuple[int, ...]
    value: tuple[torch.Tensor, torch.Tensor]

    def is_of(self, sources: tuple[torch.Tensor, ...]) -> bool:
        """Whether ``sources`` are the same tensors, in the same memory, unchanged since."""
        return all(
            new is old and new.data_ptr() == alias.data_ptr() and new._version == version
            for new, old, alias, version in zip(sources, self.sources, self.aliases, self.versions, strict=True)
        )


class Mixing(nn.Module):
    """ActNorm, then an invertible 1×1 convolution (Table 1, rows 1 and 2): y = W (s ⊙ x + b) at every pixel.

    W = P L (U + diag(u)) (eq. 10) with a fixed permutation P, L unit lower and U strictly upper triangular, and fixed
    signs of u; it starts as a random rotation. log s = 7 tanh(·/7). The two layers are one matrix product, in full
    precision (a convolution may run in TensorFloat-32, which is too coarse to be inverted dozens of times).

    s and b are set by the first batch that passes forward in training mode, so that s ⊙ x + b has zero mean and unit
    variance in each channel; until then they are 1 and 0. That this was done is part of the state.

    The inverse comes from two triangular solves. In evaluation mode, with frozen weights, it is kept until a weight
    changes. Autograd's version counters tell: in-place operations move them, but fused optimizers do not, so nothing is
    kept while a weight has, or may get, a gradient to step by. What escapes is writing into ``parameter.data`` in
    place; call ``eval()`` after it.

    Args:
        channels: C of the images (N, C, H, W).
    """

    sign: torch.Tensor
    permutation: torch.Tensor
    initialized: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        P, L, U = torch.linalg.lu(rotation)
        self.lu = nn.Parameter(L.tril(-1) + U.triu(1))
        self.log_diagonal = nn.Parameter(U.diagonal().abs().log())
        self.raw_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("sign", U.diagonal().sign())
        self.register_buffer("permutation", P.argmax(1))
        self.register_buffer("initialized", torch.tensor(False))
        # What is known of the flag without reading it from the device.
        self._seen_initialized = False
        self._cache: _Cached | None = None

    def log_scale(self) -> torch.Tensor:
        """log s of the ActNorm, (C,)."""
        return bounded(self.raw_scale, ACTNORM_BOUND)

    def weight(self) -> torch.Tensor:
        """W of the convolution, (C, C)."""
        lower, upper = self._triangles()
        return (lower @ upper)[self.permutation]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """y = W (s ⊙ x + b), and H W (Σ log s + Σ log|u|) as (1,); sets s and b the first time in training."""
        self._is_frozen()
        with without_autocast(x.device):
            if self.training and not self._seen_initialized:
                self._initialize(x)
            W, log_scale = self.weight(), self.log_scale()
            y = _at_every_pixel(x, W * log_scale.exp(), W @ self.shift)
            pixels = x.shape[2] * x.shape[3]
            return y, pixels * (log_scale.sum() + self.log_diagonal.sum()).reshape(1)

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """x = (W⁻¹ y − b) / s."""
        with without_autocast(y.device):
            return _at_every_pixel(y, *self.inverse_map())

    @torch.no_grad()
    def _initialize(self, x: torch.Tensor) -> None:
        if not bool(self.initialized):
            mean, variance, _ = of_channels(x)
            deviation = variance.sqrt()
            # A constant channel gets the largest scale but one part in a hundred: atanh(1) is infinite.
            limit = 0.99 * ACTNORM_BOUND
            log_scale = -deviation.clamp(min=math.exp(-limit), max=math.exp(limit)).log()
            self.raw_scale.copy_(ACTNORM_BOUND * torch.atanh(log_scale / ACTNORM_BOUND))
            self.shift.copy_(-mean * log_scale.exp())
            self.initialized.fill_(True)
        self._seen_initialized = True

    def _triangles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """L and U + diag(u), each (C, C)."""
        lower = self.lu.tril(-1) + torch.eye(len(self.lu), dtype=self.lu.dtype, device=self.lu.device)
        return lower, self.lu.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())

    def _parameters_of_inverse(self) -> tuple[torch.Tensor, ...]:
        return self.lu, self.log_diagonal, self.raw_scale, self.shift

    def _is_frozen(self) -> bool:
        """Whether an inverse may be kept; forgets the kept one if not."""
        # functional_call puts tensors that are no parameters in their place, for the time of a call.
        plain = all(isinstance(p, nn.Parameter) for p in self._parameters_of_inverse())
        frozen = not (self.training or any(p.requires_grad or p.grad is not None for p in self.parameters()))
        if not frozen:
            self._cache = None
        return frozen and plain

    def inverse_map(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix (C, C) and vector (C,) that y is multiplied by and added to: the kept ones, or new ones."""
        if not self._is_frozen():
            return self._solve()
        sources = (*self._parameters_of_inverse(), self.sign, self.permutation)
        # Tensors of inference mode have no version.
        if any(source.is_inference() for source in sources):
            return self._solve()
        if self._cache is None or not self._cache.is_of(sources):
            with torch.inference_mode(False), torch.no_grad():
                value = self._solve()
                aliases = tuple(source.detach() for source in sources)
            if not all(_has_storage(tensor) for tensor in (*value, *aliases)):
                return value
            self._cache = _Cached(sources, aliases, tuple(source._version for source in sources), value)
        return self._cache.value

    def _solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        lower, upper = self._triangles()
        transposed = torch.eye(len(self.lu), dtype=self.lu.dtype, device=self.lu.device)[self.permutation].T
        half = torch.linalg.solve_triangular(lower, transposed, upper=False, unitriangular=True)
        inverse_scale = (-self.log_scale()).exp()
        matrix = torch.linalg.solve_triangular(upper, half, upper=True) * inverse_scale[:, None]
        return matrix, -self.shift * inverse_scale

    def train(self, mode: bool = True) -> Mixing:
        """As ``nn.Module.train``; forgets the kept inverse."""
        self._cache = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Mixing:
        self._cache = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cache, self._seen_initialized = None, False
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}


class CouplingNetwork(nn.Module):
    """Three layers: a 3×3 convolution, a highway layer (Srivastava et al. 2015, eq. 3), a 3×3 convolution of zeros.

    The highway layer is T ⊙ H(h) + (1 − T) ⊙ h with H = SiLU(conv(h)) and the gate T = sigmoid(conv(h)).

    Args:
        channels_in: Channels that it sees.
        channels_out: Channels that it gives; all 0 at the start.
        hidden: Channels between its layers.
        kernel: Width of the highway layer's convolutions, odd; 1 costs a ninth of 3.
    """

    def __init__(self, channels_in: int, channels_out: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, hidden, 3, padding=1)
        # H and T as one convolution.
        self.highway = nn.Conv2d(hidden, 2 * hidden, kernel, padding=kernel // 2)
        self.last = zero_convolution(hidden, channels_out)
        with torch.no_grad():
            assert self.highway.bias is not None
            self.highway.bias[hidden:] = GATE_BIAS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels_in, H, W) to (N, channels_out, H, W)."""
        h = F.silu(self.first(x))
        # Two convolutions, as the gradient of one whose result is cut in two is put together by a slow copy.
        layer, hidden = self.highway, h.shape[1]
        assert layer.bias is not None
        transformed, gate = (
            F.conv2d(h, weight, bias, padding=layer.padding)
            for weight, bias in zip(layer.weight.split(hidden), layer.bias.split(hidden), strict=True)
        )
        return self.last(torch.lerp(h, F.silu(transformed), torch.sigmoid(gate)))


class Coupling(nn.Module):
    """Affine coupling (Table 1, row 3): y_a = s ⊙ x_a + t with (log s, t) of x_b, and y_b = x_b.

    |log s| < bound, so one coupling stretches by less than e^bound in either direction. It starts as the identity.

    Args:
        channels: C of the images; the first half (rounded down) is x_a.
        hidden: Channels of the coupling network.
        kernel: Width of its highway layer's convolutions.
        bound: Bound of |log s|.
    """

    def __init__(self, channels: int, hidden: int, kernel: int, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.sizes = [channels // 2, channels - channels // 2]
        self.network = CouplingNetwork(self.sizes[1], 2 * self.sizes[0], hidden, kernel)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """y, and Σ log s, (N,)."""
        x_a, x_b = x.split(self.sizes, dim=1)
        log_s, t = self._log_scale_and_shift(x_b)
        return torch.cat([x_a * log_s.exp() + t, x_b], dim=1), log_s.flatten(1).sum(1)

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """x_a = (y_a − t) / s and x_b = y_b."""
        y_a, y_b = y.split(self.sizes, dim=1)
        log_s, t = self._log_scale_and_shift(y_b)
        return torch.cat([(y_a - t) * (-log_s).exp(), y_b], dim=1)

    def _log_scale_and_shift(self, x_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw, t = self.network(bounded(x_b, INPUT_BOUND)).to(x_b.dtype).chunk(2, dim=1)
        return bounded(raw, self.bound), t


class Split(nn.Module):
    """Gives half of the channels to the latent (Dinh et al. 2017, §3.6), standardised given the other half.

    z = (x_b − μ) / σ with (μ, log σ) a convolution of x_a: the learned conditional Gaussian of Glow's code, written as
    an affine map, so that the prior of the latent is N(0, I). It starts as μ = 0 and σ = 1.

    Args:
        channels: C of the images, even.
        bound: Bound of |log σ|.
    """

    def __init__(self, channels: int, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.convolution = zero_convolution(channels // 2, channels)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x_a, z (both with half of the channels), and −Σ log σ, (N,)."""
        x_a, x_b = x.chunk(2, dim=1)
        mean, log_deviation = self._mean_and_log_deviation(x_a)
        return x_a, (x_b - mean) * (-log_deviation).exp(), -log_deviation.flatten(1).sum(1)

    def inverse(self, x_a: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """x, with x_b = μ + σ z."""
        mean, log_deviation = self._mean_and_log_deviation(x_a)
        return torch.cat([x_a, mean + z * log_deviation.exp()], dim=1)

    def _mean_and_log_deviation(self, x_a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, raw = self.convolution(bounded(x_a, INPUT_BOUND)).to(x_a.dtype).chunk(2, dim=1)
        return mean, bounded(raw, self.bound)


def zero_convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3×3 convolution that gives 0 at the start."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    return convolution


def _at_every_pixel(x: torch.Tensor, matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """matrix · x + vector over the channels of (N, C, H, W); the result is channels_last."""
    return F.linear(x.permute(0, 2, 3, 1), matrix, vector).permute(0, 3, 1, 2)


def _has_storage(tensor: torch.Tensor) -> bool:
    """False for tensors that live only inside a transform of ``torch.func``."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True
