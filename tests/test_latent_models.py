"""Models with a learned latent density: the flow against closed forms, GLF, and the two models on a frozen VAE."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import zuko
from torch import nn
from torch.distributions import Normal

from exptilt.config import SamplerConfig
from exptilt.energies.small import SmallEnergy
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.generators.glf import GLF
from exptilt.generators.latent_flow import LatentFlow, LatentFlowVAE
from exptilt.generators.two_stage import CodeVAE, SecondStage, TwoStageVAE
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.hub import build
from exptilt.storage import load_weights, read_json, read_tensors, save_module
from exptilt.tilted import TiltedGenerator

CLASSES = {"GLF": GLF, "LatentFlowVAE": LatentFlowVAE, "TwoStageVAE": TwoStageVAE}
FLOW = {"couplings": 4, "flow_width": 16}
SECOND = {"second_width": 16, "second_depth": 3}


def _perturbed(module: nn.Module, size: float = 0.1) -> nn.Module:
    """Trainable weights moved off their initial values: a new flow is the identity, which hides what is wrong."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return module


def _tiny_vae(channels: int = 1, latent_size: int = 5, likelihood: str = "bernoulli") -> VAE:
    """A VAE with batch-norm statistics that are not the initial ones."""
    vae = VAE(channels, latent_size, 4, likelihood)  # type: ignore[arg-type]
    vae.train()
    for _ in range(3):
        vae.training_loss(torch.rand(8, channels, 32, 32) * 2 - 1)
    return vae.eval()  # type: ignore[return-value]


def _make(name: str, channels: int = 1, likelihood: str = "bernoulli") -> Generator:
    if name == "GLF":
        return _perturbed(GLF(channels, 5, 4, likelihood, **FLOW), 0.02).eval()  # type: ignore[arg-type,return-value]
    vae = _tiny_vae(channels, 5, likelihood)
    kind, options = (LatentFlowVAE, FLOW) if name == "LatentFlowVAE" else (TwoStageVAE, SECOND)
    return _perturbed(kind.from_vae(vae, **options)).eval()  # type: ignore[return-value]


def _optimise(module: nn.Module, loss, steps: int, learning_rate: float = 3e-3) -> None:
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().mean().backward()
        optimizer.step()


def test_the_flows_density_is_zukos() -> None:
    flow = _perturbed(LatentFlow(7, 4, 16))
    z = torch.randn(20, 7)
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(7), torch.ones(7), buffer=True
    )
    theirs = zuko.lazy.Flow(list(flow.couplings), base)  # type: ignore[arg-type,call-overload]
    torch.testing.assert_close(flow.log_prob(z), theirs().log_prob(z))  # type: ignore[operator]


def test_the_flows_log_determinant_is_that_of_autograds_jacobian() -> None:
    flow = _perturbed(LatentFlow(4, 5, 16).double(), 0.4)
    z = torch.randn(6, 4, dtype=torch.float64)
    u, log_det = flow(z)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda v: flow(v[None])[0][0], row) for row in z])
    expected = torch.linalg.slogdet(jacobians).logabsdet
    assert float(expected.abs().min()) > 1e-3
    torch.testing.assert_close(log_det, expected)
    torch.testing.assert_close(flow.log_prob(z), Normal(0.0, 1.0).log_prob(u).sum(1) + expected)  # type: ignore[operator]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_the_flow_is_invertible_and_not_the_identity(dtype: torch.dtype, tolerance: float) -> None:
    flow = _perturbed(LatentFlow(9, 4, 32).to(dtype))
    z = torch.randn(50, 9, dtype=dtype)
    with torch.no_grad():
        u = flow(z)[0]
        there, back = flow.inverse(u), flow(flow.inverse(z))[0]  # type: ignore[operator]
    assert bool(((u - z).abs().amax(0) > 0.01).all()), "a coordinate is not moved"
    assert float((there - z).abs().max()) < tolerance
    assert float((back - z).abs().max()) < tolerance


