"""What the commands share: devices, loading, and what is said on standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from exptilt import distributed, hub
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.tilted import TiltedGenerator

console = Console(stderr=True, highlight=False)


def load(path: Path, device: str, *, progress: bool = False) -> Generator | TiltedGenerator:
    """The model in a folder, or on the Hub, on the device of that name."""
    return hub.load(path, device=find_device(device), progress=progress)


def find_device(name: str) -> torch.device:
    """auto, cpu, cuda, … as a device that is there."""
    several = distributed.world().size > 1
    if name == "auto":
        # Of several processes each has a device of its own.
        return distributed.world().device if several else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if several and name == "cuda":
        name = f"cuda:{distributed.world().local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"--device {name}", "is not available", "use auto or cpu") from None
    return device


def show(config: dict[str, Any], quiet: bool) -> None:
    """Print a configuration."""
    if not quiet:
        console.print_json(json.dumps(config))


def say(text: str, quiet: bool) -> None:
    """Print one line."""
    if not quiet:
        # A path may have brackets and colons in it, which are no markup.
        console.print(text, soft_wrap=True, markup=False, emoji=False)
