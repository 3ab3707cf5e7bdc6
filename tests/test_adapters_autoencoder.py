"""Autoencoders without a prior: the flow of their codes, and diffusers' models."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from torch import nn

import exptilt
from exptilt import InputError, SamplerConfig
from exptilt.data.types import DataSet
from exptilt.generators.code_flow import CodeFlow, fit_code_flow
from exptilt.storage import write_tensors


def _two_clusters(n: int) -> torch.Tensor:
    """Codes (N, 2, 1): the first number at 5 ± 1.5 or −5 ± 1.5, the second its distance from 0 and noise."""
    sign = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    first = 5 * sign + 1.5 * torch.randn(n)
    return torch.stack([first, first.abs() + torch.randn(n)], 1)[..., None]


class Rotation(nn.Module):
    """An autoencoder without loss: images of 1×2×2 in [0, 1] to and from 4 numbers."""

    def __init__(self) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(4, 4))
        self.register_buffer("rotation", rotation)
        self.rotation: torch.Tensor

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5) @ self.rotation

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        return code @ self.rotation.T + 0.5


def test_a_flow_of_codes_learns_their_distribution() -> None:
    codes = _two_clusters(2000)
    flow = fit_code_flow(codes, seed=0, iterations=150, width=64)
    gaussian = torch.distributions.MultivariateNormal(codes[..., 0].mean(0), torch.cov(codes[..., 0].T))
    fresh = _two_clusters(500)
    gained = float(flow.code_log_prob(fresh).mean() - gaussian.log_prob(fresh[..., 0]).mean())
    assert gained > 0.4
    drawn = flow.code(torch.randn(1000, 2))
    assert drawn.shape == (1000, 2, 1)
    assert flow.latent(drawn).shape == (1000, 2)
    torch.testing.assert_close(flow.code(flow.latent(drawn[:50])), drawn[:50], rtol=1e-2, atol=1e-2)
    assert abs(float((drawn[:, 0] > 0).float().mean()) - 0.5) < 0.1
    assert float((drawn[:, 1] - drawn[:, 0].abs()).std()) < 2


def test_the_density_of_codes_counts_their_scale() -> None:
    flow = fit_code_flow(100 * torch.randn(400, 3) + 7, iterations=5, couplings=2, width=8)
    code = flow.code(torch.randn(2, 3))
    jacobian = torch.autograd.functional.jacobian(lambda c: flow.latent(c[None])[0], code[0])
    expected = flow.prior.log_prob(flow.latent(code[:1])) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow.code_log_prob(code[:1]), expected, rtol=1e-4, atol=1e-3)


def test_a_fit_follows_from_its_seed_and_leaves_the_random_state() -> None:
    codes = _two_clusters(200)
    state = torch.random.get_rng_state()
    first, second = (fit_code_flow(codes, seed=3, iterations=3, couplings=2, width=8) for _ in range(2))
    other = fit_code_flow(codes, seed=4, iterations=3, couplings=2, width=8)
    assert torch.equal(torch.random.get_rng_state(), state)
    z = torch.randn(4, 2)
    assert torch.equal(first.code(z), second.code(z))
    assert not torch.equal(first.code(z), other.code(z))


def test_few_images_are_not_learned_by_heart_however_often_each_is_encoded() -> None:
    points, fresh = torch.randn(60, 8), torch.randn(1000, 8)
    # Without randomness, all four codes of an image are the same.
    generator = exptilt.from_autoencoder(lambda code: 1.0 * code, (8,), lambda x: 1.0 * x, points, iterations=100)
    flow = generator.latent_map
    assert isinstance(flow, CodeFlow)
    assert flow.code_log_prob(fresh).mean() > generator.prior.log_prob(fresh).mean() - 2
    for draws, said in ((7, "7 of each image do not make 60 codes"), (0, "0 is out of range")):
        with pytest.raises(InputError, match=f"draws: {said}"):
            fit_code_flow(points, draws=draws)


def test_a_flow_of_codes_is_kept_in_a_file(tmp_path: Path) -> None:
    flow = fit_code_flow(_two_clusters(100), iterations=3, couplings=3, width=8)
    flow.save(tmp_path / "prior.safetensors")
    loaded = CodeFlow.load(tmp_path / "prior.safetensors")
    z = torch.randn(4, 2)
    assert torch.equal(loaded.code(z), flow.code(z))


@pytest.mark.parametrize("header", [None, {"code_shape": [3]}, {"code_shape": ["2"]}, {"code_shape": []}, {}])
def test_a_file_that_holds_no_flow_is_refused(tmp_path: Path, header) -> None:
    flow = fit_code_flow(_two_clusters(100), iterations=3, couplings=3, width=8)
    write_tensors(tmp_path / "prior.safetensors", flow.state_dict(), header)
    with pytest.raises(InputError, match="holds no flow"):
        CodeFlow.load(tmp_path / "prior.safetensors")
    with pytest.raises(InputError, match="no such file"):
        CodeFlow.load(tmp_path / "other.safetensors")


def test_an_autoencoder_becomes_a_generator_of_its_images() -> None:
    model = Rotation()
    light = torch.rand(1500, 1) * 0.5 + 0.25
    images = (2 * light.expand(-1, 4) - 1 + 0.02 * torch.randn(1500, 4)).reshape(-1, 1, 2, 2).clamp(-1, 1)
    options = {"output_range": (0, 1), "data_shape": (1, 2, 2)}
    generator = exptilt.from_autoencoder(model.decode, (4,), model.encode, images, iterations=100, **options)
    x = generator.sample(1000)
    assert x.shape == (1000, 1, 2, 2)
    # All pixels of an image are alike; N(0, I) in the place of the codes' distribution would not make them so.
    assert float(x.flatten(1).std(1).mean()) < 0.08
    assert float(x.flatten(1).mean(1).std()) == pytest.approx(float(images.flatten(1).mean(1).std()), rel=0.2)
    torch.testing.assert_close(generator.decode(generator.encode(images[:9])), images[:9], rtol=1e-2, atol=1e-2)
    kept = exptilt.from_autoencoder(model.decode, (4,), model.encode, flow=generator.latent_map, **options)
    assert torch.equal(kept.sample(3), generator.sample(3))


def test_an_autoencoder_takes_a_data_set_and_images_with_the_border() -> None:
    up, down = nn.Linear(3, 784), nn.Linear(784, 3)
    data = DataSet("digits", "train", torch.randint(0, 256, (60, 1, 32, 32), dtype=torch.uint8), None, "test")
    generator = exptilt.from_autoencoder(
        lambda z: torch.sigmoid(up(z)), (3,), down, data, iterations=2, output_range=(0, 1), data_shape=(1, 28, 28)
    )
    assert generator.data_shape == data.shape
    tilted = exptilt.tilt(generator, data, config=_tiny_config())
    assert tilted.sample(2).shape == (2, 1, 32, 32)


def _of_images(images: torch.Tensor, encode: nn.Module | None = None) -> exptilt.Generator:
    options = {"output_range": (0, 1), "data_shape": (1, 2, 2), "iterations": 1}
    return exptilt.from_autoencoder(nn.Linear(4, 4), (4,), encode or nn.Linear(4, 4), images, **options)


def _tiny_config() -> exptilt.TiltConfig:
    return exptilt.TiltConfig(
        objective="logistic_ratio",
        space="z",
        energy="mlp",
        energy_width=8,
        iterations=3,
        batch_size=16,
        sampler=SamplerConfig(steps=2),
    )


def _small(name: str) -> nn.Module:
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers (pip install exptilt[adapters])")
    torch.manual_seed(0)
    if name == "AutoencoderTiny":
        options = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        return diffusers.AutoencoderTiny(in_channels=1, out_channels=1, latent_channels=2, **options, **blocks)
    options = {"in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    extra = {"num_vq_embeddings": 16} if name == "VQModel" else {}
    return getattr(diffusers, name)(latent_channels=2, **options, **kinds, **extra)


class StandIn(nn.Module):
    """The interface of diffusers' autoencoders, without diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 2, 2, 2), nn.ConvTranspose2d(2, 1, 2, 2)

    def encode(self, x: torch.Tensor) -> types.SimpleNamespace:
        mean = self.down(x)
        return types.SimpleNamespace(
            latent_dist=types.SimpleNamespace(sample=lambda: mean + 0.1 * torch.randn_like(mean))
        )

    def decode(self, z: torch.Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(sample=torch.tanh(self.up(z)))


@pytest.mark.parametrize("name", ["AutoencoderKL", "VQModel", "AutoencoderTiny", "StandIn"])
def test_an_autoencoder_of_diffusers_becomes_a_generator(name: str) -> None:
    model = StandIn() if name == "StandIn" else _small(name)
    images = torch.rand(24, 1, 8, 8) * 2 - 1
    generator = exptilt.from_diffusers(model, images, iterations=3)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert generator.data_shape == (1, 8, 8)
    assert generator.latent_shape == (2 * 4 * 4,)
    x = generator.sample(5, seed=2)
    torch.testing.assert_close(generator.sample(2, seed=2, start=3), x[3:], rtol=1e-3, atol=1e-3)
    z = generator.sample_prior(5, seed=2)
    code = generator.latent_map.code(z)
    assert code.shape == (5, 2, 4, 4)
    torch.testing.assert_close(x, model.decode(code).sample, rtol=1e-3, atol=1e-3)
    noise = torch.Generator().manual_seed(0)
    assert generator.encode(images[:3], noise).shape == (3, 32)
    tilted = exptilt.TiltedGenerator(generator, exptilt.RewardEnergy(lambda x: x.flatten(1).mean(1), 0.01))
    brighter = tilted.sample(5, seed=2, sampler=SamplerConfig(kernel="isir", steps=6))
    assert float(brighter.mean()) > float(x.mean())


def test_a_fitted_prior_takes_the_place_of_images(tmp_path: Path) -> None:
    model, images = StandIn(), torch.rand(24, 1, 8, 8) * 2 - 1
    generator = exptilt.from_diffusers(model, images, iterations=3)
    generator.latent_map.save(tmp_path / "prior.safetensors")
    again = exptilt.from_diffusers(model, flow=tmp_path / "prior.safetensors", image_shape=(1, 8, 8))
    assert torch.equal(again.sample(3), generator.sample(3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: exptilt.from_diffusers(nn.Linear(2, 2), torch.zeros(2, 1, 8, 8)), "autoencoder of diffusers"),
        (lambda: exptilt.from_diffusers(StandIn()), "are not given"),
        (lambda: exptilt.from_diffusers(StandIn(), -torch.ones(24, 3, 8, 8)), "fails encoding an image"),
        (lambda: exptilt.from_diffusers(StandIn(), -torch.ones(24, 1, 9, 9)), "images: have shape"),
        (lambda: exptilt.from_diffusers(StandIn(), -torch.ones(3, 1, 8, 8)), "20 or more"),
        (lambda: exptilt.from_diffusers(StandIn(), torch.full((24, 1, 8, 8), torch.nan)), "not finite"),
        (lambda: exptilt.from_diffusers(StandIn(), -torch.ones(24, 1, 8, 8), iterations=0), "iterations"),
        (lambda: exptilt.from_autoencoder(nn.Linear(2, 2), (2,), nn.Linear(2, 2)), "give one of the two"),
        (lambda: _of_images(torch.rand(24, 1, 2, 2)), r"images: lie in \[.*give 2x − 1; in \[-1, 1\]"),
        (lambda: _of_images(255 * torch.rand(24, 1, 2, 2)), r"images: lie in \["),
        (lambda: _of_images(torch.arange(96, dtype=torch.uint8).reshape(24, 1, 2, 2)), r"images: lie in \[0, 95\]"),
        (lambda: _of_images(-torch.ones(24, 1, 2, 2), nn.Linear(3, 4)), "encode: fails on samples of shape"),
        (lambda: _of_images(-torch.ones(24, 1, 2, 2), nn.Linear(4, 3)), r"encode: gives \(16, 3\)"),
    ],
)
def test_what_is_no_autoencoder_is_told_in_a_line(make, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
