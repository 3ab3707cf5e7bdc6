"""Experiment trackers, through accelerate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from exptilt.errors import InputError, first_line

Tracker = Callable[[dict[str, float], int], None]

# Those of the extras, which are tested. Their project is called exptilt, and a run as its folder.
_PROJECT = "exptilt"
_TESTED = ("tensorboard", "trackio", "wandb")


def make_tracker(name: str, folder: Path, config: dict[str, Any]) -> tuple[Tracker, Callable[[], None]]:
    """A function that logs figures to the tracker called ``name``, and one that closes it.

    Args:
        name: ``"tensorboard"``, ``"trackio"``, ``"wandb"``, or another tracker that accelerate knows and that is
            installed.
        folder: Where a tracker with local files writes them; trackio has a place of its own for all runs.
        config: Settings of the run; what is not a plain value is left out.

    Raises:
        InputError: The tracker is unknown or not installed, or does not start: without its login, for example.
    """
    from accelerate import Accelerator

    if name in _TESTED:
        fault = InputError(f"--log {name}", "is not installed", f"pip install 'exptilt[{name}]'")
    else:
        mend = f"install it, or use one of {', '.join(_TESTED)}"
        fault = InputError(f"--log {name}", "is not installed or not known", mend)
    try:
        accelerator = Accelerator(log_with=name, project_dir=str(folder))
    except ValueError:
        raise fault from None
    if not accelerator.log_with:
        raise fault
    plain = {key: value for key, value in config.items() if isinstance(value, (int, float, str, bool))}
    run = folder.resolve().name
    options = {"trackio": {"name": run}, "wandb": {"name": run, "dir": str(folder)}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers("tensorboard" if name == "tensorboard" else _PROJECT, plain, options)
    except Exception as error:  # A tracker raises what it likes, without network or login for example.
        fault = f"does not start: {first_line(error)}"
        raise InputError(f"--log {name}", fault, "mend that, or leave --log out") from error

    def close() -> None:
        # Not accelerator.end_training(), which also parts the processes of a run.
        for tracker in accelerator.trackers:
            tracker.finish()

    return lambda figures, iteration: accelerator.log(figures, step=iteration), close
