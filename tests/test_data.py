"""Data sets: what is read is what was written, what is damaged is told in one line, and order is reproducible."""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from exptilt.data import (
    DataSet,
    batch_indices,
    epoch_order,
    load_dataset,
    to_uint8,
    toy,
    train_validation_split,
)
from exptilt.errors import InputError
from exptilt.storage import write_tensors

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_data_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "data" not in request.keywords:
        monkeypatch.delenv("EXPTILT_DATA", raising=False)


def pixels(count: int, *shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG") -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path: Path, images: Any, labels: Any = None, image="image", label="label", struct=True) -> Path:
    import pyarrow
    import pyarrow.parquet

    encoded = [row if isinstance(row, bytes | None) else encode(row) for row in images]
    columns: dict[str, Any] = {image: [{"bytes": row, "path": None} for row in encoded] if struct else encoded}
    if labels is not None:
        columns[label] = labels
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def write_images(folder: Path, images: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        (folder / f"{i:03}.png").write_bytes(encode(image))
    return folder


def refused(name: Any, split: str = "train", limit: int | None = None) -> str:
    """The one line with which an input is refused."""
    with pytest.raises(InputError) as caught:
        load_dataset(name, split, limit)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.subject
    assert caught.value.fault
    assert caught.value.mend
    return message


# --- embedded sets ---------------------------------------------------------------------------------------


def test_digits_are_32x32_grey_images_split_by_class():
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    assert train.stored.shape == (1297, 1, 32, 32)
    assert test.stored.shape == (500, 1, 32, 32)
    assert train.stored.dtype == torch.uint8
    assert train.labels is not None
    assert test.labels is not None
    everything = torch.cat([train.labels, test.labels]).bincount()
    assert everything.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # Stratified: each class has its share of the test split to within one image.
    assert (test.labels.bincount() - everything * 500 / 1797).abs().max() <= 1
    # A prefix is a fair sample of the classes.
    assert len(train.labels[:100].unique()) == 10
    assert (train.name, train.split, test.split, train.shape) == ("digits", "train", "test", (1, 32, 32))


def test_digits_splits_are_disjoint_and_hold_scikit_learns_images():
    from sklearn.datasets import load_digits

    both = torch.cat([load_dataset("digits", split).stored for split in ("train", "test")]).float().flatten(1)
    small = torch.from_numpy(load_digits(return_X_y=True)[0]).float().reshape(-1, 1, 8, 8) * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 255)
    nearest = torch.cdist(both, large.flatten(1)).argmin(dim=1)
    assert nearest.bincount(minlength=1797).tolist() == [1] * 1797
    # Not exactly: Pillow rounds and clips after each of the two axes.
    assert (both - large.flatten(1)[nearest]).abs().mean() < 0.5


def test_digits_are_the_same_every_time_and_safe_to_change():
    first = load_dataset("digits", limit=5)
    kept = first.stored.clone()
    first.stored.zero_()
    assert torch.equal(load_dataset("digits", limit=5).stored, kept)


def test_gaussians_have_the_moments_of_the_mixture():
    train, test = load_dataset("gaussians"), load_dataset("gaussians", "test")
    assert (train.stored.shape, test.stored.shape) == ((20_000, 2), (10_000, 2))
    assert train.stored.dtype == torch.float32
    assert not torch.isin(train.stored[:, 0], test.stored[:, 0]).float().mean() > 0.01
    n, variance = len(train), 1 + toy.GAUSSIAN_STD**2
    assert train.stored.mean(0).abs().max() < 5 * math.sqrt(variance / n)
    # Kurtosis of the grid is 1.7, so that var(x²) = 0.7.
    assert (train.stored.var(0) - variance).abs().max() < 5 * math.sqrt(0.7 / n)
    assert train.labels is not None
    assert (train.labels.bincount(minlength=25) - n / 25).abs().max() < 5 * math.sqrt(n / 25)
    index, distance = toy.nearest_centre(train.stored)
    assert torch.equal(index, train.labels)
    # Squared distance over σ² is χ² of 2 degrees of freedom: mean 2, variance 4.
    assert abs((distance / toy.GAUSSIAN_STD).square().mean() - 2) < 5 * math.sqrt(4 / n)


def test_swissroll_lies_around_its_curve():
    train, test = load_dataset("swissroll"), load_dataset("swissroll", "test")
    assert (train.stored.shape, test.stored.shape) == ((20_000, 2), (10_000, 2))
    assert train.labels is None
    n = len(train)
    low, high = toy.SWISSROLL_ANGLES
    mean_square = toy.SWISSROLL_SCALE**2 * (high**3 - low**3) / (3 * (high - low)) + 2 * toy.SWISSROLL_STD**2
    radius_square = train.stored.square().sum(1)
    assert abs(radius_square.mean() - mean_square) < 5 * radius_square.std() / math.sqrt(n)
    # Across a curve that is nearly straight at the scale of the noise, the distance is |N(0, σ²)|.
    distance = toy.swissroll_distance(train.stored)
    assert abs(distance.square().mean().sqrt() / toy.SWISSROLL_STD - 1) < 5 / math.sqrt(2 * n) + 0.01


def test_swissroll_distance_is_exact_on_and_beside_the_curve():
    angles = torch.linspace(5, 14, 100, dtype=torch.float64)
    curve = toy.swissroll_curve(angles)
    assert toy.swissroll_distance(curve).max() < 2e-6
    tangent = torch.stack(
        [angles.cos() - angles * angles.sin(), angles.sin() + angles * angles.cos()], dim=1
    ) * torch.tensor([1.0, -1.0], dtype=torch.float64)
    normal = tangent.flip(1) / tangent.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        toy.swissroll_distance(curve + 0.1 * normal), torch.full((100,), 0.1, dtype=torch.float64), atol=1e-5, rtol=0
    )
    # From the origin, the nearest point is the inner end.
    assert toy.swissroll_distance(torch.zeros(1, 2)).item() == pytest.approx(1.5 * math.pi / 7.5, rel=1e-6)


