"""A path to images or points: which layout it has, and which files hold the split."""

from __future__ import annotations

from pathlib import Path

import torch

from exptilt.data import arrays
from exptilt.data.arrays import read_arrays
from exptilt.data.image_folder import find_images, read_all_images, read_image_folder
from exptilt.data.order import SPLITS
from exptilt.data.parquet import read_parquet
from exptilt.errors import InputError

_FILES = (".parquet", *arrays.SUFFIXES)


def read_path(path: Path, split: str, limit: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Read a split from an existing file or folder.

    Args:
        path: A Parquet or array file, or a folder of Parquet files, of array files or of images.
        split: ``"train"`` or ``"test"``.
        limit: Largest number of elements.

    Returns:
        Images, uint8 (N, C, H, W), or points, float32 (N, D); and labels, int64 (N,), or None.

    Raises:
        InputError: The path holds no data, not this split, or damaged data.
    """
    _require_readable(path)
    try:
        if path.is_file():
            return _read_file(path, split, limit)
        if files := _data_files(path):
            return _read_files(path, files, split, limit)
        return read_image_folder(path, split, limit)
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
        raise InputError(error.filename or path, fault, "change its permissions") from None


def read_all(path: Path) -> torch.Tensor:
    """Read every image (or point) of an existing file or folder, whatever splits its names declare.

    Args:
        path: As for :func:`read_path`.

    Returns:
        Images, uint8 (N, C, H, W), or points, float32 (N, D).

    Raises:
        InputError: The path holds no data, or damaged data.
    """
    _require_readable(path)
    try:
        files = [path] if path.is_file() else _data_files(path)
        if not files:
            return read_all_images(path)
        # Every split is asked for as if the files held nothing else: that takes all their rows.
        if files[0].suffix.lower() == ".parquet":
            return read_parquet(files, "test", None, holds_split_only=True)[0]
        if files[0].suffix.lower() in arrays.SUFFIXES:
            return read_arrays(_only(path, files), "test", None, holds_split_only=True)[0]
        raise _unknown_kind(path)
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
        raise InputError(error.filename or path, fault, "change its permissions") from None


def holds_data(path: Path) -> bool:
    """Whether :func:`read_all` would find something to read: a file of a known kind, or a folder with such files."""
    if path.is_file():
        return path.suffix.lower() in _FILES
    return path.is_dir() and bool(_data_files(path) or find_images(path))


def declared_split(path: Path) -> str | None:
    """The split that a file's name declares: ``train-00000-of-00001.parquet`` is a part of train."""
    return next((split for split in SPLITS if path.name.lower().startswith(split)), None)


def _read_file(path: Path, split: str, limit: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    declared = declared_split(path)
    if declared not in (None, split):
        raise InputError(path, f"holds the {declared} split only", f"give the folder that holds {split} too")
    if path.suffix.lower() == ".parquet":
        return read_parquet([path], split, limit, declared is not None)
    if path.suffix.lower() in arrays.SUFFIXES:
        return read_arrays(path, split, limit, declared is not None)
    raise _unknown_kind(path)


def _data_files(folder: Path) -> list[Path]:
    """The Parquet files of the folder or, if none, its array files, sorted."""
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    # In the Hub's repositories the files lie in data/, in a folder of the configuration's name, or in train/ and test/.
    for places in ([folder], [folder / "data"], [folder / split for split in SPLITS]):
        if files := sorted(file for place in places for file in _tables(place)):
            return files
    holding = [place for place in subfolders if _tables(place)]
    if len(holding) > 1:
        names = ", ".join(place.name for place in holding[:5])
        raise InputError(folder, f"holds several sets ({names})", "give the path of one of them")
    if holding:
        return sorted(_tables(holding[0]))
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in arrays.SUFFIXES and file.is_file())


def _tables(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.parquet") if file.is_file()]


def _require_readable(path: Path) -> None:
    # A pipe would be waited for, and a device may have no end.
    if not (path.is_file() or path.is_dir()):
        raise InputError(path, "is neither a file nor a folder", "give one with images")


def _unknown_kind(path: Path) -> InputError:
    return InputError(path, "is of no known kind", f"give a folder, or a {', '.join(_FILES)} file")


def _read_files(
    folder: Path, files: list[Path], split: str, limit: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    declared = {file: declared_split(file) or _declared_by_folder(file, folder) for file in files}
    has_splits = any(declared.values())
    chosen = [file for file in files if declared[file] == split] if has_splits else files
    if not chosen:
        raise InputError(
            folder, f"has no {split} split (it has {files[0].name})", f"name its file {split}*{files[0].suffix}"
        )
    if files[0].suffix == ".parquet":
        return read_parquet(chosen, split, limit, has_splits)
    return read_arrays(_only(folder, chosen), split, limit, has_splits)


def _only(folder: Path, files: list[Path]) -> Path:
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:3])
        raise InputError(folder, f"holds several array files ({names})", "give the path of one of them")
    if pictures := find_images(folder):
        fault = f"holds an array file ({files[0].name}) and images ({pictures[0].name})"
        raise InputError(folder, fault, "give the path of the file, or move it out")
    return files[0]


def _declared_by_folder(file: Path, root: Path) -> str | None:
    return file.parent.name if file.parent != root and file.parent.name in SPLITS else None