def test_a_new_flow_is_the_identity_and_fills_every_coordinate_equally() -> None:
    flow = LatentFlow(64)
    z = torch.randn(5, 64)
    assert torch.equal(flow(z)[0], z)
    assert torch.equal(flow(z)[1], torch.zeros(5))
    moved = sum((~coupling.mask).int() for coupling in flow.couplings)  # type: ignore[operator,misc]
    assert torch.equal(moved, torch.full((64,), 2))
    shapes = [tuple(p.shape) for p in flow.couplings[0].parameters()]
    assert shapes == [(256, 32), (256,), (64, 256), (64,)]


def test_the_halves_depend_on_nothing_but_the_arguments() -> None:
    torch.manual_seed(1)
    first = LatentFlow(12)
    torch.manual_seed(2)
    second = LatentFlow(12)
    for a, b in zip(first.couplings, second.couplings, strict=True):
        assert torch.equal(a.mask, b.mask)  # type: ignore[arg-type]


def test_the_flow_and_the_second_stage_stay_in_float32_under_autocast() -> None:
    flow, second = _perturbed(LatentFlow(6, 4, 16)), _perturbed(CodeVAE(6, 16, 2))
    z = torch.randn(4, 6)
    functions = (flow.log_prob, flow.inverse, second.decode, lambda v: second.posterior(v)[0])  # type: ignore[operator]
    for function in functions:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under = function(z)  # type: ignore[operator]
        assert under.dtype == torch.float32
        assert torch.equal(under, function(z))  # type: ignore[operator]


@pytest.mark.parametrize("name", CLASSES)
def test_saved_and_loaded_it_gives_the_same_samples(name: str, tmp_path: Path) -> None:
    model = _make(name)
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    if name != "TwoStageVAE":
        # Halves in the file that the constructor would not make: they have to come from the file.
        for coupling in model.flow.couplings:  # type: ignore[union-attr]
            coupling.mask.copy_(coupling.mask.roll(1))
    save_module(model, tmp_path)
    config = read_json(tmp_path / "config.json")
    torch.manual_seed(99)
    again = build(CLASSES, config["class"], config["arguments"], tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    load_weights(again, tensors, tmp_path)
    again.freeze()
    assert type(again) is type(model)
    assert again.arguments() == model.arguments() == config["arguments"]
    assert torch.equal(again.sample(4, seed=3), model.sample(4, seed=3))
    encoded = [m.encode(x, torch.Generator().manual_seed(1)) for m in (again, model)]
    assert torch.equal(*encoded)
    assert [key for key, value in again.state_dict().items() if not torch.equal(value, model.state_dict()[key])] == []


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("channels", "likelihood"), [(1, "bernoulli"), (3, "gaussian")])
def test_shapes_ranges_and_figures(name: str, channels: int, likelihood: str) -> None:
    model = _make(name, channels, likelihood).freeze()
    x = model.sample(3, seed=1)
    assert x.shape == (3, channels, 32, 32)
    assert float(x.abs().max()) <= 1
    # The two-stage VAE's has the noise of its second stage beside u.
    assert model.encode(x).shape == (3, *model.latent_shape) == (3, 10 if name == "TwoStageVAE" else 5)
    assert model.has_encoder
    assert model.training_loss(x).shape == (3,)  # type: ignore[operator]
    figures = model.metrics(x)  # type: ignore[operator]
    assert set(figures) == ({"reconstruction", "code_nll"} if name == "GLF" else {"elbo", "code_nll"})
    assert all(values.shape == (3,) and bool(values.isfinite().all()) for values in figures.values())


