"""Images and points as a stranger might give them: damaged, lying about their size, larger than they look."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from hypothesis import strategies as st
from PIL import Image

from exptilt.data import load_dataset, load_images
from fuzzing.harness import Case, Entry, FaultError, Link, Special
from fuzzing.models import safetensors_files
from fuzzing.values import NUMBERS, TEXTS, mutated

_PIXELS = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
_STACK = np.random.default_rng(1).integers(0, 256, (6, 8, 8), np.uint8)
_LABELS = np.arange(6)


def _load(name: str) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        for read in (load_images, load_dataset):
            found = read(folder / name)
            if found.stored.numel() > 1 << 28:
                raise FaultError(f"{found.stored.numel():,} numbers were taken from a small file")

    return call


def encoded(kind: str, **options: Any) -> bytes:
    """A small picture as a file of that kind."""
    file = io.BytesIO()
    Image.fromarray(_PIXELS).convert(options.pop("mode", "RGB")).save(file, kind, **options)
    return file.getvalue()


@functools.cache
def _pictures() -> dict[str, bytes]:
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (0, 128, 255)]
    moving = io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    found = {
        "png": encoded("PNG"),
        "grey png": encoded("PNG", mode="L"),
        "palette png": encoded("PNG", mode="P"),
        "jpeg": encoded("JPEG"),
        "progressive jpeg": encoded("JPEG", progressive=True),
        "cmyk jpeg": encoded("JPEG", mode="CMYK"),
        "webp": encoded("WEBP", lossless=True),
        "lossy webp": encoded("WEBP"),
        "bmp": encoded("BMP"),
        "gif": moving.getvalue(),
        "tiff": encoded("TIFF"),
    }
    exif = Image.Exif()
    exif[0x0112] = 6
    return found | {"turned jpeg": encoded("JPEG", exif=exif), "turned png": encoded("PNG", exif=exif)}


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file, with its checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width: int, height: int, depth: int = 8, colour: int = 0, *, rows: int | None = None) -> bytes:
    """A PNG file of zeros that claims a size, and holds so many rows of it (all, unless given)."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    packer = zlib.compressobj(9)
    row = bytes(1 + (min(width, 1 << 22) * channels * depth + 7) // 8)
    content = b"".join(packer.compress(row) for _ in range(min(height, 4000) if rows is None else rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", content + packer.flush()), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


_CLAIMS = ((2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (1, 2**31 - 1), (60_000, 60_000), (100_000, 1), (0, 0), (0, 5))


def _text_chunk(kind: bytes) -> bytes:
    small = png_of(8, 8)
    return small[:33] + chunk(kind, b"x\0\0" + zlib.compress(bytes(1 << 26), 9)) + small[33:]


# PNG files that are small and large at once; each is made when it is first drawn.
PNG_BOMBS = [
    *(functools.cache(functools.partial(png_of, *size, rows=1)) for size in _CLAIMS),
    functools.cache(lambda: png_of(9_000, 9_000)),
    functools.cache(lambda: png_of(8_000, 8_000, colour=6, rows=500)),
    functools.cache(lambda: _text_chunk(b"zTXt")),
    functools.cache(lambda: _text_chunk(b"iCCP")),
    functools.cache(lambda: png_of(8, 8, 16)),
]


@st.composite
def pictures(draw: st.DrawFn) -> Case:
    """A folder of pictures, one of which something has changed."""
    kind = draw(st.sampled_from(sorted(_pictures())))
    if draw(st.integers(0, 19)) == 0:
        content, kind = draw(st.sampled_from(PNG_BOMBS))(), "a bomb"
    elif draw(st.integers(0, 9)) == 0:
        width, height = draw(st.sampled_from(NUMBERS[:11])), draw(st.sampled_from(NUMBERS[:11]))
        depth, colour = draw(st.sampled_from((1, 2, 4, 8, 16, 3))), draw(st.sampled_from((0, 2, 3, 4, 6, 1)))
        content = png_of(abs(int(width)) % 2**32, abs(int(height)) % 2**32, depth, colour, rows=2)
    else:
        content = draw(mutated(_pictures()[kind]))
    suffix = draw(st.sampled_from((".png", ".jpg", ".jpeg")))
    files: dict[str, Entry] = {f"set/b{suffix}": content}
    if draw(st.booleans()):
        files["set/a.png"] = encoded("PNG")
    return Case(_load("set"), files, kind)


@functools.cache
def _arrays() -> dict[str, bytes]:
    def npy(array: np.ndarray, **options: Any) -> bytes:
        file = io.BytesIO()
        np.lib.format.write_array(file, array, **options)
        return file.getvalue()

    def npz(write: Any, **arrays: np.ndarray) -> bytes:
        file = io.BytesIO()
        write(file, **arrays)
        return file.getvalue()

    objects = np.array([{"a": 1}], dtype=object)
    return {
        "images.npy": npy(_STACK),
        "points.npy": npy(np.zeros((6, 2), np.float32)),
        "turned.npy": npy(np.asfortranarray(_STACK)),
        "version.npy": npy(_STACK, version=(3, 0)),
        "plain.npz": npz(np.savez, images=_STACK, labels=_LABELS),
        "packed.npz": npz(np.savez_compressed, images=_STACK, labels=_LABELS),
        "pickle.npy": npy(objects, allow_pickle=True),
        "pickle.npz": npz(np.savez, images=objects),
    }


def npy_claiming(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A ``.npy`` file with a header of one's own."""
    text = header.encode("utf-8", "surrogatepass") + b"\n"
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text) % (2**16 if version[0] == 1 else 2**32))
    return b"\x93NUMPY" + version + size + text + data


_DESCR = (
    "'|u1'",
    "'<f4'",
    "'<i8'",
    "'|O'",
    "'<f2'",
    "'|V2147483647'",
    "'<U1000000'",
    "[('a','|u1'),('b','|O')]",
    "'|S0'",
)
_SHAPES = (
    "(6, 8, 8)",
    "(1099511627776,)",
    "(1099511627776, 1099511627776)",
    "(8589934592, 8, 8)",
    "(-1, 8, 8)",
    "(4294967296, 0, 8)",
    "(0, 8, 8)",
    "()",
    "(6, 8, 8, 1, 1, 1)",
    "(1,) * 10**9",
    "(True, 8, 8)",
    "(2.5, 8)",
    "6",
    "(" * 500 + ")" * 500,
    "(" + "1," * 70 + ")",
    "(60000, 28, 28)",
)
npy_headers = st.builds(
    lambda descr, order, shape, more: f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}{more}}}",
    st.sampled_from(_DESCR),
    st.sampled_from(("False", "True", "None", "__import__('os')")),
    st.sampled_from(_SHAPES),
    st.sampled_from((", ", ", 'x': 1", "")),
)


