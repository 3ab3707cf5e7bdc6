"""Models in folders, here or on the Hugging Face Hub: safetensors and JSON, nothing that runs.

A generator is ``config.json`` (class and arguments) and ``model.safetensors``; a tilted generator is
``generator/``, ``energy/`` and ``latent_energy/`` of that kind, and ``model_index.json`` with its sampler.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import sys
from pathlib import Path
from typing import Any, get_args

import torch

from exptilt import remote
from exptilt.config import Precision, SamplerConfig, from_dict
from exptilt.density import LogZ
from exptilt.energies import ENERGIES
from exptilt.errors import InputError, RunError, first_line
from exptilt.generators import GENERATORS
from exptilt.generators.base import Generator
from exptilt.storage import (
    CARD,
    GRID,
    LIKELIHOOD,
    MODULE_CONFIG,
    MODULE_WEIGHTS,
    RESULT,
    RUN,
    load_weights,
    read_json,
    read_tensors,
    write_json,
)
from exptilt.tilted import INDEX, PARTS, TiltedGenerator
from exptilt.vetting import (
    LARGEST_JSON,
    LARGEST_WEIGHTS,
    Allotment,
    check_buffers,
    check_sizes,
    check_tensors,
    member,
    read_config,
    read_shapes,
)

LARGEST_ARGUMENT = 1 << 16
"""Whole numbers that a constructor may get from a file: what it allocates follows from them."""
# Numbers in all latents that one chain chooses from, or that its replicas have, where there are more of them than that.
_LARGEST_CHAIN = 1 << 26

_MEND = f"give a folder with {MODULE_CONFIG} or {INDEX}, as pretrain and tilt write them"
_PREFIXES = ("", *(f"{part}/" for part in PARTS))
# What is downloaded of a model, and how many bytes each file may have.
_LIMITS = {
    **dict.fromkeys((INDEX, RUN, RESULT, LIKELIHOOD, *(folder + MODULE_CONFIG for folder in _PREFIXES)), LARGEST_JSON),
    **dict.fromkeys((folder + MODULE_WEIGHTS for folder in _PREFIXES), LARGEST_WEIGHTS),
    **dict.fromkeys((CARD, GRID), 1 << 25),
}
MANAGED = frozenset(_LIMITS)
"""Names of all files that a model on the Hub may have from exptilt."""


def build(classes: dict[str, type[Any]], name: object, arguments: object, source: object) -> Any:
    """An instance of one of ``classes`` from its name and arguments, both checked.

    Raises:
        InputError: The class is not one of ours, or an argument is unknown or of the wrong type.
    """
    kind = _known(classes, name, source)
    parameters = inspect.signature(kind).parameters
    if not isinstance(arguments, dict):
        raise InputError(source, "arguments are no JSON object", "restore the file")
    built = dict(arguments)
    for key, value in arguments.items():
        if key not in parameters:
            raise InputError(source, f"{name} takes no argument {key!r}", f"it takes {', '.join(parameters)}")
        if key in getattr(kind, "nested", ()):
            part = value if isinstance(value, dict) else {}
            # Generators in generators in generators there are none.
            plain = {known: other for known, other in classes.items() if not getattr(other, "nested", ())}
            built[key] = build(plain, part.get("class"), part.get("arguments"), source)
            continue
        expected = _type(parameters[key])
        if type(value) is int and expected is float and _is_finite(value):
            value = built[key] = float(value)
        if type(value) is not expected or expected not in (int, float, str):
            raise InputError(source, f"{key} = {value!r} has the wrong type", "restore the file")
        # Bounded before anything is allocated: a file from a stranger must not fill the memory. What is too small for
        # the class, it refuses itself.
        if expected is int and not 0 <= value <= LARGEST_ARGUMENT:
            fault = f"{key} = {value} is out of range"
            raise InputError(source, fault, f"give a whole number from 0 to {LARGEST_ARGUMENT}")
        if expected is float and not _is_finite(value):
            raise InputError(source, f"{key} = {value} is out of range", "give a finite number")
    return kind(**built)


def load(
    path: str | Path,
    *,
    generator: Generator | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    token: remote.Token = None,
    local_files_only: bool = False,
    progress: bool = False,
) -> Generator | TiltedGenerator:
    """A model from the folder that a command or ``save_pretrained`` wrote, or from the Hugging Face Hub.

    Nothing in its files runs. They are checked before they take memory: that classes are known, that sizes and shapes
    agree with each other and with the files' lengths, that links stay in the folder.

    Args:
        path: The folder; or, where there is none of this name, ``user/name`` or ``user/name@revision`` on the Hub.
        generator: The generator of a tilted model that was saved without one (a wrapped decoder).
        device: Where to put it; the CPU unless given.
        revision: Branch, tag or commit on the Hub; the main branch unless given. A commit pins the model.
        token: Access token for a private or gated model; the one that is stored on this machine unless given.
        local_files_only: Do not ask the Hub; take what an earlier download left in its cache. That is also taken
            where the Hub cannot be reached.
        progress: Show progress bars of the download.

    Raises:
        InputError: The folder is missing or holds no whole model of exptilt, or one with a generator beside which none
            may be given; or the Hub has none of this name, or not for this account.
        RunError: The Hub does not answer.
    """
    folder = locate(path, revision=revision, token=token, local_files_only=local_files_only, progress=progress)
    parts = _outline(folder)
    if generator is not None and (parts is None or "generator" in parts):
        raise InputError("generator=", f"is of no use: {folder} holds its own", "leave it out")
    model = (
        _load_part(folder, GENERATORS).freeze()
        if parts is None
        else _load_tilted(folder, read_config(member(folder, INDEX)), parts, generator)
    )
    return model.to(device) if device is not None else model


def locate(
    path: str | Path,
    *,
    revision: str | None = None,
    token: remote.Token = None,
    local_files_only: bool = False,
    progress: bool = False,
) -> Path:
    """The folder of a model: ``path`` itself where it exists, else that of a download; arguments as in :func:`load`.

    Raises:
        InputError: There is neither a folder nor a model on the Hub, or a local folder is asked for a revision.
        RunError: The Hub does not answer.
    """
    folder = Path(path)
    # Unlike Path.exists, this takes any text: a name that is too long for a file is none.
    if os.path.exists(folder):  # noqa: PTH110
        if revision is not None:
            raise InputError(path, "is a folder here, which has no revisions", f"leave revision={revision!r} out")
        return folder
    given = remote.split_id(folder.as_posix())
    if given is None:
        raise InputError(path, "no such folder", f"{_MEND}, or user/name on the Hub")
    repo_id, pinned = given
    if pinned is not None and revision not in (None, pinned):
        raise InputError(path, f"names another revision than revision={revision!r}", "give one of them")
    try:
        return remote.download(
            repo_id,
            _LIMITS,
            check_described,
            revision=pinned or revision,
            token=token,
            local_files_only=local_files_only,
            progress=progress,
        )
    except RunError as error:
        if not folder.parent.is_dir():
            raise
        # With a folder of the user's name here, it is more likely a name that was mistyped than an id.
        raise InputError(path, f"no such folder in {folder.parent}, nor can it be had from the Hub", _MEND) from error


def model_files(folder: str | Path) -> dict[str, Path]:
    """The files that a model in a folder consists of, by their names relative to it.

    Raises:
        InputError: A file is missing, or the folder holds no whole model of exptilt.
    """
    folder = Path(folder)
    parts = _outline(folder)
    names = [(*module, name) for module in _modules(parts) for name in (MODULE_CONFIG, MODULE_WEIGHTS)]
    if parts is not None:
        names.append((INDEX,))
    return {"/".join(name): member(folder, *name) for name in names}


def check_described(folder: Path) -> None:
    """Refuse a folder whose JSON files describe no model of exptilt; weights are not looked at.

    Raises:
        InputError: It describes none, or a class is not one of ours.
    """
    for module in _modules(_outline(folder)):
        source = member(folder, *module, MODULE_CONFIG)
        classes = GENERATORS if module in ((), ("generator",)) else ENERGIES
        _known(classes, read_config(source).get("class"), source)


def require_memory(sampler: SamplerConfig, generator: Generator, source: object) -> None:
    """Refuse a chain that takes more memory than any machine has.

    Raises:
        InputError: It has too many candidates, prior samples to choose from, or replicas.
    """
    most = max(LARGEST_ARGUMENT, _LARGEST_CHAIN // math.prod(generator.latent_shape))
    for name in ("candidates", "resample", "replicas"):
        if (value := getattr(sampler, name)) > most:
            raise InputError(source, f"{name} = {value} is out of range", f"at most {most} fit into memory")


def save_log_z(folder: str | Path, tilted: TiltedGenerator) -> None:
    """Write the log Z of ``tilted`` into the index that ``folder`` holds of it, and nothing else."""
    source = Path(folder) / INDEX
    known_z = {} if tilted.log_z is None else {"log_z": dataclasses.asdict(tilted.log_z)}
    write_json(source, {**read_json(source), **known_z})


def _outline(folder: Path) -> list[str] | None:
    """Names of the parts of a tilted generator; None for a generator."""
    if not (folder / INDEX).is_file():
        if (folder / MODULE_CONFIG).is_file():
            return None
        fault = "holds no model" if folder.is_dir() else "no such folder"
        raise InputError(folder, fault, _MEND)
    source = member(folder, INDEX)
    index = read_config(source)
    if index.get("class") != "TiltedGenerator":
        raise InputError(source, "does not describe a TiltedGenerator", "restore the file")
    names = index.get("parts")
    if not isinstance(names, list) or any(name not in PARTS for name in names):
        raise InputError(source, f"parts {names!r} are not known", f"they must be among {', '.join(PARTS)}")
    return names


def _modules(parts: list[str] | None) -> list[tuple[str, ...]]:
    """Where the modules of a model lie in its folder: in it, or in a subfolder for each part."""
    return [()] if parts is None else [(part,) for part in parts]


def _load_tilted(folder: Path, index: dict[str, Any], names: list[str], generator: Generator | None) -> TiltedGenerator:
    source = folder / INDEX
    if "generator" in names:
        generator = _load_part(folder, GENERATORS, "generator")
    if generator is None:
        raise InputError(folder, "was saved without its generator", "give load(…, generator=wrap(…))")
    strength, precision = index.get("strength", 1.0), index.get("precision", "auto")
    if not _is_finite(strength) or precision not in get_args(Precision):
        raise InputError(source, "strength or precision is malformed", "restore the file")
    sampler = from_dict(SamplerConfig, index.get("sampler", {}), source)
    require_memory(sampler, generator, source)
    return TiltedGenerator(
        generator,
        _load_part(folder, ENERGIES, "energy") if "energy" in names else None,
        latent_energy=_load_part(folder, ENERGIES, "latent_energy") if "latent_energy" in names else None,
        sampler=sampler,
        strength=float(strength),
        precision=precision,
        log_z=LogZ.read(index["log_z"], source) if "log_z" in index else None,
    )


def _load_part(folder: Path, classes: dict[str, type[Any]], *part: str) -> Any:
    """The module in a folder, or in the subfolder ``part`` of it."""
    source, weights = member(folder, *part, MODULE_CONFIG), member(folder, *part, MODULE_WEIGHTS)
    config, shapes = read_config(source), read_shapes(weights)
    try:
        with Allotment(shapes, source):
            module = build(classes, config.get("class"), config.get("arguments"), source)
    except InputError as error:
        if error.subject == str(source):
            raise
        raise InputError(f"{source}: {error.subject}", error.fault, error.mend) from None
    except (RuntimeError, ValueError, TypeError, AssertionError, ArithmeticError, LookupError) as error:
        fault = f"its arguments do not fit together ({first_line(error)})"
        raise InputError(source, fault, "restore the file") from None
    if isinstance(module, Generator):
        check_sizes(module, source)
        if 0 in (*module.data_shape, *module.latent_shape):
            fault = f"makes samples of shape {module.data_shape} of latents of shape {module.latent_shape}"
            raise InputError(source, fault, "restore the file")
    check_tensors(module, shapes, weights)
    tensors = read_tensors(weights)[0]
    check_buffers(module, tensors, weights)
    load_weights(module, tensors, weights)
    return module


def _type(parameter: inspect.Parameter) -> type[Any]:
    """What an argument of a constructor must be: what its default is, else what it is declared to be."""
    if parameter.default is not inspect.Parameter.empty:
        return type(parameter.default)
    return {"int": int, "float": float}.get(parameter.annotation, str)


def _is_finite(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def _known(classes: dict[str, type[Any]], name: object, source: object) -> type[Any]:
    if not isinstance(name, str) or name not in classes:
        raise InputError(source, f"class {name!r} is not known", f"it must be one of {', '.join(classes)}")
    return classes[name]
