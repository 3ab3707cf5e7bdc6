"""Fast copies: the same function, and the module that they are made of is left as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import exptilt
from exptilt.data import load_dataset
from exptilt.data.types import to_uint8
from exptilt.energies import MLPEnergy, ResNetEnergy, SmallEnergy
from exptilt.evaluation.features import load_features
from exptilt.evaluation.metrics import FrechetDistance
from exptilt.fast import fast_copy
from exptilt.generators import VAE, Glow
from exptilt.tilted import TiltedGenerator

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


def trained(module: nn.Module, x: torch.Tensor) -> nn.Module:
    """``module`` in float64 with random statistics and scales of its BatchNorms, in evaluation mode."""
    module.double()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    module.train()
    for _ in range(3):
        module(x)
    return module.eval()


def value_and_gradient(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_(True)
    value = module(x)
    return value.detach(), torch.autograd.grad(value.square().sum(), x)[0]


def assert_same_function(module: nn.Module, fast: nn.Module, x: torch.Tensor) -> None:
    for ours, theirs in zip(value_and_gradient(fast, x), value_and_gradient(module, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_decoder_without_batch_norm_is_the_same_function(memory_format: torch.memory_format) -> None:
    z = torch.randn(5, 8, dtype=torch.float64)
    vae = trained(VAE(3, 8, 8), z).to(memory_format=memory_format)  # type: ignore[call-overload]
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    fast = fast_copy(vae)
    assert_same_function(vae, fast, z)
    assert isinstance(fast, VAE)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fast.modules())
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in vae.modules()) == 5
    assert all(bool((tensor == before[name]).all()) for name, tensor in vae.state_dict().items())
    # What did not change is not copied.
    assert fast.decoder[-1].weight is vae.decoder[-1].weight  # type: ignore[index, union-attr]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 12])
def test_the_papers_energy_is_the_same_function_for_a_quarter_less(channels: int, side: int) -> None:
    x = torch.randn(4, channels, side, side, dtype=torch.float64)
    energy = ResNetEnergy(channels, 16).double().eval().requires_grad_(False)
    fast = fast_copy(energy)
    assert_same_function(energy, fast, x)
    operations = []
    for module in (energy, fast):
        with FlopCounterMode(display=False) as counter:
            module(x)
        operations.append(counter.get_total_flops())
    assert operations[1] < 0.76 * operations[0]
    # The blocks that halve, and only they, are other ones.
    changed = [new is not old for new, old in zip(fast.blocks, energy.blocks, strict=True)]
    assert changed == [True, False, False, True, False, False]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_and_norms_with_and_without_weights_are_joined(affine: bool, bias: bool) -> None:
    x = torch.randn(3, 2, 9, 9, dtype=torch.float64)
    layers = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1, bias=bias),
        nn.BatchNorm2d(4, affine=affine),
        nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=bias), nn.BatchNorm2d(6, affine=affine)),
    )
    fast = fast_copy(trained(layers, x))
    assert_same_function(layers, fast, x)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fast.modules())


def test_what_may_not_change_is_returned_itself() -> None:
    for module in (MLPEnergy(4, 8), SmallEnergy(1, 4), Glow(1, 8, 1, 2, 4), nn.BatchNorm2d(3)):
        assert fast_copy(module.eval()) is module
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)).eval()
    in_training = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    without_statistics = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    normed = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)).eval()
    hooked = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    hooked[0].register_forward_hook(lambda *_: None)
    for module in (grouped, in_training, without_statistics, normed, hooked):
        assert fast_copy(module) is module


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif("EXPTILT_DATA" not in os.environ, reason="EXPTILT_DATA is not set: no real MNIST")
@pytest.mark.skipif(not (CHECKPOINTS / "vae-mnist-tilted").is_dir(), reason="the checkpoint is not here")
def test_bfloat16_in_the_chain_changes_fid_by_less_than_its_confidence_interval() -> None:
    tilted = exptilt.load(CHECKPOINTS / "vae-mnist-tilted")
    assert isinstance(tilted, TiltedGenerator)
    extractor = load_features("mnist")
    frechet = FrechetDistance(extractor(load_dataset("mnist", "test", limit=1000).stored))
    latents, features = {}, {}
    for precision in ("float32", "bfloat16"):
        tilted.precision = precision  # type: ignore[assignment]
        latents[precision] = tilted.sample(600, seed=0, return_latents=True)
        features[precision] = extractor(to_uint8(tilted.generator.decode(latents[precision]).detach()))
    assert not torch.equal(latents["float32"], latents["bfloat16"])
    fid = {precision: frechet(each) for precision, each in features.items()}
    half_interval = 1.96 * frechet.standard_error(features["float32"], 50)
    assert abs(fid["bfloat16"] - fid["float32"]) < half_interval
    # The figure tells chains from chains that do nothing.
    base = frechet(extractor(to_uint8(tilted.generator.sample(600, seed=0))))
    assert base - fid["float32"] > 4 * half_interval
