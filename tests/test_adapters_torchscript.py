"""Generators in files of TorchScript, torch.export and ONNX."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import exptilt
from exptilt import InputError, RewardEnergy, SamplerConfig, TiltedGenerator

# What torch says of TorchScript when a test writes it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def _network() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 48), nn.Sigmoid())
    for _ in range(3):
        layers(torch.randn(32, 4))  # Running statistics that are not those of the start.
    return nn.Sequential(layers, nn.Unflatten(1, (3, 4, 4)))


@pytest.mark.parametrize("mode", ["script", "trace"])
def test_a_torchscript_file_is_a_generator(tmp_path: Path, mode: str) -> None:
    network, path = _network(), tmp_path / "generator.pt"
    if mode == "script":
        torch.jit.script(network).save(path)  # In training mode, as a careless author would.
    else:
        torch.jit.trace(network.eval(), torch.randn(2, 4)).save(path)
    generator = exptilt.from_torchscript(path, (4,), output_range=(0, 1))
    z = torch.randn(5, 4)
    torch.testing.assert_close(generator.decode(z), 2 * network.eval()(z) - 1, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    tilted = TiltedGenerator(generator, RewardEnergy(lambda x: x.flatten(1).mean(1), 0.01))
    brighter = tilted.sample(20, sampler=SamplerConfig(steps=20, step_size=0.02))
    assert float(brighter.mean()) > float(generator.sample(20).mean())


def test_a_script_module_is_taken_as_it_is() -> None:
    script = torch.jit.script(nn.Sequential(nn.Linear(4, 2)))
    generator = exptilt.from_torchscript(script, (4,), encode=lambda x: torch.cat([x, x], 1))
    z = torch.randn(3, 4)
    torch.testing.assert_close(generator.decode(z), script(z))
    assert generator.has_encoder


def test_a_graph_module_is_wrapped() -> None:
    network = _network()
    generator = exptilt.wrap(torch.fx.symbolic_trace(network), (4,), output_range=(0, 1))
    z = torch.randn(5, 4)
    torch.testing.assert_close(generator.decode(z), 2 * network.eval()(z) - 1)


def test_a_file_of_torch_export_is_wrapped(tmp_path: Path) -> None:
    network, path = _network().eval(), tmp_path / "generator.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations inside of the export
        sizes = ({0: torch.export.Dim("n", min=1)},)
        torch.export.save(torch.export.export(network, (torch.randn(2, 4),), dynamic_shapes=sizes), path)
        module = torch.export.load(path).module()
    generator = exptilt.wrap(module, (4,), output_range=(0, 1))
    z = torch.randn(5, 4)
    torch.testing.assert_close(generator.decode(z), 2 * network(z) - 1)
    assert generator.sample(3).shape == (3, 3, 4, 4)


def test_an_onnx_file_is_wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another framework: a fully connected generator, its batch of any size."""
    onnx = pytest.importorskip("onnx", reason="needs onnx2torch (pip install onnx2torch)")
    if importlib.util.find_spec("onnx2torch") is None:
        pytest.skip("needs onnx2torch (pip install onnx2torch)")
    if importlib.util.find_spec("torchvision") is None:  # Boxes and regions of interest alone need it.
        for name in ("torchvision", "torchvision.ops"):
            stand_in = types.ModuleType(name)
            stand_in.ops = stand_in.roi_align = None  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, stand_in)
    import onnx2torch

    weights = {"w1": torch.randn(4, 16), "b1": torch.randn(16), "w2": torch.randn(16, 48), "b2": torch.randn(48)}
    nodes = [
        onnx.helper.make_node("Gemm", ["z", "w1", "b1"], ["hidden"]),
        onnx.helper.make_node("Relu", ["hidden"], ["positive"]),
        onnx.helper.make_node("Gemm", ["positive", "w2", "b2"], ["logits"]),
        onnx.helper.make_node("Sigmoid", ["logits"], ["x"]),
    ]
    ends = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])]
        for name, size in (("z", 4), ("x", 48))
    ]
    stored = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "generator", *ends, stored)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)]), tmp_path / "g.onnx")
    generator = exptilt.wrap(onnx2torch.convert(tmp_path / "g.onnx"), (4,), output_range=(0, 1), data_shape=(3, 4, 4))
    z = torch.randn(5, 4)
    expected = torch.sigmoid(torch.relu(z @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"])
    torch.testing.assert_close(generator.decode(z).flatten(1), 2 * expected - 1, rtol=1e-4, atol=1e-5)


def test_what_is_no_torchscript_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "noise.pt").write_bytes(b"no archive")
    for path, words in ((tmp_path / "none.pt", "no such file"), (tmp_path / "noise.pt", "is no TorchScript file")):
        with pytest.raises(InputError, match=words) as caught:
            exptilt.from_torchscript(path, (4,))
        assert "\n" not in str(caught.value)
