"""Figures of a generator, of the same generator tilted, or of any images, against a data set's test images."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from exptilt import distributed
from exptilt.data.types import DataSet
from exptilt.errors import InputError, require_at_least
from exptilt.evaluation.cache import cached_features
from exptilt.evaluation.features import FeatureExtractor, features_for
from exptilt.evaluation.images import (
    Sampler,
    as_data_set,
    choose,
    chosen_rows,
    images_digest,
    reconstruction_blocks,
    sample_blocks,
    stored_blocks,
    untilted,
)
from exptilt.evaluation.measure import Measure
from exptilt.evaluation.memorisation import Memorisation, spread
from exptilt.evaluation.metrics import require_enough
from exptilt.evaluation.protocol import Protocol, require_seeds
from exptilt.memory import block_size

PARTS = ("base", "tilted", "images", "reconstruction", "floor")
"""What a result may have figures of; ``images`` are those of a folder or a tensor that were evaluated by themselves."""


def evaluate(
    model: Sampler | DataSet | torch.Tensor,
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
    cache: bool = True,
    on_neighbours: Callable[[str, torch.Tensor, torch.Tensor], None] | None = None,
) -> dict[str, Any]:
    """Compare samples with test images: FID, KID, precision, recall, density, coverage and class entropy.

    Samples are rounded to uint8 first, as a file would be. They stream through the feature network in blocks, so
    memory holds features, one block of images and 2,000 samples. Features of test and training set are kept in a
    folder, see :func:`~exptilt.evaluation.cache.cached_features`.

    Processes that ``torchrun`` or ``accelerate launch`` has started share the images; all of them have to call this.

    Args:
        model: What to evaluate. If it has an attribute ``generator`` that samples (a tilted generator has), that is
            the base and the model is the tilted one; otherwise the model is the base. Or images, as ``data``: then
            all of them are the samples, and ``n`` and ``seeds`` count for nothing.
        data: Test set, or test images (N, C, H, W) in [−1, 1].
        n: Samples in a set.
        seeds: A set is drawn from each; figures are means over them.
        train: Training set, for the floor: n of its images (all, if fewer) against the test images; and for the
            nearest training images of samples.
        features: Feature network, see :func:`~exptilt.evaluation.features.features_for`; that of the data set
            unless given. It is moved to the model's device.
        batch_size: Samples that are drawn at once; of a tilted generator more where it runs more chains side by side.
        progress: Show progress bars on standard error.
        base: The untilted model, where ``model`` does not have it as ``generator``.
        bootstrap: Resampled sets behind an interval.
        cache: Keep features of test and training set, and use what was kept.
        on_neighbours: Called for base, tilted or images, if there is a training set, with the name, the samples
            nearest to training images, uint8 (K, C, H, W), and those training images, uint8 (K, 3, C, H, W).

    Returns:
        ``{"protocol", "n", "seeds", "data", "base", "tilted", "images", "floor", "reconstruction", "neighbours"}`` in
        JSON values; a part that does not exist is None. Those from base to reconstruction hold ``{"n", "fid",
        "fid_ci", "kid", "precision", "recall", "density", "coverage", "class_entropy", "class_histogram",
        "fid_per_seed", "fid_ci_per_seed", "seconds"}``:
        ``fid_ci`` is fid ± 1.96 × the bootstrap standard error of the mean over the seeds, cut at 0, with the reference
        held fixed; ``class_*`` (nats; fractions) are of the feature network's predictions over all seeds, None if it
        predicts none; ``seconds`` is the wall-clock time of making the images. ``reconstruction`` is G(encode(x)) of
        n test images (all, if fewer). ``neighbours`` holds for base, tilted or images (of the first seed) what
        :class:`~exptilt.evaluation.memorisation.Memorisation` tells, beside its ``facts`` and the seed.

    Raises:
        InputError: A setting is out of range, the data are points, sizes do not fit, there is no feature network for
            the data, or n or the number of test images is not above the number of features.
        RunError: Samples are not finite.
    """
    _check_settings(n, seeds, batch_size, bootstrap)
    test = as_data_set(data, "test")
    training = None if train is None else as_data_set(train, "train")
    images = as_data_set(model, "samples") if isinstance(model, (DataSet, torch.Tensor)) else None
    sources: dict[str, Any]
    if images is not None:
        n, seeds, sources = len(images), (), {"images": images}
    else:
        base = untilted(model) if base is None else base
        sources = {"base": model} if base is None else {"base": base, "tilted": model}
    for name, source in sources.items():
        _check_shape(name, getattr(source, "shape" if source is images else "data_shape", None), test)
    _check_shape("training set", None if training is None else training.shape, test)

    extractor = features_for(features, test)
    if (device := getattr(sources.get("base"), "device", None)) is not None:
        extractor.to(device)

    def stored(name: str, images: DataSet) -> torch.Tensor:
        def compute() -> torch.Tensor:
            with _bar(name, len(images), progress) as bar:
                blocks = functools.partial(stored_blocks, images, batch_size)
                return _collect(extractor, blocks, len(images), batch_size, bar).features

        return cached_features(extractor, images, compute, use=cache)

    reference = stored("test images", test)
    size = reference.shape[1]
    require_enough(n, size, None if images is None else f"{n} images", None if images is None else "give more")
    if training is not None:
        count = len(training)
        require_enough(count, size, f"training set of {count} images", "give a larger one, or none")
    protocol = _protocol(extractor, size, test, n, seeds, bootstrap)
    # The main process measures what all have collected.
    measure = distributed.on_main(lambda: Measure(reference, protocol, extractor))

    def figures(name: str, sets: list[_Blocks], size: int, at_once: int = batch_size) -> _Set:
        """Measure sets of ``size`` images, of which blocks hold ``at_once``, into the result; returns the first."""
        with _bar(name, size * len(sets), progress) as bar:
            collected = [_collect(extractor, blocks, size, at_once, bar, keep=spread(n)) for blocks in sets]
        seconds = sum(each.seconds for each in collected)
        if measure is not None:
            result[name] = measure([each.features for each in collected], seconds)
        return collected[0]

    result: dict[str, Any] = {
        "protocol": protocol.to_dict(),
        "n": n,
        "seeds": list(seeds),
        "data": None if measure is None else _describe(test, reference, measure, extractor),
        **dict.fromkeys((*PARTS, "neighbours")),
    }
    train_features = None if training is None else stored("training images", training)
    firsts: dict[str, _Set] = {}
    sets: list[_Blocks]
    for name, source in sources.items():
        if source is images:
            at_once, sets = batch_size, [functools.partial(stored_blocks, source, batch_size)]
        else:
            side_by_side = getattr(source, "side_by_side", 0)
            at_once = block_size(side_by_side, batch_size, -(-n // distributed.world().size), test.shape)
            sets = [functools.partial(sample_blocks, source, seed, at_once, test.shape, name) for seed in seeds]
        firsts[name] = figures(name, sets, n, at_once)
    if training is not None and train_features is not None and measure is not None:
        result["floor"] = measure([train_features[chosen_rows(len(training), n, protocol.metrics_seed)]], 0.0)
        memorisation = Memorisation(train_features, reference)
        result["neighbours"] = {**memorisation.facts, "seed": next(iter(seeds), None)}
        for name, first in firsts.items():
            told = result["neighbours"][name] = memorisation(first.features)
            if on_neighbours is not None:
                samples, nearest = (torch.tensor([one[key] for one in told["nearest"]]) for key in ("sample", "train"))
                on_neighbours(name, first.kept[torch.searchsorted(spread(n), samples)], training.stored[nearest])
    if getattr(sources.get("base"), "has_encoder", False):
        chosen = choose(test, n, protocol.metrics_seed)
        blocks = functools.partial(reconstruction_blocks, sources["base"], chosen, protocol.metrics_seed)
        figures("reconstruction", [blocks], len(chosen))
    return distributed.same(result)


def fid_decimals(fids: Sequence[float]) -> int:
    """Decimals that FIDs are shown with: two, or three digits of the largest where all are below 1."""
    largest = max(fids, default=1.0)
    return max(2, 3 - math.ceil(math.log10(largest))) if largest > 0 else 2


def summary_rows(result: dict[str, Any]) -> list[list[str]]:
    """A result as the cells of a table: a header, then those of :data:`PARTS` that it has.

    FID stands with half its 95% interval, to two decimals, or to three digits of the largest where all are below 1; the
    entropy (nats) is of the predicted classes, whose value for the test images stands in the header.
    """
    decimals = fid_decimals([result[name]["fid"] for name in PARTS if result.get(name) is not None])
    entropy = result["data"]["class_entropy"]
    of_data = "" if entropy is None else f" (data {entropy:.2f})"
    rows = [["", "FID", "KID", "precision", "recall", "density", "coverage", f"class entropy{of_data}"]]
    for name in PARTS:
        if (figures := result.get(name)) is None:
            continue
        half = figures["fid_ci"][1] - figures["fid"]  # the lower end may be cut at 0
        shares = [f"{figures[share]:.3f}" for share in ("precision", "recall", "density", "coverage")]
        entropy = figures["class_entropy"]
        last = "–" if entropy is None else f"{entropy:.2f}"
        rows.append(
            [name, f"{figures['fid']:.{decimals}f} ± {half:.{decimals}f}", f"{figures['kid']:.3g}", *shares, last]
        )
    return rows


# Images with some indices, block by block, as uint8.
_Blocks = Callable[[range], Iterator[torch.Tensor]]


class _Set(NamedTuple):
    """Features (N, F) of a set of images, the images that were to be kept, and the seconds that making all took."""

    features: torch.Tensor
    kept: torch.Tensor
    seconds: float


def _collect(
    extractor: FeatureExtractor,
    blocks: _Blocks,
    n: int,
    batch_size: int,
    bar: tqdm[Any],
    keep: torch.Tensor | None = None,
) -> _Set:
    """Take in n images, those of all processes; ``keep`` has the indices, in order, of the images that are kept."""
    shares = [distributed.share(n, rank, multiple=batch_size) for rank in range(distributed.world().size)]
    # A process without images takes in one all the same, to know of what kind they are, and leaves it out.
    mine = distributed.share(n, multiple=batch_size)
    parts, kept, seconds, first = [], [], 0.0, mine.start if mine else 0
    with distributed.failing_together():
        images = blocks(mine or range(1))
        while True:
            began = time.perf_counter()
            block = next(images, None)
            seconds += time.perf_counter() - began
            if block is None:
                break
            parts.append(extractor(block))
            if keep is not None:
                kept.append(block.cpu()[keep[(keep >= first) & (keep < first + len(block))] - first])
            first += len(block)
            bar.update(len(block))
    features = distributed.gather(torch.cat(parts)[: len(mine)], n, multiple=batch_size)
    if keep is None:
        return _Set(features, torch.empty(0), seconds)
    counts = [int(((keep >= each.start) & (keep < each.stop)).sum()) for each in shares]
    own = counts[distributed.world().rank]
    return _Set(features, distributed.concatenate(torch.cat(kept)[:own], counts), seconds)


def _bar(name: str, total: int, progress: bool) -> tqdm[Any]:
    return tqdm(total=total, desc=name, unit=" images", disable=not progress)


def _protocol(
    extractor: FeatureExtractor, size: int, test: DataSet, n: int, seeds: Sequence[int], bootstrap: int
) -> Protocol:
    channels, height, width = test.shape
    return Protocol(
        feature_network=extractor.name,
        feature_digest=extractor.digest,
        feature_size=size,
        data=test.name,
        data_digest=images_digest(test),
        split=test.split,
        n=n,
        n_reference=len(test),
        seeds=tuple(seeds),
        channels=channels,
        image_size=(height, width),
        resize=", then ".join(step for step in (Protocol.resize, extractor.preparation) if step),
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
    require_at_least(1, n=n, batch_size=batch_size)
    require_at_least(2, bootstrap=bootstrap)
    require_seeds(seeds)


def _check_shape(name: str, shape: tuple[int, ...] | None, test: DataSet) -> None:
    """Refuse images of another shape before anything is computed, where the shape is known."""
    if shape is not None and tuple(shape) != test.shape:
        raise InputError(
            name, f"its images have shape {tuple(shape)}", f"those of data {test.name!r} have {test.shape}"
        )
