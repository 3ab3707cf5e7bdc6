"""A model's files may come from a stranger: what is wrong with them is told in one line, before it takes memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import exptilt
from exptilt import cli, hub
from exptilt.config import SamplerConfig
from exptilt.energies import ENERGIES, make_energy
from exptilt.errors import InputError
from exptilt.generators import GENERATORS
from exptilt.generators.vae import VAE
from exptilt.storage import save_module
from exptilt.tilted import TiltedGenerator
from exptilt.vetting import LARGEST_JSON

MIB = 1 << 20

# A small one of each class that a file may name, where the defaults are large or missing.
EXAMPLES: dict[str, Callable[[], Any]] = {
    "VAE": lambda: VAE(latent_size=4, width=4),
    "Glow": lambda: GENERATORS["Glow"](size=8, levels=1, steps=1, hidden=4),
    "GLF": lambda: GENERATORS["GLF"](latent_size=4, width=4, flow_width=8),
    "TwoStageVAE": lambda: GENERATORS["TwoStageVAE"](latent_size=4, width=4, second_width=8, second_depth=1),
    "LatentFlowVAE": lambda: GENERATORS["LatentFlowVAE"](latent_size=4, width=4, flow_width=8),
    "MixtureGenerator": lambda: GENERATORS["MixtureGenerator"](EXAMPLES["VAE"](), components=2),
    "PixelSpace": lambda: GENERATORS["PixelSpace"](EXAMPLES["Glow"]()),
    "ToyVAE": lambda: GENERATORS["ToyVAE"](width=8),
    "ResNetEnergy": lambda: ENERGIES["ResNetEnergy"](width=4),
    "SmallEnergy": lambda: ENERGIES["SmallEnergy"](width=4),
    "MLPEnergy": lambda: ENERGIES["MLPEnergy"](4, width=8),
    "GatedEnergy": lambda: ENERGIES["GatedEnergy"](4, width=8),
    "PyramidEnergy": lambda: ENERGIES["PyramidEnergy"](1, size=4, parts=2, width=4, units=8, depth=1),
    "FourierEnergy": lambda: ENERGIES["FourierEnergy"](2, width=8),
    "RelativeEnergy": lambda: ENERGIES["RelativeEnergy"](EXAMPLES["GatedEnergy"](), share=0.01),
}
CLASSES = {**GENERATORS, **ENERGIES}


class Largest(TorchDispatchMode):
    """Size of the largest tensor that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        self.numbers = max([self.numbers, *(x.numel() for x in outputs if isinstance(x, torch.Tensor))])
        return result


def refused(folder: Path, words: str) -> None:
    """Loading is refused in one line, with little memory."""
    with Largest() as largest, pytest.raises(InputError, match=words) as error:
        exptilt.load(folder)
    assert "\n" not in str(error.value)
    assert largest.numbers <= MIB


def write_header(path: Path, tensors: dict[str, Any], data: bytes = b"") -> None:
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    EXAMPLES["VAE"]().save_pretrained(tmp_path / "models" / "vae")
    return tmp_path / "models" / "vae"


