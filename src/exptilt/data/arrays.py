"""Images or points from one array file: .npy, .npz or .safetensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from exptilt.data.images import pad, refuse_bomb
from exptilt.data.order import rows_of_split
from exptilt.data.types import to_uint8
from exptilt.errors import InputError, one_line
from exptilt.storage import read_tensors

SUFFIXES = (".npy", ".npz", ".safetensors")
IMAGE_NAMES = ("images", "x", "arr_0")
LABEL_NAMES = ("labels", "y")


def read_arrays(
    path: Path, split: str, limit: int | None, holds_split_only: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Read images or points from an array file.

    Args:
        path: A .npy, .npz or .safetensors file.
        split: ``"train"`` or ``"test"``.
        limit: Largest number of elements.
        holds_split_only: The file is this split; otherwise it is a fixed random part of the file.

    Returns:
        Images, uint8 (N, C, H, W), or points, float32 (N, D); and labels, int64 (N,), or None. Float images
        are rounded to uint8, as an image file would be.

    Raises:
        InputError: The file is damaged or pickled, or an array has another name, shape, type or range.
    """
    elements, labels = _load(path)
    rows = torch.from_numpy(rows_of_split(_count(elements, path), split, limit, holds_split_only, path))
    stored = _points(elements, path)[rows] if elements.ndim == 2 else _images(elements, rows, path)
    return stored, None if labels is None else _classes(labels, len(elements), path)[rows]


def _load(path: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    if path.suffix.lower() == ".safetensors":
        tensors = read_tensors(path)[0]
        image_name, label_name = _find_names(list(tensors), path)
        return tensors[image_name], tensors[label_name] if label_name else None
    try:
        # Opened here, because NumPy leaves a damaged .npz open.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return _elements(loaded, path), None
            image_name, label_name = _find_names(loaded.files, path)
            members = loaded.zip.infolist()
            refuse_bomb(sum(m.file_size for m in members), sum(m.compress_size for m in members), path)
            labels = _whole_numbers(loaded[label_name], path) if label_name else None
            return _elements(loaded[image_name], path), labels
    except InputError:
        raise
    except Exception as error:  # A damaged file gets nearly anything out of zipfile, zlib and NumPy.
        if "pickle" in str(error):
            raise InputError(
                path, "is damaged, or holds pickled objects, which are not read", "store plain arrays"
            ) from None
        raise InputError(path, f"not a whole {path.suffix} file ({one_line(error)})", "write it anew") from error


def _find_names(names: list[str], path: Path) -> tuple[str, str | None]:
    image_name = next((name for name in IMAGE_NAMES if name in names), None)
    if image_name is None:
        found = ", ".join(names[:8]) or "none at all"
        raise InputError(path, f"has no array of images (it has {found})", f"name it {' or '.join(IMAGE_NAMES)}")
    return image_name, next((name for name in LABEL_NAMES if name in names), None)


def _elements(array: np.ndarray, path: Path) -> torch.Tensor:
    if array.dtype not in (np.uint8, np.float32):
        raise _wrong_type(array.dtype, path)
    return torch.from_numpy(np.ascontiguousarray(array))


def _whole_numbers(array: np.ndarray, path: Path) -> torch.Tensor:
    if array.dtype.kind not in "iu":
        raise InputError(path, f"its labels are {array.dtype}", "store class numbers 0, 1, …")
    return torch.from_numpy(array.astype(np.int64))


def _wrong_type(kind: object, path: Path) -> InputError:
    return InputError(path, f"its array is {str(kind).removeprefix('torch.')}", "store uint8, or float32 in [−1, 1]")


def _count(elements: torch.Tensor, path: Path) -> int:
    if elements.ndim not in (2, 3, 4) or 0 in elements.shape[1:]:
        raise InputError(
            path,
            f"its array has shape {tuple(elements.shape)}",
            "store images as (N, H, W), (N, H, W, C) or (N, C, H, W), or points as (N, D)",
        )
    return len(elements)


def _points(elements: torch.Tensor, path: Path) -> torch.Tensor:
    if elements.dtype != torch.float32:
        raise InputError(
            path,
            f"its array of shape {tuple(elements.shape)} is not float32",
            "store points (N, D) as float32, or images with their height and width",
        )
    _require_finite(elements, path)
    return elements


def _images(elements: torch.Tensor, rows: torch.Tensor, path: Path) -> torch.Tensor:
    if elements.dtype not in (torch.uint8, torch.float32):
        raise _wrong_type(elements.dtype, path)
    if elements.dtype == torch.float32:
        _require_symmetric_range(elements, path)
    images = _channels_first(elements, path)[rows]
    return pad(images if images.dtype == torch.uint8 else to_uint8(images)).contiguous()


def _require_finite(elements: torch.Tensor, path: Path) -> None:
    if not elements.isfinite().all():
        raise InputError(path, "holds NaN or infinite values", "remove them")


def _require_symmetric_range(images: torch.Tensor, path: Path) -> None:
    _require_finite(images, path)
    low, high = images.min().item(), images.max().item()
    values = f"its values lie in [{low:.8g}, {high:.8g}]"
    if low < -1 or high > 1:
        raise InputError(path, values, "store uint8, or float32 scaled to [−1, 1]")
    if low >= 0:
        # Taken for [−1, 1] without a word, images in [0, 1] would all come out pale.
        raise InputError(path, f"{values}, as of images in [0, 1]", "store 2x − 1 in float32, or uint8")


def _channels_first(images: torch.Tensor, path: Path) -> torch.Tensor:
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        fault = "can be read as (N, C, H, W) and as (N, H, W, C)" if first else "has no axis of 1 or 3 channels"
        raise InputError(
            path, f"its shape {tuple(images.shape)} {fault}", "store grey as (N, H, W), RGB as (N, H, W, 3)"
        )
    return images if first else images.permute(0, 3, 1, 2)


def _classes(labels: torch.Tensor, count: int, path: Path) -> torch.Tensor:
    whole_numbers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole_numbers or tuple(labels.shape) != (count,) or labels.min() < 0:
        raise InputError(
            path,
            f"its labels ({labels.dtype}, shape {tuple(labels.shape)}) do not number a class for each image",
            f"store whole numbers ≥ 0 of shape ({count},), or leave them out",
        )
    return labels.to(torch.int64)
