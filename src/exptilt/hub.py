"""Models in folders: safetensors and JSON, nothing that runs.

A generator is ``config.json`` (class and arguments) and ``model.safetensors``; a tilted generator is
``generator/``, ``energy/`` and ``latent_energy/`` of that kind, and ``model_index.json`` with its sampler.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import torch

from exptilt.config import SamplerConfig, from_dict
from exptilt.density import LogZ
from exptilt.energies import ENERGIES
from exptilt.errors import InputError
from exptilt.generators import GENERATORS
from exptilt.generators.base import Generator
from exptilt.storage import MODULE_CONFIG, MODULE_WEIGHTS, load_weights, read_json, read_tensors, write_json
from exptilt.tilted import INDEX, PARTS, TiltedGenerator

LARGEST_ARGUMENT = 1 << 16


def build(classes: dict[str, type[Any]], name: object, arguments: object, source: object) -> Any:
    """An instance of one of ``classes`` from its name and arguments, both checked.

    Raises:
        InputError: The class is not one of ours, or an argument is unknown or of the wrong type.
    """
    if not isinstance(name, str) or name not in classes:
        raise InputError(source, f"class {name!r} is not known", f"it must be one of {', '.join(classes)}")
    kind = classes[name]
    parameters = inspect.signature(kind).parameters
    if not isinstance(arguments, dict):
        raise InputError(source, "arguments are no JSON object", "restore the file")
    for key, value in arguments.items():
        if key not in parameters:
            raise InputError(source, f"{name} takes no argument {key!r}", f"it takes {', '.join(parameters)}")
        default = parameters[key].default
        wrong_type = default is not inspect.Parameter.empty and type(value) is not type(default)
        if type(value) not in (int, float, str) or wrong_type:
            raise InputError(source, f"{key} = {value!r} has the wrong type", "restore the file")
        # Bounded before anything is allocated: a file from a stranger must not fill the memory.
        if isinstance(value, (int, float)) and not 0 < value <= LARGEST_ARGUMENT:
            raise InputError(source, f"{key} = {value} is out of range", f"give a number in (0, {LARGEST_ARGUMENT}]")
    return kind(**arguments)


def load(
    path: str | Path, *, generator: Generator | None = None, device: str | torch.device | None = None
) -> Generator | TiltedGenerator:
    """A model from the folder that a command or ``save_pretrained`` wrote.

    Args:
        path: The folder.
        generator: The generator of a tilted model that was saved without one (a wrapped decoder).
        device: Where to put it; the CPU unless given.

    Raises:
        InputError: The folder is missing or holds no whole model of exptilt.
    """
    folder = Path(path)
    if (folder / INDEX).is_file():
        model: Generator | TiltedGenerator = _load_tilted(folder, generator)
    elif (folder / MODULE_CONFIG).is_file():
        model = _load_part(folder, GENERATORS).freeze()
    else:
        fault = "holds no model" if folder.is_dir() else "no such folder"
        raise InputError(path, fault, f"give a folder with {MODULE_CONFIG} or {INDEX}, as pretrain and tilt write them")
    return model.to(device) if device is not None else model


def _load_tilted(folder: Path, generator: Generator | None) -> TiltedGenerator:
    source = folder / INDEX
    index = read_json(source)
    if not isinstance(index, dict) or index.get("class") != "TiltedGenerator":
        raise InputError(source, "does not describe a TiltedGenerator", "restore the file")
    names = index.get("parts")
    if not isinstance(names, list) or any(name not in PARTS for name in names):
        raise InputError(source, f"parts {names!r} are not known", f"they must be among {', '.join(PARTS)}")
    if "generator" in names:
        generator = _load_part(folder / "generator", GENERATORS)
    if generator is None:
        raise InputError(folder, "was saved without its generator", "give load(…, generator=wrap(…))")
    strength, precision = index.get("strength", 1.0), index.get("precision", "auto")
    if not isinstance(strength, (int, float)) or precision not in ("auto", "float32", "bfloat16"):
        raise InputError(source, "strength or precision is malformed", "restore the file")
    return TiltedGenerator(
        generator,
        _load_part(folder / "energy", ENERGIES) if "energy" in names else None,
        latent_energy=_load_part(folder / "latent_energy", ENERGIES) if "latent_energy" in names else None,
        sampler=from_dict(SamplerConfig, index.get("sampler", {}), source),
        strength=float(strength),
        precision=precision,
        log_z=LogZ.read(index["log_z"], source) if "log_z" in index else None,
    )


def save_log_z(folder: str | Path, tilted: TiltedGenerator) -> None:
    """Write the log Z of ``tilted`` into the index that ``folder`` holds of it, and nothing else."""
    source = Path(folder) / INDEX
    known_z = {} if tilted.log_z is None else {"log_z": dataclasses.asdict(tilted.log_z)}
    write_json(source, {**read_json(source), **known_z})


def _load_part(folder: Path, classes: dict[str, type[Any]]) -> Any:
    config = read_json(folder / MODULE_CONFIG)
    if not isinstance(config, dict):
        raise InputError(folder / MODULE_CONFIG, "is no JSON object", "restore the file")
    tensors, _ = read_tensors(folder / MODULE_WEIGHTS)
    part = build(classes, config.get("class"), config.get("arguments"), folder / MODULE_CONFIG)
    load_weights(part, tensors, folder / MODULE_WEIGHTS)
    return part
