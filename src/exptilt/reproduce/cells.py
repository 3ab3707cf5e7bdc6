"""A cell of a table: one model, trained and measured in a folder of its own, which is passed over once it is done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from exptilt import hub, provenance
from exptilt.config import TiltConfig, override
from exptilt.data import load_dataset
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.generators.pixel import UniformPixels
from exptilt.measure_run import measure_run
from exptilt.presets import PRESETS, RECIPES, Scale, preset, tilt_changes
from exptilt.report.log import training_seconds
from exptilt.reproduce import operations
from exptilt.reproduce.paper import Row
from exptilt.reproduce.results import FIGURES
from exptilt.storage import RUN, read_json, write_json
from exptilt.tilted import TiltedGenerator
from exptilt.train_run import pretrain_run, tilt_run
from exptilt.training.fit import resolve_recipe

CELL = "cell.json"


@dataclass(frozen=True)
class Settings:
    """How cells are made.

    Attributes:
        scale: ``"paper"``, or ``"laptop"``: the presets' and recipes' shorter settings.
        n: Samples for each seed.
        seeds: Seeds of the sampling.
        seed: Seed of all training.
        generators: Folder of trained generators, ``vae-mnist`` and so on; those that are not there are trained.
        epochs: Passes over the training set of every generator, in place of the scale's.
        limit: The first so many training images only.
        changes: Settings of every tilt in place of the scale's, by their names in ``TiltConfig``.
        sampling_steps: Steps of every chain at sampling, in place of the recipe's.
        device: Where to train.
        quiet: No progress bars.
    """

    scale: Scale = "laptop"
    n: int = 10_000
    seeds: tuple[int, ...] = (0, 1, 2)
    seed: int = 0
    generators: Path | None = None
    epochs: int | None = None
    limit: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    sampling_steps: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quiet: bool = True

    def __post_init__(self) -> None:
        if self.generators is not None and not self.generators.is_dir():
            raise InputError(f"--generators {self.generators}", "is no folder", "give one that holds vae-mnist, …")

    def recorded(self) -> dict[str, Any]:
        """What the figures of a cell depend on, as JSON values."""
        names = ("scale", "n", "seeds", "seed", "epochs", "limit", "sampling_steps")
        described = {name: getattr(self, name) for name in names}
        changes = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in self.changes.items()}  # type: ignore[arg-type]
        described |= {"generators": None if self.generators is None else str(self.generators), "changes": changes}
        return json.loads(json.dumps(described))


class Cells:
    """The cells in a folder, each under ``DATA SET/NAME``.

    Args:
        out: The folder.
        settings: How they are made.
        say: Takes a line before each cell.
    """

    def __init__(self, out: Path, settings: Settings, say: Callable[[str], None] = lambda _: None) -> None:
        self.out, self.settings, self.say = out, settings, say

    def kept(self, name: str, data: str) -> dict[str, Any] | None:
        """A cell that is done, made with these settings; None where there is none."""
        file = self.out / data / name / CELL
        cell = read_json(file) if file.exists() else None
        return cell if cell is not None and cell["settings"] == self.settings.recorded() else None

    def make(self, name: str, row: Row, data: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Train and measure a cell; one that is done is read, one that was cut off goes on.

        Args:
            name: Name of the cell.
            row: What it is of.
            data: The data set.
            changes: Settings of its tilt in place of the scale's.

        Raises:
            InputError: The data set or a generator is missing, or the folder holds a run with other settings.
            RunError: A training diverged.
        """
        if (cell := self.kept(name, data)) is not None:
            return cell
        self.say(f"{data}: {row.label}")
        folder = self.out / data / name
        if not row.recipe:
            model, run = self.generator(row.generator, data)
        else:
            model, run = self._tilted(folder, row, data, changes), folder
        return self.keep(name, row, data, model, run)

    def keep(self, name: str, row: Row, data: str, model: Generator | TiltedGenerator, run: Path) -> dict[str, Any]:
        """Measure a model, and leave its figures and costs as a cell.

        Args:
            name: Name of the cell.
            row: What it is of.
            data: The data set.
            model: The model.
            run: Folder of its training.
        """
        folder = self.out / data / name
        folder.mkdir(parents=True, exist_ok=True)
        result = self.measure(folder, model, data)
        # Second, so that a cell that is there is whole.
        cell = self._record(name, row, data, model, run, result)
        write_json(folder / CELL, cell)
        return cell

    def generator(self, kind: str, data: str) -> tuple[Generator, Path]:
        """A generator, given or trained, and its folder.

        Raises:
            InputError: There is no preset of that name, or what was given is tilted.
        """
        settings, name = self.settings, f"{kind}-{data}"
        given = None if settings.generators is None else settings.generators / name
        folder = self.out / data / kind if given is None or not given.is_dir() else given
        if folder != given:
            # A data set without presets of its own takes those of MNIST.
            known = name if name in PRESETS else f"{kind}-mnist"
            if known not in PRESETS:
                raise InputError(kind, "is no kind of generator that there is a preset of", "use vae, glow or glf")
            config = override(preset(known, settings.scale), data=data, epochs=settings.epochs, seed=settings.seed)
            vae = self.generator("vae", data)[1] if config.model in ("TwoStageVAE", "LatentFlowVAE") else None
            training = {"vae": vae, "limit": settings.limit, "device": settings.device, "quiet": settings.quiet}
            pretrain_run(config, folder, resume=True, keep_finished=True, **training)
        model = hub.load(folder, device=settings.device)
        if isinstance(model, TiltedGenerator):
            raise InputError(folder, "is tilted", "give the folder of a generator")
        return model, folder

    def measure(self, folder: Path, model: Generator | TiltedGenerator, data: str) -> dict[str, Any]:
        """Figures of a model on the test set; they stay in the folder."""
        settings = self.settings
        return measure_run(
            folder,
            model,
            data,
            n=settings.n,
            seeds=settings.seeds,
            device=settings.device,
            progress=not settings.quiet,
        )

    def tilted_from(self, row: Row, data: str) -> tuple[Generator, str, str]:
        """What a tilted cell is made of: the generator, its folder or name, and the recipe."""
        if row.recipe != "pixel-ebm":
            generator, trained = self.generator(row.generator, data)
            return generator, str(trained), row.recipe
        shape = load_dataset(data, "train", limit=1).shape
        recipe = f"pixel-ebm-{data}" if f"pixel-ebm-{data}" in RECIPES else "pixel-ebm"
        return UniformPixels(*shape).to(self.settings.device), "uniform", recipe

    def tilt_config(
        self, generator: Generator, recipe: str, data: str, changes: Mapping[str, Any] | None = None
    ) -> TiltConfig:
        """All settings of the tilt of a cell.

        Args:
            generator: What is tilted.
            recipe: Its recipe.
            data: The data set.
            changes: Settings in place of the scale's.
        """
        settings = self.settings
        by_scale = tilt_changes(recipe, type(generator).__name__, settings.scale, data)
        changed = {**by_scale, **settings.changes, **(changes or {}), "seed": settings.seed}
        config = resolve_recipe(recipe, generator, **changed)
        if settings.sampling_steps is not None:
            config = override(config, sampler=config.sampler.change(steps=settings.sampling_steps))
        return config

    def _tilted(self, folder: Path, row: Row, data: str, changes: Mapping[str, Any] | None) -> TiltedGenerator:
        generator, source, recipe = self.tilted_from(row, data)
        config = self.tilt_config(generator, recipe, data, changes)
        train = load_dataset(data, "train", self.settings.limit)
        quiet = self.settings.quiet
        return tilt_run(generator, source, train, config, folder, resume=True, keep_finished=True, quiet=quiet)

    def _record(
        self, name: str, row: Row, data: str, model: Any, run: Path, result: Mapping[str, Any]
    ) -> dict[str, Any]:
        record = read_json(run / RUN)
        drawn = result["n"] * len(result["seeds"])
        if isinstance(model, TiltedGenerator):
            # Runs of earlier versions do not tell their updates.
            figures, iterations = result["tilted"], record.get("updates", record["config"]["iterations"])
            flops = operations.of_tilt(model, record, drawn)
        else:
            figures, iterations = result["base"], _updates(record)
            flops = operations.of_generator(model, record, drawn)
        base = result["base"] if isinstance(model, TiltedGenerator) else None
        return {
            "name": name,
            "row": row.label,
            "dataset": data,
            "settings": self.settings.recorded(),
            "note": describe(record, limited=self.settings.limit is not None),
            "strength": model.strength if isinstance(model, TiltedGenerator) else None,
            **{key: figures[key] for key in FIGURES},
            "base": base and {key: base[key] for key in FIGURES},
            "reconstruction": result["reconstruction"] and result["reconstruction"]["fid"],
            "floor": result["floor"] and result["floor"]["fid"],
            "n": result["n"],
            "seeds": result["seeds"],
            "protocol": result["protocol"]["hash"],
            "cost": {
                "iterations": iterations,
                "gradient_evaluations": record.get("gradient_evaluations", 0),
                "gradients_a_sample": model.sampler.gradients if isinstance(model, TiltedGenerator) else 0,
                "seconds": training_seconds(run, record),
                "sampling_seconds": round(figures["seconds"], 1),
                "threads": record.get("threads"),
                "device": record.get("device"),
                "flops": flops,
            },
            "run": str(run),
            "training_command": record.get("command"),
            "training_commit": record.get("commit"),
            **provenance.origin(),
        }


