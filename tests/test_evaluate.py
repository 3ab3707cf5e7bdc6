"""Features, protocol and the whole evaluation, on small random networks and models that cost nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from exptilt.data.types import DataSet, to_uint8
from exptilt.errors import InputError, RunError
from exptilt.evaluation import features as features_module
from exptilt.evaluation.evaluate import evaluate, summary_rows
from exptilt.evaluation.features import NETWORKS, load_features, save_features
from exptilt.evaluation.monitor import quality_monitor
from exptilt.evaluation.network import FeatureNetwork, ImageClassifier
from exptilt.evaluation.protocol import Protocol, compare
from exptilt.evaluation.whitened import WhitenedNetwork
from exptilt.presets import PRESETS

SIZE = 6  # features


@pytest.fixture(autouse=True)
def _one_thread():
    """Arithmetic this small gains nothing from threads, and on a busy machine they wait seconds for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(channels: int = 1, seed: int = 0) -> FeatureNetwork:
    torch.manual_seed(seed)
    return FeatureNetwork(channels, width=4, classes=3, feature_size=SIZE)


class Pixels(nn.Module):
    """Twelve block means of an image as features, fast and never degenerate."""

    num_features = 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, (4, 3)).flatten(1)


def images(n: int, seed: int = 0, contrast: float = 0.5, channels: int = 1) -> torch.Tensor:
    """Smooth random images in [−1, 1], (n, channels, 32, 32)."""
    coarse = torch.randn(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (contrast * nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")).clamp(-1, 1)


def data_set(n: int = 60, seed: int = 1, split: str = "test") -> DataSet:
    labels = torch.arange(n) % 3
    return DataSet("blobs", split, to_uint8(images(n, seed)), labels, "made up")


class Model:
    """Sample i of a seed depends on (seed, i) alone; every request is noted."""

    def __init__(self, contrast: float = 0.5) -> None:
        self.contrast = contrast
        self.requests: list[tuple[int, int, int]] = []

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> torch.Tensor:
        self.requests.append((seed, start, n))
        seeds = [1_000_003 * (seed + 7) + i for i in range(start, start + n)]
        return torch.cat([images(1, each, self.contrast) for each in seeds])


class Autoencoder(Model):
    """A model with an encoder: z is the image with noise on it."""

    has_encoder = True

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return x + 0.05 * torch.randn(x.shape, generator=generator)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z.clamp(-1, 1)


class Tilted(Model):
    def __init__(self, generator: Model, contrast: float = 0.5) -> None:
        super().__init__(contrast)
        self.generator = generator


def quick(model: Any, data: Any = None, **settings: Any) -> dict[str, Any]:
    settings = {
        "n": 40,
        "seeds": (0, 1),
        "features": Pixels(),
        "progress": False,
        "bootstrap": 10,
        **settings,
    }
    return evaluate(model, data_set() if data is None else data, **settings)


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {k: v for k, v in part.items() if k != "seconds"} if isinstance(part, dict) else part
        for name, part in result.items()
    }


# Features


def whitened(channels: int = 1, seed: int = 0) -> WhitenedNetwork:
    torch.manual_seed(seed)
    return WhitenedNetwork(channels, width=4, classes=3, feature_size=SIZE)


@pytest.mark.parametrize("make", [network, whitened])
def test_network_has_the_shapes_it_promises(make: Callable[[int], ImageClassifier]) -> None:
    net = make(3)
    x, labels = images(5, channels=3), torch.tensor([0, 1, 2, 0, 1])
    assert net.features(x).shape == (5, SIZE)
    assert net(x).shape == (5, 3)
    assert net.training_loss(x, labels).shape == (5,)
    assert set(net.metrics(x, labels)["accuracy"].tolist()) <= {0.0, 1.0}
    assert type(net)(**net.arguments()).arguments() == json.loads(json.dumps(net.arguments()))


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("features-")])
def test_shipped_sizes_stay_under_six_mebibytes(name: str) -> None:
    with torch.device("meta"):
        net = NETWORKS[PRESETS[name].model](**PRESETS[name].arguments)
    assert sum(2 * tensor.numel() for tensor in net.state_dict().values()) < 6 * 2**20


