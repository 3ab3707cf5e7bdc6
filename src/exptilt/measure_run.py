"""The evaluation of a run's folder, or of images: what to measure, with which features, and what to leave behind."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from exptilt import distributed, provenance
from exptilt.baselines import Baseline
from exptilt.data import DataSet, load_dataset, load_images
from exptilt.data.local import holds_data
from exptilt.errors import InputError
from exptilt.evaluation.evaluate import evaluate
from exptilt.evaluation.features import AUTO, features_for
from exptilt.evaluation.protocol import paper_features
from exptilt.evaluation.toy import evaluate_points
from exptilt.generators.base import Generator
from exptilt.report.nearest import write_nearest
from exptilt.storage import MODULE_CONFIG, RESULT, RUN, require_place, write_json
from exptilt.tilted import INDEX, TiltedGenerator


def images_at(path: Path) -> DataSet | None:
    """All images at a path that holds no run and no model; None where it does, and where nothing is.

    Raises:
        InputError: There is neither a model nor an image, or the images are damaged or not of one size.
    """
    if not path.exists() or any((path / name).exists() for name in (RUN, MODULE_CONFIG, INDEX)):
        return None
    if path.is_dir() and not holds_data(path):
        raise InputError(path, "holds neither a model nor images", "give the folder of a run, or one with images")
    return load_images(path)


def folder_of_results(path: Path, json: Path | None) -> Path | None:
    """The folder of a model, which keeps its results; None of a model on the Hub, which has no folder here.

    Also None, with a warning, where nothing can be written there and the result goes to ``json``.

    Raises:
        InputError: Nothing can be written there, and there is no ``json``.
    """
    if not path.is_dir():
        return None
    if os.access(path, os.W_OK | os.X_OK):
        return path
    if json is None:
        fault = "cannot be written, and the result would go there"
        raise InputError(path, fault, "give --json FILE, or change its permissions")
    warnings.warn(f"{path} cannot be written: the result goes to {json} alone", stacklevel=2)
    return None


def measure_run(
    path: Path,
    model: Generator | TiltedGenerator | Baseline | DataSet,
    data: str,
    *,
    n: int,
    seeds: Sequence[int],
    features: str = AUTO,
    paper: bool = False,
    cache: bool = True,
    device: torch.device,
    json: Path | None = None,
    progress: bool = False,
    show: Callable[[dict[str, Any]], None] = lambda _: None,
    on_result: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure what stands at a path, and write the result to ``json`` and (of a run) there.

    The result of a baseline goes to ``json`` alone: the one in the folder is that of the model's own chain. So does
    that of a folder that cannot be written, which is found out before anything is computed.

    A run's folder also gets ``neighbours.png``: samples, of a tilted generator the tilted ones, and their nearest
    training images.

    Args:
        path: Where the model or the images come from; of a model on the Hub, its id.
        model: The model, or the images.
        data: Name of the data set.
        n: Samples for each seed; of images, all are taken.
        seeds: Seeds of the sampling.
        features: Feature network.
        paper: Hold to the paper's protocol, see :func:`~exptilt.evaluation.protocol.paper_features`.
        cache: Keep features of test and training set, and use what was kept.
        device: Where the feature network runs.
        json: A second place for the result.
        progress: Show progress bars.
        show: Takes the settings as they were resolved.
        on_result: Takes the result when all is written, or as much as can be.

    Returns:
        What :func:`~exptilt.evaluation.evaluate.evaluate` returns, or, of points,
        :func:`~exptilt.evaluation.toy.evaluate_points`; with model, command, commit and version.

    Raises:
        InputError: The data set is not found, or something does not fit it; or the folder cannot be written, and there
            is no ``json``.
        RunError: Samples are not finite.
    """
    folder = None if isinstance(model, (Baseline, DataSet)) else folder_of_results(path, json)
    if json is not None:
        distributed.on_main(functools.partial(require_place, json))
    test, train = load_dataset(data, "test"), load_dataset(data, "train")
    images = isinstance(model, DataSet)
    neighbours: tuple[torch.Tensor, ...] = ()
    n = len(model) if isinstance(model, DataSet) else n
    settings = {} if isinstance(model, DataSet) else model.describe()
    shown = {"n": n, "seeds": [] if images else list(seeds), **settings}
    if test.stored.dim() == 2:
        if isinstance(model, DataSet):
            raise InputError(path, "holds no model", f"data {test.name!r} are points: give a generator of points")
        if paper or features != AUTO:
            option = "--protocol paper" if paper else f"--features {features}"
            raise InputError(option, f"is of no use to data {test.name!r}, which are points", "leave it out")
        show(shown)
        result = evaluate_points(model, test, n=n, seeds=seeds, train=train)
    else:
        extractor = features_for(paper_features(features, n, len(test)) if paper else features, test).to(device)
        show({"features": extractor.name, **shown})

        def keep(_: str, samples: torch.Tensor, nearest: torch.Tensor) -> None:
            # Called for the base first: of a tilted generator its own samples remain.
            nonlocal neighbours
            neighbours = samples, nearest

        result = evaluate(
            model,
            test,
            n=n,
            seeds=seeds,
            train=train,
            features=extractor,
            progress=progress,
            cache=cache,
            on_neighbours=None if folder is None else keep,
        )
    result |= {"model": str(path), **provenance.origin(), **settings}
    try:
        if json is not None:
            distributed.on_main(functools.partial(write_json, json, result))
        if folder is not None:
            distributed.on_main(functools.partial(_leave, folder, result, neighbours))
    finally:
        # Last, as a terminal may be gone by now; but also where a disk is full, so that nothing is lost.
        on_result(result)
    return result


def _leave(folder: Path, result: dict[str, Any], neighbours: tuple[torch.Tensor, ...]) -> None:
    """Write a result to a run's folder, with the picture of samples and their nearest training images, if any."""
    if neighbours:
        write_nearest(folder, *neighbours)
    write_json(folder / RESULT, result)
