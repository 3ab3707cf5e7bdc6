"""Glow's steps, inverted, with the gradient of their input written by hand."""

from __future__ import annotations

import torch
from torch import nn

from exptilt.fast.fold import with_weights
from exptilt.fast.layers import Convolution, Saved, channels_last
from exptilt.fast.stack import Stack
from exptilt.generators.glow_layers import INPUT_BOUND, Coupling, CouplingNetwork, Mixing


class InverseSteps(Stack):
    """The inverses of a level's pairs of :class:`Mixing` and :class:`Coupling`, the last first.

    Inside of it images are (C, N, H, W): then half of the few channels is one piece of memory, and not a pixel's pair.
    """

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(block, nn.ModuleList)
        pairs = [(block[i], block[i + 1]) for i in range(0, len(block), 2)]
        own = next(block.parameters()).dtype
        super().__init__([_InverseStep(*pair, dtype) for pair in reversed(pairs)], own, block, _contiguous)

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """x of (N, C, H, W)."""
        return self(y.transpose(0, 1)).transpose(0, 1)


def _contiguous(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype, memory_format=torch.contiguous_format, copy=True)


class _InverseStep:
    """A coupling's inverse, then a mixing's. What has to be inverted stays in the type of x."""

    def __init__(self, mixing: nn.Module, coupling: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(mixing, Mixing)
        assert isinstance(coupling, Coupling)
        matrix, vector = mixing.inverse_map()
        self._matrix, self._vector = matrix, vector[:, None]
        self._network = _Network(coupling.network, dtype)
        self._moved, self._bound, self._dtype = coupling.sizes[0], coupling.bound, dtype

    def forward(self, y: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's."""
        a, b = y[: self._moved], y[self._moved :]
        seen = torch.tanh(b / INPUT_BOUND)
        result, saved = self._network.forward(channels_last((INPUT_BOUND * seen).transpose(0, 1), self._dtype))
        raw, shift = result.transpose(0, 1).to(y.dtype, memory_format=torch.contiguous_format).split(self._moved)
        ratio = torch.tanh(raw / self._bound)
        scale = (-self._bound * ratio).exp()
        a.sub_(shift).mul_(scale)
        x = torch.addmm(self._vector, self._matrix, y.flatten(1)).view_as(y)
        return x, (seen, ratio, scale, a, *saved)

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's."""
        seen, ratio, scale, a, *inner = saved
        gradient = (self._matrix.T @ gradient.flatten(1)).view_as(gradient)
        on_a, on_b = gradient[: self._moved], gradient[self._moved :]
        # a = (y_a − t) exp(−log s), with log s = bound · ratio.
        on_raw = ratio.square().sub_(1).mul_(a).mul_(on_a)
        on_a.mul_(scale)
        outer = channels_last(torch.cat([on_raw, -on_a]).transpose(0, 1), self._dtype)
        through = self._network.backward(outer, tuple(inner)).transpose(0, 1)
        on_b.addcmul_(1 - seen.square(), through.to(gradient.dtype, memory_format=torch.contiguous_format))
        return gradient


class _Network:
    """:class:`CouplingNetwork`."""

    def __init__(self, network: CouplingNetwork, dtype: torch.dtype) -> None:
        self._first, self._last = Convolution(network.first, dtype), Convolution(network.last, dtype)
        # Two convolutions, as operations on a slice of the channels are several times slower than on a whole tensor.
        self._transform, self._gate = (Convolution(half, dtype) for half in _halves(network.highway))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's."""
        h = self._first(x)
        switch = h.sigmoid()
        h.mul_(switch)
        transformed, gate = self._transform(h), self._gate(h).sigmoid_()
        inner_switch = transformed.sigmoid()
        transformed.mul_(inner_switch)
        return self._last(torch.lerp(h, transformed, gate)), (h, switch, transformed, inner_switch, gate)

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's."""
        h, switch, transformed, inner_switch, gate = saved
        size = h.shape[2:]
        inner = self._last.kernel.transpose(gradient, size)
        on_gate = torch.sub(transformed, h).mul_(inner)
        torch.ops.aten.sigmoid_backward.grad_input(on_gate, gate, grad_input=on_gate)
        on_transformed = inner * gate
        inner.sub_(on_transformed).add_(self._gate.kernel.transpose(on_gate, size))
        on_transformed.mul_(_slope(transformed, inner_switch))
        inner.add_(self._transform.kernel.transpose(on_transformed, size)).mul_(_slope(h, switch))
        return self._first.kernel.transpose(inner, size)


def _halves(layer: nn.Conv2d) -> list[nn.Conv2d]:
    """Two convolutions that give one half each of what ``layer`` gives."""
    assert layer.bias is not None
    width = layer.in_channels
    parts = zip(layer.weight.split(width), layer.bias.split(width), strict=True)
    return [with_weights(layer, weight, bias) for weight, bias in parts]


def _slope(value: torch.Tensor, switch: torch.Tensor) -> torch.Tensor:
    """The derivative of y = x σ(x) from y and σ: y + σ (1 − y). It costs no exponential."""
    return torch.lerp(value, value.new_ones(()), switch)
