"""Images evaluated by themselves, features kept between evaluations, and results compared."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from exptilt import cli
from exptilt.data import DataSet, load_dataset, load_images
from exptilt.errors import InputError
from exptilt.evaluation import cache as cache_module
from exptilt.evaluation.comparison import compare_results, read_result
from exptilt.evaluation.evaluate import evaluate, summary_rows
from exptilt.evaluation.features import FeatureExtractor, load_features, save_features
from exptilt.evaluation.network import FeatureNetwork
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.report.terminal import print_comparison
from exptilt.storage import write_json, write_tensors


class Pixels(nn.Module):
    """Twelve block means of an image as features."""

    num_features = 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, (4, 3)).flatten(1)


def noise(n: int, seed: int, split: str = "test", channels: int = 1) -> DataSet:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (n, channels, 8, 8), generator=generator, dtype=torch.uint8)
    stored = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return DataSet("noise", split, stored, None, "made up")


class Stored:
    """A model whose samples are the images of a set, the same for every seed."""

    def __init__(self, images: DataSet) -> None:
        self.images = images

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> torch.Tensor:
        return self.images.batch(slice(start, start + n))


def quick(model: Any, **settings: Any) -> dict[str, Any]:
    settings = {"features": Pixels(), "progress": False, "bootstrap": 5, "n": 50, "seeds": (0,)} | settings
    return evaluate(model, settings.pop("data", noise(60, 1)), **settings)


@pytest.fixture
def network() -> FeatureNetwork:
    torch.manual_seed(0)
    return FeatureNetwork(1, width=4, classes=3, feature_size=6)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test."""
    monkeypatch.setenv("EXPTILT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that went through a feature network, a call each."""
    counts: list[int] = []
    whole = FeatureExtractor.__call__

    def counted(self: FeatureExtractor, images: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
        counts.append(len(images))
        return whole(self, images, batch_size)

    monkeypatch.setattr(FeatureExtractor, "__call__", counted)
    return counts


# Images by themselves


def test_images_have_the_figures_of_a_model_that_samples_them() -> None:
    images, train = noise(50, 2), noise(80, 3, "train")
    alone, sampled = quick(images, train=train, n=7, seeds=(3, 4)), quick(Stored(images), train=train)
    assert (alone["n"], alone["seeds"], alone["base"], alone["tilted"]) == (50, [], None, None)
    same = [name for name in alone["images"] if name != "seconds"]
    assert {k: alone["images"][k] for k in same} == {k: sampled["base"][k] for k in same}
    assert alone["floor"]["fid"] == sampled["floor"]["fid"]
    assert alone["neighbours"]["images"] == sampled["neighbours"]["base"]
    assert alone["neighbours"]["seed"] is None
    assert [row[0] for row in summary_rows(alone)] == ["", "images", "floor"]
    tensor = quick(images.batch(slice(None)))
    assert tensor["images"]["fid"] == alone["images"]["fid"]


def test_wrong_images_are_refused_in_one_line() -> None:
    for images, said in (
        (noise(12, 2), "^12 images: .*more than 12 images; give more"),
        (noise(50, 2, channels=3), r"^images: its images have shape \(3, 32, 32\)"),
        (DataSet("dots", "samples", torch.zeros(50, 2), None, "made up"), "'dots': holds points"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            quick(images)
        assert "\n" not in str(caught.value)


def test_neighbours_are_handed_over_as_images() -> None:
    train = noise(80, 3, "train")
    images = noise(50, 2)
    images.stored[20:23] = train.stored[60:63]
    told: dict[str, Any] = {}
    result = quick(
        Stored(images), train=train, batch_size=7, on_neighbours=lambda name, *pictures: told.update({name: pictures})
    )
    samples, nearest = told["base"]
    assert (samples.shape, nearest.shape) == ((8, 1, 32, 32), (8, 3, 1, 32, 32))
    assert torch.equal(samples[:3], nearest[:3, 0])
    first = [each["sample"] for each in result["neighbours"]["base"]["nearest"]]
    assert set(first[:3]) == {20, 21, 22}
    assert torch.equal(samples, images.stored[first])


def png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_every_image_of_a_path_is_loaded_whatever_its_splits(tmp_path: Path) -> None:
    stored = noise(6, 5).stored
    for index, image in enumerate(stored):
        png(tmp_path / "folder" / ("train", "test", "a")[index // 2] / f"{index}.png", image[0].numpy())
    loaded = load_images(tmp_path / "folder")
    # In the order of the paths: a, test, train.
    assert torch.equal(loaded.stored, stored[[4, 5, 2, 3, 0, 1]])
    assert (loaded.name, loaded.split, loaded.labels) == ("folder", "samples", None)
    np.savez(tmp_path / "train.npz", images=stored.permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "samples.npy", stored[:, 0].numpy())
    write_tensors(tmp_path / "samples.safetensors", {"images": stored})
    for name in ("train.npz", "samples.npy", "samples.safetensors"):
        assert torch.equal(load_images(tmp_path / name).stored, stored)
    np.save(tmp_path / "small.npy", np.zeros((3, 28, 28), np.uint8))
    assert load_images(tmp_path / "small.npy").shape == (1, 32, 32)


def test_parquet_shards_are_read_whole(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    encoded = []
    for image in noise(4, 6).stored:
        png(tmp_path / "one.png", image[0].numpy())
        encoded.append((tmp_path / "one.png").read_bytes())
    (tmp_path / "set").mkdir()
    for split, rows in (("train", encoded[:3]), ("test", encoded[3:])):
        table = pyarrow.table({"image": pyarrow.array(rows, pyarrow.binary())})
        parquet.write_table(table, tmp_path / "set" / f"{split}-0.parquet")
    assert len(load_images(tmp_path / "set")) == 4
    assert len(load_images(tmp_path / "set" / "train-0.parquet")) == 3


# Features kept between evaluations


def test_a_second_evaluation_computes_no_feature_of_the_data(
    kept: Path, seen: list[int], network: FeatureNetwork
) -> None:
    train = noise(80, 3, "train")
    first = quick(Stored(noise(50, 2)), train=train, features=network)
    assert sorted(seen) == [50, 60, 80]
    seen.clear()
    second = quick(Stored(noise(50, 2)), train=train, features=network)
    assert seen == [50]
    for result in (first, second):
        result["base"].pop("seconds")
    assert second == first
    seen.clear()
    quick(Stored(noise(50, 2)), train=train, features=network, cache=False)
    assert sorted(seen) == [50, 60, 80]
    assert len(list(kept.iterdir())) == 2


def test_other_pixels_weights_or_code_are_looked_up_elsewhere(
    kept: Path, seen: list[int], network: FeatureNetwork
) -> None:
    data = noise(60, 1)
    changed = dataclasses.replace(data, stored=data.stored.flip(0))
    torch.manual_seed(1)
    other = FeatureNetwork(1, width=4, classes=3, feature_size=6)
    versioned = load_features(network)
    versioned.code = "another"
    for count, (features, test) in enumerate(
        [(network, data), (network, changed), (other, data), (versioned, data)], start=1
    ):
        quick(Stored(noise(50, 2)), features=features, data=test)
        assert len(list(kept.iterdir())) == count
    quick(Stored(noise(50, 2)), data=data)  # a user's module: nobody knows whether its code is the same tomorrow
    assert len(list(kept.iterdir())) == 4
    assert seen.count(60) == 5


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_damaged_features_are_computed_anew_with_one_line(
    kept: Path, network: FeatureNetwork, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    model = Stored(noise(50, 2))
    whole = quick(model, features=network)["base"]["fid"]
    (path,) = kept.iterdir()
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 0x10]) + content[-8:]
    if damage == "other":
        write_tensors(path, {"features": torch.zeros(60, 6)}, {"version": 1})
    else:
        path.write_bytes({"cut": content[:-50], "flipped": flipped, "empty": b""}[damage])
    capsys.readouterr()
    assert quick(model, features=network)["base"]["fid"] == whole
    told = capsys.readouterr().err
    assert told == f"exptilt: {path}: is damaged; its features are computed anew\n"
    quick(model, features=network)
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: FeatureNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EXPTILT_CACHE", str(tmp_path / "file"))
    assert quick(Stored(noise(50, 2)), features=network)["base"]["fid"] > 0
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "features are not kept" in told


def test_the_cache_lies_where_the_platform_puts_such_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPTILT_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    for platform, variables, expected in (
        ("linux", {}, "/home/somebody/.cache/exptilt"),
        ("linux", {"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/exptilt"),
        ("darwin", {}, "/home/somebody/Library/Caches/exptilt"),
    ):
        with monkeypatch.context() as patch:
            patch.delenv("XDG_CACHE_HOME", raising=False)
            patch.setattr(cache_module.sys, "platform", platform)
            for name, value in variables.items():
                patch.setenv(name, value)
            assert cache_module.cache_folder() == Path(expected)


# Results compared


def result(fid: float, half: float, **protocol: Any) -> dict[str, Any]:
    fields = {"feature_network": "net", "n": 100, "seeds": [0, 1], "hash": "ab"} | protocol
    figures = {"fid": fid, "fid_ci": [fid - half, fid + half], "kid": fid / 10, "precision": 0.5, "class_entropy": None}
    return {"protocol": fields, "base": figures, "tilted": None}


def test_the_difference_has_an_interval() -> None:
    told = compare_results(result(10, 0.3), result(8, 0.4))
    assert (told["a"], told["b"], told["protocol"]) == ("base", "base", "ab")
    assert told["difference"]["fid"] == -2
    assert told["difference"]["fid_ci"] == pytest.approx([-2.5, -1.5])
    assert told["difference"]["kid"] == pytest.approx(-0.2)
    assert set(told["difference"]) == {"fid", "fid_ci", "kid", "precision"}
    tilted = result(10, 0.3) | {"tilted": result(5, 0.1)["base"]}
    assert compare_results(result(8, 0.4), tilted)["difference"]["fid"] == -3


@pytest.mark.parametrize(
    ("scale", "fids", "kids"),
    [
        (1.0, ["10.00 ± 0.30", "8.00 ± 0.40", "−2.00 ± 0.50"], ["1", "0.8", "−0.2"]),
        (1e-3, ["0.01000 ± 0.00030", "0.00800 ± 0.00040", "−0.00200 ± 0.00050"], ["0.001", "0.0008", "−0.0002"]),
    ],
)
def test_small_distances_are_printed_with_their_digits(
    scale: float, fids: list[str], kids: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = result(10 * scale, 0.3 * scale), result(8 * scale, 0.4 * scale)
    print_comparison(("a", "b"), a, b, compare_results(a, b))
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    cells = {row[0]: [cell for cell in row[1].strip().split("  ") if cell] for row in rows if len(row) == 2}
    assert cells["FID"] == fids
    assert [cell.strip() for cell in cells["KID"]] == kids


def test_different_protocols_are_refused_with_their_fields() -> None:
    other = result(1, 0.1, n=200, feature_network="other")
    with pytest.raises(InputError, match="alike: feature_network net and other; n 100 and 200;") as caught:
        compare_results(result(1, 0.1), other)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"seeds \[0, 1\] and \[2\]"):
        compare_results(result(1, 0.1), result(1, 0.1, seeds=[2]))
    images = result(1, 0.1, seeds=[], hash="cd")
    images["images"] = images.pop("base")
    assert compare_results(result(2, 0.1), images)["b"] == "images"


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_result(tmp_path)
    for content, said in (
        ([], "is no result"),
        ({"protocol": "x"}, "is no result"),
        ({"protocol": {}, "base": None}, "has no FID"),
        ({"protocol": {}, "base": {"modes": 25}}, "has no FID"),
        ({"protocol": {}, "base": {"fid": 1.0, "fid_ci": [0.5]}}, "has no FID"),
    ):
        write_json(tmp_path / "result.json", content)
        with pytest.raises(InputError, match=said):
            read_result(tmp_path)
    write_json(tmp_path / "result.json", result(1, 0.1))
    assert read_result(tmp_path) == read_result(tmp_path / "result.json")


# On the command line


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(each) for each in arguments])
    return int(stop.value.code or 0)


@pytest.mark.slow
def test_images_are_evaluated_and_compared_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = load_dataset("digits", "train")
    np.savez(tmp_path / "real.npz", images=train.stored[:300, 0].numpy())
    for index, image in enumerate(train.stored[:300, 0].numpy()):
        png(tmp_path / "dark" / f"{index:03d}.png", image // 2)
    for name in ("real.npz", "dark"):
        command = ("evaluate", tmp_path / name, "--data", "digits", "--json", tmp_path / f"{name}.json", "--quiet")
        assert call(*command) == 0
    printed = capsys.readouterr().out
    assert printed.count("images ") >= 2
    assert "N = 300, protocol" in printed
    assert not (tmp_path / "dark" / "result.json").exists()
    real = json.loads((tmp_path / "real.npz.json").read_text())
    # They are training images.
    assert real["neighbours"]["images"]["share_below"] == 1
    assert real["images"]["coverage"] > 0.8
    compare = ("compare", tmp_path / "dark.json", tmp_path / "real.npz.json", "--json", tmp_path / "difference.json")
    assert call(*compare) == 0
    printed = capsys.readouterr().out
    assert "B − A" in printed
    assert real["protocol"]["hash"] in printed
    difference = json.loads((tmp_path / "difference.json").read_text())["difference"]
    assert difference["fid_ci"][1] < 0


def test_a_result_is_not_lost_where_the_models_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "result.json"
    VAE(latent_size=4, width=4).save_pretrained(run)
    before = {path: path.read_bytes() for path in run.iterdir()}
    command = ("evaluate", run, "--data", "digits", "-n", 140, "--seeds", 0, "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, _: Path(path) != run)
        patch.setattr("exptilt.measure_run.evaluate", None)
        assert call(*command) == 2
        assert f"{run}: cannot be written, and the result would go there" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, _: Path(path) != run)
        with pytest.warns(UserWarning, match=r"the result goes to .*result\.json alone"):
            assert call(*command, "--json", out) == 0
    assert json.loads(out.read_text())["n"] == 140
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    out.unlink()
    capsys.readouterr()

    # A disk that fills up at the end.
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr("exptilt.measure_run.write_nearest", full)
        assert call(*command, "--json", out) == 1
    assert "N = 140, seeds 0" in capsys.readouterr().out
    assert json.loads(out.read_text())["n"] == 140
    assert call(*command) == 0
    assert {path.name for path in run.iterdir()} - {path.name for path in before} == {"neighbours.png", "result.json"}


def test_help_tells_what_a_user_must_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "--help") == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("Or images", "inception:FILE", "the extra eval", "--protocol {default,paper}", "$EXPTILT_CACHE"):
        assert words in told
    assert call("compare", "--help") == 0
    assert "refused if their protocols differ" in " ".join(capsys.readouterr().out.split())


WRONG = [
    (("evaluate", "{tmp}/empty"), "holds neither a model nor images"),
    (("evaluate", "{tmp}/mixed"), "is 16×16 grey where other images of the set are 32×32 grey"),
    (("evaluate", "{tmp}/colour"), "its images have shape (3, 32, 32)"),
    (("evaluate", "{tmp}/damaged"), "not a whole image"),
    (("evaluate", "{tmp}/damaged.npz"), "not a whole .npz file"),
    (("evaluate", "{tmp}/few"), "more than 128 images; give more"),
    (("evaluate", "{tmp}/notes.txt"), "is of no known kind"),
    (("evaluate", "{tmp}/nowhere"), "no such folder"),
    (("evaluate", "{tmp}/few", "--steps", "0"), "--steps: is of no use to images"),
    (("evaluate", "{tmp}/few", "--baseline", "dot"), "--baseline: is of no use to images"),
    (("evaluate", "{tmp}/few", "--batch-size", "auto"), "--batch-size: is of no use to images"),
    (("evaluate", "{tmp}/few", "--compile"), "--compile: is of no use to images"),
    (("evaluate", "{tmp}/few", "--protocol", "paper"), "there are 2 samples"),
    (("evaluate", "{tmp}/few", "--features", "inception:{tmp}/nowhere.pth"), "inception"),
    (("evaluate", "{tmp}/few", "--features", "{tmp}/network"), "network/model.safetensors: its bytes have changed"),
    (("evaluate", "{tmp}/model"), "model/model.safetensors"),
    (("compare", "{tmp}/a.json", "{tmp}/b.json"), "n 100 and 200"),
    (("compare", "{tmp}/a.json", "{tmp}/nowhere.json"), "no such file"),
    (("compare", "{tmp}/a.json", "{tmp}/notes.txt"), "not a readable JSON file"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[f"{' '.join(a[1:])}" for a, _ in WRONG])
def test_a_wrong_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    grey, colour = np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3), np.uint8)
    (tmp_path / "empty").mkdir()
    for name, arrays in (
        ("mixed", [grey, grey[:16, :16]]),
        ("colour", [colour] * 2),
        ("damaged", [grey] * 2),
        ("few", [grey] * 2),
    ):
        for index, array in enumerate(arrays):
            png(tmp_path / name / f"{index}.png", array)
    cut = tmp_path / "damaged" / "1.png"
    cut.write_bytes(cut.read_bytes()[:40])
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "notes.txt").write_text("notes")
    save_features(FeatureNetwork(1, width=4, classes=3, feature_size=6), tmp_path / "network")
    ToyVAE(2, 2, 4).save_pretrained(tmp_path / "model")
    weights = (tmp_path / "network" / "model.safetensors").read_bytes()
    (tmp_path / "network" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model" / "model.safetensors").write_bytes(weights[:-4])
    write_json(tmp_path / "a.json", result(1, 0.1))
    write_json(tmp_path / "b.json", result(1, 0.1, n=200))
    options = ("--data", "digits") if arguments[0] == "evaluate" else ()
    assert call(*(each.format(tmp=tmp_path) for each in arguments), *options, "--quiet") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert told.startswith("exptilt: ")
    assert words in told
