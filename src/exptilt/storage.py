"""Files that are either whole or absent: atomic JSON and safetensors, read as data and never as code."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch

from exptilt.errors import InputError

METADATA_KEY = "exptilt"
LARGEST_RECORD = 1 << 26
"""Bytes of a JSON file: what a run leaves has some thousand."""
# Bytes of a safetensors file from which it is mapped and not read.
_MAPPED_FROM = 1 << 28
_DIGEST_KEY = "exptilt-sha256"
# Ends the names of files that are being written; a leading dot hides them.
_UNFINISHED = ".exptilt-tmp"
MODULE_CONFIG, MODULE_WEIGHTS = "config.json", "model.safetensors"
# What a run leaves in its folder: its settings, its log, its evaluation, its log Z.
RUN, LOG, RESULT, LIKELIHOOD = "run.json", "log.jsonl", "result.json", "likelihood.json"
# The card of a model and the picture on it.
CARD, GRID = "README.md", "samples.png"

# Folders from which this process has removed what killed writers left.
_tidied: set[Path] = set()


@contextlib.contextmanager
def atomic(path: str | Path, earlier: str | Path | None = None) -> Iterator[BinaryIO]:
    """A file to write whose content takes the place of ``path`` at the end, and only if there was no error.

    What a writer that was killed has left unfinished in the folder is removed first.

    Args:
        path: The file. Its folder is made if it is missing.
        earlier: A name beside it that what stood at ``path`` is kept under.

    Raises:
        OSError: It cannot be written; ``filename`` is always set.
    """
    path = Path(path)
    temporary: Path | None = None
    _require_regular_place(path)
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _tidy(path.parent)
            descriptor, temporary = _new_file(path)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                # mkstemp makes the file private; give it the mode that open() would have given.
                mask = os.umask(0)
                os.umask(mask)
                temporary.chmod(0o666 & ~mask)
                if os.name == "nt":
                    file.close()  # Elsewhere it stays locked until it has its name.
                if earlier is not None and path.exists():
                    path.replace(earlier)
                temporary.replace(path)
            _sync_folder(path.parent)
    except BaseException:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise


def require_place(path: str | Path) -> None:
    """Check that a file can be written at a path: to be asked before the hours whose result it is to hold.

    Raises:
        OSError: What stands there is no regular file (a device would be replaced), or the folder cannot be written.
    """
    path = Path(path)
    _require_regular_place(path)
    # A folder that is missing is made when the file is written.
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        error.filename = str(path)
        raise


def _require_regular_place(path: Path) -> None:
    if path.is_dir():
        raise OSError(errno.EISDIR, "Is a directory", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Is no regular file", str(path))


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An error of a disk that names no file, as that of write(), or one that is being written, names ``path``."""
    try:
        yield
    except OSError as error:
        of_disk = error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        if of_disk or str(error.filename).endswith(_UNFINISHED):
            error.filename = str(path)
        raise


def _sync_folder(folder: Path) -> None:
    """Make names in a folder last through a power failure, where the system can do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _new_file(path: Path) -> tuple[int, Path]:
    """A file beside ``path`` to write to, held by a lock that ends with this process."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        _lock(descriptor, wait=True)
        # Another process may have taken it for abandoned before it was locked.
        if Path(name).exists():
            return descriptor, Path(name)
        os.close(descriptor)


