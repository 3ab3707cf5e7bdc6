"""What a user's decoder and encoder must do, tried at once on a few latents; each fault is one line that mends it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from exptilt.errors import InputError, first_line

Function = Callable[[torch.Tensor], torch.Tensor]

CHECKED = 16
"""Latents that a decoder is checked on."""

# How far outputs may differ by the rounding of another batch size; the share of an image's values that may leave the
# range (a flow's tails do); and how far a flow's inverse may miss, in the middle of its misses.
_ROUNDING, _MOST_OUTSIDE, _MOST_MISSED = 1e-3, 0.05, 0.05
# Up to rounding.
_WHITE = 1.001

FAULTS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, NotImplementedError)
"""What a user's code raises on an input that does not fit."""


def attempt(subject: str, call: Callable[[], Any], doing: str, mend: str) -> Any:
    """What a user's code gives, without gradients, ``torch``'s random state restored.

    Raises:
        InputError: It fails.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return call()
    except FAULTS as error:
        raise InputError(subject, f"fails {doing}: {first_line(error)}", mend) from error


def check_decoder(decode: Function, z: torch.Tensor, weights: Iterable[torch.Tensor] = ()) -> torch.Tensor:
    """The decoder's output on latents (N, *latent_shape), if it is differentiable, finite, and each one's own.

    Args:
        decode: The decoder.
        z: Latents of the prior.
        weights: Those of the decoder.

    Raises:
        InputError: It fails, or a check does.
    """
    z = z.detach().requires_grad_(True)
    try:
        with torch.enable_grad():
            output = decode(z)
    except FAULTS as error:
        fault = f"fails on latents of shape {tuple(z.shape)}: {first_line(error)}"
        raise InputError("decoder", fault, _mend_of_failure(decode, z, weights)) from error
    if not isinstance(output, torch.Tensor) or output.shape[:1] != (len(z),) or output.dim() < 2:
        given = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(
            "decoder", f"gives {given} for {len(z)} latents", "return (N, C, H, W) images or (N, D) points"
        )
    if not bool(torch.isfinite(output).all()):
        raise InputError("decoder", "gives values that are not finite", "check its weights")
    if not output.requires_grad:
        raise InputError("decoder", "has no gradient with respect to z", "remove no_grad() or detach() from it")
    _check_gradient(output, z)
    with torch.no_grad():
        _check_repeatable(decode, z, output)
    return output.detach()


def check_encoder(encode: Function, x: torch.Tensor, latent_shape: tuple[int, ...]) -> torch.Tensor:
    """The codes of samples (N, *own_shape), if an encoder gives finite ones, (N, *latent_shape).

    Raises:
        InputError: It fails, or its codes are others.
    """
    mend = "it sees what the decoder gives, in the decoder's range"
    code = attempt("encode", lambda: encode(x), f"on samples of shape {tuple(x.shape)}", mend)
    if not isinstance(code, torch.Tensor) or tuple(code.shape) != (len(x), *latent_shape):
        given = tuple(code.shape) if isinstance(code, torch.Tensor) else type(code).__name__
        mend = f"return one draw of q(z|x) for each, (N, {', '.join(map(str, latent_shape))})"
        raise InputError("encode", f"gives {given} for {len(x)} samples", mend)
    if not bool(torch.isfinite(code).all()):
        raise InputError("encode", "gives values that are not finite", "check its weights")
    return code


def check_range(x: torch.Tensor, output_range: tuple[float, float], stacklevel: int) -> None:
    """That samples (N, C, H, W), mapped to [−1, 1] from ``output_range``, lie there.

    Raises:
        InputError: Too many values lie outside.
    """
    outside = float((x.abs() > 1.05).float().mean())
    if outside > _MOST_OUTSIDE:
        low, high = output_range
        raise InputError(
            "decoder",
            f"{outside:.0%} of its values lie outside of [{low:g}, {high:g}]",
            "give output_range=(black, white), for example (0, 1) or (0, 255), or clamp them",
        )
    if output_range == (-1, 1) and float(x.min()) >= 0 and float(x.max()) <= 1:
        warnings.warn(
            "the decoder's images are never below 0; if its black is 0 and its white 1, give output_range=(0, 1)",
            stacklevel=stacklevel + 1,
        )


def check_inverse(decode: Function, latent: Function, z: torch.Tensor) -> None:
    """That a flow's two directions undo each other on latents of the prior.

    Raises:
        InputError: They do not, or one does not exist.
    """
    mend = "use exptilt.wrap(…), which needs no inverse"
    missed = attempt("flow", lambda: (latent(decode(z)) - z).abs(), "at its inverse", mend)
    # The middle: far out in a tail rounding may well grow that large.
    if not float(missed.median()) <= _MOST_MISSED:
        fault = f"its inverse misses the latents by {float(missed.median()):.2g}"
        raise InputError("flow", fault, f"check its weights, or {mend}")


def require_units(subject: str, images: torch.Tensor, *, is_batch: bool = False, takes_bytes: bool = True) -> None:
    """Refuse images (N, C, H, W) that are not floats in [−1, 1].

    Taken for those without a word, images in [0, 1] would all come out pale.

    Args:
        subject: What they are called in the error.
        images: They, N ≥ 0.
        is_batch: They are some of the data, which may be bright without those being of [0, 1].
        takes_bytes: Who calls takes bytes as well, which the error then tells.

    Raises:
        InputError: They are no floats, a value is not finite or lies outside, or there is none below 0, as black is −1.
    """
    if not images.numel():
        return
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(subject, "hold values that are not finite", "remove them")
    if not images.is_floating_point() or low < -_WHITE or high > _WHITE:
        raise InputError(subject, f"lie in [{low:g}, {high:g}]", "map them to [-1, 1], where black is -1")
    if low >= 0 and not is_batch:
        fault = f"lie in [{low:g}, {high:g}], as images in [0, 1] do"
        raise InputError(subject, fault, f"give 2x − 1{', or bytes' if takes_bytes else ''}; in [-1, 1] black is -1")


def _mend_of_failure(decode: Function, z: torch.Tensor, weights: Iterable[torch.Tensor]) -> str:
    if {weight.dtype for weight in weights} & {torch.float16, torch.bfloat16, torch.float64}:
        return "give it with weights in float32, .float()"
    try:
        with torch.no_grad():
            decode(z[:1])
    except FAULTS:
        return "check latent_shape"
    return "it takes one latent alone: export it anew with a batch dimension of any size"


def _check_gradient(output: torch.Tensor, z: torch.Tensor) -> None:
    (gradient,) = torch.autograd.grad(output.sum(), z, allow_unused=True)
    if gradient is None:
        raise InputError("decoder", "has no gradient with respect to z", "remove no_grad() or detach() from it")
    if not bool(torch.isfinite(gradient).all()):
        raise InputError("decoder", "has a gradient that is not finite", "check its weights, and its square roots")
    if not bool(gradient.any()):
        raise InputError("decoder", "has a gradient of 0 with respect to z", "remove rounding or thresholds from it")


def _check_repeatable(decode: Function, z: torch.Tensor, output: torch.Tensor) -> None:
    tolerance = _ROUNDING * max(1.0, float(output.abs().max()))
    if float((decode(z) - output).abs().max()) > tolerance:
        mend = "switch its dropout or noise off in eval()"
        raise InputError("decoder", "gives another output for the same latent", mend)
    if float((decode(z[:2]) - output[:2]).abs().max()) > tolerance:
        fault = "an output depends on the others of its batch"
        raise InputError("decoder", fault, "make its batch normalisation use its running statistics")
