"""Glow's steps, inverted, with the gradient of their input written by hand."""

from __future__ import annotations


import torch
import torch.nn.functional as F
from torch import nn

from exptilt.fast.layers import Layer, Saved, SiLU, bias_of, channels_last, kernel_of
from exptilt.fast.stack import Stack
from exptilt.generators.glow_layers import INPUT_BOUND, Coupling, CouplingNetwork, Mixing


class InverseSteps(Stack):
    """The inverses of a level's pairs of :class:`Mixing` and :class:`Coupling`, the last first."""

    def __init__(self, block: nn.ModuleList, dtype: torch.dtype) -> None:
        pairs = [(block[i], block[i + 1]) for i in range(0, len(block), 2)]
        own = next(block.parameters()).dtype
        super().__init__([_InverseStep(*pair, dtype) for pair in reversed(pairs)], own, block)

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """x of (N, C, H, W)."""
        return self(y)


class _InverseStep:
    """A coupling's inverse, then a mixing's. What has to be inverted stays in the type of x."""

    def __init__(self, mixing: nn.Module, coupling: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(mixing, Mixing)
        assert isinstance(coupling, Coupling)
        self._matrix, self._vector = mixing.inverse_map()
        self._network = _Network(coupling.network, dtype)
        self._moved, self._bound, self._dtype = coupling.sizes[0], coupling.bound, dtype

    def forward(self, y: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's."""
        a, b = y[:, : self._moved], y[:, self._moved :]
        seen = torch.tanh(b / INPUT_BOUND)
        result, saved = self._network.forward(channels_last(INPUT_BOUND * seen, self._dtype))
        raw, shift = result.to(y.dtype).split(self._moved, dim=1)
        ratio = torch.tanh(raw / self._bound)
        scale = (-self._bound * ratio).exp()
        a.sub_(shift).mul_(scale)
        kept = a.contiguous(memory_format=torch.channels_last)
        x = F.linear(y.permute(0, 2, 3, 1), self._matrix, self._vector).permute(0, 3, 1, 2)
        return x, (seen, ratio, scale, kept, *saved)

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's."""
        seen, ratio, scale, a, *inner = saved
        gradient = F.linear(gradient.permute(0, 2, 3, 1), self._matrix.T).permute(0, 3, 1, 2)
        on_a, on_b = gradient[:, : self._moved], gradient[:, self._moved :]
        # a = (y_a − t) exp(−log s), with log s = bound · ratio.
        outer = gradient.new_empty(len(a), *a.shape[2:], 2 * self._moved).permute(0, 3, 1, 2)
        torch.mul(on_a * a, ratio.square().sub_(1), out=outer[:, : self._moved])
        on_a.mul_(scale)
        torch.neg(on_a, out=outer[:, self._moved :])
        through = self._network.backward(outer.to(self._dtype), tuple(inner)).to(gradient.dtype)
        on_b.add_(through.mul_(1 - seen.square()))
        return gradient


class _Network:
    """:class:`CouplingNetwork`."""

    def __init__(self, network: CouplingNetwork, dtype: torch.dtype) -> None:
        self._first, self._first_bias = kernel_of(network.first, dtype), bias_of(network.first, dtype)
        self._highway, self._highway_bias = kernel_of(network.highway, dtype), bias_of(network.highway, dtype)
        self._last, self._last_bias = kernel_of(network.last, dtype), bias_of(network.last, dtype)
        self._hidden = network.highway.in_channels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """As Layer's."""
        first = self._first.map(x, self._first_bias)
        h = F.silu(first)
        both = self._highway.map(h, self._highway_bias)
        transformed, gate = F.silu(both[:, : self._hidden]), both[:, self._hidden :].sigmoid_()
        difference = transformed.sub_(h)
        result = self._last.map(torch.addcmul(h, gate, difference), self._last_bias)
        return result, (first, both, difference)

    def backward(self, gradient: torch.Tensor, saved: Saved) -> torch.Tensor:
        """As Layer's."""
        first, both, difference = saved
        raw, gate = both[:, : self._hidden], both[:, self._hidden :]
        size = first.shape[2:]
        inner = self._last.transpose(gradient, size)
        outer = torch.empty_like(both)
        on_transformed, on_gate = outer[:, : self._hidden], outer[:, self._hidden :]
        torch.ops.aten.sigmoid_backward.grad_input(difference.mul_(inner), gate, grad_input=on_gate)
        through = inner * gate
        inner.sub_(through)
        torch.ops.aten.silu_backward.grad_input(through, raw, grad_input=on_transformed)
        inner.add_(self._highway.transpose(outer, size))
        torch.ops.aten.silu_backward.grad_input(inner, first, grad_input=inner)
        return self._first.transpose(inner, size)
