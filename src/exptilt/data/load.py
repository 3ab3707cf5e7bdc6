"""From what a user writes after ``--data`` to a data set in memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

from exptilt.data import hub
from exptilt.data.embedded import NAMES as EMBEDDED
from exptilt.data.embedded import read_embedded
from exptilt.data.local import declared_split, read_all, read_path
from exptilt.data.order import SPLITS
from exptilt.data.types import DataSet
from exptilt.errors import InputError, require_at_least

DATA_VARIABLE = "EXPTILT_DATA"

HUB_IDS = {
    "mnist": "ylecun/mnist",
    "fashion": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
}
ALIASES = {
    "mnist": ("mnist",),
    "fashion": ("fashion", "fashion_mnist", "fashion-mnist"),
    "cifar10": ("cifar10", "cifar-10"),
}
"""Names under which a known set, and its folder, goes; the canonical name is the key."""

MIRRORED = frozenset({"cifar10"})
"""Known sets of which a mirror image is as likely as the image."""

_MEND = f"set {DATA_VARIABLE} to the folder that holds it, give a path, or one of {', '.join([*EMBEDDED, *HUB_IDS])}"


def load_dataset(name: str | Path, split: str = "train", limit: int | None = None) -> DataSet:
    """Load a split of a data set into memory.

    ``name`` is looked up as a path, then in the folder ``$EXPTILT_DATA``, then among the embedded sets
    (digits, gaussians, swissroll), then on the Hugging Face Hub (mnist, fashion, cifar10, or any ``owner/name``).
    A path is a folder in the Hub's Parquet layout, a .parquet file, a folder of PNG or JPEG images, or a .npy,
    .npz or .safetensors file with uint8 or float32 in [−1, 1]. Where a path has no splits of its own, train and
    test are a fixed random 90 / 10. Images of 28×28 are zero-padded to 32×32.

    Args:
        name: Name, Hub id or path.
        split: ``"train"`` or ``"test"``.
        limit: Largest number of elements, the first of the split; the rest is not decoded. None for all.

    Returns:
        The split: uint8 images (N, C, H, W) or float32 points (N, D), with labels where the set has them.

    Raises:
        InputError: The name resolves to nothing, the split is unknown, the limit is below 1, or the data is
            damaged, empty, or not of one size.
    """
    if split not in SPLITS:
        raise InputError("split", f"{str(split)!r} is not known", f"use {' or '.join(SPLITS)}")
    if limit is not None:
        require_at_least(1, limit=limit)
    text = str(name)
    if path := _find_path(text):
        stored, labels = read_path(path, split, limit)
        return DataSet(_name_of_path(path), split, stored, labels, str(path))
    known = canonical_name(text)
    if known in EMBEDDED:
        stored, labels = read_embedded(known, split)
        labels = None if labels is None else labels[:limit]
        return DataSet(known, split, stored[:limit], labels, f"embedded {known}")
    repository = HUB_IDS.get(known, text)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        raise InputError(text or "''", f"not found: {_looked_for(text)}", _MEND)
    try:
        table = hub.fetch(repository, split)
    except hub.NotOnHubError as error:
        raise InputError(text, f"not found: {_looked_for(text)}, and {error}", _MEND) from error
    stored, labels = hub.decode(table, limit, repository)
    return DataSet(canonical_name(repository.split("/")[-1]), split, stored, labels, repository)


def load_images(path: str | Path) -> DataSet:
    """Load everything that a path holds, as one set without labels: samples that something else has drawn.

    Args:
        path: A path as for :func:`load_dataset`; splits and classes in it count for nothing.

    Returns:
        uint8 images (N, C, H, W), or float32 points (N, D); the split is called ``"samples"``.

    Raises:
        InputError: There is no such path, or its data is damaged, empty, or not of one size.
    """
    found = _existing(str(path))
    if found is None:
        raise InputError(path, "no such file or folder", "give one with images")
    return DataSet(_name_of_path(found), "samples", read_all(found), None, str(found))


def canonical_name(name: str) -> str:
    """``"mnist"``, ``"fashion"`` or ``"cifar10"`` for any alias of theirs, whatever its case; else the name."""
    return next((known for known, aliases in ALIASES.items() if name.lower() in aliases), name)


def _find_path(text: str) -> Path | None:
    candidates = [text]
    if root := os.environ.get(DATA_VARIABLE):
        folders = ALIASES.get(canonical_name(text), ())
        candidates += [os.path.join(root, name) for name in (text, *folders)]  # noqa: PTH118 - either may hold a ~
    return next((path for candidate in candidates if text and (path := _existing(candidate))), None)


def _existing(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # A name too long for a file, or the home of nobody.
        return None


def _name_of_path(path: Path) -> str:
    if path.name in ("", ".."):  # Only then: a link's own name says more than its target's.
        path = path.resolve()
    if path.is_file():
        return canonical_name(path.absolute().parent.name if declared_split(path) else path.stem)
    return canonical_name(path.name)


def _looked_for(text: str) -> str:
    set_to = os.environ.get(DATA_VARIABLE)
    variable = f"no ${DATA_VARIABLE}/{text}" if set_to else f"{DATA_VARIABLE} is not set"
    return f"there is no path {text or 'without a name'}, {variable}"