@pytest.mark.parametrize(
    ("log_density", "std"),
    [
        (toy.gaussians_log_density, toy.GAUSSIAN_STD),
        (toy.swissroll_log_density, toy.SWISSROLL_STD),
    ],
)
def test_toy_densities_integrate_to_one(log_density, std):
    # A Riemann sum over cells no wider than a Gaussian's standard deviation is exact to 1e-8.
    axis = torch.arange(-2.2, 2.2, std, dtype=torch.float64)
    mass = log_density(torch.cartesian_prod(axis, axis)).exp().sum() * std**2
    assert mass.item() == pytest.approx(1, abs=1e-6)


def test_swissroll_density_is_the_convolution_at_the_ends_too():
    ends = toy.swissroll_curve(torch.tensor(toy.SWISSROLL_ANGLES, dtype=torch.float64))
    angles = torch.linspace(*toy.SWISSROLL_ANGLES, 1_000_001, dtype=torch.float64)
    for end in ends:
        square = (toy.swissroll_curve(angles) - end).square().sum(1)
        values = (-square / (2 * toy.SWISSROLL_STD**2)).exp() / (2 * math.pi * toy.SWISSROLL_STD**2)
        expected = torch.trapezoid(values) / 1_000_000
        torch.testing.assert_close(toy.swissroll_log_density(end[None])[0], expected.log(), rtol=0, atol=1e-6)


def test_toy_samples_depend_on_the_seed_alone():
    assert torch.equal(toy.sample_swissroll(10, 3), toy.sample_swissroll(10, 3))
    assert not torch.equal(toy.sample_swissroll(10, 3), toy.sample_swissroll(10, 4))
    assert torch.equal(toy.sample_gaussians(10, 3)[0], toy.sample_gaussians(10, 3)[0])


# --- Parquet ---------------------------------------------------------------------------------------------


def test_parquet_folder_round_trip_with_padding(tmp_path):
    train, test = pixels(7, 28, 28), pixels(3, 28, 28)
    write_parquet(tmp_path / "mnist" / "train-00000-of-00002.parquet", train[:4], [0, 1, 2, 3])
    write_parquet(tmp_path / "mnist" / "train-00001-of-00002.parquet", train[4:], [4, 5, 6])
    write_parquet(tmp_path / "mnist" / "test-00000-of-00001.parquet", test, [9, 8, 7])
    read = load_dataset(tmp_path / "mnist")
    assert read.stored.shape == (7, 1, 32, 32)
    assert torch.equal(read.stored[:, 0, 2:-2, 2:-2], torch.from_numpy(train))
    border = read.stored.clone()
    border[:, :, 2:-2, 2:-2] = 0
    assert not border.any()
    assert read.labels is not None
    assert read.labels.tolist() == list(range(7))
    assert (read.name, read.source, read.split) == ("mnist", str(tmp_path / "mnist"), "train")
    held_out = load_dataset(str(tmp_path / "mnist"), "test", limit=2)
    assert torch.equal(held_out.stored[:, 0, 2:-2, 2:-2], torch.from_numpy(test[:2]))
    assert held_out.labels is not None
    assert held_out.labels.tolist() == [9, 8]
    assert len(load_dataset(tmp_path / "mnist", limit=100)) == 7


