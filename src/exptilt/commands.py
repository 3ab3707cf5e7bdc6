"""What each command does, once its arguments are read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from exptilt import demo as demo_story
from exptilt import hub, provenance
from exptilt.config import PretrainConfig, override
from exptilt.data import DataSet, load_dataset, to_uint8, train_validation_split
from exptilt.errors import InputError
from exptilt.evaluation.evaluate import evaluate as evaluate_model
from exptilt.evaluation.evaluate import summary_rows
from exptilt.evaluation.features import load_features, save_features, shipped_names
from exptilt.evaluation.monitor import quality_monitor
from exptilt.evaluation.network import FeatureNetwork
from exptilt.export import export as export_run
from exptilt.generators import GENERATORS
from exptilt.generators.base import Generator
from exptilt.generators.two_stage import SecondStage
from exptilt.generators.vae import VAE
from exptilt.presets import preset
from exptilt.report.figures import image_grid
from exptilt.report.files import archive, image_png, png
from exptilt.report.progress import write_progress
from exptilt.report.run_report import write_run_report
from exptilt.storage import RESULT, write_bytes, write_json
from exptilt.tilted import TiltedGenerator
from exptilt.training import pretrain as pretraining
from exptilt.training.fit import Monitor, resolve_recipe
from exptilt.training.fit import tilt as tilt_generator
from exptilt.training.run_folder import RunFolder
from exptilt.training.trackers import Tracker, make_tracker

if TYPE_CHECKING:
    from exptilt import cli

console = Console(stderr=True, highlight=False)

# Samples drawn, rounded and written before the next are drawn.
_STREAMED = 500
_SHORT = {"precision": "prec.", "density": "dens.", "coverage": "cover."}


def demo(args: cli.Demo) -> None:
    """Everything on embedded data."""
    result = demo_story.run(args.out, seed=args.seed, device=_device(args.device), quiet=args.quiet)
    print_table(result)
    _say(f"{result['seconds']} s; the page is {args.out / 'report.html'}, the grid {args.out / 'grid.png'}", args.quiet)


def pretrain(args: cli.Pretrain) -> None:
    """Train a preset, and leave the model, its log and a grid in the folder."""
    names = ("epochs", "batch_size", "learning_rate", "ema_decay", "precision", "data")
    config = override(preset(args.preset, args.scale), **{name: getattr(args, name) for name in names}, seed=args.seed)
    train = load_dataset(config.data, "train", args.limit)
    test = load_dataset(config.data, "test", args.limit)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        module = _fresh_model(config, args.vae)
    if isinstance(module, Generator):
        train.require_shape(module.data_shape)
    first_stage = {} if args.vae is None else {"vae": str(args.vae)}
    folder = RunFolder(args.out, pretraining.describe(config, train) | first_stage, resume=args.resume)

    def show_progress(iteration: int) -> None:
        write_progress(args.out, module, args.seed)

    with folder.writing(), _tracking(args.log, folder) as tracker:
        _show(folder.config, args.quiet)
        figures = pretraining.pretrain(
            module,
            train,
            config,
            test=test,
            folder=folder,
            device=_device(args.device),
            on_check=show_progress if isinstance(module, Generator) else None,
            tracker=tracker,
            quiet=args.quiet,
        )
        if isinstance(module, FeatureNetwork):
            save_features(module, args.out, {"config": folder.config, "test": figures})
        else:
            module.save_pretrained(args.out)
        folder.record(test=figures, n_test=len(test), parameters=sum(p.numel() for p in module.parameters()))
    _say(f"{args.out}: " + ", ".join(f"test {name} {value:.4f}" for name, value in figures.items()), args.quiet)


def tilt(args: cli.Tilt) -> None:
    """Train an energy for a generator, and leave the tilted generator in the folder."""
    generator = _load(args.generator, args.device)
    if isinstance(generator, TiltedGenerator):
        raise InputError(args.generator, "is tilted already", "give the folder of a generator")
    names = ("energy", "energy_width", "iterations", "batch_size", "learning_rate", "check_every", "precision")
    changes = {name: getattr(args, name) for name in names}
    config = resolve_recipe(args.recipe, generator, **changes, seed=args.seed)
    config = override(
        config,
        chain=override(config.chain, steps=args.chain_steps, step_size=args.chain_step_size),
        sampler=override(config.sampler, steps=args.steps, step_size=args.step_size),
        # A step size that the user gave is not adapted.
        target_acceptance=0.0 if args.step_size is not None else None,
    )
    train = load_dataset(args.data, "train", args.limit)
    train.require_shape(generator.data_shape)
    described = {"kind": "tilt", **dataclasses.asdict(config), "generator": str(args.generator)}
    described |= {"data": train.name, "n_train": len(train), "features": args.features}
    monitor, train = _monitor(args.features, train)
    folder = RunFolder(args.out, described, resume=args.resume)
    with folder.writing(), _tracking(args.log, folder) as tracker:
        _show(folder.config, args.quiet)
        tilted = tilt_generator(
            generator, train, config=config, monitor=monitor, folder=folder, tracker=tracker, quiet=args.quiet
        )
    _, info = tilted.sample(64, seed=args.seed, return_latents=True, return_info=True)
    _say(f"{args.out}: {info.sentence}", args.quiet)


def sample(args: cli.Sample) -> None:
    """Draw samples into a grid, an archive or a folder."""
    model = _with_sampler(_load(args.model, args.device), args.steps, args.step_size)
    if args.n < 1:
        raise InputError(f"-n {args.n}", "is out of range", "give a whole number ≥ 1")
    if args.base and isinstance(model, TiltedGenerator):
        model = model.generator
    kind = args.out.suffix.lower()
    if kind not in ("", ".png", ".npz"):
        raise InputError(f"--out {args.out}", "has an unknown ending", "use .png, .npz, or a folder's name")
    if kind != ".npz" and len(model.data_shape) != 3:
        raise InputError(f"--out {args.out}", "cannot hold points", "use .npz for a generator of points")
    if kind == "" and args.out.is_dir() and any(args.out.iterdir()):
        raise InputError(f"--out {args.out}", "is not empty", "give a new folder")
    _show(_settings(model), args.quiet)
    drawn: list[torch.Tensor] = []
    for first, x in _stream(model, args):
        stored = to_uint8(x) if x.dim() == 4 else x
        if kind:
            drawn.append(stored.cpu())
            continue
        for index, image in enumerate(stored.cpu(), start=first):
            write_bytes(args.out / f"{index:06d}.png", image_png(image))
    if kind == ".png":
        write_bytes(args.out, png(image_grid(torch.cat(drawn), args.columns)))
    elif kind == ".npz":
        write_bytes(args.out, archive(torch.cat(drawn)))
    _say(f"{args.n} samples in {args.out}", args.quiet)


def evaluate(args: cli.Evaluate) -> None:
    """Measure a model against the test set; print the table and write the result."""
    if args.n < 1:
        raise InputError(f"-n {args.n}", "is out of range", "give a whole number ≥ 1")
    model = _with_sampler(_load(args.model, args.device), args.steps, args.step_size)
    test, train = load_dataset(args.data, "test"), load_dataset(args.data, "train")
    features = load_features(_features_name(args.features, test))
    _show({"n": args.n, "seeds": list(args.seeds), "features": features.name, **_settings(model)}, args.quiet)
    result = evaluate_model(
        model, test, n=args.n, seeds=args.seeds, train=train, features=features, progress=not args.quiet
    )
    result |= {"model": str(args.model), **provenance.origin(), **_settings(model)}
    for path in {args.model / RESULT, args.json} - {None}:
        write_json(path, result)
    print_table(result)


def export(args: cli.Export) -> None:
    """Publish a run as a small folder with a card."""
    folder = export_run(
        args.run,
        args.out,
        data=args.data,
        n=args.n,
        seeds=args.seeds,
        features=None if args.features == "auto" else args.features,
        precision=args.precision,
        link_generator=args.link_generator,
        device=_device(args.device),
        progress=not args.quiet,
    )
    _say(f"{folder}: weights, card and grid", args.quiet)


def report(args: cli.Report) -> None:
    """Write the page about a run."""
    write_run_report(args.run, args.out, seed=args.seed, n=args.n, quiet=args.quiet)


def print_table(result: dict[str, Any]) -> None:
    """The evaluation's rows as a table on standard output, 80 columns wide."""
    header, *rows = summary_rows(result)
    protocol, seeds = result["protocol"]["hash"], " ".join(map(str, result["seeds"]))
    # The last column's name also tells the entropy of the data; names are shortened to fit.
    title = f"N = {result['n']:,}, seeds {seeds}, protocol {protocol}; {header[-1].removeprefix('class ')}"
    caption = "ceiling: G(encode(test images)); floor: training images against test images"
    style: dict[str, Any] = {"box": box.HORIZONTALS, "padding": (0, 1, 0, 0), "title_justify": "left"}
    table = Table(title=title, caption=caption, caption_justify="left", **style)
    for index, name in enumerate(header):
        short = _SHORT.get(name, "entropy" if name == header[-1] else name)
        table.add_column(short, justify="right" if index else "left", no_wrap=True)
    for name, *figures in rows:
        table.add_row({"reconstruction": "ceiling"}.get(name, name), *figures)
    Console(highlight=False).print(table)