@pytest.mark.parametrize("kind", [FeatureNetwork, WhitenedNetwork])
def test_network_learns(kind: type[ImageClassifier]) -> None:
    torch.manual_seed(0)
    net = kind(channels=1, width=4, classes=2, feature_size=8)
    x = torch.cat([images(16, 0), images(16, 1, contrast=1.5)])
    net.fit_data(x)
    labels = torch.arange(32) // 16
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(20):
        optimizer.zero_grad()
        net.training_loss(x, labels).mean().backward()
        optimizer.step()
    assert float(net.metrics(x, labels)["accuracy"].mean()) > 0.95


def test_patches_are_whitened_and_the_convolutions_start_as_identities() -> None:
    net = whitened(3).eval()
    x = images(200, channels=3) + 0.1 * torch.randn(200, 3, 32, 32)
    net.fit_data(x)
    axes = net.whiten(x).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(axes[:12]), torch.eye(12), rtol=0, atol=0.02)
    torch.testing.assert_close(axes[12:], -axes[:12])
    assert not net.whiten.weight.requires_grad
    activations = torch.randn(2, 24, 8, 8)
    convolution = net.blocks[0].convolution1
    torch.testing.assert_close(convolution(activations), activations[:, : convolution.out_channels])


def test_network_without_labels_or_with_a_wrong_size_is_refused() -> None:
    with pytest.raises(InputError, match="no labels"):
        network().training_loss(images(2), None)
    with pytest.raises(InputError, match="width: 0"):
        FeatureNetwork(1, width=0)


@pytest.mark.parametrize("make", [network, whitened])
def test_saved_features_load_the_same_every_time(tmp_path: Path, make: Callable[..., ImageClassifier]) -> None:
    save_features(make(), tmp_path / "net", training={"epochs": 3})
    first, second = load_features(tmp_path / "net"), load_features(str(tmp_path / "net"))
    x = data_set().stored
    assert first.name == "net"
    assert (first.size, first.channels) == (SIZE, 1)
    assert len(first.digest) == 64
    assert first.digest == second.digest != load_features(make(seed=1)).digest
    assert torch.equal(first(x), second(x))
    assert json.loads((tmp_path / "net" / "config.json").read_text())["training"] == {"epochs": 3}
    # Half precision on disk: close to the network that was saved.
    torch.testing.assert_close(first(x), load_features(make())(x), atol=1e-2, rtol=1e-2)


def test_features_are_float32_in_evaluation_mode_whatever_the_caller_does() -> None:
    extractor = load_features(network().train())
    x = data_set().stored
    plain = extractor(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor(x), plain)
    assert plain.dtype == torch.float32
    assert not plain.requires_grad
    assert not extractor.module.training
    torch.testing.assert_close(extractor(x, batch_size=7), plain, atol=1e-5, rtol=1e-5)
    assert extractor(x[:0]).shape == (0, SIZE)


def test_predictions_are_those_of_the_network() -> None:
    net = network()
    extractor = load_features(net)
    x = data_set()
    predicted = extractor.predict(extractor(x.stored))
    assert predicted is not None
    classes, count = predicted
    assert count == 3
    assert torch.equal(classes, net(x.batch(slice(None))).argmax(1))
    assert load_features(Pixels()).predict(torch.zeros(2, 12)) is None


def test_wrong_images_are_refused_in_one_line() -> None:
    extractor = load_features(network(3))
    for wrong, said in (
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), r"1 channel and the network takes 3 channels"),
        (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), r"28×28 and the network takes 32×32"),
        (torch.zeros(2, 3, 32, 32), r"torch.float32 \(2, 3, 32, 32\)"),
        (torch.zeros(2, 5, dtype=torch.uint8), r"\(2, 5\)"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            extractor(wrong)
        assert "\n" not in str(caught.value)


def test_modules_that_give_no_features_are_refused() -> None:
    x = data_set().stored
    with pytest.raises(InputError, match="it must give"):
        load_features(nn.Identity())(x)
    not_finite = Pixels()
    not_finite.forward = lambda x: torch.full((len(x), 12), math.nan)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="not finite"):
        load_features(not_finite)(x)


