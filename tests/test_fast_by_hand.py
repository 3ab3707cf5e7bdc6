"""Gradients by hand: those of autograd, of our own networks only, and of the weights of now."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exptilt.bench.ceiling import flops_of_gradient
from exptilt.config import SamplerConfig
from exptilt.energies import MLPEnergy, RelativeEnergy, ResNetEnergy, SmallEnergy
from exptilt.energies.compose import SumEnergy
from exptilt.fast import fast_copy, for_chains, halving
from exptilt.fast.layers import Kernel
from exptilt.fast.stack import Stack
from exptilt.generators import GLF, VAE, Glow, ToyVAE
from exptilt.generators.two_stage import TwoStageVAE
from exptilt.tilted import TiltedGenerator

BFLOAT16 = torch.bfloat16


def randomised(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Random weights and statistics: a new Glow is the identity, and a new BatchNorm of no effect."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return module.to(dtype).eval().requires_grad_(False)


def stacks(module: nn.Module) -> int:
    return sum(isinstance(part, Stack) for part in module.modules())


def value_and_gradient(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_(True)
    value = module(x)
    return value.detach(), torch.autograd.grad(value.double().square().sum(), x)[0]


NETWORKS = [
    (ResNetEnergy(1, 8), (1, 8, 8), 1),
    # Sides that halve to an odd number, and not to a whole one.
    (ResNetEnergy(3, 4), (3, 12, 6), 1),
    (ResNetEnergy(9, 4), (9, 13, 8), 1),
    (SmallEnergy(1, 4), (1, 32, 32), 1),
    (SmallEnergy(3, 4), (3, 28, 28), 1),
    (MLPEnergy(12, 16), (3, 4), 1),
    (VAE(1, 6, 4), (6,), 1),
    (VAE(3, 6, 2), (6,), 1),
    (ToyVAE(2, 3, 8), (3,), 1),
    (GLF(1, 6, 4), (6,), 1),
    (TwoStageVAE(1, 6, 4), (12,), 1),
    (RelativeEnergy(MLPEnergy(12, 16), 0.5), (3, 4), 1),
    (Glow(1, 8, 2, 2, 4), (64,), 2),
    (Glow(3, 8, 1, 3, 4), (192,), 1),
    (Glow(5, 4, 0, 2, 4, highway_kernel=1), (80,), 1),
]
NAMES = [f"{type(network).__name__}-{'x'.join(map(str, shape))}" for network, shape, _ in NETWORKS]


@pytest.mark.parametrize(("network", "shape", "count"), NETWORKS, ids=NAMES)
def test_value_and_gradient_are_autograds(network: nn.Module, shape: tuple[int, ...], count: int) -> None:
    network = randomised(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fast = for_chains(network, BFLOAT16)
    assert stacks(fast) == count
    x = torch.randn(5, *shape, dtype=torch.float64)
    given = x.clone()
    for ours, theirs in zip(value_and_gradient(fast, x), value_and_gradient(network, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    # Without a gradient it is the same function, and nothing outside of it is written on.
    torch.testing.assert_close(fast(x), network(x), rtol=1e-9, atol=1e-9)
    assert torch.equal(x, given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert stacks(network) == 0


@pytest.mark.parametrize(("network", "shape", "count"), NETWORKS[:3], ids=NAMES[:3])
def test_means_as_a_part_of_the_weights_are_the_same_function(
    network: nn.Module, shape: tuple[int, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done on a GPU."""
    monkeypatch.setattr(halving, "_means_come_first", lambda layer: False)
    test_value_and_gradient_are_autograds(network, shape, count)


@pytest.mark.parametrize(("network", "shape", "count"), NETWORKS, ids=NAMES)
def test_in_half_precision_it_is_as_exact_as_autocast(network: nn.Module, shape: tuple[int, ...], count: int) -> None:
    network = randomised(network)
    x = torch.randn(64, *shape, dtype=torch.float64)
    exact = value_and_gradient(network, x)
    network.float()
    with torch.autocast("cpu", BFLOAT16):
        usual = value_and_gradient(fast_copy(network), x.float())
        ours = value_and_gradient(for_chains(network, BFLOAT16), x.float())
    for mine, theirs, true in zip(ours, usual, exact, strict=True):
        # Of most rows: where rounding changes the sign of a unit, a row's gradient jumps, on either side.
        typical = [float((each - true).reshape(64, -1).norm(dim=1).median()) for each in (mine, theirs)]
        assert typical[0] < 1.5 * typical[1] + 1e-6 * float(true.norm())