def _fresh_model(config: PretrainConfig, vae: Path | None) -> Any:
    """An untrained model; one with two stages is built on the trained VAE in the folder ``vae``."""
    second_stage = GENERATORS.get(config.model)
    if second_stage is None or not issubclass(second_stage, SecondStage):
        if vae is not None:
            raise InputError(f"--vae {vae}", f"is of no use to preset {config.preset}", "leave it out")
        classes = {**GENERATORS, "FeatureNetwork": FeatureNetwork}
        return hub.build(classes, config.model, config.arguments, f"preset {config.preset}")
    if vae is None:
        raise InputError(f"preset {config.preset}", "builds on a trained VAE", "give --vae FOLDER")
    trained = hub.load(vae)
    if not isinstance(trained, VAE):
        raise InputError(f"--vae {vae}", f"is a {type(trained).__name__}", "give the folder of a VAE")
    return second_stage.from_vae(trained, **config.arguments)


def _load(path: Path, device: str) -> Generator | TiltedGenerator:
    return hub.load(path, device=_device(device))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"--device {name}", "is not there", "use auto or cpu") from None
    return device


def _with_sampler(
    model: Generator | TiltedGenerator, steps: int | None, step_size: float | None
) -> Generator | TiltedGenerator:
    if isinstance(model, TiltedGenerator):
        model.sampler = override(model.sampler, steps=steps, step_size=step_size)
    return model


