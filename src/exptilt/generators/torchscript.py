"""Generators in TorchScript files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributions import Distribution
from zuko.lazy import LazyDistribution

from exptilt.errors import InputError, first_line
from exptilt.generators.wrap import WrappedGenerator


def from_torchscript(
    source: str | Path | torch.jit.ScriptModule,
    latent_shape: tuple[int, ...],
    *,
    encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    prior: Distribution | LazyDistribution | None = None,
    output_range: tuple[float, float] = (-1.0, 1.0),
    data_shape: tuple[int, ...] | None = None,
    pad: int | None = None,
) -> WrappedGenerator:
    """Make a generator of a decoder in a TorchScript file, or of a script module that is loaded already.

    **A TorchScript file is a program, and loading and running it runs what its author wrote. Load none that you do not
    trust.** Models of exptilt itself are safetensors and JSON, which hold no code.

    torch has deprecated TorchScript in favour of ``torch.export``; a decoder from there, and one that ``onnx2torch``
    has made of an ONNX file, are plain modules: ``wrap(torch.export.load(path).module(), latent_shape)``.

    Args:
        source: The file, or the module.
        latent_shape: Shape of one latent.
        encode: As in :func:`exptilt.wrap`.
        prior: As there.
        output_range: As there.
        data_shape: As there.
        pad: As there.

    Raises:
        InputError: There is no such file, it is no TorchScript, or a check of :func:`exptilt.wrap` fails.
    """
    return WrappedGenerator(_load(source), latent_shape, encode, prior, output_range, data_shape, pad)


def _load(source: str | Path | torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    if isinstance(source, torch.jit.ScriptModule):
        return source
    path = Path(source)
    if not path.is_file():
        raise InputError(path, "no such file", "give a TorchScript file")
    try:
        with warnings.catch_warnings():
            # That torch.jit is deprecated tells its caller nothing that can be changed here.
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            path, f"is no TorchScript file: {first_line(error)}", "write it with torch.jit.save"
        ) from error