def test_size_of_a_users_module_is_found_out() -> None:
    extractor = load_features(nn.Flatten())
    with pytest.raises(InputError, match="not known yet"):
        _ = extractor.size
    extractor(data_set().stored)
    assert extractor.size == 32 * 32


def test_unknown_networks_are_refused_with_the_known_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "SHIPPED", tmp_path)
    save_features(network(), tmp_path / "blobs")
    with pytest.raises(InputError, match=r"^--features nowhere: .*blobs"):
        load_features("nowhere")
    assert load_features("blobs").name == "blobs"
    other = dataclasses.replace(data_set(), name="other")
    with pytest.raises(InputError, match=r"^data 'other': .*--features.*blobs"):
        quick(Model(), other, features=None)
    assert quick(Model(), features=None)["protocol"]["feature_network"] == "blobs"


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    save_features(network(), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    flipped = bytearray(whole)
    flipped[-9] ^= 0x10
    for content in (whole[:-50], b"", bytes(flipped)):
        weights.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors"):
            load_features(tmp_path)
    weights.write_bytes(whole)
    wrong = ('"width": 8', '"breadth": 4', '"width": "4"')
    for changed in (
        "{",
        "[]",
        *(text.replace('"width": 4', each) for each in wrong),
        text.replace("Feat", "B"),
    ):
        config.write_text(changed)
        with pytest.raises(InputError):
            load_features(tmp_path)
    weights.unlink()
    config.write_text(text)
    with pytest.raises(InputError, match="no such file"):
        load_features(tmp_path)


# Protocol


def protocol() -> Protocol:
    return Protocol("net", "ab", 6, "blobs", "cd", "test", 40, 60, (0, 1), 1, (32, 32))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Protocol)])
def test_every_field_changes_the_hash_and_is_named(field: str) -> None:
    value = getattr(protocol(), field)
    changed = {str: lambda: value + "x", int: lambda: value + 1, tuple: lambda: (*value, 9)}[type(value)]()
    other = dataclasses.replace(protocol(), **{field: changed})
    assert other.hash != protocol().hash
    with pytest.raises(InputError, match=rf"alike: {field} ") as caught:
        compare(protocol().to_dict(), other.to_dict())
    assert ";" not in str(caught.value).split("alike:")[1].split("; evaluate")[0]


def test_protocol_survives_json_and_equals_itself() -> None:
    stored = json.loads(json.dumps(protocol().to_dict()))
    assert stored == protocol().to_dict()
    assert len(stored["hash"]) == 16
    compare(stored, protocol().to_dict())
    del stored["n"]
    with pytest.raises(InputError, match="n missing and 40"):
        compare(stored, protocol().to_dict())


# The whole evaluation