def test_each_rows_gradient_is_weighted_by_its_own_incoming_one() -> None:
    energy = randomised(ResNetEnergy(1, 4))
    x, weights = torch.randn(4, 1, 8, 8, dtype=torch.float64, requires_grad=True), torch.arange(4.0).double()
    gradients = [torch.autograd.grad((weights * e(x)).sum(), x)[0] for e in (for_chains(energy, BFLOAT16), energy)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    assert not gradients[0][0].any()


def test_a_second_derivative_is_refused() -> None:
    energy = for_chains(randomised(ResNetEnergy(1, 4)), BFLOAT16)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_networks_with_hooks_or_parametrisations_keep_autograd() -> None:
    hooked, below, normed = ResNetEnergy(1, 4), MLPEnergy(3, 4), ResNetEnergy(1, 4, normalization="spectral")
    hooked.blocks[2].first.register_forward_hook(lambda *_: None)
    below.layers[2].register_full_backward_hook(lambda *_: None)
    glow, linear = Glow(1, 8, 1, 2, 4), MLPEnergy(3, 4)
    nn.utils.parametrizations.weight_norm(glow.blocks[0][1].network.last)  # type: ignore[index, union-attr]
    nn.utils.parametrizations.weight_norm(linear.layers[1])
    for network in (hooked, below, normed, glow, linear):
        assert stacks(for_chains(network.eval().requires_grad_(False), BFLOAT16)) == 0


def test_weights_that_train_keep_autograd() -> None:
    energy = for_chains(MLPEnergy(3, 4).eval(), BFLOAT16)
    assert stacks(energy) == 0
    energy(torch.randn(2, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in energy.parameters())


def test_a_hook_on_the_whole_network_is_still_called() -> None:
    seen, energy = list[int](), randomised(MLPEnergy(3, 4))
    energy.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for_chains(energy, BFLOAT16)(torch.randn(6, 3, dtype=torch.float64))
    assert seen == [6]


def test_a_users_network_is_returned_itself_and_ours_in_a_sum_are_not() -> None:
    class Own(ResNetEnergy):
        pass

    own, usual = randomised(Own(1, 4)), randomised(SmallEnergy(1, 4))
    assert stacks(for_chains(own, BFLOAT16)) == 0
    total = randomised(SumEnergy([own, usual, nn.Sequential(nn.Flatten(), nn.Linear(1024, 1))], [1.0, 2.0, 3.0]))
    fast = for_chains(total, BFLOAT16)
    assert [stacks(energy) for energy in fast.energies] == [0, 1, 0]
    assert fast.energies[2] is total.energies[2]  # type: ignore[index]
    x = torch.randn(3, 1, 32, 32, dtype=torch.float64)
    for ours, theirs in zip(value_and_gradient(fast, x), value_and_gradient(total, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 4, 20])
def test_a_convolution_and_its_transpose(channels: int, stride: int) -> None:
    weight, bias = torch.randn(20, channels, 3, 3, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64, requires_grad=True)
    y = nn.functional.conv2d(x, weight, bias, stride, 1)
    kernel, incoming = Kernel(weight, (stride, stride), (1, 1), torch.float64), torch.randn_like(y)
    torch.testing.assert_close(kernel.map(x, bias), y, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(y, x, incoming)
    torch.testing.assert_close(kernel.transpose(incoming, x.shape[2:]), gradient, rtol=1e-9, atol=1e-9)
    narrow = Kernel(weight.transpose(0, 1), (stride, stride), (1, 1), torch.float64)
    expected = nn.functional.conv2d(incoming, weight.transpose(0, 1), None, stride, 1)
    torch.testing.assert_close(narrow.map(incoming), expected, rtol=1e-9, atol=1e-9)


def test_chains_see_weights_that_change_and_samples_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    tilted = TiltedGenerator(
        VAE(1, 6, 4), ResNetEnergy(1, 4), sampler=SamplerConfig(steps=3, step_size=0.1), precision="float32"
    )
    first = tilted.sample(5, batch_size=2, return_latents=True)
    # Compiled chains go through autograd; a compiler that does nothing leaves just that.
    tilted.compile_chains = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        torch.testing.assert_close(tilted.sample(5, batch_size=2, return_latents=True), first, rtol=1e-4, atol=1e-5)
    tilted.compile_chains = False
    assert tilted.energy is not None
    with torch.no_grad():
        tilted.energy.head.weight += 1.0  # type: ignore[operator, union-attr]
        tilted.energy.stem.weight *= 3.0  # type: ignore[operator, union-attr]
    changed = tilted.sample(5, batch_size=2, return_latents=True)
    assert not torch.allclose(changed, first, atol=1e-3)


def test_the_papers_energy_takes_fewer_operations_than_as_it_is_written() -> None:
    energy = randomised(ResNetEnergy(1, 16))
    x = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    as_written, as_run = (flops_of_gradient(module, x) for module in (energy, for_chains(energy, BFLOAT16)))
    assert as_run < 0.76 * as_written
