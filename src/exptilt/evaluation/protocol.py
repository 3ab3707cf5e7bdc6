"""What an evaluation figure depends on, and the hash that stands beside each figure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exptilt.errors import InputError

METRICS_VERSION = 1
"""Counts the changes of a metric's definition; figures of two versions do not compare."""
PAPER_N = 10_000
"""Samples, and test images, in the paper's figures."""


@dataclass(frozen=True)
class Hashed:
    """Settings with a hash that stands beside the figures that depend on them."""

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of all fields as canonical JSON."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """All fields and the hash, as JSON values."""
        return {**json.loads(json.dumps(dataclasses.asdict(self))), "hash": self.hash}


@dataclass(frozen=True)
class Protocol(Hashed):
    """Everything that the figures of a model depend on, beside the model itself."""

    feature_network: str
    """Name of the feature network."""
    feature_digest: str
    """SHA-256 of its weights."""
    feature_size: int
    """Length F of a feature vector."""
    data: str
    """Data set of the reference images."""
    data_digest: str
    """SHA-256 of the reference images."""
    split: str
    """Split of the data set that they come from."""
    n: int
    """Samples in a set."""
    n_reference: int
    """Reference images."""
    seeds: tuple[int, ...]
    """A set of samples was drawn from each; figures are means over them."""
    channels: int
    """Channels of an image."""
    image_size: tuple[int, int]
    """(H, W) of the images that are compared."""
    resize: str = "none (28x28 sets are zero-padded to 32x32)"
    """What was done to bring images to this size, and what the feature network then does to size and channels."""
    quantisation: str = "uint8 (round)"
    """What was done to samples before anything was computed from them."""
    neighbours: int = 5
    """k of precision, recall, density and coverage."""
    kid_subset_size: int = 1000
    """Images of each set in one of KID's subsets."""
    kid_subsets: int = 100
    """Number of KID's subsets."""
    bootstrap_replicates: int = 100
    """Resampled sets behind FID's interval."""
    metrics_seed: int = 0
    """Fixes the subsets, the resampling, and the choice of training and test images for floor and reconstruction."""
    metrics_version: int = METRICS_VERSION
    """Version of the metrics' definitions."""


def paper_features(features: str, n: int, n_reference: int) -> str:
    """Check that settings are the paper's: Inception features, 10,000 samples against 10,000 test images.

    Args:
        features: ``"auto"``, ``"inception"`` or ``"inception:FILE"``.
        n: Samples in a set.
        n_reference: Test images.

    Returns:
        The feature network, ``"inception"`` for ``"auto"``.

    Raises:
        InputError: A setting is another.
    """
    if features != "auto" and features.partition(":")[0] != "inception":
        raise InputError(f"--features {features}", "is not the paper's", "leave it out, or give inception[:FILE]")
    for count, name in ((n, "samples"), (n_reference, "test images")):
        if count != PAPER_N:
            fault = f"it compares {PAPER_N:,} samples with {PAPER_N:,} test images, and there are {count:,} {name}"
            raise InputError("--protocol paper", fault, "give as many, or leave it out")
    return "inception" if features == "auto" else features


def require_seeds(seeds: Sequence[int]) -> None:
    """Check the seeds of the sets of samples.

    Raises:
        InputError: There is none, one is there twice, or one is below 0.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError("seeds", f"{list(seeds)} is wrong", "give one or more different whole numbers ≥ 0")


def compare(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Refuse to compare figures of different protocols.

    Args:
        a: A protocol, as :meth:`Protocol.to_dict` gives it and ``result["protocol"]`` holds it.
        b: Another.

    Raises:
        InputError: They differ; the error names the fields and their values.
    """
    names = [*a, *(name for name in b if name not in a)]
    different = [name for name in names if name != "hash" and (name not in a or name not in b or a[name] != b[name])]
    if different:
        values = "; ".join(f"{name} {a.get(name, 'missing')!s} and {b.get(name, 'missing')!s}" for name in different)
        raise InputError(
            "protocol",
            f"the figures were not measured alike: {values}",
            "evaluate both with the same settings",
        )