def test_result_has_the_schema_and_is_json() -> None:
    base = Autoencoder(contrast=0.8)
    result = quick(Tilted(base), train=data_set(80, 2, "train"), features=network())
    parts = ["base", "tilted", "images", "reconstruction", "floor", "neighbours"]
    assert list(result) == ["protocol", "n", "seeds", "data", *parts]
    assert result["images"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["n"], result["seeds"]) == (40, [0, 1])
    assert result["protocol"]["n_reference"] == 60
    assert result["protocol"]["image_size"] == [32, 32]
    metrics = {"fid", "fid_ci", "kid", "precision", "recall", "density", "coverage", "class_entropy"}
    for part, sets in (("base", 2), ("tilted", 2), ("floor", 1), ("reconstruction", 1)):
        figures = result[part]
        more = {"n", "class_histogram", "fid_per_seed", "fid_ci_per_seed", "seconds"}
        assert set(figures) == metrics | more
        low, high = figures["fid_ci"]
        assert low <= figures["fid"] <= high
        assert len(figures["fid_per_seed"]) == len(figures["fid_ci_per_seed"]) == sets
        assert figures["fid"] == pytest.approx(sum(figures["fid_per_seed"]) / sets)
        assert sum(figures["class_histogram"]) == pytest.approx(1)
        assert figures["n"] == 40
        assert figures["seconds"] >= 0
    assert (result["neighbours"]["n_train"], result["neighbours"]["seed"]) == (80, 0)
    for part in ("base", "tilted"):
        assert result["neighbours"][part]["n"] == 40
    assert result["data"]["n"] == 60
    assert 0 <= result["data"]["classifier_accuracy"] <= 1


def test_better_samples_have_better_figures() -> None:
    result = quick(Tilted(Autoencoder(contrast=1.0), contrast=0.5), train=data_set(80, 2, "train"))
    base, tilted, floor = (result[part] for part in ("base", "tilted", "floor"))
    assert tilted["fid"] < base["fid"]
    assert tilted["fid_ci"][1] < base["fid_ci"][0]
    assert tilted["kid"] < base["kid"]
    assert tilted["fid"] == pytest.approx(floor["fid"], abs=0.5)
    assert result["reconstruction"]["fid"] < floor["fid"]
    assert base["class_entropy"] is None
    assert result["data"]["class_entropy"] is None


def test_blocks_are_bounded_and_do_not_matter() -> None:
    results = []
    for batch_size in (13, 40):
        model = Autoencoder()
        results.append(without_time(quick(model, batch_size=batch_size)))
        assert max(n for _, _, n in model.requests) <= batch_size
        for seed in (0, 1):
            drawn = [i for s, start, n in model.requests if s == seed for i in range(start, start + n)]
            assert drawn == list(range(40))
    assert results[0]["protocol"] == results[1]["protocol"]
    for part in ("base", "reconstruction"):
        for name, value in results[0][part].items():
            if isinstance(value, float):
                assert value == pytest.approx(results[1][part][name], rel=1e-4, abs=1e-6)


def test_as_many_samples_are_drawn_at_once_as_chains_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest_request(side_by_side: int) -> int:
        model = Model()
        model.side_by_side = side_by_side  # type: ignore[attr-defined]
        quick(model, batch_size=13)
        return max(n for _, _, n in model.requests)

    assert [largest_request(chains) for chains in (5, 20, 1000)] == [13, 20, 40]
    # Images that are too large for the memory are drawn in smaller blocks.
    monkeypatch.setattr("exptilt.memory._MOST_NUMBERS", 25 * images(1, 0)[0].numel())
    assert [largest_request(chains) for chains in (5, 20, 1000)] == [13, 20, 25]


def test_evaluation_is_reproducible() -> None:
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        runs.append(without_time(quick(Autoencoder(), train=data_set(80, 2, "train"))))
    assert runs[0] == runs[1]
    assert runs[0]["protocol"]["hash"] != quick(Model(), seeds=(0, 2))["protocol"]["hash"]


def test_which_model_is_the_base() -> None:
    plain = quick(Model())
    assert plain["tilted"] is plain["floor"] is plain["reconstruction"] is None
    given = quick(Model(), base=Model(0.9))
    assert given["tilted"]["fid"] == plain["base"]["fid"]
    assert given["base"]["fid"] != plain["base"]["fid"]
    assert quick(Tilted(Model(0.9)))["base"]["fid"] == given["base"]["fid"]


