"""Any number of samples in a folder: tar files in the layout of WebDataset, Parquet files in that of the Hub, or a PNG
file of each.

Each shard holds the samples of a range of indices. A file is written as a whole or not at all, and is the same
whichever process writes it. ``manifest.json`` tells what was drawn, and of each shard its range and its SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import filelock
import numpy as np
import torch

from exptilt import distributed
from exptilt.data import to_uint8
from exptilt.errors import InputError
from exptilt.report.files import image_png
from exptilt.storage import atomic, read_json, write_bytes, write_json

Format = Literal["webdataset", "parquet"]
T = TypeVar("T")

MANIFEST = "manifest.json"
# What is known of each shard before all are there.
_RECORDS = ".shards"
_SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}


class Shard(NamedTuple):
    """A file, and the indices of its samples."""

    file: str
    indices: range


def plan(n: int, start: int, size: int, kind: Format) -> list[Shard]:
    """The shards of the samples ``start … start + n − 1``: ``size`` in each but the last.

    Raises:
        InputError: A number is out of range.
    """
    for name, value, least in (("-n", n, 1), ("--start", start, 0), ("--shard-size", size, 1)):
        if value < least:
            raise InputError(f"{name} {value}", "is out of range", f"give a whole number ≥ {least}")
    firsts = range(start, start + n, size)
    return [
        Shard(f"samples-{i:05d}-of-{len(firsts):05d}{_SUFFIXES[kind]}", range(first, min(first + size, start + n)))
        for i, first in enumerate(firsts)
    ]


def write_shards(
    folder: Path,
    shards: list[Shard],
    draw: Callable[[range], Iterator[torch.Tensor]],
    kind: Format,
    described: dict[str, Any],
    *,
    resume: bool = False,
) -> int:
    """Write shards, those of this process if several share the work, and the manifest.

    Args:
        folder: Where to.
        shards: What :func:`plan` gives.
        draw: Gives the samples with neighbouring indices, block by block: images (B, C, H, W) in [−1, 1] or points
            (B, D).
        kind: Format.
        described: What the samples depend on, JSON values; written to the manifest.
        resume: Keep the shards that are there, if they are of the same samples and not damaged.

    Returns:
        How many of the shards were there already.

    Raises:
        InputError: The folder holds something else, or other samples, or is being written.
        RunError: Another process has failed.
    """
    settings = json.loads(json.dumps({"format": kind, **described}))

    def finish() -> None:
        records = [_record(folder, shard) for shard in shards]
        write_json(folder / MANIFEST, {**settings, "complete": True, "shards": records})
        shutil.rmtree(folder / _RECORDS, ignore_errors=True)

    return _write_all(folder, settings, shards, lambda shard: int(_write(folder, shard, draw, kind)), finish, resume)


def write_pictures(
    folder: Path,
    parts: Sequence[range],
    draw: Callable[[range], Iterator[torch.Tensor]],
    described: dict[str, Any],
    *,
    resume: bool = False,
) -> int:
    """Write images as PNG files named by their indices, a share of them if there are several processes, and a manifest.

    Args:
        folder: Where to.
        parts: Indices of the images, those in a list that are drawn together. A part of which a file is missing is
            drawn whole, as its images then are the same to the last bit.
        draw: As in :func:`write_shards`.
        described: What the images depend on, JSON values; written to the manifest.
        resume: Keep the files that are there, if they are of the same images.

    Returns:
        How many of the files were there already.

    Raises:
        InputError: The folder holds something else, or other images, or is being written.
        RunError: Another process has failed.
    """
    settings = json.loads(json.dumps({"format": "png", **described}))

    def write(part: range) -> int:
        missing = {index: file for index in part if not (file := folder / f"{index:06d}.png").exists()}
        if missing:
            images = torch.cat([to_uint8(x).cpu() for x in draw(part)])
            for index, file in missing.items():
                write_bytes(file, image_png(images[index - part.start]))
        return len(part) - len(missing)

    def finish() -> None:
        write_json(folder / MANIFEST, {**settings, "complete": True, "shards": []})

    return _write_all(folder, settings, parts, write, finish, resume)


def _write_all(
    folder: Path,
    settings: dict[str, Any],
    parts: Sequence[T],
    write: Callable[[T], int],
    finish: Callable[[], None],
    resume: bool,
) -> int:
    """Write the parts of this process, and at the end what finishes the folder; the sum of what ``write`` returns."""
    with contextlib.ExitStack() as stack:
        distributed.on_main(lambda: stack.enter_context(_holding(folder, settings, resume)))
        with distributed.failing_together():
            world = distributed.world()
            kept = sum(write(part) for part in parts[world.rank :: world.size])
        total = torch.tensor([float(kept)])
        distributed.add_up([total])
        distributed.on_main(finish)
    return int(total)


@contextlib.contextmanager
def _holding(folder: Path, settings: dict[str, Any], resume: bool) -> Iterator[None]:
    """The folder for this command alone, with the manifest of what is to be written."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}", "is a file", "give a folder")
    manifest = folder / MANIFEST
    if folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
        if not resume:
            raise InputError(f"--out {folder}", "is not empty", "give --resume to go on with it, or a new folder")
        before = read_json(manifest)
        before = before if isinstance(before, dict) else {}
        if changed := sorted(name for name in settings if before.get(name) != settings[name]):
            fault = f"the samples there were drawn with other settings ({', '.join(changed[:4])})"
            raise InputError(f"--resume {folder}", fault, "repeat its settings, or give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            if not manifest.exists():
                write_json(manifest, {**settings, "complete": False, "shards": []})
            try:
                yield
            except BaseException:
                # Without any sample the folder is as good as new, and may be given again with other settings.
                if {path.name for path in folder.iterdir()} <= {".lock", MANIFEST}:
                    manifest.unlink(missing_ok=True)
                raise
    except filelock.Timeout:
        raise InputError(
            f"--out {folder}", "is being written by another command", "wait for it, or give another folder"
        ) from None


def _write(folder: Path, shard: Shard, draw: Callable[[range], Iterator[torch.Tensor]], kind: Format) -> bool:
    """Write a shard and its record; whether it was there already."""
    path = folder / shard.file
    known = _record(folder, shard)
    if known is not None and path.exists():
        if known["sha256"] == _digest(path):
            return True
        print(f"exptilt: {path}: is damaged; its samples are drawn anew", file=sys.stderr)
    stored = (to_uint8(x).cpu() if x.dim() == 4 else x.cpu() for x in draw(shard.indices))
    with atomic(path) as file:
        (_write_tar if kind == "webdataset" else _write_parquet)(file, stored, shard.indices.start)
    record = {"file": shard.file, "first": shard.indices.start, "count": len(shard.indices)}
    write_json(folder / _RECORDS / f"{shard.file}.json", {**record, "sha256": _digest(path)})
    return False


def _record(folder: Path, shard: Shard) -> dict[str, Any] | None:
    """What is known of a shard that was written before."""
    of_one = folder / _RECORDS / f"{shard.file}.json"
    records = [read_json(of_one)] if of_one.exists() else read_json(folder / MANIFEST)["shards"]
    return next((record for record in records if record["file"] == shard.file), None)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tar(file: BinaryIO, blocks: Iterable[torch.Tensor], first: int) -> None:
    """Members are named by the sample's index, ``.png`` for images and ``.npy`` for points; nothing tells the time."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for index, sample in enumerate((sample for block in blocks for sample in block), start=first):
            if sample.dim() == 3:
                content = image_png(sample)
            else:
                np.save(buffer := io.BytesIO(), sample.numpy())
                content = buffer.getvalue()
            member = tarfile.TarInfo(f"{index:012d}.{'png' if sample.dim() == 3 else 'npy'}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _write_parquet(file: BinaryIO, blocks: Iterable[torch.Tensor], first: int) -> None:
    """Columns ``image`` (as the Hub stores images) or ``point``, and ``index``; a row group a block."""
    import pyarrow
    import pyarrow.parquet

    writer = None
    for block in blocks:
        index = pyarrow.array(range(first, first + len(block)), pyarrow.int64())
        if block.dim() == 4:
            rows = [{"bytes": image_png(image), "path": None} for image in block]
            kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
            column = pyarrow.array(rows, kind)
        else:
            numbers = pyarrow.array(block.float().flatten().numpy())
            column = pyarrow.FixedSizeListArray.from_arrays(numbers, block.shape[1])
        name = "image" if block.dim() == 4 else "point"
        table = pyarrow.table({name: column, "index": index})
        if name == "image":
            features = {"image": {"_type": "Image"}, "index": {"dtype": "int64", "_type": "Value"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table)
        first += len(block)
    if writer is not None:
        writer.close()
