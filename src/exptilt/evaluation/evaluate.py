"""Figures of a generator, and of the same generator tilted, against a data set's test images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from exptilt.data.types import DataSet
from exptilt.errors import InputError
from exptilt.evaluation.features import FeatureExtractor, load_features, shipped_names
from exptilt.evaluation.images import (
    TENSOR_SOURCE,
    Sampler,
    as_data_set,
    choose,
    reconstruction_blocks,
    sample_blocks,
    stored_blocks,
)
from exptilt.evaluation.measure import Measure
from exptilt.evaluation.metrics import require_enough
from exptilt.evaluation.protocol import Protocol


def evaluate(
    model: Sampler,
    data: DataSet | torch.Tensor,
    *,
    n: int = 10_000,
    seeds: Sequence[int] = (0, 1, 2),
    train: DataSet | torch.Tensor | None = None,
    features: str | Path | nn.Module | FeatureExtractor | None = None,
    batch_size: int = 500,
    progress: bool = True,
    base: Sampler | None = None,
    bootstrap: int = 100,
) -> dict[str, Any]:
    """Compare samples with test images: FID, KID, precision, recall, density, coverage and class entropy.

    Samples are rounded to uint8 first, as a file would be. They stream through the feature network in blocks, so
    memory holds features and one block of images.

    Args:
        model: What to evaluate. If it has an attribute ``generator`` that samples (a tilted generator has), that is
            the base and the model is the tilted one; otherwise the model is the base.
        data: Test set, or test images (N, C, H, W) in [−1, 1].
        n: Samples in a set.
        seeds: A set is drawn from each; figures are means over them.
        train: Training set, for the floor: n of its images (all, if fewer) against the test images.
        features: Feature network, see :func:`~exptilt.evaluation.features.load_features`; that of the data set
            unless given. It is moved to the model's device.
        batch_size: Samples that are drawn at once.
        progress: Show progress bars on standard error.
        base: The untilted model, where ``model`` does not have it as ``generator``.
        bootstrap: Resampled sets behind an interval.

    Returns:
        ``{"protocol", "n", "seeds", "data", "base", "tilted", "floor", "reconstruction"}`` in JSON values; a part
        that does not exist is None. The last four hold ``{"n", "fid", "fid_ci", "kid", "precision", "recall",
        "density", "coverage", "class_entropy", "class_histogram", "fid_per_seed", "fid_ci_per_seed", "seconds"}``:
        ``fid_ci`` is fid ± 1.96 × the bootstrap standard error of the mean over the seeds, cut at 0, with the reference
        held fixed; ``class_*`` (nats; fractions) are of the feature network's predictions over all seeds, None if it
        predicts none; ``seconds`` is the wall-clock time of making the images. ``reconstruction`` is G(encode(x)) of
        n test images (all, if fewer).

    Raises:
        InputError: A setting is out of range, the data are points, sizes do not fit, there is no feature network for
            the data, or n or the number of test images is not above the number of features.
        RunError: Samples are not finite.
    """
    _check_settings(n, seeds, batch_size, bootstrap)
    test = as_data_set(data, "test")
    training = None if train is None else as_data_set(train, "train")
    within = getattr(model, "generator", None)
    base = within if base is None and hasattr(within, "sample") else base
    tilted, plain = (None, model) if base is None else (model, base)
    _check_shape("base", getattr(plain, "data_shape", None), test)
    _check_shape("tilted", getattr(tilted, "data_shape", None), test)
    _check_shape("training set", None if training is None else training.shape, test)

    extractor = _extractor(features, test)
    if (device := getattr(plain, "device", None)) is not None:
        extractor.to(device)
    with _bar("test images", len(test), progress) as bar:
        reference, _ = _collect(extractor, stored_blocks(test, batch_size), bar)
    protocol = _protocol(extractor, test, n, seeds, bootstrap)
    require_enough(n, extractor.size)
    if training is not None:
        count = len(training)
        require_enough(count, extractor.size, f"training set of {count} images", "give a larger one, or none")
    measure = Measure(reference, protocol, extractor)

    def figures(name: str, sets: Iterable[Iterator[torch.Tensor]], total: int) -> dict[str, Any]:
        with _bar(name, total, progress) as bar:
            collected = [_collect(extractor, blocks, bar) for blocks in sets]
        return measure([features for features, _ in collected], sum(seconds for _, seconds in collected))

    def sampled(name: str, source: Sampler) -> dict[str, Any]:
        sets = (sample_blocks(source, n, seed, batch_size, test.shape, name) for seed in seeds)
        return figures(name, sets, n * len(seeds))

    result: dict[str, Any] = {
        "protocol": protocol.to_dict(),
        "n": n,
        "seeds": list(seeds),
        "data": _describe(test, reference, measure, extractor),
        "base": sampled("base", plain),
        "tilted": None if tilted is None else sampled("tilted", tilted),
        "floor": None,
        "reconstruction": None,
    }
    if training is not None:
        chosen = choose(training, n, protocol.metrics_seed)
        result["floor"] = figures("floor", [stored_blocks(chosen, batch_size)], len(chosen))
    if getattr(plain, "has_encoder", False):
        chosen = choose(test, n, protocol.metrics_seed)
        blocks = reconstruction_blocks(plain, chosen, protocol.metrics_seed)
        result["reconstruction"] = figures("reconstruction", [blocks], len(chosen))
    return result


def summary_rows(result: dict[str, Any]) -> list[list[str]]:
    """A result as the cells of a table: a header, then base, tilted, reconstruction and floor as far as it has them.

    FID stands with half its 95% interval; the entropy (nats) is of the predicted classes, whose value for the test
    images stands in the header.
    """
    entropy = result["data"]["class_entropy"]
    of_data = "" if entropy is None else f" (data {entropy:.2f})"
    rows = [["", "FID", "KID", "precision", "recall", "density", "coverage", f"class entropy{of_data}"]]
    for name in ("base", "tilted", "reconstruction", "floor"):
        if (figures := result[name]) is None:
            continue
        half = figures["fid_ci"][1] - figures["fid"]  # the lower end may be cut at 0
        shares = [f"{figures[share]:.3f}" for share in ("precision", "recall", "density", "coverage")]
        entropy = figures["class_entropy"]
        last = "–" if entropy is None else f"{entropy:.2f}"
        rows.append([name, f"{figures['fid']:.2f} ± {half:.2f}", f"{figures['kid']:.3g}", *shares, last])
    return rows


def _collect(extractor: FeatureExtractor, blocks: Iterator[torch.Tensor], bar: tqdm[Any]) -> tuple[torch.Tensor, float]:
    """Features (N, F) of all blocks, and the seconds that making the blocks took."""
    parts, seconds = [], 0.0
    while True:
        began = time.perf_counter()
        block = next(blocks, None)
        seconds += time.perf_counter() - began
        if block is None:
            return torch.cat(parts), seconds
        parts.append(extractor(block))
        bar.update(len(block))


def _bar(name: str, total: int, progress: bool) -> tqdm[Any]:
    return tqdm(total=total, desc=name, unit=" images", disable=not progress)


def _extractor(features: str | Path | nn.Module | FeatureExtractor | None, test: DataSet) -> FeatureExtractor:
    if features is not None:
        return load_features(features)
    if test.source == TENSOR_SOURCE:
        raise InputError("features", "images in a tensor do not say which network fits", "give features=…")
    if test.name not in shipped_names():
        known = ", ".join(shipped_names()) or "none"
        raise InputError(
            f"data {test.name!r}",
            "no feature network is shipped for it",
            f"give one with --features: the name of one that is shipped ({known}), or a folder",
        )
    return load_features(test.name)


def _protocol(extractor: FeatureExtractor, test: DataSet, n: int, seeds: Sequence[int], bootstrap: int) -> Protocol:
    channels, height, width = test.shape
    return Protocol(
        feature_network=extractor.name,
        feature_digest=extractor.digest,
        feature_size=extractor.size,
        data=test.name,
        data_digest=hashlib.sha256(test.stored.numpy().tobytes()).hexdigest(),
        split=test.split,
        n=n,
        n_reference=len(test),
        seeds=tuple(seeds),
        channels=channels,
        image_size=(height, width),
        kid_subset_size=min(Protocol.kid_subset_size, n, len(test)),
        bootstrap_replicates=bootstrap,
    )


def _describe(test: DataSet, reference: torch.Tensor, measure: Measure, extractor: FeatureExtractor) -> dict[str, Any]:
    """What the feature network sees in the test set itself."""
    predicted = extractor.predict(reference)
    accuracy = None
    if predicted is not None and test.labels is not None:
        accuracy = float((predicted[0] == test.labels).double().mean())
    return {"n": len(test), **measure.classes(reference), "classifier_accuracy": accuracy}


def _check_settings(n: int, seeds: Sequence[int], batch_size: int, bootstrap: int) -> None:
    for name, value, least in (("n", n, 1), ("batch_size", batch_size, 1), ("bootstrap", bootstrap, 2)):
        if value < least:
            raise InputError(name, f"{value} is out of range", f"give a whole number ≥ {least}")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError("seeds", f"{list(seeds)} is wrong", "give one or more different whole numbers ≥ 0")


def _check_shape(name: str, shape: tuple[int, ...] | None, test: DataSet) -> None:
    """Refuse images of another shape before anything is computed, where the shape is known."""
    if shape is not None and tuple(shape) != test.shape:
        raise InputError(
            name, f"its images have shape {tuple(shape)}", f"those of data {test.name!r} have {test.shape}"
        )
