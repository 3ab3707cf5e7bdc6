"""Features of test and training sets, kept between evaluations in the user's cache folder.

A file is named after everything that its content depends on (see :func:`cached_features`), so it is never out of date.
The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from exptilt import distributed
from exptilt.data.types import DataSet
from exptilt.errors import InputError
from exptilt.evaluation.features import FeatureExtractor
from exptilt.evaluation.images import images_digest
from exptilt.storage import read_tensors, write_tensors

CACHE_VARIABLE = "EXPTILT_CACHE"

_VERSION = 2  # of the file's layout and of how images reach a network


def cached_features(
    extractor: FeatureExtractor, data: DataSet, compute: Callable[[], torch.Tensor], *, use: bool = True
) -> torch.Tensor:
    """Features of a data set, from the cache where it has them.

    They are looked up by the network (its weights, its code, what it does to channels and size) and by the pixels, in
    their order. A file that is damaged is made anew, and one line on standard error says so; a folder that cannot be
    written only costs a line. Networks that are a user's own modules are not cached, because nothing tells whether
    their code is still the same.

    Args:
        extractor: The feature network.
        data: The images.
        compute: Makes the features, float32 (N, F).
        use: Without it the cache is neither read nor written.

    Returns:
        float32 (N, F), on the CPU.
    """
    folder = distributed.same(cache_folder() if use and extractor.code is not None else None)
    if folder is None:
        return compute()
    key = {
        "version": _VERSION,
        "code": extractor.code,
        "weights": extractor.digest,
        "preparation": extractor.preparation,
        "images": images_digest(data),
        "shape": list(data.stored.shape),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = folder / "features" / f"{name}.safetensors"
    # The main process's folder decides: computing is the work of all.
    if (features := distributed.from_main(lambda: _read(path, key))) is not None:
        return features
    features = compute()
    if not distributed.is_main():
        return features
    try:
        write_tensors(path, {"features": features}, key)
    except OSError as error:
        print(f"exptilt: {path}: features are not kept ({error.strerror or error})", file=sys.stderr)
    return features


def cache_folder() -> Path | None:
    """``$EXPTILT_CACHE``, else ``exptilt`` in the platform's folder for caches; None for a user without a home."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder).expanduser()
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "exptilt" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "exptilt"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "exptilt"


def _read(path: Path, key: dict[str, Any]) -> torch.Tensor | None:
    if not path.exists():
        return None
    try:
        tensors, stored = read_tensors(path)
        features = tensors["features"]
        if stored == key and features.dim() == 2 and len(features) == key["shape"][0]:
            return features
    except (InputError, KeyError):
        pass
    print(f"exptilt: {path}: is damaged; its features are computed anew", file=sys.stderr)
    return None
