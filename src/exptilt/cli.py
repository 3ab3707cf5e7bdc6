"""The command line: reads arguments, calls the command, turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed or interrupted, 2 bad input. Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import exptilt
from exptilt.config import Precision
from exptilt.errors import InputError, RunError
from exptilt.presets import PRESETS, RECIPES, Scale

Number = Annotated[int, tyro.conf.arg(aliases=["-n"])]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    seed: int = 0
    """Fixes everything random."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, or cuda."""
    quiet: bool = False
    """No progress bar, no printed configuration."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Demo(Common):
    """The whole story on embedded data: train, freeze, tilt, sample, evaluate, report. About 2 minutes on 2 cores."""

    out: Path = Path("runs/demo")
    """Folder of the result: result.json, grid.png, report.html."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(Common):
    """Train a generator, or a feature network, from data."""

    preset: tyro.conf.Positional[Literal[*PRESETS]]  # type: ignore[valid-type]
    """What to train. Options that are not given are the preset's."""
    out: Path
    """Folder of the run."""
    data: str | None = None
    """Name, path or Hub id; the preset's own data set unless given."""
    scale: Scale = "paper"
    """paper: the paper's sizes and epochs. laptop: shorter and smaller, for 2 cores."""
    vae: Path | None = None
    """Folder of the trained VAE that two-stage and vae-flow presets build on."""
    epochs: int | None = None
    """Passes over the training set."""
    batch_size: int | None = None
    """Images in one update."""
    learning_rate: float | None = None
    """Adam's learning rate."""
    ema_decay: float | None = None
    """Decay of the running mean of the weights that is kept; 0 keeps the last weights."""
    precision: Precision | None = None
    """Arithmetic of convolutions; auto is bfloat16 where the processor has it."""
    limit: int | None = None
    """Use the first so many images of each split only."""
    resume: bool = False
    """Go on with the run in --out."""
    log: str | None = None
    """Also log to a tracker: tensorboard, or another that accelerate knows."""


@dataclass(frozen=True, kw_only=True)
class Tilt(Common):
    """Learn an energy for a frozen generator, and save the tilted generator."""

    generator: tyro.conf.Positional[Path]
    """Folder of the generator."""
    data: str
    """Name, path or Hub id of the training data."""
    out: Path
    """Folder of the run."""
    recipe: Literal[*RECIPES] = "default"  # type: ignore[valid-type]
    """Named settings; the options below change them where they are given."""
    energy: Literal["resnet", "small", "mlp"] | None = None
    """Energy network."""
    energy_width: int | None = None
    """Its first stage's channels, or its hidden units."""
    iterations: int | None = None
    """Updates of the energy."""
    batch_size: int | None = None
    """Positives, and negatives, in one update."""
    learning_rate: float | None = None
    """Adam's learning rate."""
    chain_steps: int | None = None
    """Steps of the chain in training."""
    chain_step_size: float | None = None
    """ε of the chain in training."""
    steps: int | None = None
    """Steps of the chain at sampling."""
    step_size: float | None = None
    """ε of the chain at sampling."""
    check_every: int | None = None
    """Updates between two checks of quality, which are also the checkpoints."""
    precision: Precision | None = None
    """Arithmetic of convolutions; auto is bfloat16 where the processor has it."""
    features: str = "auto"
    """Feature network of the quality checks: auto (the data set's own), none, a name or a folder."""
    limit: int | None = None
    """Use the first so many training images only."""
    resume: bool = False
    """Go on with the run in --out."""
    log: str | None = None
    """Also log to a tracker: tensorboard, or another that accelerate knows."""