@pytest.mark.parametrize(
    "place", ["train.parquet", "data/train-0.parquet", "plain_text/train-0.parquet", "train/0.parquet"]
)
def test_parquet_folders_of_every_layout(tmp_path, place):
    images = pixels(4, 8, 6, 3)
    write_parquet(tmp_path / "set" / place, images, [1, 2, 3, 4], image="img", label="fine_label")
    write_parquet(tmp_path / "set" / place.replace("train", "test"), images[:1], [5], image="img", label="fine_label")
    read = load_dataset(tmp_path / "set")
    assert torch.equal(read.stored, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert read.labels is not None
    assert read.labels.tolist() == [1, 2, 3, 4]
    assert len(load_dataset(tmp_path / "set", "test")) == 1
    assert read.name == "set"


def test_parquet_file_without_a_split_is_divided(tmp_path):
    images = pixels(30, 4, 4)
    path = write_parquet(tmp_path / "things.parquet", images, range(30), struct=False)
    train, test = load_dataset(path), load_dataset(path, "test")
    assert (len(train), len(test), train.name) == (27, 3, "things")
    assert train.labels is not None
    assert test.labels is not None
    assert sorted(torch.cat([train.labels, test.labels]).tolist()) == list(range(30))
    assert torch.equal(train.stored[:, 0], torch.from_numpy(images)[train.labels])
    few = load_dataset(path, limit=5)
    assert torch.equal(few.stored, train.stored[:5])


def test_parquet_file_of_one_split_is_that_split_whole(tmp_path):
    path = write_parquet(tmp_path / "cifar-10" / "test-0.parquet", pixels(4, 4, 4))
    read = load_dataset(path, "test")
    assert (len(read), read.name, read.labels) == (4, "cifar10", None)
    assert "test split only" in refused(path, "train")


def test_parquet_limit_leaves_the_rest_undecoded(tmp_path):
    rows = [*pixels(3, 4, 4), b"no image"]
    path = write_parquet(tmp_path / "train.parquet", rows)
    assert len(load_dataset(path, limit=3)) == 3
    assert f"{path}: row 3: not a whole image (of no known format)" in refused(path)


@pytest.mark.parametrize("labels", [[0, None, 1], [0, -1, 1]])
def test_labels_marked_as_missing_are_no_labels(tmp_path, labels):
    assert load_dataset(write_parquet(tmp_path / "train.parquet", pixels(3, 4, 4), labels)).labels is None


def test_parquet_faults(tmp_path):
    good = write_parquet(tmp_path / "good" / "train.parquet", pixels(20, 8, 8), range(20)).read_bytes()
    (tmp_path / "train-cut.parquet").write_bytes(good[: len(good) // 2])
    assert "train-cut.parquet: not a whole Parquet file" in refused(tmp_path / "train-cut.parquet")
    damaged = bytearray(good)
    damaged[4 : len(good) // 2] = bytes(len(good) // 2 - 4)
    (tmp_path / "train-damaged.parquet").write_bytes(damaged)
    assert "train-damaged.parquet" in refused(tmp_path / "train-damaged.parquet")
    (tmp_path / "train-empty.parquet").write_bytes(b"")
    assert "not a whole Parquet file" in refused(tmp_path / "train-empty.parquet")
    assert "has no column of images (it has picture, label)" in refused(
        write_parquet(tmp_path / "train-a.parquet", pixels(2, 4, 4), [0, 1], image="picture")
    )
    assert "holds no images" in refused(write_parquet(tmp_path / "train-b.parquet", [], []))
    assert "image column holds" in refused(write_parquet(tmp_path / "train-b2.parquet", [None, None]))
    assert "row 1: has no image bytes" in refused(
        write_parquet(tmp_path / "train-c.parquet", [pixels(1, 4, 4)[0], None])
    )
    assert "row 1: is 4×5 grey where other images of the set are 4×4 grey" in refused(
        write_parquet(tmp_path / "train-d.parquet", [*pixels(1, 4, 4), *pixels(1, 4, 5)])
    )
    assert "row 1: is 4×4 RGB" in refused(
        write_parquet(tmp_path / "train-e.parquet", [*pixels(1, 4, 4), *pixels(1, 4, 4, 3)])
    )
    assert "'label' holds string" in refused(write_parquet(tmp_path / "train-f.parquet", pixels(2, 4, 4), ["a", "b"]))
    assert "has no test split" in refused(tmp_path / "good", "test")
    write_parquet(tmp_path / "good" / "train-1.parquet", pixels(2, 4, 4))
    assert "shards have different columns" in refused(tmp_path / "good")
    write_parquet(tmp_path / "many" / "a" / "train.parquet", pixels(2, 4, 4))
    write_parquet(tmp_path / "many" / "b" / "train.parquet", pixels(2, 4, 4))
    assert "holds several sets (a, b)" in refused(tmp_path / "many")


# --- folders of images -----------------------------------------------------------------------------------


def test_flat_image_folder_is_divided_the_same_way_every_time(tmp_path):
    images = pixels(20, 6, 6)
    folder = write_images(tmp_path / "faces", images)
    (folder / "README.md").write_text("not an image")
    (folder / "._000.png").write_bytes(b"a shadow file")
    train, test = load_dataset(folder), load_dataset(folder, "test")
    assert (len(train), len(test), train.labels, train.name) == (18, 2, None, "faces")
    together = {image.numpy().tobytes() for image in torch.cat([train.stored, test.stored])}
    assert together == {image.tobytes() for image in images}
    assert torch.equal(train.stored, load_dataset(folder).stored)
    assert torch.equal(train.stored[:4], load_dataset(folder, limit=4).stored)


def test_image_folder_with_splits_and_classes(tmp_path):
    cats, dogs, eels = pixels(6, 28, 28), pixels(6, 28, 28), pixels(2, 28, 28)
    write_images(tmp_path / "train" / "cat", cats)
    write_images(tmp_path / "train" / "dog", dogs)
    write_images(tmp_path / "train" / "eel", eels)
    write_images(tmp_path / "test" / "dog", dogs[:2])
    train, test = load_dataset(tmp_path), load_dataset(tmp_path, "test")
    assert train.stored.shape == (14, 1, 32, 32)
    assert train.labels is not None
    assert test.labels is not None
    assert train.labels.bincount().tolist() == [6, 6, 2]
    assert test.labels.tolist() == [1, 1]  # "dog", although test has no cats
    for image, label in zip(train.stored, train.labels, strict=True):
        of_its_class = (cats, dogs, eels)[int(label)]
        assert any(np.array_equal(image[0, 2:-2, 2:-2].numpy(), original) for original in of_its_class)
    assert train.labels[:6].unique().numel() > 1  # not sorted by class


def test_class_folders_without_splits_and_a_class_named_train(tmp_path):
    write_images(tmp_path / "car", pixels(10, 4, 4))
    write_images(tmp_path / "train", pixels(10, 4, 4))
    read = load_dataset(tmp_path)
    assert len(read) == 18
    assert read.labels is not None
    assert read.labels.unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)],
)
def test_colour_modes(tmp_path, mode, channels):
    image = Image.fromarray(pixels(1, 6, 6, 3)[0])
    image = image.convert("L").convert(mode) if channels == 1 else image.convert(mode)
    write_images(tmp_path, [image, image])
    read = load_dataset(tmp_path)
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(6, 6, channels)
    assert torch.equal(read.stored[0], torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_palette_with_transparency_warns_of_nothing(tmp_path):
    image = Image.fromarray(pixels(1, 6, 6, 3)[0]).convert("P")
    for name in "ab":
        image.save(tmp_path / f"{name}.png", transparency=bytes(range(256)))
    assert load_dataset(tmp_path).shape == (3, 6, 6)


def test_photographs_are_turned_upright(tmp_path):
    orientation = Image.Exif()
    orientation[0x0112] = 6  # a quarter turn
    for name in "ab":
        Image.new("RGB", (16, 8)).save(tmp_path / f"{name}.jpg", exif=orientation)
    assert load_dataset(tmp_path).shape == (3, 16, 8)


def png_of_16_bits(kind: int, channels: int) -> bytes:
    """A PNG file of 4×4 pixels, which Pillow reads and does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + bytes(range(8 * channels)) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


def test_image_folder_faults(tmp_path, monkeypatch):
    assert "not found" in refused(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "holds no data" in refused(tmp_path / "empty")
    for name, content in {"cut": encode(pixels(1, 40, 40)[0])[:300], "text": b"hello", "nothing": b""}.items():
        folder = write_images(tmp_path / name / "train", pixels(1, 40, 40))
        (folder / "bad.png").write_bytes(content)
        assert f"{folder / 'bad.png'}: not a whole image" in refused(tmp_path / name)
    write_images(tmp_path / "mixed" / "train", [*pixels(3, 4, 4), *pixels(1, 4, 5)])
    assert ".png: is 4×" in refused(tmp_path / "mixed")
    deep = write_images(tmp_path / "deep" / "train", [Image.fromarray(pixels(1, 4, 4)[0].astype(np.uint16))] * 2)
    assert "has pixels of mode I;16" in refused(tmp_path / "deep")
    assert "has no subfolder test" in refused(deep.parent, "test")
    for kind, channels in {2: 3, 4: 2, 6: 4}.items():  # RGB, grey and alpha, RGBA
        for name in ("a", "b"):
            (deep / f"{name}.png").write_bytes(png_of_16_bits(kind, channels))
        for other in set(deep.iterdir()) - {deep / "a.png", deep / "b.png"}:
            other.unlink()
        assert ", 16 bits a channel; give images of 8 bits a channel" in refused(deep.parent)
    write_images(tmp_path / "loose" / "cat", pixels(2, 4, 4))
    write_images(tmp_path / "loose", pixels(1, 4, 4))
    assert "lies beside the class folders" in refused(tmp_path / "loose")
    assert "holds 1 image" in refused(write_images(tmp_path / "single", pixels(1, 4, 4)))
    (tmp_path / "notes.txt").write_text("x")
    assert "is of no known kind" in refused(tmp_path / "notes.txt")
    bombs = write_images(tmp_path / "bombs", pixels(2, 40, 40))
    monkeypatch.setattr("exptilt.data.images._LARGEST_IMAGE", 1000)
    assert "has more than 1,000 pixels" in refused(bombs)


# --- arrays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images", "x", "arr_0"])
@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_npz_of_every_layout(tmp_path, name, layout):
    images = pixels(20, 28, 28) if layout == "NHW" else pixels(20, 3, 8, 6)
    expected = torch.from_numpy(images)
    if layout == "NHW":
        expected = torch.nn.functional.pad(expected[:, None], (2, 2, 2, 2))
    stored = images.transpose(0, 2, 3, 1) if layout == "NHWC" else images
    np.savez(tmp_path / "things.npz", **{name: stored, "y": np.arange(20, dtype=np.uint16)})
    for split, count in (("train", 18), ("test", 2)):
        read = load_dataset(tmp_path / "things.npz", split)
        assert (len(read), read.name) == (count, "things")
        assert read.labels is not None
        assert torch.equal(read.stored, expected[read.labels])


def test_float_arrays_are_stored_as_a_file_would_store_them(tmp_path):
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    np.save(tmp_path / "train.npy", images.numpy())
    read = load_dataset(tmp_path / "train.npy")
    assert torch.equal(read.stored, to_uint8(images))
    assert (read.batch(slice(None)) - images).abs().max() <= 1 / 255 + 1e-6


def test_safetensors_points_and_folder_of_arrays(tmp_path):
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    write_tensors(tmp_path / "cloud" / "train.safetensors", {"images": points, "labels": torch.arange(20)})
    write_tensors(tmp_path / "cloud" / "test.safetensors", {"images": points[:5]})
    read = load_dataset(tmp_path / "cloud")
    assert torch.equal(read.stored, points)
    assert read.labels is not None
    assert read.labels.tolist() == list(range(20))
    assert len(load_dataset(tmp_path / "cloud", "test", limit=4)) == 4


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.full((4, 8, 8), np.nan, np.float32), "NaN"),
        (np.full((4, 2), np.inf, np.float32), "infinite"),
        (np.linspace(0, 1, 256, dtype=np.float32).reshape(4, 8, 8), "as of images in [0, 1]"),
        (np.linspace(-1, 255, 256, dtype=np.float32).reshape(4, 8, 8), "lie in [-1, 255]"),
        (np.zeros((4, 8, 8)), "float64"),
        (np.zeros((4, 8, 8), np.uint16), "uint16"),
        (np.zeros((4, 8, 8), np.longdouble), "float128"),
        (np.array(["a", "b"]), "its array is <U1"),
        (np.zeros((4, 2), np.uint8), "is not float32"),
        (np.zeros((4, 3, 8, 3), np.uint8), "can be read as"),
        (np.zeros((4, 8, 8, 2), np.uint8), "no axis of 1 or 3 channels"),
        (np.zeros((4, 8, 0), np.uint8), "has shape (4, 8, 0)"),
        (np.zeros(4, np.uint8), "has shape (4,)"),
        (np.zeros((0, 8, 8), np.uint8), "holds no images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_array_faults(tmp_path, array, fault):
    np.save(tmp_path / "train.npy", array)
    if "float128" in fault and np.dtype(np.longdouble).itemsize == 8:
        fault = "float64"
    assert fault in refused(tmp_path / "train.npy")


def test_pickles_are_never_loaded(tmp_path):
    marker = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (marker,))

    np.save(tmp_path / "train-a.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "train-b.npz", images=np.array([Hostile()], dtype=object))
    (tmp_path / "train-c.npy").write_bytes(pickle.dumps(Hostile()))
    for name in ("train-a.npy", "train-b.npz", "train-c.npy"):
        assert "pickled objects, which are not read" in refused(tmp_path / name)
    assert not marker.exists()


def test_array_file_faults(tmp_path):
    np.savez(tmp_path / "train.npz", pictures=pixels(4, 8, 8))
    assert "has no array of images (it has pictures)" in refused(tmp_path / "train.npz")
    for labels in (np.arange(3), np.array([0, 1, 2, -1]), np.zeros(4), np.zeros((4, 1), int)):
        np.savez(tmp_path / "train.npz", images=pixels(4, 8, 8), labels=labels)
        assert "its labels" in refused(tmp_path / "train.npz")
    whole = (tmp_path / "train.npz").read_bytes()
    (tmp_path / "train.npz").write_bytes(whole[:200])
    assert "not a whole .npz file" in refused(tmp_path / "train.npz")
    np.save(tmp_path / "train.npy", pixels(4, 8, 8))
    assert "holds several array files" in refused(tmp_path)
    (tmp_path / "mixed").mkdir()
    np.save(tmp_path / "mixed" / "samples.npy", pixels(4, 8, 8))
    Image.new("L", (8, 8)).save(tmp_path / "mixed" / "a.png")
    fault = "holds an array file (samples.npy) and images (a.png); give the path of the file, or move it out"
    assert fault in refused(tmp_path / "mixed")
    (tmp_path / "train.npy").write_bytes((tmp_path / "train.npy").read_bytes()[:150])
    assert "not a whole .npy file" in refused(tmp_path / "train.npy")
    write_tensors(tmp_path / "train.safetensors", {"images": torch.zeros(4, 8, 8, dtype=torch.bfloat16)})
    assert "its array is bfloat16" in refused(tmp_path / "train.safetensors")
    (tmp_path / "train.safetensors").write_bytes(b"12345")
    assert "not a whole safetensors file" in refused(tmp_path / "train.safetensors")


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "names", "canonical"),
    [
        ("mnist", ["mnist", "MNIST"], "mnist"),
        ("fashion_mnist", ["fashion", "fashion_mnist", "fashion-mnist"], "fashion"),
        ("fashion", ["fashion", "fashion_mnist"], "fashion"),
        ("cifar-10", ["cifar10", "cifar-10", "CIFAR10"], "cifar10"),
        ("mine", ["mine"], "mine"),
    ],
)
def test_names_are_looked_up_in_the_data_folder(tmp_path, monkeypatch, folder, names, canonical):
    write_parquet(tmp_path / folder / "train.parquet", pixels(2, 4, 4))
    monkeypatch.setenv("EXPTILT_DATA", str(tmp_path))
    for name in names:
        read = load_dataset(name)
        assert (read.name, read.source) == (canonical, str(tmp_path / folder))


def test_a_path_goes_before_the_data_folder_and_a_link_keeps_its_name(tmp_path, monkeypatch):
    write_parquet(tmp_path / "root" / "mnist" / "train.parquet", pixels(2, 4, 4))
    write_parquet(tmp_path / "here" / "store" / "train.parquet", pixels(3, 4, 4))
    (tmp_path / "here" / "mnist").symlink_to("store")
    monkeypatch.setenv("EXPTILT_DATA", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path / "here")
    assert (len(load_dataset("mnist")), load_dataset("mnist").name) == (3, "mnist")
    monkeypatch.chdir(tmp_path / "root" / "mnist")
    assert load_dataset(".").name == "mnist"
    assert load_dataset("train.parquet").name == "mnist"


@pytest.mark.parametrize("name", ["nothing", "", "./mnist", "a/b/c", "things.npz", "x" * 5000, "../x"])
def test_unknown_names_are_told_what_would_be_right(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    message = refused(name)
    assert "not found" in message
    assert "EXPTILT_DATA is not set" in message
    assert "digits, gaussians, swissroll, mnist, fashion, cifar10" in message


def test_split_and_limit_are_checked():
    assert refused("digits", "validation") == "split: 'validation' is not known; use train or test"
    assert refused("digits", limit=0) == "limit: 0 is out of range; give a whole number ≥ 1"
    assert len(load_dataset("gaussians", limit=7)) == 7


# --- the Hub ---------------------------------------------------------------------------------------------


def pretend_hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    import huggingface_hub

    def dataset_info(self: Any, repository: str, **options: Any) -> None:
        assert options["timeout"] <= 10
        if isinstance(answer, Exception):
            raise answer

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)


def test_hub_set_is_decoded_like_a_file(monkeypatch, tmp_path):
    import datasets

    pretend_hub(monkeypatch, None)
    images = pixels(5, 28, 28)
    (tmp_path / "4.png").write_bytes(encode(images[4]))  # the last row is a path, as in a set of loose files
    rows = [{"bytes": encode(image), "path": None} for image in images[:4]]
    rows.append({"bytes": None, "path": str(tmp_path / "4.png")})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    table = datasets.Dataset.from_dict({"image": rows, "label": [5, 4, 3, 2, 1]}, features=features)
    asked = []

    def pretend_load(repository: str, split: str) -> Any:
        assert datasets.utils.are_progress_bars_disabled()
        asked.append((repository, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", pretend_load)
    read = load_dataset("fashion-mnist", "test")
    assert asked == [("zalando-datasets/fashion_mnist", "test")]
    assert (read.name, read.source) == ("fashion", "zalando-datasets/fashion_mnist")
    assert torch.equal(read.stored[:, 0, 2:-2, 2:-2], torch.from_numpy(images))
    assert read.labels is not None
    assert read.labels.tolist() == [5, 4, 3, 2, 1]
    assert len(load_dataset("someone/things", limit=2)) == 2
    assert asked[-1] == ("someone/things", "train")
    assert not datasets.utils.are_progress_bars_disabled()
    table = table.remove_columns("image")
    assert "has no column of images" in refused("someone/things")
    table = datasets.Dataset.from_dict({"image": ["text"]})
    assert "does not hold images" in refused("someone/things")
    table = datasets.Dataset.from_dict({"image": [], "label": []}, features=features)
    assert "holds no images" in refused("someone/things")


def test_without_network_one_line_comes_quickly(monkeypatch, tmp_path):
    from datasets import config as datasets_config

    pretend_hub(monkeypatch, OSError("Name or\nservice not known"))
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path)
    start = time.monotonic()
    message = refused("mnist")
    assert time.monotonic() - start < 5
    assert "the Hub cannot be reached for ylecun/mnist (Name or service not known)" in message
    assert "set EXPTILT_DATA" in message
    assert not datasets_config.HF_HUB_OFFLINE


def test_what_the_hub_lacks_is_told_in_one_line(monkeypatch):
    import datasets

    pretend_hub(monkeypatch, None)

    def no_such_split(repository: str, split: str) -> Any:
        raise ValueError(f'Unknown split "{split}".\nShould be one of ["train"].')

    monkeypatch.setattr(datasets, "load_dataset", no_such_split)
    assert 'Unknown split "test". Should be one of' in refused("someone/things", "test")


# --- order -----------------------------------------------------------------------------------------------


def test_batches_cover_every_index_once_an_epoch():
    for epoch in range(3):
        batches = [batch_indices(12, 4, 7, 3 * epoch + i) for i in range(3)]
        assert sorted(torch.cat(batches).tolist()) == list(range(12))
        assert torch.equal(torch.cat(batches), epoch_order(12, 7, epoch))
    assert not torch.equal(epoch_order(12, 7, 0), epoch_order(12, 7, 1))
    assert not torch.equal(epoch_order(12, 7, 1), epoch_order(12, 8, 0))  # seed + epoch alone would be the same


def test_the_last_partial_batch_is_dropped_and_a_small_set_is_one_batch():
    batches = [batch_indices(11, 4, 0, i) for i in range(4)]
    assert [len(batch) for batch in batches] == [4] * 4
    assert len(torch.cat(batches[:2]).unique()) == 8
    assert sorted(batch_indices(3, 8, 0, 5).tolist()) == [0, 1, 2]


def test_a_batch_depends_on_its_arguments_alone():
    expected = batch_indices(1000, 32, 3, 100)
    torch.manual_seed(1)
    batch_indices(1000, 32, 3, 5).zero_()
    epoch_order(1000, 3, 3).zero_()  # neither a caller's changes nor other calls matter
    assert torch.equal(batch_indices(1000, 32, 3, 100), expected)
    assert not torch.equal(batch_indices(1000, 32, 4, 100), expected)


def test_another_process_draws_the_same_batch_and_imports_nothing_heavy():
    code = """
import sys
from exptilt.data import batch_indices
print(batch_indices(1000, 32, 3, 100).tolist())
print([name for name in ("datasets", "pyarrow", "PIL", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(batch_indices(1000, 32, 3, 100).tolist()), "[]"]


def test_batches_of_nothing_are_refused():
    with pytest.raises(InputError, match="batch_size: 0"):
        batch_indices(10, 0, 0, 0)
    with pytest.raises(InputError, match="length: 0"):
        batch_indices(0, 4, 0, 0)


def test_validation_part_is_held_out():
    points = torch.arange(50, dtype=torch.float32)[:, None]
    dataset = DataSet("points", "train", points, torch.arange(50), "here")
    kept, held_out = train_validation_split(dataset, 0.2, seed=3)
    assert (len(kept), len(held_out)) == (40, 10)
    assert kept.labels is not None
    assert held_out.labels is not None
    assert sorted(torch.cat([kept.labels, held_out.labels]).tolist()) == list(range(50))
    assert torch.equal(held_out.stored[:, 0].long(), held_out.labels)
    assert torch.equal(train_validation_split(dataset, 0.2, seed=3)[1].stored, held_out.stored)
    assert not torch.equal(train_validation_split(dataset, 0.2, seed=4)[1].stored, held_out.stored)
    assert len(train_validation_split(dataset, 0.001)[1]) == 1
    assert len(train_validation_split(dataset, 0.999)[0]) == 1
    for fraction in (0, 1, math.nan):
        with pytest.raises(InputError, match="fraction"):
            train_validation_split(dataset, fraction)
    with pytest.raises(InputError, match="too few"):
        train_validation_split(dataset.select(slice(0, 1)))


def test_to_uint8_undoes_batch():
    stored = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(DataSet("all", "train", stored, None, "here").batch(slice(None))), stored)
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


# --- the real sets ---------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(("name", "channels"), [("mnist", 1), ("fashion", 1), ("cifar10", 3)])
def test_real_sets(name, channels):
    if not os.environ.get("EXPTILT_DATA"):
        pytest.skip("EXPTILT_DATA is not set")
    for split in ("train", "test"):
        read = load_dataset(name, split, limit=256)
        assert (read.name, read.stored.shape) == (name, (256, channels, 32, 32))
        assert read.labels is not None
        assert read.labels.unique().tolist() == list(range(10))
        images = read.batch(slice(None))
        assert (images.min().item(), images.max().item()) == pytest.approx((-1, 1), abs=0.05)
        if channels == 1:
            assert not read.stored[:, :, :2].any()