def _archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=9) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return file.getvalue()


@functools.cache
def _zeros() -> bytes:
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (400000, 28, 28), }"
    return _archive({"images.npy": npy_claiming(header, bytes(313_600_000))})


@functools.cache
def _labels_bomb() -> bytes:
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (400000000,), }"
    return _archive({"labels.npy": npy_claiming(header, bytes(400_000_000)), "images.npy": _arrays()["images.npy"]})


_SHORT = npy_claiming("{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }", bytes(100))
# Archives that are small and large at once, or that name other files; each is made when it is drawn.
NPZ_BOMBS = [
    _zeros,
    _labels_bomb,
    lambda: _archive({"images.npy": _zeros()}),
    lambda: _archive({"images.npy": _SHORT}),
    lambda: _archive(dict.fromkeys(("../images.npy", "/etc/images.npy"), _arrays()["images.npy"])),
    lambda: _archive({"images.npy": _arrays()["images.npy"]}, zipfile.ZIP_LZMA),
    lambda: _archive({"images.npy": _arrays()["images.npy"]}, zipfile.ZIP_BZIP2),
    functools.cache(lambda: _archive({f"{i}.npy": b"" for i in range(20_000)})),
    lambda: _archive({"images.npy": b"", "images": _arrays()["images.npy"]}),
    lambda: _archive({}),
]


