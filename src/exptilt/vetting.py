"""What is checked of a model's files before they take memory: they may come from a stranger."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch.overrides import TorchFunctionMode

from exptilt.errors import InputError
from exptilt.storage import check_shapes, read_json, require_regular

LARGEST_JSON = 1 << 20
"""Bytes of a configuration."""
LARGEST_WEIGHTS = 1 << 32
"""Bytes of one file of weights that is downloaded."""
LARGEST_SAMPLE = 1 << 20
"""Numbers in one sample, or in one latent: a colour image of 512 × 512 has 0.8 million."""
_LARGEST_HEADER = 8 << 20

# safetensors' names of the types that weights may have, and the type that each is loaded as.
_FLOATS = ("F16", "BF16", "F32", "F64")
_TYPES = {torch.bool: "BOOL", torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64"}

# What a constructor may allocate beside the weights (numbers), and its calls of torch, for each tensor and at all.
_SLACK, _CALLS_A_TENSOR, _CALLS = 1 << 16, 50, 1000


def member(folder: Path, *names: str) -> Path:
    """A file of a model's folder.

    A link must stay in the folder. Two that leave it are known: a part that is a link to a folder beside this one, as
    ``exptilt export --link-generator`` makes it, and the files of a snapshot in the Hub's cache.

    Raises:
        InputError: The file is missing, is no regular file, or is a link that leaves the folder.
    """
    # Unlike Path.resolve, this does not fail where links lead in a circle.
    path, root, target = folder.joinpath(*names), _resolved(folder), _resolved(folder.joinpath(*names))
    if not target.is_relative_to(root) and not _is_linked_part(root, names, target) and not _in_cache(root, target):
        raise InputError(path, "is a link that leaves the model's folder", "put the file itself there")
    require_regular(path)
    return path


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        InputError: The file is too large for a configuration, or holds no JSON object.
    """
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise InputError(path, f"is too large for a configuration ({size:,} bytes)", "restore the file")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(path, "is no JSON object", "restore the file")
    return config


def read_shapes(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a safetensors file, from its header; no tensor is read.

    Raises:
        InputError: The header is damaged or too large, or its tensors do not fill the file exactly.
    """
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > _LARGEST_HEADER:
            raise InputError(path, f"has a header of {header:,} bytes", "restore the file")
        # Opening compares the header's types, shapes and offsets with each other and with the file's length.
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(path, f"not a whole safetensors file ({error})", "restore it or write it anew") from None


def check_tensors(module: torch.nn.Module, shapes: Mapping[str, tuple[str, tuple[int, ...]]], source: Path) -> None:
    """Refuse weights of other names, shapes or types than the module's; half precision may stand for full.

    Raises:
        InputError: A tensor is missing, unexpected, or of another shape or type.
    """
    expected = module.state_dict()
    check_shapes(expected, {name: shape for name, (_, shape) in shapes.items()}, source)
    for name, tensor in expected.items():
        known = _FLOATS if tensor.is_floating_point() else (_TYPES.get(tensor.dtype, ""),)
        if shapes[name][0] not in known:
            fault = f"tensor {name!r} has type {shapes[name][0]} and the model needs {' or '.join(known)}"
            raise InputError(source, fault, "restore the file")


def check_buffers(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: Path) -> None:
    """Refuse masks and permutations that are none: others than the module's own, in any order.

    They say which numbers go where, so that a wrong one ends in the middle of a sample, or reads what it should not.

    Raises:
        InputError: A buffer of whole numbers or truth values holds others than the module as it was constructed.
    """
    for name, own in module.state_dict().items():
        if own.dim() and not own.is_floating_point():
            given = tensors[name].to(own.dtype).flatten()
            if not torch.equal(given.sort().values, own.flatten().sort().values):
                raise InputError(source, f"tensor {name!r} is no order or mask of the model's", "restore the file")


def check_sizes(generator: Any, source: Path) -> None:
    """Refuse a generator whose samples or latents are too large to be drawn.

    Raises:
        InputError: One sample or one latent has more than ``LARGEST_SAMPLE`` numbers.
    """
    for what, shape in (("samples", generator.data_shape), ("latents", generator.latent_shape)):
        if math.prod(shape) > LARGEST_SAMPLE:
            raise InputError(source, f"its {what} have the shape {shape}", f"at most {LARGEST_SAMPLE:,} numbers fit")


class Allotment(TorchFunctionMode):
    """While it is on, a constructor gets the memory and the calls of torch that a module with these tensors needs.

    So a configuration that is larger than the weights beside it ends here, and not in a full memory.

    Args:
        shapes: What :func:`read_shapes` gave.
        source: The configuration, for the error.

    Raises:
        InputError: The constructor asks for more.
    """

    def __init__(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]], source: Path) -> None:
        super().__init__()
        sizes = [math.prod(shape) for _, shape in shapes.values()]
        # Layers that a subclass replaces, and the matrices that weights are drawn from, count a few times.
        self._largest = 4 * max(sizes, default=0) + _SLACK
        self._numbers = 4 * sum(sizes) + _SLACK
        self._calls = _CALLS_A_TENSOR * len(sizes) + _CALLS
        self._source = source

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the call, then make it."""
        size = _allocates(func, args, kwargs or {})
        self._calls -= 1
        self._numbers -= size
        # Only where something is allocated: leaving no_grad() is a call of torch too, and must not fail.
        if size and (size > self._largest or self._numbers < 0 or self._calls < 0):
            raise InputError(
                self._source,
                "describes a larger model than the weights beside it",
                "its weights and its config.json must come from the same model",
            )
        return func(*args, **(kwargs or {}))


_SIZED = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint}
_SIZED_METHODS = {torch.Tensor.new_empty, torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_full}
_COUNTED = {torch.arange, torch.randperm, torch.linspace}
_REPEATED = {torch.Tensor.repeat, torch.Tensor.tile, torch.tile}


def _allocates(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many numbers a call of torch adds to those of its arguments."""
    numbers = [arg for arg in args if isinstance(arg, int)]
    size = kwargs.get("size", next((arg for arg in args if isinstance(arg, (tuple, list))), numbers))
    if func in _SIZED or func in _SIZED_METHODS:
        return math.prod(size)
    if func in _REPEATED:
        return args[0].numel() * math.prod(size)
    if func is torch.eye:
        return math.prod(numbers) if len(numbers) > 1 else numbers[0] ** 2
    return max(numbers, default=0) if func in _COUNTED else 0


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_linked_part(root: Path, names: tuple[str, ...], target: Path) -> bool:
    part = root / names[0]
    return len(names) > 1 and part.is_symlink() and target == _resolved(part) / names[1] and _beside(part, root)


def _beside(part: Path, root: Path) -> bool:
    return _resolved(part).parent == root.parent


def _in_cache(root: Path, target: Path) -> bool:
    # Only asked of links that leave the folder: the import takes a moment.
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE).resolve()
    return root.is_relative_to(cache) and target.is_relative_to(cache)
