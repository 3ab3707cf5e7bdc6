"""Experiment trackers, through accelerate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from exptilt.errors import InputError

Tracker = Callable[[dict[str, float], int], None]


def make_tracker(name: str, folder: Path, config: dict[str, Any]) -> tuple[Tracker, Callable[[], None]]:
    """A function that logs figures to the tracker called ``name``, and one that closes it.

    Args:
        name: ``"tensorboard"``, or another tracker that accelerate knows and that is installed.
        folder: Where a tracker with local files writes them.
        config: Settings of the run; what is not a plain value is left out.

    Raises:
        InputError: The tracker is unknown or not installed.
    """
    from accelerate import Accelerator

    fault = InputError(f"--log {name}", "is not installed or not known", "install it, or use --log tensorboard")
    try:
        accelerator = Accelerator(log_with=name, project_dir=str(folder))
    except ValueError:
        raise fault from None
    if not accelerator.log_with:
        raise fault
    plain = {key: value for key, value in config.items() if isinstance(value, (int, float, str, bool))}
    accelerator.init_trackers("tensorboard" if name == "tensorboard" else "exptilt", config=plain)

    def close() -> None:
        # Not accelerator.end_training(), which also parts the processes of a run.
        for tracker in accelerator.trackers:
            tracker.finish()

    return lambda figures, iteration: accelerator.log(figures, step=iteration), close
