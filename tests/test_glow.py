"""Glow: inverses, log-determinants against Jacobians, densities against quadrature, and the kept inverse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev

from exptilt.errors import InputError
from exptilt.generators.glow import Glow
from exptilt.generators.glow_layers import Coupling, CouplingNetwork, Mixing, Split
from exptilt.hub import _load_part
from exptilt.presets import Scale, preset
from exptilt.storage import save_module

# Fashion-MNIST's are MNIST's.
NAMES: list[tuple[str, Scale]] = [("mnist", "paper"), ("cifar10", "paper"), ("mnist", "laptop"), ("cifar10", "laptop")]
PRESETS = {f"{name}-{scale}": preset(f"glow-{name}", scale).arguments for name, scale in NAMES}
# How far from the identity a random flow of each depth is put, where it still has a good condition.
SCALES = {name: 0.2 if name == "cifar10-paper" else 0.3 for name in PRESETS}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def perturb(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """Take a flow away from the identity: the convolutions of zeros, the mixing matrices, the scales and the shifts."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d) and not part.weight.any():
                part.weight.normal_(0, scale / math.sqrt(part.weight[0].numel()))
                assert part.bias is not None
                part.bias.normal_(0, 0.1 * scale)
            elif isinstance(part, Mixing):
                for parameter in part.parameters():
                    parameter.add_(0.05 * scale * torch.randn_like(parameter))
    return module


