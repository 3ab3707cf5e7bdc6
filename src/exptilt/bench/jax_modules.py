"""The modules of the benchmark as JAX functions with the same weights. Imports JAX: import it where it is used.

Images are (N, H, W, C) on the side of JAX, the order that it is fastest in.
"""

# pyright: reportMissingImports=false
# JAX is an extra; everything works without.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from jax import lax
from torch import nn

from exptilt.energies import MLPEnergy, ResNetEnergy
from exptilt.energies.resnet import SLOPE
from exptilt.generators import VAE, ToyVAE

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Converted(NamedTuple):
    """y = function(parameters, x)."""

    function: Callable[[Any, Any], Any]
    parameters: Any


class Unconvertible(TypeError):  # noqa: N818 - the caller goes on without
    """A module that has no counterpart here."""


def to_jax(module: nn.Module | None) -> Converted:
    """``module`` in evaluation mode as a JAX function, in float32.

    Raises:
        Unconvertible: A module, or a setting of it, is not among those below.
    """
    for kind, convert in _CONVERTERS.items():
        if type(module) is kind:
            return convert(module)
    raise Unconvertible(f"no JAX version of {type(module).__name__} is written")


def _array(tensor: torch.Tensor) -> jax.Array:
    return jnp.asarray(tensor.detach().float().cpu().numpy())


def _require_plain(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str) or any(layer.output_padding):
        raise Unconvertible(f"no JAX version of {layer} is written")


def _with_bias(y: Any, parameters: dict[str, Any]) -> Any:
    return y + parameters["bias"] if "bias" in parameters else y


def _weights(weight: torch.Tensor, bias: torch.Tensor | None) -> dict[str, Any]:
    return {"weight": _array(weight)} | ({} if bias is None else {"bias": _array(bias)})


def _linear(layer: nn.Linear) -> Converted:
    return Converted(lambda p, x: _with_bias(x @ p["weight"], p), _weights(layer.weight.T, layer.bias))


def _conv(layer: nn.Conv2d) -> Converted:
    _require_plain(layer)
    stride, padding = layer.stride, [(int(p), int(p)) for p in layer.padding]

    def function(p: Any, x: Any) -> Any:
        y = lax.conv_general_dilated(x, p["weight"], stride, padding, dimension_numbers=_LAYOUT)
        return _with_bias(y, p)

    return Converted(function, _weights(layer.weight.permute(2, 3, 1, 0), layer.bias))


def _conv_transpose(layer: nn.ConvTranspose2d) -> Converted:
    _require_plain(layer)
    stride = layer.stride
    margins = [k - 1 - int(p) for k, p in zip(layer.kernel_size, layer.padding, strict=True)]
    padding = [(margin, margin) for margin in margins]

    def function(p: Any, x: Any) -> Any:
        y = lax.conv_general_dilated(x, p["weight"], (1, 1), padding, lhs_dilation=stride, dimension_numbers=_LAYOUT)
        return _with_bias(y, p)

    # The transpose of a cross-correlation is one with the mirrored kernel.
    return Converted(function, _weights(layer.weight.flip(2, 3).permute(2, 3, 0, 1), layer.bias))


def _batch_norm(layer: nn.BatchNorm2d) -> Converted:
    if layer.running_mean is None or layer.running_var is None or not layer.affine:
        raise Unconvertible(f"no JAX version of {layer} is written")
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    bias = layer.bias - layer.running_mean * scale
    return Converted(lambda p, x: x * p["weight"] + p["bias"], _weights(scale, bias))


def _sequential(layers: nn.Sequential) -> Converted:
    converted = [to_jax(layer) for layer in layers]

    def function(parameters: Any, x: Any) -> Any:
        for layer, p in zip(converted, parameters, strict=True):
            x = layer.function(p, x)
        return x

    return Converted(function, [layer.parameters for layer in converted])


def _elementwise(function: Callable[[Any], Any]) -> Callable[[nn.Module], Converted]:
    return lambda layer: Converted(lambda _, x: function(x), None)


def _leaky_relu(layer: nn.LeakyReLU) -> Converted:
    slope = layer.negative_slope
    return Converted(lambda _, x: jax.nn.leaky_relu(x, slope), None)


def _flatten(layer: nn.Flatten) -> Converted:
    def function(_: Any, x: Any) -> Any:
        # Pixels would come out in another order.
        if x.ndim > 2:
            raise Unconvertible("no JAX version of Flatten on images is written")
        return x

    return Converted(function, None)


def _vae(vae: VAE) -> Converted:
    decoder = to_jax(vae.decoder)
    return Converted(lambda p, z: jnp.tanh(0.5 * decoder.function(p, z[:, None, None, :])), decoder.parameters)


def _toy_vae(vae: ToyVAE) -> Converted:
    return to_jax(vae.decoder)


def _mlp_energy(energy: MLPEnergy) -> Converted:
    layers = to_jax(energy.layers)
    return Converted(lambda p, x: layers.function(p, x)[:, 0], layers.parameters)


def _resnet_energy(energy: ResNetEnergy) -> Converted:
    stem, head = to_jax(energy.stem), to_jax(energy.head)
    blocks = [_residual_block(block) for block in energy.blocks]

    def function(p: Any, x: Any) -> Any:
        h = stem.function(p["stem"], x)
        for block, weights in zip(blocks, p["blocks"], strict=True):
            h = block.function(weights, h)
        return head.function(p["head"], jax.nn.leaky_relu(h, SLOPE).sum((1, 2)))[:, 0]

    parameters = {"stem": stem.parameters, "head": head.parameters, "blocks": [b.parameters for b in blocks]}
    return Converted(function, parameters)


def _residual_block(block: Any) -> Converted:
    parts = {name: to_jax(getattr(block, name)) for name in ("first", "second", "shortcut")}

    def function(p: Any, x: Any) -> Any:
        h = jax.nn.leaky_relu(parts["first"].function(p["first"], jax.nn.leaky_relu(x, SLOPE)), SLOPE)
        h = parts["second"].function(p["second"], h)
        if block.halve:
            h, x = _halved(h), _halved(x)
        return h + parts["shortcut"].function(p["shortcut"], x)

    return Converted(function, {name: part.parameters for name, part in parts.items()})


def _halved(x: Any) -> Any:
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


_CONVERTERS: dict[type, Callable[[Any], Converted]] = {
    nn.Sequential: _sequential,
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv_transpose,
    nn.BatchNorm2d: _batch_norm,
    nn.Identity: _elementwise(lambda x: x),
    nn.ReLU: _elementwise(jax.nn.relu),
    nn.SiLU: _elementwise(jax.nn.silu),
    nn.Tanh: _elementwise(jnp.tanh),
    nn.Sigmoid: _elementwise(jax.nn.sigmoid),
    nn.LeakyReLU: _leaky_relu,
    nn.Flatten: _flatten,
    VAE: _vae,
    ToyVAE: _toy_vae,
    MLPEnergy: _mlp_energy,
    ResNetEnergy: _resnet_energy,
}
