"""Layers of frozen networks with the gradient of their input written by hand.

A layer has ``forward(x) -> (y, saved)`` and ``backward(gradient, saved)``, the gradient of x from that of y. Its
weights are in the arithmetic of the chain, and laid out for it, from the start. It owns what it is given, x and the
gradient of y alike, and may write over it; what is ``saved`` is read only.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

Saved = tuple[torch.Tensor, ...]

# A (transposed) convolution to so few channels is one matrix product, and as many shifted sums as its kernel has
# weights. torch's own computes 16 channels on the CPU, and is three times slower for one, and equally fast for four.
_FEW = 3


class Layer(Protocol):
    """A function of a batch, and its gradient."""

    def forward(self, x: torch.Tensor, /) -> tuple[torch.Tensor, Saved]:
        """y, and what the gradient needs."""
        ...

    def backward(self, gradient: torch.Tensor, saved: Saved, /) -> torch.Tensor:
        """The gradient of x from the gradient of y."""
        ...


class Kernel:
    """The weights of a convolution, (out, in, k, k), as a linear map and as its transpose."""

    def __init__(
        self, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self.weight = channels_last(weight, dtype)
        self.stride, self.padding = stride, padding
        self._mirrored_padding = tuple(k - 1 - p for k, p in zip(weight.shape[2:], padding, strict=True))
        self._can_mirror = stride == (1, 1) and min(self._mirrored_padding) >= 0
        # The transpose of a convolution of stride 1 is one with its weights mirrored.
        self.mirrored = channels_last(weight.flip(2, 3).transpose(0, 1), dtype)

    def map(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The convolution of (N, in, H, W)."""
        if self._can_mirror and is_few(len(self.weight)):
            return _to_few_channels(x, self.mirrored, self.stride, self._mirrored_padding, x.shape[2:], bias)
        return F.conv2d(x, self.weight, bias, self.stride, self.padding)

    def transpose(self, y: torch.Tensor, size: torch.Size, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The transposed convolution of (N, out, h, w), to (N, in, *size)."""
        if is_few(self.weight.shape[1]):
            return _to_few_channels(y, self.weight, self.stride, self.padding, size, bias)
        if self._can_mirror:
            return F.conv2d(y, self.mirrored, bias, padding=self._mirrored_padding)
        smallest = (
            (n - 1) * s - 2 * p + k
            for n, s, p, k in zip(y.shape[2:], self.stride, self.padding, self.weight.shape[2:], strict=True)
        )
        missing = [whole - least for whole, least in zip(size, smallest, strict=True)]
        return F.conv_transpose2d(y, self.weight, bias, self.stride, self.padding, missing)


class Convolution:
    """``nn.Conv2d``."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        self.kernel, self.bias = kernel_of(layer, dtype), bias_of(layer, dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """y."""
        return self.kernel.map(x, self.bias)

    def transpose(self, y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The gradient of x, of the height and width of ``like``, from that of y."""
        return self.kernel.transpose(y, like.shape[2:])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's; a tensor without memory tells the size of x."""
        return self(x), (x.new_empty(0, *x.shape[2:]),)

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's."""
        return self.kernel.transpose(gradient, saved[0].shape[1:])


class TransposedConvolution:
    """``nn.ConvTranspose2d``."""

    def __init__(self, layer: nn.ConvTranspose2d, dtype: torch.dtype) -> None:
        self.kernel, self.bias = kernel_of(layer, dtype), bias_of(layer, dtype)
        sizes = (layer.weight.shape[2:], self.kernel.padding, layer.output_padding, self.kernel.stride)
        self._grown = [k - 2 * p + o - s for k, p, o, s in zip(*sizes, strict=True)]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's."""
        sides = (n * s + g for n, s, g in zip(x.shape[2:], self.kernel.stride, self._grown, strict=True))
        return self.kernel.transpose(x, torch.Size(sides), self.bias), ()

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's."""
        return self.kernel.map(gradient)


class FromOnePixel:
    """``nn.ConvTranspose2d`` of (N, C, 1, 1), without padding: a matrix product."""

    def __init__(self, layer: nn.ConvTranspose2d, dtype: torch.dtype) -> None:
        channels_in, *self._shape = layer.weight.shape
        self.matrix = layer.weight.permute(0, 2, 3, 1).reshape(channels_in, -1).to(dtype)
        self.bias = bias_of(layer, dtype)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's."""
        channels, height, width = self._shape
        y = (x.flatten(1) @ self.matrix).view(len(x), height, width, channels)
        return (y if self.bias is None else y.add_(self.bias)).permute(0, 3, 1, 2), ()

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's."""
        pixels = gradient.permute(0, 2, 3, 1).reshape(len(gradient), -1)
        return (pixels @ self.matrix.T)[:, :, None, None]


class Linear:
    """``nn.Linear``."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        self.weight, self.bias = layer.weight.to(dtype), bias_of(layer, dtype)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's."""
        return F.linear(x, self.weight, self.bias), ()

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's."""
        return gradient @ self.weight


class LeakyReLU:
    """max(x, slope · x) for 0 ≤ slope < 1: its result has the sign of x, which is all that the gradient needs."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's, in place."""
        y = F.leaky_relu_(x, self.slope)
        return y, (y,)

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's, in place."""
        return through_leaky(gradient, saved[0], self.slope)


class SiLU:
    """x · sigmoid(x)."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's."""
        return F.silu(x), (x,)

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's, in place."""
        return torch.ops.aten.silu_backward.grad_input(gradient, saved[0], grad_input=gradient)


def through_leaky(gradient: torch.Tensor, result: torch.Tensor, slope: float) -> torch.Tensor:
    """The gradient of x from that of result = max(x, slope · x), in place."""
    return torch.ops.aten.leaky_relu_backward.grad_input(
        gradient, result, slope, self_is_result=True, grad_input=gradient
    )


def kernel_of(layer: nn.Conv2d | nn.ConvTranspose2d, dtype: torch.dtype) -> Kernel:
    """Its weights. Of a transposed convolution they stand as those of the convolution that it transposes."""
    assert not isinstance(layer.padding, str)
    (s, t), (p, q) = layer.stride, layer.padding
    return Kernel(layer.weight, (s, t), (p, q), dtype)


def bias_of(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, dtype: torch.dtype) -> torch.Tensor | None:
    """Its bias, if it has one."""
    return None if layer.bias is None else layer.bias.to(dtype)


def is_few(channels: int) -> bool:
    """Whether so few channels have functions of their own here."""
    return channels <= _FEW


def channels_last(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy of (N, C, H, W) with pixels before channels in memory, and strides that say so for one channel too.

    ``contiguous(memory_format=…)`` takes an image of one channel for either format, and convolutions then for the slow.
    """
    n, c, h, w = x.shape
    return torch.empty(n, h, w, c, dtype=dtype, device=x.device).permute(0, 3, 1, 2).copy_(x)


def _to_few_channels(
    y: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    size: torch.Size,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The transposed convolution of (N, out, h, w) with (out, in, k, k) to (N, in, *size), summed in float32."""
    n, channels, h, w = y.shape
    few, *kernel = weight.shape[1:]
    matrix = weight.permute(1, 2, 3, 0).reshape(-1, channels)
    # One row for each weight of the kernel, so that each sum runs along memory.
    rows = (matrix @ y.permute(0, 2, 3, 1).reshape(-1, channels).T).view(few, *kernel, n, h, w)
    rows = rows.to(torch.promote_types(y.dtype, torch.float32))
    reach = [(m - 1) * s for m, s in zip((h, w), stride, strict=True)]
    sides = [max(r + k, side + p) for r, k, side, p in zip(reach, kernel, size, padding, strict=True)]
    total = rows.new_zeros(few, n, *sides)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            total[:, :, i : i + reach[0] + 1 : stride[0], j : j + reach[1] + 1 : stride[1]] += rows[:, i, j]
    x = total[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    if bias is not None:
        x = x + bias[:, None, None, None]
    return channels_last(x.transpose(0, 1), y.dtype)