def random_bytes(n: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Images of uniform bytes, in the scale of the package."""
    return torch.randint(0, 256, (n, *shape)) / 127.5 - 1


def tiny(**arguments: int) -> Glow:
    """A flow with every kind of layer on 4×4 images, away from the identity, in float64."""
    glow = Glow(**({"channels": 1, "size": 4, "levels": 2, "steps": 2, "hidden": 5} | arguments))  # type: ignore[arg-type]
    return perturb(glow).double().freeze()  # type: ignore[return-value, operator]


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_every_preset_is_inverted_in_float32(name: str) -> None:
    glow, h = _random_flow_and_images(Glow(**PRESETS[name]), SCALES[name])
    z, log_det = glow.transform(h)
    assert bool(torch.isfinite(log_det).all())
    assert float((z - h.flatten(1)).abs().max()) > 0.5
    assert float((glow.decode(z) * 255 / 256 - h).abs().max()) < 1e-4


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_every_preset_is_inverted_in_float64(name: str) -> None:
    """Both ways round. The paper's 123 million parameters for CIFAR-10 made narrow: errors grow with the depth."""
    narrow = {"hidden": 8} if name == "cifar10-paper" else {}
    glow, h = _random_flow_and_images(Glow(**(PRESETS[name] | narrow)).double(), SCALES[name])
    assert float((glow.decode(glow.transform(h)[0]) * 255 / 256 - h).abs().max()) < 1e-9
    z = glow.sample_prior(1).double()
    assert float((glow.transform(glow.decode(z) * 255 / 256)[0] - z).abs().max()) < 1e-9


def _random_flow_and_images(glow: Glow, scale: float) -> tuple[Glow, torch.Tensor]:
    """The flow away from the identity, its ActNorms initialised as in training, and dequantised images."""
    perturb(glow, scale).train()
    h = glow.dequantize(random_bytes(1, glow.data_shape))
    glow.transform(h)
    return glow.freeze(), h


def _log_det_of_jacobian(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """log|det| of the Jacobian at each of a batch."""
    jacobians = [jacrev(lambda v: function(v[None])[0].flatten())(one).reshape(one.numel(), -1) for one in x]
    return torch.stack([torch.linalg.slogdet(jacobian)[1] for jacobian in jacobians])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "layer", [Mixing(4), Mixing(3), Coupling(4, 5, 3, 1.0), Coupling(3, 5, 1, 1.0)], ids=lambda m: type(m).__name__
)
def test_a_layer_has_the_log_determinant_of_its_jacobian_and_an_inverse(layer: nn.Module, training: bool) -> None:
    layer = perturb(copy.deepcopy(layer)).double().train(training)
    channels = layer.lu.shape[0] if isinstance(layer, Mixing) else sum(layer.sizes)  # type: ignore[arg-type, union-attr]
    x = 0.5 + 2 * torch.randn(3, channels, 2, 2, dtype=torch.float64)  # type: ignore[call-overload]
    y, log_det = layer(x)
    torch.testing.assert_close(log_det.expand(3), _log_det_of_jacobian(lambda v: layer(v)[0], x))
    assert float(log_det.detach().abs().max()) > 1e-2
    torch.testing.assert_close(layer.inverse(y), x)  # type: ignore[operator]


def test_a_split_standardises_and_has_its_log_determinant() -> None:
    split = perturb(Split(6, 1.0)).double()
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    x_a, z, log_det = split(x)
    expected = _log_det_of_jacobian(lambda v: torch.cat(split(v)[:2], 1), x)
    torch.testing.assert_close(log_det, expected)
    torch.testing.assert_close(split.inverse(x_a, z), x)  # type: ignore[operator]


@pytest.mark.parametrize("channels", [1, 2])
def test_the_whole_flow_has_the_log_determinant_of_its_jacobian(channels: int) -> None:
    glow = tiny(channels=channels)
    x = glow.dequantize(random_bytes(2, glow.data_shape)) * 256 / 255
    z, log_det = glow.transform(x * 255 / 256)
    torch.testing.assert_close(log_det, _log_det_of_jacobian(lambda h: glow.transform(h)[0], x * 255 / 256))
    # The density, from the Jacobian of the decoder alone.
    of_decoder = _log_det_of_jacobian(glow.decode, z)
    torch.testing.assert_close(glow.log_prob(x), glow.prior.log_prob(z) - of_decoder)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_density_of_a_flow_in_two_dimensions_integrates_to_one(steps: int) -> None:
    """Quadrature on a grid: the integrand is smooth and vanishes at the border, so the trapezoidal rule converges."""
    glow = perturb(Glow(channels=2, size=1, levels=0, steps=steps, hidden=8), 2.0).double()
    with torch.no_grad():
        axis = torch.linspace(-12, 12, 241, dtype=torch.float64)
        x = torch.cartesian_prod(axis, axis).reshape(-1, 2, 1, 1)
        density = torch.cat([glow.eval().log_prob(part) for part in x.split(60_000)]).exp()  # type: ignore[operator]
    assert abs(float(density.sum()) * 0.1**2 - 1) < 1e-4


def test_actnorm_is_initialised_once_by_the_first_batch_in_training() -> None:
    mixing = Mixing(3)
    x = torch.tensor([3.0, -1.0, 0.0])[:, None, None] + torch.tensor([0.1, 5.0, 1.0])[:, None, None] * torch.randn(
        8, 3, 4, 4
    )
    before = copy.deepcopy(mixing.state_dict())
    mixing.eval()(x)
    assert all(torch.equal(value, before[name]) for name, value in mixing.state_dict().items())
    torch.testing.assert_close(mixing(x)[0], F.conv2d(x, mixing.weight()[:, :, None, None]))

    with torch.inference_mode():
        mixing.train()(x)
    normed = x * mixing.log_scale().exp()[:, None, None] + mixing.shift[:, None, None]
    torch.testing.assert_close(normed.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(normed.std((0, 2, 3), correction=0), torch.ones(3), rtol=1e-4, atol=0)

    first = copy.deepcopy(mixing.state_dict())
    other = Mixing(3).train()
    other.load_state_dict(first)
    for layer in (mixing, other, copy.deepcopy(mixing)):
        layer(10 * x + 1)
        assert all(torch.equal(value, first[name]) for name, value in layer.state_dict().items())
    mixing.load_state_dict(before)
    mixing(10 * x + 1)
    assert not torch.equal(mixing.shift, before["shift"])


def test_actnorm_of_a_constant_channel_is_finite() -> None:
    mixing = Mixing(2).train()
    y, log_det = mixing(torch.tensor([3.0, -1e5])[:, None, None].expand(4, 2, 2, 2))
    assert bool(torch.isfinite(y).all())
    assert bool(torch.isfinite(log_det).all())
    # Two units in the last place of 1e5 over the least scale, 1e-3.
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=16.0)


def test_the_whole_flow_initialises_under_no_grad_and_autocast_alike() -> None:
    x = random_bytes(8, (1, 4, 4))
    one = Glow(1, 4, 2, 2, 5).train()
    two = copy.deepcopy(one)
    with torch.no_grad():
        one.training_loss(x, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = two.training_loss(x, generator=torch.Generator().manual_seed(1))
    assert loss.dtype == torch.float32
    for name, value in one.state_dict().items():
        # Couplings start as the identity, whatever the precision of their networks.
        torch.testing.assert_close(value, two.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert all(bool(m.initialized) for m in one.modules() if isinstance(m, Mixing))


def test_autocast_leaves_arithmetic_and_log_determinants_in_float32() -> None:
    x = torch.randn(2, 4, 4, 4)
    mixing = perturb(Mixing(4)).eval()
    coupling = Coupling(4, 8, 3, 1.0)
    plain = mixing(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(*pair) for pair in zip(mixing(x), plain, strict=True))
        torch.testing.assert_close(mixing.inverse(plain[0]), x)  # type: ignore[operator]
        assert torch.equal(coupling(x)[0], x)
        perturb(coupling)
        y, log_det = coupling(x)
        assert y.dtype == log_det.dtype == torch.float32
        # The half that the network sees is untouched, so inside one coupling even the rounding is the same.
        torch.testing.assert_close(coupling.inverse(y), x)
        assert coupling.network(x[:, 2:]).dtype == torch.bfloat16


def test_save_and_load_give_the_same_flow(tmp_path: Path) -> None:
    glow = perturb(Glow(1, 8, 2, 2, 8, 1, 0.9, 5)).train()
    with torch.no_grad():
        glow.training_loss(random_bytes(4, (1, 8, 8)))  # type: ignore[operator]
    glow.freeze()  # type: ignore[operator]
    expected = glow.sample(3, seed=2)  # type: ignore[operator]
    save_module(glow, tmp_path)
    loaded = _load_part(tmp_path, {"Glow": Glow})
    assert loaded.arguments() == glow.arguments()  # type: ignore[operator]
    assert loaded.state_dict().keys() == glow.state_dict().keys()
    assert torch.equal(loaded.freeze().sample(3, seed=2), expected)
    shifts = copy.deepcopy([m.shift for m in loaded.modules() if isinstance(m, Mixing)])
    loaded.train().training_loss(random_bytes(4, (1, 8, 8)))
    assert all(torch.equal(m.shift, s) for m, s in zip(_mixings(loaded), shifts, strict=True))


def _mixings(module: nn.Module) -> list[Mixing]:
    return [part for part in module.modules() if isinstance(part, Mixing)]


def _in_place(m: Mixing) -> None:
    with torch.no_grad():
        m.lu.add_(0.1)


def _new_data(m: Mixing) -> None:
    m.raw_scale.data = m.raw_scale.data + 0.3


def _new_parameter(m: Mixing) -> None:
    m.shift = nn.Parameter(m.shift.detach() + 1, requires_grad=False)


def _load(m: Mixing) -> None:
    m.load_state_dict(perturb(Mixing(4)).state_dict())


def _assign(m: Mixing) -> None:
    m.load_state_dict(perturb(Mixing(4)).state_dict(), assign=True)
    m.requires_grad_(False)


def _load_into_parameters(m: Mixing) -> None:
    with torch.no_grad():
        m.log_diagonal.copy_(torch.ones(4))


def _step(m: Mixing, kind: type[torch.optim.Optimizer], **arguments: bool) -> None:
    optimizer = kind(m.parameters(), lr=0.1, **arguments)  # type: ignore[call-arg]
    m.requires_grad_(True)
    m(torch.randn(2, 4, 2, 2))[0].square().sum().backward()
    m.requires_grad_(False)
    optimizer.step()


def _data_and_switch(m: Mixing) -> None:
    m.lu.data.add_(0.1)
    m.train().eval()


CHANGES: dict[str, Callable[[Mixing], None]] = {
    "in place": _in_place,
    "new data": _new_data,
    "new parameter": _new_parameter,
    "load_state_dict": _load,
    "load_state_dict(assign=True)": _assign,
    "copy_": _load_into_parameters,
    "SGD": lambda m: _step(m, torch.optim.SGD),
    "Adam": lambda m: _step(m, torch.optim.Adam),
    "fused AdamW": lambda m: _step(m, torch.optim.AdamW, fused=True),
    "foreach AdamW": lambda m: _step(m, torch.optim.AdamW, foreach=True),
    "train and eval": _data_and_switch,
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_kept_inverse_is_never_stale(change: str) -> None:
    mixing = perturb(Mixing(4)).eval().requires_grad_(False)
    x = torch.randn(2, 4, 3, 3)
    keys = mixing.state_dict().keys()
    old = mixing.inverse(x)  # type: ignore[operator]
    assert mixing.inverse_map()[0] is mixing.inverse_map()[0]  # type: ignore[operator]
    assert mixing.state_dict().keys() == keys
    twin = copy.deepcopy(mixing)
    CHANGES[change](mixing)  # type: ignore[arg-type]
    new = mixing.inverse(x)  # type: ignore[operator]
    assert not torch.allclose(new, old, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mixing(new)[0], x, rtol=1e-4, atol=1e-4)
    mixing.zero_grad()
    assert torch.equal(mixing.inverse(x), new)  # type: ignore[operator]
    assert mixing.inverse_map()[0] is mixing.inverse_map()[0]  # type: ignore[operator]
    # A copy made before the change has the old weights.
    assert torch.equal(twin.inverse(x), old)


def test_the_kept_inverse_follows_dtype_and_the_wish_for_gradients() -> None:
    mixing = perturb(Mixing(4)).eval()
    x = torch.randn(2, 4, 3, 3)
    with torch.inference_mode():
        mixing.inverse(x)  # type: ignore[operator]
    mixing.inverse(x).sum().backward()  # type: ignore[operator]
    assert mixing.lu.grad is not None
    mixing.requires_grad_(False)
    z = x.clone().requires_grad_(True)
    mixing.inverse(z).sum().backward()  # type: ignore[operator]
    assert z.grad is not None
    y = mixing.double().inverse(x.double())  # type: ignore[operator]
    torch.testing.assert_close(mixing(y)[0], x.double(), rtol=1e-12, atol=1e-12)
    y = mixing.float().inverse(x)  # type: ignore[operator]
    torch.testing.assert_close(mixing(y)[0], x, rtol=1e-4, atol=1e-4)


def test_other_weights_for_one_call_neither_use_nor_leave_a_kept_inverse() -> None:
    glow = tiny()
    z = torch.randn(2, *glow.latent_shape, dtype=torch.float64)
    expected = glow.decode(z)
    zeros = {name: torch.zeros_like(p) for name, p in glow.named_parameters()}
    changed = functional_call(glow, zeros, (z,))
    assert not torch.allclose(changed, expected)
    assert torch.equal(glow.decode(z), expected)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_samples_at_five_times_the_temperature_are_finite(name: str, factor: float) -> None:
    glow, _ = _random_flow_and_images(Glow(**(PRESETS[name] | {"hidden": 16})), factor * SCALES[name])
    z = (5 * torch.randn(2, *glow.latent_shape)).requires_grad_(True)
    x = glow.decode(z)
    (gradient,) = torch.autograd.grad(x.sum(), z)
    assert bool(torch.isfinite(x).all())
    assert bool(torch.isfinite(gradient).all())


def test_a_coupling_stretches_by_less_than_its_bound() -> None:
    coupling = perturb(Coupling(4, 8, 3, 0.7), 1e4)
    with torch.no_grad():
        log_s, _ = coupling._log_scale_and_shift(torch.randn(8, 2, 4, 4))  # type: ignore[operator]
    assert 0.69 < float(log_s.abs().max()) <= 0.7


def test_bits_per_dim_of_the_untrained_flow_on_uniform_bytes_is_that_of_a_normal() -> None:
    """Untrained, f is a rotation: −log₂ p of a bin of 2/256 of h ~ U[−1, 1] has mean 7 + (1/6 + ½ log 2π) / log 2."""
    glow = Glow(channels=1, size=16, levels=2, steps=2, hidden=4).freeze()
    x = random_bytes(500, glow.data_shape)
    bits = glow.metrics(x, generator=torch.Generator().manual_seed(1))["bits_per_dim"]  # type: ignore[operator]
    assert bits.shape == (500,)
    h = glow.dequantize(x, torch.Generator().manual_seed(1)).double()  # type: ignore[operator]
    of_normal = (0.5 * h.square() + 0.5 * math.log(2 * math.pi)) / math.log(2) + 7
    torch.testing.assert_close(bits.double(), of_normal.flatten(1).mean(1), rtol=1e-5, atol=0)
    expected = 7 + (1 / 6 + 0.5 * math.log(2 * math.pi)) / math.log(2)
    # The variance of h²/2 is (1/5 − 1/9)/4.
    assert abs(float(bits.mean()) - expected) < 4 * math.sqrt((1 / 5 - 1 / 9) / 4 / h.numel()) / math.log(2)


def test_the_loss_bounds_the_probability_of_a_discrete_image() -> None:
    """E over the noise of the loss against −log P, the density integrated over the bin, on two pixels of 1 bit."""
    glow = perturb(Glow(channels=2, size=1, levels=0, steps=2, hidden=8, bits=1)).double().freeze()  # type: ignore[operator]
    corners = torch.tensor([[0.0, 0.0], [0.0, 255.0], [255.0, 0.0], [255.0, 255.0]]).reshape(4, 2, 1, 1) / 127.5 - 1
    middle = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    u = torch.cartesian_prod(middle, middle).reshape(-1, 2, 1, 1)
    for corner in corners.double():
        # Both bins of 1 bit are one unit wide in h, so its density needs no factor.
        z, log_det = glow.transform((corner > 0) + u - 1)
        log_density = glow.prior.log_prob(z) + log_det
        probability = log_density.exp().mean()
        loss = glow.training_loss(corner.expand(20_000, 2, 1, 1), generator=torch.Generator().manual_seed(2))
        error = float(loss.std()) / math.sqrt(len(loss))
        assert abs(float(loss.mean() + log_density.mean())) < 4.5 * error + 1e-4
        assert float(loss.mean()) > -math.log(float(probability)) - 4.5 * error


@pytest.mark.parametrize("bits", [8, 5, 1])
def test_dequantisation_keeps_every_byte_and_decoding_gives_it_back(bits: int) -> None:
    glow = Glow(channels=1, size=16, levels=2, steps=1, hidden=4, bits=bits).freeze()
    byte = torch.arange(256)
    x = ((byte.float() / 255 - 0.5) * 2).reshape(1, 1, 16, 16)
    h = glow.dequantize(x)  # type: ignore[operator]
    kept = torch.div(byte, 2 ** (8 - bits), rounding_mode="floor")
    assert torch.equal(torch.floor((h.double() + 1) * 2 ** (bits - 1)).flatten().long(), kept)
    assert not torch.equal(h, glow.dequantize(x))  # type: ignore[operator]
    decoded = glow.decode(glow.transform(h)[0])  # type: ignore[operator]
    torch.testing.assert_close(decoded, h * 256 / 255)
    noise = torch.Generator().manual_seed(1)
    z = glow.encode(x, noise)
    assert torch.equal(z, glow.transform(glow.dequantize(x, noise.manual_seed(1)))[0])  # type: ignore[operator]
    if bits == 8:
        assert torch.equal(torch.round((decoded + 1) * 127.5).clamp(0, 255).flatten().long(), byte)


def test_decoding_has_the_gradient_of_finite_differences() -> None:
    glow = tiny()
    z = torch.randn(1, *glow.latent_shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(glow.decode, z, fast_mode=False)


def test_samples_do_not_depend_on_the_batch_size() -> None:
    glow = perturb(Glow(1, 8, 2, 3, 8)).freeze()  # type: ignore[operator]
    whole = glow.sample(10, seed=3, batch_size=7)
    torch.testing.assert_close(glow.sample(10, seed=3, batch_size=3), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(glow.sample(4, seed=3, start=5), whole[5:9], rtol=1e-4, atol=1e-5)


def test_the_flat_latent_is_finest_first() -> None:
    glow = Glow(channels=3, size=8, levels=3, steps=1, hidden=4)
    assert glow.latent_parts == ((6, 4, 4), (12, 2, 2), (48, 1, 1))
    z = torch.arange(2 * 192.0).reshape(2, 192)
    parts = glow.split_latent(z)
    assert torch.equal(parts[0][0].flatten(), torch.arange(96.0))
    assert torch.equal(parts[2][1].flatten(), 192 + torch.arange(144, 192.0))
    assert torch.equal(glow.join_latent(parts), z)
    # Untrained, what changes with a latent of the finest level is one 2×2 patch of the image.
    z = torch.zeros(2, 192)
    z[1, 5] = 1.0
    x = glow.freeze().decode(z)
    row, column = (x[1] != x[0]).any(0).nonzero(as_tuple=True)
    assert set(row.tolist()) <= {2, 3}
    assert set(column.tolist()) <= {2, 3}


def test_the_coupling_network_is_a_highway_that_ends_in_zeros() -> None:
    network = CouplingNetwork(2, 6, 5, 3)
    x = torch.randn(2, 2, 4, 4)
    assert not network(x).any()
    perturb(network)
    weight, bias = network.highway.weight, network.highway.bias
    assert bias is not None
    h = F.silu(network.first(x))
    gate = torch.sigmoid(F.conv2d(h, weight[5:], bias[5:], padding=1))
    assert float(gate.detach().mean()) < 0.5
    carried = gate * F.silu(F.conv2d(h, weight[:5], bias[:5], padding=1)) + (1 - gate) * h
    torch.testing.assert_close(network(x), network.last(carried))


def test_channels_last_changes_nothing() -> None:
    glow = perturb(Glow(3, 8, 2, 2, 8)).eval()
    x = random_bytes(3, (3, 8, 8))
    expected = glow.training_loss(x, generator=torch.Generator().manual_seed(1))  # type: ignore[operator]
    glow.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.contiguous(memory_format=torch.channels_last)
    actual = glow.training_loss(x, generator=torch.Generator().manual_seed(1))  # type: ignore[operator]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


def test_a_few_updates_lower_the_loss() -> None:
    glow = Glow(1, 8, 2, 2, 8).train()
    optimizer = torch.optim.AdamW(glow.parameters(), lr=5e-3, weight_decay=0.0, fused=True)
    x = (torch.linspace(-1, 1, 8).expand(16, 1, 8, 8) * 127.5).round() / 127.5
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = glow.training_loss(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 20
    assert all(p.grad is not None for p in glow.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": 0}, "channels"),
        ({"size": 6, "levels": 2}, "divisible"),
        ({"levels": 0}, "one channel"),
        ({"steps": 0}, "steps"),
        ({"highway_kernel": 2}, "odd"),
        ({"scale_bound": 0.0}, "scale_bound"),
        ({"bits": 9}, "bits"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Glow(**arguments)  # type: ignore[arg-type]