@st.composite
def arrays(draw: st.DrawFn) -> Case:
    """A .npy or .npz file that is damaged, that lies, or that holds more than it should."""
    way = draw(st.sampled_from(("header", "header", "bytes", "bytes", "bytes", "bytes", "archive", "bomb")))
    name = draw(st.sampled_from(sorted(_arrays())))
    content = _arrays()[name]
    if way == "header":
        name, version = "x.npy", draw(st.sampled_from((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\xff\xff")))
        content = npy_claiming(draw(npy_headers), bytes(draw(st.sampled_from((0, 10, 384)))), version)
    elif way == "bytes":
        content = draw(mutated(content))
    elif way == "archive":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as packed:
            for member in draw(
                st.lists(st.sampled_from(("images.npy", "x.npy", "labels.npy", "y", "z")), max_size=3, unique=True)
            ):
                inner = npy_claiming(draw(npy_headers), bytes(384))
                packed.writestr(member, draw(mutated(inner)) if draw(st.booleans()) else inner)
        name, content = "x.npz", file.getvalue()
    elif draw(st.integers(0, 4)) == 0:
        name, content = "bomb.npz", draw(st.sampled_from(NPZ_BOMBS))()
    return Case(_load(name), {name: content}, f"{way} {name}")


@functools.cache
def _tensors() -> bytes:
    return safetensors.numpy.save({"images": _STACK, "labels": _LABELS})


@st.composite
def tensors(draw: st.DrawFn) -> Case:
    """A .safetensors file of images that something has changed."""
    return Case(_load("x.safetensors"), {"x.safetensors": draw(safetensors_files(_tensors()))})


def table(columns: dict[str, Any], **options: Any) -> bytes:
    """A Parquet file of columns."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def _structs(contents: list[Any]) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": content, "path": "x"} for content in contents], kind)


@functools.cache
def _tables() -> dict[str, bytes]:
    pictures, labels = [encoded("PNG")] * 6, [0, 1, 2, 3, 4, 5]
    structs, plain = {"image": _structs(pictures), "label": labels}, {"image": pictures, "label": labels}
    return {
        "structs": table(structs),
        "plain": table(plain, compression="none", use_dictionary=False),
        "zstd": table(plain, compression="zstd", write_page_checksum=True),
        "pages": table(structs, data_page_version="2.0", compression="gzip", row_group_size=2),
        "strings": table({"image": ["x"] * 6}),
        "lists": table({"image": [[1, 2]] * 6}),
        "nothing": table({"image": pa.array([None] * 6, pa.binary())}),
        "lists of structs": table({"image": [[{"bytes": b"x"}]] * 6}),
        "a dictionary": table({"image": pa.array(pictures, pa.binary()).dictionary_encode()}),
        "numbers": table({"image": list(range(6)), "label": ["x"] * 6}),
        "fractions": table({"image": pictures, "label": [0.5] * 6}),
        "negative": table({"image": pictures, "label": [-5] * 6}),
        "large": table({"image": pictures, "label": pa.array([2**64 - 1] * 6, pa.uint64())}),
        "twice": _twice(),
        "no column": table({"x": labels}),
        "no rows": table({"image": pa.array([], pa.binary())}),
        "a name": table({"image\x1b[2J\n": pictures}),
    }


def _twice() -> bytes:
    file = io.BytesIO()
    column = pa.array([encoded("PNG")] * 6)
    pq.write_table(pa.Table.from_arrays([column, column], names=["image", "image"]), file)
    return file.getvalue()


@functools.cache
def _repeated() -> bytes:
    rows = pa.array([0] * 4000, pa.int32())
    return table({"image": pa.DictionaryArray.from_arrays(rows, pa.array([bytes(8 << 20)]))}, compression="zstd")


# Tables that are small and large at once: long values that repeat, rows of nothing; made when they are first drawn.
PARQUET_BOMBS = [
    _repeated,
    functools.cache(lambda: table({"image": pa.nulls(3_000_000, pa.binary())})),
    functools.cache(lambda: table({"image": [bytes(100 << 20)] * 2}, compression="zstd", use_dictionary=False)),
    functools.cache(lambda: table({"image": [PNG_BOMBS[-5]()] * 2})),
    functools.cache(lambda: table({"image": [png_of(1_500, 1_500)] * 3000}, compression="zstd")),
]


@st.composite
def tables(draw: st.DrawFn) -> Case:
    """A Parquet file that is damaged, of other types than it should be, or larger than it looks."""
    kind = draw(st.sampled_from(sorted(_tables())))
    way = draw(st.integers(0, 39))
    if way == 0:
        content = draw(st.sampled_from(PARQUET_BOMBS))()
    else:
        content = _tables()[kind] if way < 3 else draw(mutated(_tables()[kind]))
    name = draw(st.sampled_from(("x.parquet", "test.parquet", "set/train-0.parquet")))
    files: dict[str, Entry] = {name: content}
    if draw(st.integers(0, 4)) == 0:
        files["set/train-1.parquet"] = _tables()[draw(st.sampled_from(sorted(_tables())))]
    return Case(_load("set" if any(file.startswith("set/") for file in files) else name), files, f"{kind} {name}")


@st.composite
def folders(draw: st.DrawFn) -> Case:
    """A data folder in which files, folders, links and pipes stand where they should not."""
    names = ("train", "test", "train.parquet", "test.parquet", "a.npy", "b.npz", "c.safetensors", "a.png", "b.jpg")
    names += ("train/a.png", "test/a.png", "train/0/a.png", "data/x.parquet", "0/a.png", "1/a.png", ".hidden/a.png")
    names += ("a\nb.png", "\x1b[2J.png", "a/b/c/d.png", "x" * 200 + ".png", "a.PNG", "train.npy", "-rf.npz", "…/é.png")
    contents: list[Entry] = [
        encoded("PNG"),
        _arrays()["images.npy"],
        _arrays()["plain.npz"],
        _tables()["plain"],
        _tensors(),
        b"",
        Special("folder"),
        Special("pipe"),
        *map(Link, ("/dev/zero", "/dev/stdin", "/etc/passwd", "..", ".", "nowhere", "/", "a.png", "/proc/self/mem")),
    ]
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=5, unique=True))
    files: dict[str, Entry] = {f"set/{name}": draw(st.sampled_from(contents)) for name in chosen}
    whole = draw(st.integers(0, 9)) == 0
    note = str({name: entry if not isinstance(entry, bytes) else len(entry) for name, entry in files.items()})
    return Case(_load(f"set/{chosen[0]}" if whole else "set"), files, note)


@st.composite
def names(draw: st.DrawFn) -> Case:
    """What may be given in the place of a data set's name, split and limit."""
    name = draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=60)))
    split = draw(st.sampled_from(("train", "train", "test", "", "val", "../x", "\0")))
    limit = draw(st.sampled_from((None, None, 1, 0, -1, 2**63, 2**80, -(10**30))))

    def call(folder: Path) -> None:
        load_dataset("digits" if draw_digits else name, split, limit)

    draw_digits = draw(st.integers(0, 4)) == 0
    return Case(call, {}, f"{name!r} {split!r} {limit}")
