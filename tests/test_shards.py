"""Samples as shards: what is in them, what the manifest says, going on after a stop, reading them back."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exptilt import load_dataset, storage
from exptilt.cli import main
from exptilt.data import load_images, to_uint8
from exptilt.errors import InputError
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.report import shards
from exptilt.report.shards import MANIFEST, plan


@pytest.fixture
def vae(tmp_path: Path) -> VAE:
    torch.manual_seed(0)
    model = VAE(1, 4, 4)
    model.eval().save_pretrained(tmp_path / "vae")
    return model


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def draw(tmp_path: Path, kind: str, *more: object, model: str = "vae") -> int:
    shape = ("-n", 23, "--start", 5, "--seed", 2, "--shard-size", 10, "--quiet")
    return call("sample", tmp_path / model, "--format", kind, "--out", tmp_path / kind, *shape, *more)


def test_tars_hold_the_samples_under_their_indices(vae: VAE, tmp_path: Path) -> None:
    assert draw(tmp_path, "webdataset") == 0
    folder = tmp_path / "webdataset"
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["complete"]
    assert (manifest["seed"], manifest["start"], manifest["n"], manifest["sample_shape"]) == (2, 5, 23, [1, 32, 32])
    assert [(shard["first"], shard["count"]) for shard in manifest["shards"]] == [(5, 10), (15, 10), (25, 3)]
    expected = to_uint8(vae.sample(23, seed=2, start=5))
    found = {}
    for shard in manifest["shards"]:
        content = (folder / shard["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                key, ending = member.name.split(".", 1)
                assert ending == "png"
                found[int(key)] = np.asarray(Image.open(archive.extractfile(member)))  # type: ignore[arg-type]
    assert list(found) == list(range(5, 28))
    # A batch of another size rounds otherwise.
    assert all(np.abs(found[5 + i].astype(int) - expected[i, 0].numpy()).max() <= 1 for i in range(23))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [".lock", MANIFEST, *(shard["file"] for shard in manifest["shards"])]
    )


def test_parquet_is_read_back_as_images_and_as_points(vae: VAE, tmp_path: Path) -> None:
    assert draw(tmp_path, "parquet") == 0
    expected = to_uint8(vae.sample(23, seed=2, start=5)).int()
    assert (load_images(tmp_path / "parquet").stored.int() - expected).abs().max() <= 1
    datasets = pytest.importorskip("datasets")
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "parquet" / "*.parquet"), split="train")
    assert table[3]["index"] == 8
    assert table[3]["image"].size == (32, 32)

    toy = ToyVAE(width=8).eval()
    toy.save_pretrained(tmp_path / "toy")
    assert call("sample", tmp_path / "toy", "-n", 30, "--format", "parquet", "--out", tmp_path / "points") == 0
    points = load_images(tmp_path / "points").stored
    torch.testing.assert_close(points, toy.sample(30, seed=0), rtol=1e-5, atol=1e-6)
    assert len(load_dataset(tmp_path / "points", "test")) == 3


def test_what_is_there_is_kept_and_what_is_damaged_is_drawn_anew(
    vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(tmp_path, "webdataset") == 0
    folder = tmp_path / "webdataset"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    first, second, third = (folder / shard["file"] for shard in json.loads(before[MANIFEST])["shards"])
    untouched = first.stat().st_mtime_ns
    second.unlink()
    third.write_bytes(before[third.name][:-9])
    (folder / f".{second.name}.x.exptilt-tmp").write_bytes(b"half")
    monkeypatch.setattr(storage, "_tidied", set())  # as in another process
    assert draw(tmp_path, "webdataset", "--resume") == 0
    assert "is damaged; its samples are drawn anew" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert first.stat().st_mtime_ns == untouched


def test_other_samples_are_not_mixed_in(vae: VAE, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(tmp_path, "webdataset") == 0
    assert draw(tmp_path, "webdataset") == 2
    assert "is not empty" in capsys.readouterr().err
    assert draw(tmp_path, "webdataset", "--resume", "--base", "--seed", 3) == 2
    assert "other settings (base, seed)" in capsys.readouterr().err
    torch.nn.init.ones_(next(vae.parameters()))
    vae.save_pretrained(tmp_path / "vae")
    assert draw(tmp_path, "webdataset", "--resume") == 2
    assert "other settings (weights)" in capsys.readouterr().err
    assert call("sample", tmp_path / "vae", "--out", tmp_path / "x.png", "--resume") == 2


def test_png_files_that_are_there_are_kept_and_the_others_drawn(
    vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = ("sample", tmp_path / "vae", "-n", 1203, "--start", 5, "--seed", 2, "--quiet", "--out")
    assert call(*sample, tmp_path / "whole") == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    manifest = json.loads(whole[MANIFEST])
    assert (manifest["format"], manifest["n"], manifest["start"], manifest["complete"]) == ("png", 1203, 5, True)
    assert set(whole) == {".lock", MANIFEST, *(f"{i:06d}.png" for i in range(5, 1208))}

    folder, written = tmp_path / "parts", []

    def write(path: Path, content: bytes) -> None:
        if len(written) == 700:
            raise KeyboardInterrupt
        written.append(path.name)
        storage.write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_bytes", write)
        assert call(*sample, folder) == 130
    capsys.readouterr()
    assert call(*sample, folder) == 2
    assert "is not empty; give --resume to go on with it" in capsys.readouterr().err
    (folder / "000007.png").unlink()
    kept = (folder / "000005.png").stat().st_mtime_ns
    assert call(*sample, folder, "--resume") == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert (folder / "000005.png").stat().st_mtime_ns == kept
    for changes, names in (
        (("--seed", 3), "seed"),
        (("-n", 2000), "n"),
        (("--format", "parquet"), "format, shard_size"),
    ):
        assert call(*sample, folder, "--resume", *changes) == 2
        assert f"other settings ({names})" in capsys.readouterr().err


def test_a_folder_without_any_sample_may_be_given_again(
    vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no samples")

    for kind in ((), ("--format", "parquet")):
        sample = ("sample", tmp_path / "vae", "-n", 4, *kind, "--out", tmp_path / "out", "--quiet")
        with monkeypatch.context() as patch:
            patch.setattr(VAE, "sample", fails)
            assert call(*sample) == 1
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert call(*sample, "--seed", 1) == 0


def test_a_shard_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="shard-size 0"):
        plan(5, 0, 0, "parquet")
    assert [len(shard.indices) for shard in plan(25, 0, 10, "parquet")] == [10, 10, 5]