def describe(record: Mapping[str, Any], *, limited: bool) -> str:
    """What a reader of its figures must know of a training, in a few words.

    Args:
        record: What its run has recorded.
        limited: Whether it had a part of the training set only.
    """
    config = record["config"]
    images = f"{config['n_train']:,} training images"
    if config["kind"] == "pretrain":
        return f"{config['epochs']} epochs, {images}"
    recipe = RECIPES[config["recipe"]]
    changed = [f"{name} {config[name]}" for name in _SETTINGS if config[name] != getattr(recipe, name)]
    steps = {name: config[name]["steps"] for name in ("chain", "sampler")}
    changed += [f"{name} {n} steps" for name, n in steps.items() if n != getattr(recipe, name).steps]
    changed += [f"by own and learned encoder, the {record['encoder']} kept"] if "encoder" in record else []
    changed += [images] if limited else []
    return f"recipe {config['recipe']}, {config['iterations']:,} iterations" + (
        f"; {', '.join(changed)}" if changed else ""
    )


# Settings whose change is told beside a figure.
_SETTINGS = ("energy", "energy_width", "batch_size", "walkers")


def _updates(record: Mapping[str, Any]) -> int:
    config = record["config"]
    return config["epochs"] * max(1, config["n_train"] // config["batch_size"])