@dataclass(frozen=True, kw_only=True)
class Sample(Common):
    """Draw samples from a generator or a tilted generator."""

    model: tyro.conf.Positional[Path]
    """Folder of the model."""
    out: Path
    """A .png (a grid), a .npz (images as uint8), or a folder of PNG files."""
    n: Number = 64
    """Number of samples."""
    start: int = 0
    """Index of the first sample: sample i of a seed is always the same."""
    base: bool = False
    """Sample from the generator under the tilt, at the same latents."""
    steps: int | None = None
    """Steps of the chain; the model's own unless given."""
    step_size: float | None = None
    """ε of the chain; the model's own unless given."""
    batch_size: int | None = None
    """Chains side by side."""
    columns: int = 8
    """Columns of the grid."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Common):
    """Measure samples against the test set: FID, KID, precision, recall, density, coverage, class entropy."""

    model: tyro.conf.Positional[Path]
    """Folder of the model; of a tilted one, base and tilted are measured side by side."""
    data: str
    """Name, path or Hub id of the data."""
    n: Number = 10_000
    """Samples for each seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the sampling."""
    features: str = "auto"
    """Feature network: auto (the data set's own), a name or a folder."""
    json: Path | None = None
    """Where to write the result, beside result.json in the model's folder."""
    steps: int | None = None
    """Steps of the chain; the model's own unless given."""
    step_size: float | None = None
    """ε of the chain; the model's own unless given."""


@dataclass(frozen=True, kw_only=True)
class Report(Common):
    """Write one HTML page about a run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    out: Path | None = None
    """The page; report.html in the run's folder unless given."""
    n: Number = 64
    """Samples shown."""


@dataclass(frozen=True, kw_only=True)
class Export(Common):
    """Write a model's folder for others: half-precision weights, figures of those weights, a grid and a card."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    out: Path
    """The new folder."""
    data: str | None = None
    """Data set to measure on; without it the card has no figures."""
    n: Number = 10_000
    """Samples for each seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the sampling."""
    features: str = "auto"
    """Feature network: auto (the data set's own), a name or a folder."""
    precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """Type of the weights in the file."""
    link_generator: Path | None = None
    """Exported generator under a tilted one: link to it in place of a second copy."""


COMMANDS = (Demo, Pretrain, Tilt, Sample, Evaluate, Export, Report)


def main(arguments: list[str] | None = None) -> None:
    """Run one command, and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--version" in arguments[:1]:
        print(f"exptilt {exptilt.__version__}")
        return
    command = _parse(arguments)
    # SIGTERM stops as Ctrl-C does: with a line that says how to go on.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(_run(command))


def _run(command: Any) -> int:
    from exptilt import commands

    try:
        getattr(commands, type(command).__name__.lower())(command)
    except Exception as error:
        if command.debug:
            raise
        bad_input = isinstance(error, InputError)
        known = bad_input or isinstance(error, (RunError, OSError))
        name = "" if known else f"{type(error).__name__} in {_place(error)}: "
        hint = "" if known else " (--debug shows the traceback)"
        print(f"exptilt: {name}{' '.join(str(error).split())}{hint}", file=sys.stderr)
        return 2 if bad_input else 1
    except KeyboardInterrupt:
        again = "; repeat the command with --resume to go on" if hasattr(command, "resume") else ""
        print(f"exptilt: interrupted{again}", file=sys.stderr)
        return 1
    return 0


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _parse(arguments: list[str]) -> Any:
    """The command as a dataclass. tyro's boxed complaint becomes one line on standard error, exit code 2."""
    options: Any = None
    for kind in COMMANDS:
        option = Annotated[kind, tyro.conf.subcommand(name=kind.__name__.lower())]
        options = option if options is None else options | option
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                options,
                prog="exptilt",
                description=exptilt.__doc__,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code:
            print(f"exptilt: {_one_line(complaint.getvalue())}", file=sys.stderr)
        raise


def _one_line(box: str) -> str:
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()]
    rule = next((i for i, line in enumerate(box.splitlines()) if set(line.strip("│ ")) == {"─"}), len(lines))
    fault = " ".join(line for line in lines[1:rule] if line).rstrip(".")
    help_command = re.findall(r"exptilt[a-z ]*--help", " ".join(lines))
    return f"{fault}; see {help_command[-1] if help_command else 'exptilt --help'}"


if __name__ == "__main__":
    main()
