"""Where a result comes from: the command that was typed, and the state of the source."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import exptilt

if TYPE_CHECKING:
    import torch

# Names the commit of a source without its history, as in a container.
COMMIT_VARIABLE = "EXPTILT_COMMIT"

_CHECKOUT = Path(__file__).resolve().parents[2]


def origin() -> dict[str, str | None]:
    """Command, commit and version, as they stand beside a result."""
    return {"command": command(), "commit": commit(), "version": exptilt.__version__}


def command() -> str:
    """The command line of this process as it can be typed again."""
    script, arguments = Path(sys.argv[0]), sys.argv[1:]
    if script.name in ("exptilt", "cli.py"):
        return shlex.join(["exptilt", *arguments])
    if script.resolve().parent == _CHECKOUT / "benchmarks":
        return shlex.join(["python", f"benchmarks/{script.name}", *arguments])
    return "(Python API)"


def commit() -> str | None:
    """The commit of the source, with ``-dirty`` where files differ from it.

    Outside of a checkout it is what the environment variable ``EXPTILT_COMMIT`` names, else None.
    """
    return _of_checkout() or os.environ.get(COMMIT_VARIABLE)


def device_name(device: torch.device) -> str:
    """What a time was measured on: the GPU's name, or ``cpu``."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _of_checkout() -> str | None:
    folder = Path(__file__).parent
    describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        inside = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, timeout=10
        )
        if inside.returncode:
            return None
        return subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