def _settings(model: Generator | TiltedGenerator) -> dict[str, Any]:
    return model.describe() if isinstance(model, TiltedGenerator) else {}


def _stream(model: Generator | TiltedGenerator, args: cli.Sample) -> Iterator[tuple[int, torch.Tensor]]:
    options: dict[str, Any] = {} if args.batch_size is None else {"batch_size": args.batch_size}
    with tqdm(total=args.n, unit="sample", disable=args.quiet) as bar:
        for first in range(args.start, args.start + args.n, _STREAMED):
            n = min(_STREAMED, args.start + args.n - first)
            yield first, model.sample(n, seed=args.seed, start=first, **options)
            bar.update(n)


def _features_name(name: str, data: DataSet) -> str:
    if name != "auto":
        return name
    if data.name in shipped_names():
        return data.name
    raise InputError(
        f"--features auto with data {data.name!r}",
        "that set has no feature network",
        f"give --features FOLDER or one of {', '.join(shipped_names())}",
    )


def _monitor(features: str, train: DataSet) -> tuple[Monitor | None, DataSet]:
    """Quality against held-out training images, which the energy then never sees."""
    known = features != "none" and not (features == "auto" and train.name not in shipped_names())
    if not known:
        return None, train
    fitted, held_out = train_validation_split(train)
    return quality_monitor(load_features(_features_name(features, train)), held_out.stored[:2000]), fitted


@contextlib.contextmanager
def _tracking(name: str | None, folder: RunFolder) -> Iterator[Tracker | None]:
    if name is None:
        yield None
        return
    tracker, close = make_tracker(name, folder.path, folder.config)
    try:
        yield tracker
    finally:
        close()


def _show(config: dict[str, Any], quiet: bool) -> None:
    if not quiet:
        console.print_json(json.dumps(config))


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        console.print(text, soft_wrap=True)