def test_images_in_a_tensor_will_do() -> None:
    stored = data_set()
    result = quick(Model(), stored.batch(slice(None)), train=images(80, 2))
    assert result["base"]["fid"] == quick(Model())["base"]["fid"]
    assert result["floor"] is not None
    with pytest.raises(InputError, match="features"):
        quick(Model(), images(60), features=None)
    with pytest.raises(InputError, match=r"lie in \[0, 1\]"):
        quick(Model(), images(60).sign().relu())
    for value in (torch.nan, torch.inf):
        broken = images(60)
        broken[7, 0, 2, 3] = value
        with pytest.raises(InputError, match="data: hold values that are not finite"):
            quick(Model(), broken)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 0}, "^n: 0"),
        ({"n": 12}, r"^n=12: .*more than 12 images; give -n 120"),
        ({"batch_size": 0}, "^batch_size: 0"),
        ({"bootstrap": 1}, "^bootstrap: 1"),
        ({"seeds": ()}, "^seeds"),
        ({"seeds": (1, 1)}, "^seeds"),
        ({"seeds": (-1,)}, "^seeds"),
        ({"train": data_set(10, split="train")}, "^training set of 10 images"),
        ({"train": torch.zeros(30, 1, 28, 28, dtype=torch.uint8)}, "^training set: .*28"),
        ({"features": network(3)}, "takes 3 channels"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, Any], said: str) -> None:
    model = Model()
    with pytest.raises(InputError, match=said) as caught:
        quick(model, **settings)
    assert "\n" not in str(caught.value)
    assert not model.requests


def test_wrong_data_are_refused() -> None:
    points = DataSet("swissroll", "test", torch.zeros(50, 2), None, "made up")
    with pytest.raises(InputError, match="'swissroll': holds points"):
        quick(Model(), points)
    with pytest.raises(InputError, match="no images"):
        quick(Model(), data_set().select(slice(0, 0)))
    with pytest.raises(InputError, match=r"^reference of 12 images"):
        quick(Model(), data_set(12))


def test_wrong_samples_are_refused() -> None:
    class Small(Model):
        def sample(self, n: int, *, seed: int = 0, start: int = 0) -> torch.Tensor:
            return torch.zeros(n, 1, 28, 28)

    class Diverged(Model):
        def sample(self, n: int, *, seed: int = 0, start: int = 0) -> torch.Tensor:
            return super().sample(n, seed=seed, start=start) * math.nan

    with pytest.raises(InputError, match=r"base: .*\(1, 28, 28\)"):
        quick(Small())
    small = Small()
    small.data_shape = (1, 28, 28)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"base: .*\(1, 28, 28\)"):
        quick(small)
    with pytest.raises(RunError, match="tilted: samples 0 to 39 of seed 0 are not finite"):
        quick(Diverged(), base=Model())


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    quick(Model())
    assert capsys.readouterr() == ("", "")
    quick(Model(), progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "base: 100%" in printed.err


def test_summary_has_a_header_and_a_row_for_each_part() -> None:
    result = quick(Tilted(Autoencoder(0.9)), features=network())
    header, *rows = summary_rows(result)
    assert header[:3] == ["", "FID", "KID"]
    assert header[-1].startswith("class entropy (data ")
    assert [row[0] for row in rows] == ["base", "tilted", "reconstruction"]
    assert {len(row) for row in rows} == {len(header)}
    fid, half = map(float, rows[0][1].split(" ± "))
    assert fid == pytest.approx(result["base"]["fid"], abs=0.006)
    assert fid + half == pytest.approx(result["base"]["fid_ci"][1], abs=0.012)
    assert summary_rows(quick(Model()))[1][-1] == "–"  # pixels predict no class


def test_monitor_tells_good_samples_from_bad() -> None:
    monitor = quality_monitor(Pixels(), data_set(100).stored)
    good, bad = monitor(images(40, 5)), monitor(images(40, 6, contrast=1.0))
    assert set(good) == {"kid", "fid", "recall", "coverage"}
    assert good["kid"] < bad["kid"]
    assert good["fid"] < bad["fid"]
    assert monitor(images(40, 5)) == good
    assert set(monitor(images(12, 5))) == {"kid", "recall", "coverage"}
    assert monitor(images(40, 5) * math.nan) == {}
