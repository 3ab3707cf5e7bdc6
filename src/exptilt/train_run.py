"""Training into a run's folder: generators by a preset, tilted generators by a recipe."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from exptilt import distributed, hub
from exptilt.baselines import fit_mixture
from exptilt.config import PretrainConfig, TiltConfig
from exptilt.data import DataSet, load_dataset
from exptilt.errors import InputError
from exptilt.evaluation.features import NETWORKS, save_features, weights_digest
from exptilt.evaluation.network import ImageClassifier
from exptilt.generators import GENERATORS
from exptilt.generators.base import Generator
from exptilt.generators.mixture import MixtureGenerator
from exptilt.generators.two_stage import SecondStage
from exptilt.generators.vae import VAE
from exptilt.report.progress import write_progress
from exptilt.storage import RUN, read_json
from exptilt.tilted import INDEX, TiltedGenerator
from exptilt.tilting import held_out_quality
from exptilt.training import pretrain as pretraining
from exptilt.training.fit import tilt as tilt_generator
from exptilt.training.run_folder import RunFolder
from exptilt.training.trackers import Tracker, make_tracker


def pretrain_run(
    config: PretrainConfig,
    out: Path,
    *,
    vae: Path | None = None,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    resume: bool = False,
    keep_finished: bool = False,
    log: str | None = None,
    quiet: bool = True,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """Train a generator, or a feature network, and leave the model, its log and a grid in the folder.

    Args:
        config: Resolved settings; those of the data set too.
        out: The folder.
        vae: Folder of the trained model that a second stage is built on.
        limit: Use the first so many images of each split only.
        device: Where to train.
        resume: Go on with the run that is there.
        keep_finished: Do nothing where that run is finished and began with the same settings.
        log: Also log to a tracker of that name.
        quiet: No progress bar.
        show: Takes the settings as they were resolved.

    Returns:
        Figures of the test set.

    Raises:
        InputError: The data are missing or of a wrong shape, or the folder holds another run.
        RunError: The training diverged.
    """
    train = load_dataset(config.data, "train", limit)
    test = load_dataset(config.data, "test", limit)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = _fresh_model(config, vae)
    if isinstance(module, Generator):
        train.require_shape(module.data_shape)
    described = pretraining.describe(config, train) | ({} if vae is None else {"vae": str(vae)})
    folder = distributed.on_main(lambda: RunFolder(out, described, resume=resume, device=device))
    if keep_finished and (out / RUN).exists() and "test" in (record := read_json(out / RUN)):
        return record["test"]

    def show_progress(iteration: int) -> None:
        if folder is not None:
            write_progress(out, module, config.seed)

    with _tracking(log, folder) as tracker, _writing(folder):
        if show is not None and folder is not None:
            show(folder.config)
        if isinstance(module, MixtureGenerator):
            fit_mixture(module.to(device), train, seed=config.seed, iterations=config.epochs)
            figures = pretraining.held_out_metrics(module, test, torch.device(device))
            show_progress(config.epochs)
        else:
            figures = pretraining.pretrain(
                module,
                train,
                config,
                test=test,
                folder=folder,
                device=device,
                on_check=show_progress if isinstance(module, Generator) else None,
                tracker=tracker,
                quiet=quiet,
            )
        if folder is not None:
            if isinstance(module, ImageClassifier):
                save_features(module, out, {"config": folder.config, "test": figures})
            else:
                module.save_pretrained(out)
            folder.record(test=figures, n_test=len(test), parameters=sum(p.numel() for p in module.parameters()))
    return figures


def tilt_run(
    generator: Generator | TiltedGenerator,
    name: str,
    train: DataSet,
    config: TiltConfig,
    out: Path,
    *,
    features: str = "auto",
    resume: bool = False,
    keep_finished: bool = False,
    log: str | None = None,
    quiet: bool = True,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> TiltedGenerator:
    """Train an energy for a generator, and leave the tilted generator and its log in the folder.

    Args:
        generator: The generator, or a tilted one.
        name: Where it comes from, for the record.
        train: Training set; a part of it is held out where the data set has a feature network.
        config: Resolved settings.
        out: The folder.
        features: Feature network of the quality checks: ``"auto"``, ``"none"``, a name or a folder.
        resume: Go on with the run that is there.
        keep_finished: Load the model where that run is finished and began with the same settings.
        log: Also log to a tracker of that name.
        quiet: No progress bar.
        show: Takes the settings as they were resolved.

    Raises:
        InputError: The data do not fit the generator, or the folder holds another run.
        RunError: The training diverged.
    """
    train.require_shape(generator.data_shape)
    described = {"kind": "tilt", **dataclasses.asdict(config), "generator": name}
    described |= {"data": train.name, "n_train": len(train), "features": features}
    # A run goes on with the very weights that it began with; others may have taken their place since.
    described["weights"] = weights_digest(generator.state_dict())
    folder = distributed.on_main(lambda: RunFolder(out, described, resume=resume, device=generator.device))
    if keep_finished and (out / INDEX).exists():
        finished = hub.load(out, device=generator.device)
        if isinstance(finished, TiltedGenerator):
            return finished
    monitor, train, held_out = held_out_quality(features, train)
    with _tracking(log, folder) as tracker, _writing(folder):
        if show is not None and folder is not None:
            show(folder.config)
        return tilt_generator(
            generator,
            train,
            config=config,
            held_out=held_out,
            monitor=monitor,
            folder=folder,
            tracker=tracker,
            quiet=quiet,
        )


def _fresh_model(config: PretrainConfig, vae: Path | None) -> Any:
    """An untrained model; one with two stages is built on the trained VAE in the folder ``vae``."""
    second_stage = GENERATORS.get(config.model)
    if second_stage is None or not issubclass(second_stage, (SecondStage, MixtureGenerator)):
        if vae is not None:
            raise InputError(f"--vae {vae}", f"is of no use to preset {config.preset}", "leave it out")
        classes = {**GENERATORS, **NETWORKS}
        return hub.build(classes, config.model, config.arguments, f"preset {config.preset}")
    if vae is None:
        raise InputError(f"preset {config.preset}", "builds on a trained VAE", "give --vae FOLDER")
    trained = hub.load(vae)
    if issubclass(second_stage, MixtureGenerator):
        if isinstance(trained, TiltedGenerator):
            raise InputError(f"--vae {vae}", "is tilted", "give the folder of a generator")
        return second_stage(trained, **config.arguments)
    if not isinstance(trained, VAE):
        raise InputError(f"--vae {vae}", f"is a {type(trained).__name__}", "give the folder of a VAE")
    return second_stage.from_vae(trained, **config.arguments)


@contextlib.contextmanager
def _writing(folder: RunFolder | None) -> Iterator[None]:
    """Hold the folder, which only the main process has."""
    with contextlib.ExitStack() as stack:
        distributed.on_main(lambda: None if folder is None else stack.enter_context(folder.writing()))
        yield
    # Every process finds the files when it goes on.
    distributed.wait()


@contextlib.contextmanager
def _tracking(name: str | None, folder: RunFolder | None) -> Iterator[Tracker | None]:
    """Entered before the folder is written: what does not start leaves no run there."""

    def make() -> tuple[Tracker, Callable[[], None]] | None:
        return None if name is None or folder is None else make_tracker(name, folder.path, folder.config)

    made = distributed.on_main(make)
    if made is None:
        yield None
        return
    tracker, close = made
    try:
        yield tracker
    finally:
        close()
