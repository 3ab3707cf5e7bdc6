"""Work in parts that become smaller where the memory does not hold them."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

# Numbers in a block: 1 GiB of them in float32.
_MOST_NUMBERS = 1 << 28
# How torch tells of it: on CUDA, on the CPU (Linux, then Windows), on MPS.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


def in_parts(
    n: int,
    start: int,
    size: int,
    make: Callable[[int, int], T],
    on_smaller: Callable[[int], object] = lambda size: None,
) -> Iterator[T]:
    """``make(first, size)`` for parts of ``size`` that cover ``start … start + n − 1``, in order.

    A part that the memory does not hold is made anew in halves, as are those after it; a warning says so once.

    Args:
        n: How many there are.
        start: The first.
        size: The most in a part, ≥ 1.
        make: Makes a part. What it makes of an element must not depend on the part that it is in.
        on_smaller: Is told the size that the memory held.

    Raises:
        Exception: What ``make`` raised; of a memory that is full, where it does not even hold one.
    """
    first, end, too_large = start, start + n, 0
    while first < end:
        count = min(size, end - first)
        try:
            made = make(first, count)
        except (RuntimeError, MemoryError) as error:
            if count == 1 or not is_out_of_memory(error):
                raise
            # The error holds what was computed, so nothing more is done before it is gone.
            made = None
        if made is None:
            _free()
            too_large, size = too_large or count, (count + 1) // 2
            continue
        if too_large:
            warnings.warn(f"the memory does not hold {too_large} at once: going on with {size}", stacklevel=3)
            on_smaller(size)
            too_large = 0
        yield made
        first += count


def block_size(wanted: int, least: int, n: int, shape: Sequence[int]) -> int:
    """How many of n samples to have in memory at once: as many as wanted, within a GiB, but not few.

    Args:
        wanted: The number that is fastest.
        least: Never fewer than these, whatever their size.
        n: How many there are.
        shape: Shape of one.
    """
    return max(least, min(wanted, n, _MOST_NUMBERS // math.prod(shape)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that the memory of a processor or a GPU is full."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _free() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
