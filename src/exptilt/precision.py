"""Which arithmetic convolutions run in, and why."""

from __future__ import annotations

import contextlib

import torch

from exptilt.config import Precision


def resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """The floating-point type that ``precision`` means on ``device``.

    ``"auto"`` is bfloat16 where the processor multiplies it natively (twice the speed of float32 or more),
    and float32 elsewhere, where emulation would be slower.
    """
    if precision == "auto":
        return torch.bfloat16 if _has_native_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Mixed precision in ``dtype``; for float32 a context that does nothing."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Arithmetic in the precision of the operands, whatever mixed precision is on outside."""
    return torch.autocast(device.type, enabled=False)


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # torch has no public question for this; the two are the instructions that oneDNN uses.
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, check, lambda: False)()) for check in checks)
    return False
