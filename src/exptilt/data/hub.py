"""Data sets from the Hugging Face Hub, or from the copy that an earlier download left on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from exptilt.data.parquet import decode_rows, find_columns
from exptilt.errors import InputError, one_line

_BATCH_ROWS = 1024
_REACHABLE_SECONDS = 10.0


class NotOnHubError(LookupError):
    """The Hub cannot be reached or does not have the split; the message says which, on one line."""


def fetch(repository: str, split: str) -> Any:
    """Download a split, or find it where an earlier download left it.

    Args:
        repository: ``owner/name``.
        split: ``"train"`` or ``"test"``.

    Returns:
        A ``datasets.Dataset``.

    Raises:
        NotOnHubError: The Hub cannot be reached and there is no earlier download, or it has no such set or split.
    """
    unreachable = _why_unreachable(repository)
    import datasets

    try:
        with _without_progress_bars(), _offline(bool(unreachable)):
            return datasets.load_dataset(repository, split=split)
    except Exception as error:  # The library lets those of its file systems, codecs and HTTP client through.
        reason = unreachable or f"the Hub's {repository} cannot be loaded ({one_line(error)})"
        raise NotOnHubError(reason) from error


def decode(dataset: Any, limit: int | None, source: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Decode what :func:`fetch` found.

    Args:
        dataset: A ``datasets.Dataset`` with a column of images.
        limit: Largest number of images; the rest is not decoded.
        source: Name of the set, for errors.

    Returns:
        Images, uint8 (N, C, H, W), and labels, int64 (N,), or None.

    Raises:
        InputError: There are no images, or they are damaged or not of one size.
    """
    import datasets
    from datasets.table import embed_table_storage

    image, label = find_columns(dataset.column_names, source)
    if not isinstance(dataset.features[image], datasets.Image):
        raise InputError(source, f"its column {image!r} does not hold images", "give a set of images")
    if not len(dataset):
        raise InputError(source, "holds no images", "give a set with one or more")
    count = len(dataset) if limit is None else min(limit, len(dataset))
    columns = dataset.select_columns([name for name in (image, label) if name])
    encoded = columns.cast_column(image, datasets.Image(decode=False)).with_format("arrow")

    def batches() -> Iterator[tuple[str, int, Any]]:
        offset = 0
        for batch in encoded.iter(_BATCH_ROWS):
            # A set of loose image files has paths in its table; this puts the files' bytes there.
            yield source, offset, embed_table_storage(batch)
            offset += batch.num_rows

    return decode_rows(batches(), np.arange(count), image, label)


def _why_unreachable(repository: str) -> str | None:
    """One quick question, without which the library would retry for half a minute; None if the Hub answers."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        huggingface_hub.HfApi().dataset_info(repository, timeout=_REACHABLE_SECONDS)
    except RepositoryNotFoundError as error:  # Gated sets included.
        raise NotOnHubError(f"the Hub has no {repository}, or not for this account") from error
    except Exception as error:  # HTTP errors of whichever client the library is built on.
        return f"the Hub cannot be reached for {repository} ({one_line(error, 80)})"
    return None


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    import datasets.utils
    import huggingface_hub.utils

    libraries = (datasets.utils, huggingface_hub.utils)
    shown = [library for library in libraries if not library.are_progress_bars_disabled()]
    for library in shown:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bars()
