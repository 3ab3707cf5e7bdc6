"""Processes that share the work of one run, as ``torchrun`` or ``accelerate launch`` starts them.

Every process runs the same program. What is done for each of many rows (data, chains, samples) is divided among them by
the rows' indices; what is done once is done by the main process, and told to the others. Started without a launcher
there is one process, nothing here does anything, and no process group is made.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed as torch_distributed

from exptilt.errors import InputError, ProcessLostError, RunError, first_line

T = TypeVar("T")

# Variables in which torchrun, and MPI in its kinds, tell how many processes there are.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this one is."""

    rank: int
    size: int
    local_rank: int
    device: torch.device


_ALONE = World(0, 1, 0, torch.device("cpu"))
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def world() -> World:
    """The processes that share the work; the first call under a launcher connects them."""
    if _alone.get() or not torch_distributed.is_available():
        return _ALONE
    return _connected() if torch_distributed.is_initialized() or _launched() > 1 else _ALONE


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return world().rank == 0


def say(text: str) -> None:
    """A line on standard error, from the main process."""
    if is_main():
        print(f"exptilt: {text}", file=sys.stderr)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this process works by itself: for what one process of a distributed program does and others do not."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def share(n: int, rank: int | None = None, *, multiple: int = 1) -> range:
    """Which of n rows belong to this process (or to ``rank``): neighbours, as many for each as for the others.

    Args:
        n: Number of rows, ≥ 0.
        rank: A process.
        multiple: Cut between blocks of so many rows only, where there are enough blocks for every process.
    """
    size = world().size
    rank = world().rank if rank is None else rank
    blocks = -(-n // multiple)
    if blocks < size:
        multiple, blocks = 1, n
    first, last = (min(n, multiple * (blocks * r // size)) for r in (rank, rank + 1))
    return range(first, last)


def rows(n: int, compute: Callable[[range], torch.Tensor], *, multiple: int = 1) -> torch.Tensor:
    """A tensor of n rows of which each process computes its share, on every process.

    Args:
        n: Number of rows, ≥ 1.
        compute: Gives the rows with the indices that it is asked for. Each process asks for at least one.
        multiple: See :func:`share`.

    Raises:
        RunError: A process has failed.
    """
    if world().size == 1:
        return compute(range(n))
    mine = share(n, multiple=multiple)
    with failing_together():
        # A process without rows computes one all the same, to know of what kind they are.
        part = compute(mine or range(1))[: len(mine)]
    return gather(part, n, multiple=multiple)


def gather(part: torch.Tensor, n: int, *, multiple: int = 1) -> torch.Tensor:
    """All n rows, of which ``part`` are those of ``share(n)``, on every process; no gradient flows through it."""
    return concatenate(part, [len(share(n, rank, multiple=multiple)) for rank in range(world().size)])


def concatenate(part: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The parts of all processes, of which each has ``counts[rank]`` rows, on every process; no gradient."""
    if world().size == 1:
        return part
    # Back ends want equal sizes, and know no booleans.
    plain = part.detach().to(torch.uint8) if part.dtype == torch.bool else part.detach()
    padded = plain.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = plain
    parts = [torch.empty_like(padded) for _ in counts]
    with _talking():
        torch_distributed.all_gather(parts, padded)
    whole = torch.cat([each[:count] for each, count in zip(parts, counts, strict=True)])
    return whole.to(part.dtype)


def values_of_all(values: torch.Tensor, n: int) -> torch.Tensor:
    """Values (n,) of all rows, of which those of this process, ``values``, keep their gradient.

    A loss of them is the same on every process, and the gradients of the processes add up to its gradient.
    """
    if world().size == 1:
        return values
    whole, mine = gather(values, n), share(n)
    return torch.cat([whole[: mine.start], values, whole[mine.stop :]])


def add_up(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in one message."""
    tensors = list(tensors)
    if world().size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _talking():
        torch_distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def same(value: T) -> T:
    """The main process's value, on every process."""
    if world().size == 1:
        return value
    told = [value]
    with _talking():
        torch_distributed.broadcast_object_list(told, src=0)
    return told[0]


def wait() -> None:
    """Go on when all processes have come here."""
    same(None)


def on_main(function: Callable[[], T]) -> T | None:
    """What a function gives that only the main process calls; None on the others.

    Raises:
        InputError, RunError: The function has failed; the error is raised on every process.
    """
    if world().size == 1:
        return function()
    result, error = None, None
    if is_main():
        try:
            result = function()
        except Exception as caught:
            error = caught
    told = same(_told(error))
    if error is not None:
        raise error
    if told is not None:
        raise _raised(*told)
    return result


def from_main(function: Callable[[], T]) -> T:
    """What a function gives that only the main process calls, on every process; errors as in :func:`on_main`."""
    return same(on_main(function))  # type: ignore[return-value] - the main process has it


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """What fails in here on one process raises on all of them, so that none waits for a message that never comes.

    Raises:
        InputError, RunError: As on the first process that has failed.
    """
    error = None
    try:
        yield
    except (InputError, RunError) as caught:
        error = caught
    if world().size > 1:
        failed = torch.tensor(float(error is not None))
        with _talking():
            torch_distributed.all_reduce(failed)
            if failed:
                told: list[Any] = [None] * world().size
                torch_distributed.all_gather_object(told, _told(error))
                first = next(rank for rank, each in enumerate(told) if each is not None)
                if first != world().rank:
                    raise _raised(*told[first])
    if error is not None:
        raise error


def _launched() -> int:
    return max(int(os.environ.get(name, "1")) for name in _SIZES)


@functools.cache
def _connected() -> World:
    # Slow to import, and one process does without it.
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # accelerate asks for the CPU by name, even where there is nothing else.
    cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    with _talking():
        if "RANK" in os.environ and not torch_distributed.is_initialized():
            # Of its own, accelerate connects GPUs only; what is counted and gathered on the CPU goes by gloo.
            torch_distributed.init_process_group()
            atexit.register(torch_distributed.destroy_process_group)
        state = PartialState(cpu=cpu)
    device = torch.device(state.device or "cpu")
    return World(state.process_index, state.num_processes, state.local_process_index, device)


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except (InputError, RunError):
        raise
    except RuntimeError as error:
        # Less the place in the library's source at its head, and advice at its end.
        reason = re.sub(r"^\[.*?\] ", "", first_line(error)).split(". ")[0][:120]
        raise ProcessLostError(
            f"another process of the run has ended, or cannot be reached ({reason}); its own message tells why, if it "
            "left one; a run goes on from its last checkpoint with --resume, with any number of processes"
        ) from error


def _told(error: Exception | None) -> tuple[type[Exception], str, dict[str, Any]] | None:
    """An error in a form that reaches other processes: its class, its text, its attributes."""
    if error is None:
        return None
    known = isinstance(error, (InputError, RunError))
    return (type(error), str(error), vars(error)) if known else (RunError, f"{type(error).__name__}: {error}", {})


def _raised(kind: type[Exception], text: str, attributes: dict[str, Any]) -> Exception:
    error = kind.__new__(kind)
    error.args = (text,)
    # The process that it comes from prints it.
    vars(error).update(attributes, told=True)
    return error