@pytest.mark.parametrize("name", CLASSES)
def test_the_gradient_through_the_decoder_agrees_with_finite_differences(name: str) -> None:
    model = _make(name).double().freeze()
    u, direction = torch.randn(2, 3, *model.latent_shape, dtype=torch.float64)
    weights = torch.randn(3, 1, 32, 32, dtype=torch.float64)

    def value(at: torch.Tensor) -> torch.Tensor:
        return (weights * model.decode(at)).sum()

    (gradient,) = torch.autograd.grad(value(u.requires_grad_(True)), u)
    step = 1e-6
    with torch.no_grad():
        difference = (value(u + step * direction) - value(u - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", CLASSES)
def test_it_can_be_tilted(name: str) -> None:
    sampler = SamplerConfig(kernel="mala", steps=2, step_size=0.05)
    model = _make(name)
    tilted = TiltedGenerator(model, SmallEnergy(1, 4), sampler=sampler)
    x, info = tilted.sample(3, seed=2, return_info=True)
    assert x.shape == (3, 1, 32, 32)
    assert bool(info.energy.isfinite().all())
    u = model.sample_prior(3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(tilted.potential(u).sum(), u)
    assert bool(gradient.isfinite().all())
    assert float((gradient - u.detach()).abs().max()) > 0


def test_glf_is_the_papers() -> None:
    model = GLF()
    assert model.latent_shape == (64,)
    assert model.encode(torch.zeros(2, 1, 32, 32)).shape == (2, 64)
    assert len(model.flow.couplings) == 4
    convolutions = [tuple(m.weight.shape) for m in model.autoencoder.encoder if isinstance(m, nn.Conv2d)]
    assert convolutions == [(64, 1, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (64, 256, 4, 4)]


def test_glf_inverts_its_encoding_up_to_the_autoencoders_error() -> None:
    model = _make("GLF")
    x = torch.rand(4, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            model.decode(model.encode(x)),
            model.autoencoder.decode(model.code(x)),  # type: ignore[operator,union-attr]
            rtol=0,
            atol=1e-4,
        )
        assert torch.equal(model.encode(x), model.encode(x))


def test_glfs_loss_is_its_definition_and_the_flow_does_not_reach_the_encoder() -> None:
    model = _perturbed(GLF(1, 5, 4, **FLOW, flow_weight=0.25), 0.02)  # type: ignore[arg-type]
    model.train()
    x = torch.rand(8, 1, 32, 32) * 2 - 1
    parts = (model.autoencoder, model.flow)
    code = model.code(x)  # type: ignore[operator]
    reconstruction = model.autoencoder.reconstruction_loss(x, code)  # type: ignore[operator,union-attr]
    density = model.flow.log_prob(code)  # type: ignore[operator,union-attr]
    loss = model.training_loss(x)  # type: ignore[operator]
    torch.testing.assert_close(loss, reconstruction - 0.25 * density)
    whole = [torch.autograd.grad(loss.sum(), list(part.parameters()), retain_graph=True) for part in parts]
    expected = (
        torch.autograd.grad(reconstruction.sum(), list(parts[0].parameters())),
        torch.autograd.grad(-0.25 * model.flow.log_prob(code.detach()).sum(), list(parts[1].parameters())),  # type: ignore[operator,union-attr]
    )
    for got, right in zip(whole, expected, strict=True):
        for a, b in zip(got, right, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["LatentFlowVAE", "TwoStageVAE"])
def test_training_the_second_stage_leaves_the_vae_bit_for_bit_as_it_was(name: str) -> None:
    model = _make(name)
    assert isinstance(model, SecondStage)
    model.requires_grad_(True).train()
    assert not any(module.training for module in model.vae.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.rand(16, 1, 32, 32) * 2 - 1
    # Also with the VAE's weights in the optimiser.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.training_loss(x).mean().backward()
        optimizer.step()
    after = model.state_dict()
    inner = [key for key in before if key.startswith("vae.")]
    assert len(inner) > 20
    assert all(torch.equal(before[key], after[key]) for key in inner)
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any(key.startswith("vae.") for key in trained)
    assert not any(torch.equal(before[key], after[key]) for key in trained)


@pytest.mark.parametrize("kind", [LatentFlowVAE, TwoStageVAE])
def test_from_vae_copies_the_vae(kind: type[SecondStage]) -> None:
    vae = _tiny_vae()
    model = kind.from_vae(vae)
    for key, value in vae.state_dict().items():
        copied = model.vae.state_dict()[key]
        assert torch.equal(copied, value)
        assert copied.data_ptr() != value.data_ptr()
    assert all(parameter.requires_grad for parameter in vae.parameters())
    z = torch.randn(2, 5)
    assert torch.equal(model.vae.decode(z), vae.decode(z))
    with pytest.raises(InputError, match="needs a VAE for images"):
        kind.from_vae(ToyVAE())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["LatentFlowVAE", "TwoStageVAE"])
def test_encoding_maps_the_vaes_code(name: str) -> None:
    model = _make(name)
    assert isinstance(model, SecondStage)
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    z = model.vae.encode(x, torch.Generator().manual_seed(5))
    u = model.encode(x, torch.Generator().manual_seed(5))
    if isinstance(model, LatentFlowVAE):
        torch.testing.assert_close(model.flow.inverse(u), z)
        loss = model.training_loss(x, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(loss, -model.code_log_prob(z))
    else:
        generator = torch.Generator().manual_seed(5)
        model.vae.encode(x, generator)
        assert torch.equal(u[:, :5], model.second.encode(z, generator))  # type: ignore[operator,union-attr]
        # With the noise beside it, nothing of the code is lost.
        torch.testing.assert_close(model.code_from_latent(u), z)


def test_a_flow_that_is_the_identity_has_the_vaes_elbo() -> None:
    vae = _tiny_vae()
    model = LatentFlowVAE.from_vae(vae, **FLOW).freeze()
    x = torch.rand(200, 1, 32, 32) * 2 - 1
    # The VAE has its KL term in closed form, here it is estimated by the same noise: equal in the mean.
    mine = model.metrics(x, generator=torch.Generator().manual_seed(0))["elbo"]  # type: ignore[operator]
    theirs = vae.metrics(x, generator=torch.Generator().manual_seed(0))["elbo"]
    difference = mine - theirs
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(200)


def test_the_second_stages_elbo_is_below_the_importance_weighted_bound() -> None:
    second = _perturbed(CodeVAE(3, 16, 2))
    assert isinstance(second, CodeVAE)
    z, draws = torch.randn(32, 3), 300
    with torch.no_grad():
        mean, deviation = second.posterior(z)
        gamma = float(second.log_gamma.exp())
        log_weights, losses = [], []
        for _ in range(draws):
            u = mean + deviation * torch.randn_like(mean)
            log_p = Normal(second.decode(u), gamma).log_prob(z).sum(1) + Normal(0.0, 1.0).log_prob(u).sum(1)
            log_weights.append(log_p - Normal(mean, deviation).log_prob(u).sum(1))
            losses.append(second.training_loss(z))
    weights, elbo = torch.stack(log_weights), -torch.stack(losses)
    weighted = torch.logsumexp(weights, 0) - math.log(draws)
    assert bool((weights.mean(0) <= weighted).all())
    error = (weights.std(0) + elbo.std(0)) / math.sqrt(draws)
    assert bool(((elbo.mean(0) - weights.mean(0)).abs() < 6 * error + 1e-4).all())
    assert bool((elbo.mean(0) < weighted + 6 * error).all())


def _codes(n: int) -> torch.Tensor:
    """Points on a ring in the first two coordinates, a shifted and narrow normal in the others."""
    angle = 2 * math.pi * torch.rand(n)
    ring = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(n, 2)
    return torch.cat([ring, 1 + 0.3 * torch.randn(n, 2)], 1)


def _standard_nll(z: torch.Tensor) -> float:
    return -float(Normal(0.0, 1.0).log_prob(z).sum(1).mean())


def test_a_fitted_flow_is_closer_to_the_codes_than_the_standard_normal() -> None:
    flow = LatentFlow(4, 4, 32)
    _optimise(flow, lambda: -flow.log_prob(_codes(128)), 300)
    held_out = _codes(2000)
    with torch.no_grad():
        nll = -float(flow.log_prob(held_out).mean())
        samples = flow.inverse(torch.randn(2000, 4))
    # The entropy of the narrow normals alone is 2 nats below that of N(0, I), their shift costs another nat.
    assert nll < _standard_nll(held_out) - 2.5
    assert abs(float(samples[:, :2].norm(dim=1).mean()) - 2) < 0.3


def test_a_fitted_second_stage_is_closer_to_the_codes_than_the_standard_normal() -> None:
    second = CodeVAE(4, 64, 2)
    _optimise(second, lambda: second.training_loss(_codes(128)), 400)
    held_out = _codes(2000)
    with torch.no_grad():
        bound = float(second.training_loss(held_out).mean())
        samples = second.decode(torch.randn(2000, 4))
    assert bound < _standard_nll(held_out) - 1
    assert abs(float(samples[:, 2:].mean()) - 1) < 0.15


def test_a_second_stage_without_information_gives_its_noise() -> None:
    """Where the codes are normal there is nothing to learn: ẑ is constant, γ is 1, and samples are the VAE's own."""
    model = _make("TwoStageVAE").freeze()
    assert isinstance(model, TwoStageVAE)
    with torch.no_grad():
        model.second.decoder_head.weight.zero_()
        model.second.decoder_head.bias.fill_(0.25)
        model.second.log_gamma.fill_(math.log(1.5))
    codes = model.code_from_latent(torch.randn(20_000, 10))
    # Five standard errors of a mean and of a deviation of 20,000 numbers.
    assert float((codes.mean(0) - 0.25).abs().max()) < 5 * 1.5 / math.sqrt(20_000)
    assert float((codes.std(0) - 1.5).abs().max()) < 5 * 1.5 / math.sqrt(2 * 20_000)


@pytest.mark.parametrize("name", ["LatentFlowVAE", "TwoStageVAE"])
def test_a_short_fit_on_a_frozen_vae_learns_the_density_of_its_codes(name: str) -> None:
    """A VAE whose codes are far from N(0, I): those of its untrained encoder, whose last layer is shifted."""
    vae = _tiny_vae()
    with torch.no_grad():
        vae.encoder[-2].bias[:5] += 2.0  # type: ignore[index,operator]
        vae.encoder[-2].bias[5:] -= 3.0  # type: ignore[index,operator]
    kind, options = (LatentFlowVAE, FLOW) if name == "LatentFlowVAE" else (TwoStageVAE, SECOND)
    model = kind.from_vae(vae, **options)
    x = torch.rand(32, 1, 32, 32) * 2 - 1
    model.train()
    _optimise(model, lambda: model.training_loss(x), 150)
    model.eval()
    nll = float(model.metrics(x)["code_nll"].mean())
    assert nll < _standard_nll(vae.encode(x).detach()) - 5
    assert float(model.metrics(x)["elbo"].mean()) > float(vae.metrics(x)["elbo"].mean()) + 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GLF(latent_size=1), "latent_size: 1"),
        (lambda: GLF(couplings=1), "couplings: 1"),
        (lambda: GLF(flow_weight=0.0), "flow_weight: 0.0"),
        (lambda: GLF(flow_weight=math.nan), "flow_weight: nan"),
        (lambda: GLF(likelihood="poisson"), "likelihood"),  # type: ignore[arg-type]
        (lambda: LatentFlowVAE(latent_size=4, width=2, flow_width=0), "flow_width: 0"),
        (lambda: TwoStageVAE(latent_size=4, width=2, second_depth=0), "second_depth: 0"),
    ],
)
def test_wrong_arguments_are_refused(make, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