def _tidy(folder: Path) -> None:
    """Remove unfinished files whose writers are gone, once in each process and folder."""
    if folder in _tidied:
        return
    _tidied.add(folder)
    with contextlib.suppress(OSError):
        for left in [entry for entry in folder.iterdir() if entry.name.endswith(_UNFINISHED)]:
            # Where locks are not to be had, nothing tells a writer that is gone from one that is at work.
            with contextlib.suppress(OSError), left.open("rb") as file:
                if _lock(file.fileno(), wait=False):
                    left.unlink()


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Hold a file as long as it is open; False where that cannot be."""
    if os.name == "nt":
        return True  # There, a file that is open elsewhere cannot be removed.
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new one, never a part."""
    with atomic(path) as file:
        file.write(content)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def require_regular(path: Path) -> None:
    """Check that a path is a regular file: opening a pipe would wait for ever, and a device may have no end.

    Raises:
        InputError: It is none, or nothing is there.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return
        fault = "is no regular file"
    except (FileNotFoundError, NotADirectoryError):
        fault = "no such file"
    except (OSError, ValueError) as error:
        fault = f"cannot be read ({error})"
    raise InputError(path, fault, "give a folder that exptilt has written")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is missing, is not JSON, or has more than ``LARGEST_RECORD`` bytes.
    """
    path = Path(path)
    require_regular(path)
    if (size := path.stat().st_size) > LARGEST_RECORD:
        raise InputError(path, f"is too large for a record ({size:,} bytes)", "restore it or remove it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, f"not a readable JSON file ({error})", "restore it or write it anew") from None


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Any = None,
    earlier: str | Path | None = None,
) -> None:
    """Write tensors and one JSON value as a safetensors file, atomically, with a digest of both.

    ``earlier`` is a name beside it that the file that stood there is kept under.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {} if metadata is None else {METADATA_KEY: json.dumps(metadata, allow_nan=False)}
    header[_DIGEST_KEY] = _digest(contiguous, header.get(METADATA_KEY))
    with atomic(path, earlier) as file:
        file.write(safetensors.torch.save(contiguous, header))


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Read a safetensors file. Where it holds a digest, as those of exptilt do, its content is compared with it.

    Returns:
        The tensors by name, and the JSON value that was stored with them (None if there was none).

    Raises:
        InputError: The file is missing, truncated, not safetensors, or not what was written.
    """
    path = Path(path)
    require_regular(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # A mapped file is read in less memory, but each tensor costs 57 bytes that safetensors 0.4 to 0.8 never
            # gives back; a process that loads small files for days would feel it.
            mapped = path.stat().st_size > _MAPPED_FROM
            tensors = {name: file.get_tensor(name) for name in file.keys()} if mapped else {}  # noqa: SIM118
        if not mapped:
            tensors = safetensors.torch.load(path.read_bytes())
        if _DIGEST_KEY in header and header[_DIGEST_KEY] != _digest(tensors, header.get(METADATA_KEY)):
            raise InputError(path, "its bytes have changed since it was written", "restore it or write it anew")
        return tensors, json.loads(header[METADATA_KEY]) if METADATA_KEY in header else None
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RecursionError, safetensors.SafetensorError) as error:
        raise InputError(path, f"not a whole safetensors file ({error})", "restore it or write it anew") from None


def _digest(tensors: Mapping[str, torch.Tensor], metadata: str | None) -> str:
    """SHA-256 of the names, types, shapes and numbers of tensors, and of what is stored with them."""
    digest = hashlib.sha256((metadata or "").encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_shapes(
    expected: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], source: str | Path
) -> None:
    """Compare the names and shapes of a file's tensors with those of a module's state.

    Raises:
        InputError: A tensor is missing, unexpected or has another shape than the module's.
    """
    missing, unexpected = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or unexpected:
        names = ", ".join((missing + unexpected)[:3])
        raise InputError(
            source,
            f"{len(missing)} tensors are missing and {len(unexpected)} unexpected ({names}, …)",
            "its weights and its config.json must come from the same model",
        )
    for name, tensor in expected.items():
        if tuple(shapes[name]) != tuple(tensor.shape):
            raise InputError(
                source,
                f"tensor {name!r} has shape {tuple(shapes[name])} and the model needs {tuple(tensor.shape)}",
                "its weights and its config.json must come from the same model",
            )


def load_weights(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Copy ``tensors`` into ``module``, every name and shape checked first; half precision is widened.

    Raises:
        InputError: A tensor is missing, unexpected or has another shape than the module's.
    """
    expected = module.state_dict()
    check_shapes(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, source)
    module.load_state_dict({name: tensors[name].to(tensor.dtype) for name, tensor in expected.items()})


def described(module: torch.nn.Module) -> dict[str, Any]:
    """Class and constructor's arguments of a module that knows its ``arguments()``, as JSON values."""
    return {"class": type(module).__name__, "arguments": module.arguments()}  # type: ignore[operator]


def save_module(module: torch.nn.Module, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a module that knows its constructor's ``arguments()``: weights (floats as ``dtype``), then its class.

    Raises:
        InputError: A weight does not fit the range of ``dtype``.
    """
    config = described(module)
    weights = module.state_dict()
    if dtype is not None:
        weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
        for name, value in weights.items():
            if not bool(value.isfinite().all()):
                raise InputError(name, f"holds numbers that {dtype} cannot", "keep the weights in float32")
    write_tensors(Path(folder) / MODULE_WEIGHTS, weights)
    write_json(Path(folder) / MODULE_CONFIG, config)
