"""Images from a folder of PNG and JPEG files, with or without subfolders for splits and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from exptilt.data.images import LARGEST_FILE, ImageStack
from exptilt.data.order import SPLITS, rows_of_split, shuffled
from exptilt.errors import InputError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg")

_SPLIT_FOLDERS = {"train", "test", "val", "valid", "validation"}


def read_image_folder(folder: Path, split: str, limit: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Read a folder of images.

    With subfolders ``train`` and ``test`` these are the splits; otherwise the images are divided 90 / 10, always
    the same way. Below that, a subfolder is a class, numbered in the order of the names. The images come in a
    fixed random order, so that a limit takes a fair sample of the classes.

    Args:
        folder: The folder.
        split: ``"train"`` or ``"test"``.
        limit: Largest number of images; the rest is not opened.

    Returns:
        Images, uint8 (N, C, H, W), and labels, int64 (N,), or None without class folders.

    Raises:
        InputError: There are no images, the split is missing, or an image is damaged or of another size.
    """
    has_splits = _has_splits(folder)
    root = folder / split if has_splits else folder
    if not root.is_dir():
        raise InputError(folder, f"has no subfolder {split}", "give train and test, or one folder for both")
    files = find_images(root)
    if not files:
        raise InputError(root, "holds no data", "it must hold train*.parquet and test*.parquet, or PNG or JPEG images")
    # Classes are numbered over both splits: one that test lacks must not shift the others.
    labels = _labels(root, files, [folder / name for name in SPLITS] if has_splits else [folder])
    rows = shuffled(len(files))[:limit] if has_splits else rows_of_split(len(files), split, limit, False, folder)
    stack = ImageStack(len(rows))
    for place, row in enumerate(rows):
        stack.put(place, _read(files[row]), str(files[row]))
    return stack.tensor(), None if labels is None else torch.from_numpy(labels[rows])


def read_all_images(folder: Path) -> torch.Tensor:
    """All images below a folder in the order of their paths, whatever the subfolders are called.

    Returns:
        uint8 (N, C, H, W).

    Raises:
        InputError: There are no images, or one is damaged or of another size.
    """
    files = find_images(folder)
    if not files:
        raise InputError(folder, "holds no images", f"it must hold {', '.join(SUFFIXES)} files")
    stack = ImageStack(len(files))
    for place, file in enumerate(files):
        stack.put(place, _read(file), str(file))
    return stack.tensor()


def find_images(root: Path) -> list[Path]:
    """All PNG and JPEG files below a folder, sorted; hidden files and folders are passed over."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path.relative_to(root))
    )


def _hidden(relative: Path) -> bool:
    # Archives made on macOS carry a shadow "._name.png" of every file, which is no image.
    return any(part.startswith(".") or part == "__MACOSX" for part in relative.parts)


def _has_splits(folder: Path) -> bool:
    # A class may be called "train": only a folder with nothing but splits in it has splits.
    names = {path.name for path in _subfolders(folder)}
    loose = any(path.suffix.lower() in SUFFIXES for path in folder.iterdir() if path.is_file())
    return bool(names & set(SPLITS)) and names <= _SPLIT_FOLDERS and not loose


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and not _hidden(path.relative_to(folder))]


def _labels(root: Path, files: list[Path], class_roots: list[Path]) -> np.ndarray | None:
    loose = [path for path in files if path.parent == root]
    if len(loose) == len(files):
        return None
    if loose:
        raise InputError(loose[0], "lies beside the class folders", "move every image into a class folder, or none")
    names = sorted({path.name for class_root in class_roots for path in _subfolders(class_root)})
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[path.relative_to(root).parts[0]] for path in files], np.int64)


def _read(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise InputError(path, f"has {size:,} bytes", f"at most {LARGEST_FILE:,} are decoded")
        return path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read ({one_line(error)})", "make it readable or remove it") from None