@pytest.fixture
def tilted(vae: Path) -> Path:
    energy = make_energy("mlp", (4,), 8)
    model = TiltedGenerator(VAE(latent_size=4, width=4), latent_energy=energy, sampler=SamplerConfig(steps=2))
    model.save_pretrained(vae.parent / "tilted")
    return vae.parent / "tilted"


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def whole_numbers(arguments: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where the whole numbers among arguments stand, those of generators within included."""
    places = [(*prefix, name) for name, value in arguments.items() if type(value) is int]
    for name, value in arguments.items():
        if isinstance(value, dict):
            places += whole_numbers(value["arguments"], (*prefix, name, "arguments"))
    return places


def with_number(arguments: dict[str, Any], place: tuple[str, ...], value: float) -> dict[str, Any]:
    changed = json.loads(json.dumps(arguments))
    inner = changed
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return changed


@pytest.mark.parametrize("name", CLASSES)
def test_no_argument_makes_a_model_larger_than_its_weights(tmp_path: Path, name: str) -> None:
    example = EXAMPLES.get(name, CLASSES[name])()
    save_module(example, tmp_path)
    restored = hub._load_part(tmp_path, CLASSES)
    for key, tensor in example.state_dict().items():
        assert torch.equal(restored.state_dict()[key], tensor)
    arguments = json.loads((tmp_path / "config.json").read_text())["arguments"]
    places = whole_numbers(arguments)
    assert places
    everywhere = arguments
    for place in places:
        for value in (1 << 16, 1 << 12):
            change(tmp_path / "config.json", arguments=with_number(arguments, place, value))
            # Taken only where it costs nothing: the height of images that no weight depends on.
            with Largest() as largest, contextlib.suppress(InputError):
                hub._load_part(tmp_path, CLASSES)
                assert isinstance(example, GENERATORS["UniformPixels"])
            assert largest.numbers <= MIB
            assert torch.is_grad_enabled()
        everywhere = with_number(everywhere, place, 1 << 16)
    change(tmp_path / "config.json", arguments=everywhere)
    with Largest() as largest, pytest.raises(InputError, match=r"config\.json") as error:
        hub._load_part(tmp_path, CLASSES)
    assert "\n" not in str(error.value)
    assert largest.numbers <= MIB
    assert torch.is_grad_enabled()


HEADERS = {
    "2**40 numbers": {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
    "2**80 numbers": {"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}},
    "offsets outside of the file": {"x": {"dtype": "F32", "shape": [16], "data_offsets": [2**40, 2**40 + 64]}},
    "offsets and shape disagree": {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 64]}},
    "offsets backwards": {"x": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}},
    "negative shape": {"x": {"dtype": "F32", "shape": [-16], "data_offsets": [0, 64]}},
    "tensors on top of each other": {
        name: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for name in ("x", "y")
    },
    "unknown type": {"x": {"dtype": "PICKLE", "shape": [16], "data_offsets": [0, 64]}},
    "a part of the file without a tensor": {"x": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_false_header_is_refused(vae: Path, header: dict[str, Any]) -> None:
    write_header(vae / "model.safetensors", header, bytes(64))
    refused(vae, "not a whole safetensors file")


def test_other_damage_to_the_weights_is_refused(vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, whole = vae / "model.safetensors", (vae / "model.safetensors").read_bytes()
    for content in (b"", whole[:5], whole[:-1], whole + b"\0", b"\x80\x04\x95pickle", struct.pack("<Q", 2**20) + b"{}"):
        weights.write_bytes(content)
        refused(vae, "not a whole safetensors file|has a header of")
    weights.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refused(vae, "has a header of 9,223,372,036,854,775,808 bytes")
    # A whole file of 4 GiB, of which the disk holds nothing; it is not read.
    monkeypatch.setattr(hub, "read_tensors", lambda path: pytest.fail("the tensors were read"))
    write_header(weights, {"x": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}})
    os.truncate(weights, weights.stat().st_size + 2**32)
    refused(vae, "tensors are missing and 1 unexpected")


def test_weights_of_another_type_are_refused_and_half_precision_is_widened(vae: Path) -> None:
    weights = vae / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        changed = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
        safetensors.torch.save_file(changed, weights)
        assert next(exptilt.load(vae).parameters()).dtype == torch.float32
    name = "decoder.0.weight"
    for dtype in (torch.complex64, torch.int64, torch.float8_e4m3fn):
        safetensors.torch.save_file({**tensors, name: tensors[name].to(dtype)}, weights)
        refused(vae, rf"tensor '{name}' has type \w+ and the model needs F16 or BF16 or F32 or F64")
    counter = "encoder.3.num_batches_tracked"
    safetensors.torch.save_file({**tensors, counter: tensors[counter].float()}, weights)
    refused(vae, "has type F32 and the model needs I64")


def test_a_configuration_that_is_none_is_refused(vae: Path) -> None:
    config, whole = vae / "config.json", json.loads((vae / "config.json").read_text())
    wrong = {
        "class 'os.system' is not known": {**whole, "class": "os.system"},
        r"class \['VAE'\] is not known": {**whole, "class": ["VAE"]},
        "class 'MLPEnergy' is not known": {**whole, "class": "MLPEnergy"},
        "arguments are no JSON object": {**whole, "arguments": [1]},
        "takes no argument 'code'": {**whole, "arguments": {"code": "import os"}},
        "has the wrong type": {**whole, "arguments": {"width": True}},
        "is out of range": {**whole, "arguments": {"width": -1}},
        "is no JSON object": [whole],
    }
    for words, content in wrong.items():
        config.write_text(json.dumps(content))
        refused(vae, words)
    config.write_text('{"class": "VAE", "arguments": {"width": NaN}}')
    refused(vae, "has the wrong type")
    config.write_text("[" * 100_000)
    refused(vae, "not a readable JSON file")
    config.write_bytes(b" " * (LARGEST_JSON + 1))
    refused(vae, "is too large for a configuration")


def test_an_index_that_is_none_is_refused(tilted: Path) -> None:
    index, whole = tilted / "model_index.json", (tilted / "model_index.json").read_text()
    sampler = json.loads(whole)["sampler"]
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("does not describe a TiltedGenerator", {"class": "Pipeline"}),
        ("are not known", {"parts": ["generator", "../vae"]}),
        ("are not known", {"parts": ["/etc"]}),
        ("are not known", {"parts": [["generator"]]}),
        ("are not known", {"parts": "generator"}),
        ("no such file", {"parts": ["generator", "energy"]}),
        ("has no energy", {"parts": ["generator"]}),
        ("was saved without its generator", {"parts": ["latent_energy"]}),
        ("strength or precision is malformed", {"strength": float("nan")}),
        ("strength or precision is malformed", {"strength": 10**400}),
        ("strength or precision is malformed", {"precision": "int1"}),
        ("candidates = 1000000000 is out of range", {"sampler": {**sampler, "candidates": 10**9}}),
        ("resample = 1000000000 is out of range", {"sampler": {**sampler, "resample": 10**9}}),
        ("replicas = 1000000000 is out of range", {"sampler": {**sampler, "kernel": "mala", "replicas": 10**9}}),
        ("has no setting 'hook'", {"sampler": {**sampler, "hook": "x"}}),
        ("log_z", {"log_z": {"value": "large"}}),
    ]
    for words, changes in wrong:
        index.write_text(whole)
        change(index, **changes)
        refused(tilted, words)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GENERATORS["Glow"](channels=2, size=4, levels=0, steps=1, hidden=4),
        lambda: GENERATORS["Glow"](size=4, levels=1, steps=1, hidden=4, scale_bound=1e6),
        lambda: GENERATORS["ToyVAE"](width=8, deviation=1),
        lambda: ENERGIES["MLPEnergy"](4, width=8, depth=0),
        lambda: ENERGIES["FourierEnergy"](2, width=8, frequency=1e5),
        lambda: ENERGIES["FourierEnergy"](2, width=8, frequency=2),
        lambda: ENERGIES["RelativeEnergy"].above(EXAMPLES["GatedEnergy"](), 12.0),
        lambda: ENERGIES["RelativeEnergy"].above(EXAMPLES["GatedEnergy"](), -1e4),
    ],
)
def test_what_a_constructor_takes_is_loaded(tmp_path: Path, make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    example = make()
    save_module(example, tmp_path)
    restored = hub._load_part(tmp_path, CLASSES)
    assert restored.arguments() == example.arguments()
    x = torch.randn(3, *getattr(example, "latent_shape", (getattr(example, "size", 4),)))
    assert torch.equal(restored.eval()(x), example.eval()(x))


@pytest.mark.parametrize("setting", [{"resample": 100_000}, {"kernel": "isir", "candidates": 70_000}])
def test_a_chain_that_fits_into_memory_is_loaded(tilted: Path, setting: dict[str, Any]) -> None:
    model = exptilt.load(tilted)
    model.sampler = SamplerConfig(steps=2, **setting)
    model.strength = 1e5
    model.save_pretrained(tilted)
    restored = exptilt.load(tilted)
    assert (restored.sampler, restored.strength) == (model.sampler, 1e5)


@pytest.mark.parametrize("name", CLASSES)
def test_a_number_that_no_model_has_is_refused_or_does_no_harm(tmp_path: Path, name: str) -> None:
    example = EXAMPLES.get(name, CLASSES[name])()
    arguments = example.arguments()
    for place, value in itertools.product(whole_numbers(arguments), (0, 1 << 16, 2.0, 1e300, math.inf, 10**400)):
        changed = with_number(arguments, place, value)
        save_module(example, tmp_path)
        change(tmp_path / "config.json", arguments=changed)
        with warnings.catch_warnings(action="ignore", category=UserWarning), contextlib.suppress(InputError):
            if value == 0:
                # With the weights that fit, which a stranger may have made, where the class takes it.
                save_module(hub.build(CLASSES, name, changed, "x"), tmp_path)
            model = hub._load_part(tmp_path, CLASSES)
            if name in GENERATORS:
                model.sample(2)


def test_samples_that_fit_no_memory_are_refused(tmp_path: Path) -> None:
    """The size of a flow's images is not in its weights."""
    EXAMPLES["Glow"]().save_pretrained(tmp_path)
    arguments = json.loads((tmp_path / "config.json").read_text())["arguments"]
    change(tmp_path / "config.json", arguments={**arguments, "size": 1 << 14})
    refused(tmp_path, r"its samples have the shape \(1, 16384, 16384\)")


def test_links_stay_in_the_folder_but_for_a_part_beside_it(vae: Path, tilted: Path, tmp_path: Path) -> None:
    whole = exptilt.load(tilted).sample(2)
    elsewhere = tmp_path / "elsewhere"
    (tilted / "generator").rename(elsewhere)
    (tilted / "generator").symlink_to(elsewhere)
    refused(tilted, "generator/config.json: is a link that leaves the model's folder")
    (tilted / "generator").unlink()
    elsewhere.rename(tilted.parent / "beside")
    (tilted / "generator").symlink_to("../beside")
    assert torch.equal(exptilt.load(tilted).sample(2), whole)
    # Only as a whole: its files must be its own.
    (tilted.parent / "beside" / "model.safetensors").rename(tmp_path / "stray")
    (tilted.parent / "beside" / "model.safetensors").symlink_to(tmp_path / "stray")
    refused(tilted, "is a link that leaves")
    for name in ("config.json", "model.safetensors"):
        target = tmp_path / f"moved-{name}"
        (vae / name).rename(target)
        (vae / name).symlink_to(target)
        refused(vae, f"{name}: is a link that leaves the model's folder")
        (vae / name).unlink()
        target.rename(vae / name)
    (vae / "model.safetensors").rename(vae / "weights")
    (vae / "model.safetensors").symlink_to("weights")
    assert isinstance(exptilt.load(vae), VAE)
    linked = tmp_path / "latest"
    linked.symlink_to(vae)
    assert isinstance(exptilt.load(linked), VAE)


def test_what_is_no_regular_file_is_not_opened(vae: Path) -> None:
    weights = vae / "model.safetensors"
    weights.unlink()
    os.mkfifo(weights)  # opening it would wait for ever
    refused(vae, "is no regular file")
    weights.unlink()
    refused(vae, "no such file")


def test_the_command_line_tells_it_in_one_line(vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(vae / "config.json", arguments={"latent_size": 1 << 16, "width": 1 << 16})
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", str(vae), "--out", str(vae / "x.png")])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "describes a larger model than the weights beside it" in told
    assert not (vae / "x.png").exists()
