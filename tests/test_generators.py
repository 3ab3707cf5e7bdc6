"""Generators: shapes, the ELBO, priors, and the wrapping of foreign decoders."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, Uniform, kl_divergence

from exptilt.energies import make_energy
from exptilt.errors import InputError
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.generators.wrap import wrap


@pytest.mark.parametrize(("channels", "likelihood"), [(1, "bernoulli"), (3, "gaussian")])
def test_vae_shapes_and_ranges(channels: int, likelihood: str) -> None:
    vae = VAE(channels, 10, 8, likelihood).freeze()  # type: ignore[arg-type]
    x = vae.sample(3, seed=1)
    assert x.shape == (3, channels, 32, 32)
    assert float(x.abs().max()) <= 1
    assert vae.encode(x).shape == (3, 10)  # type: ignore[operator]
    assert vae.training_loss(x).shape == (3,)  # type: ignore[operator]


def test_many_latents_are_decoded_in_parts_that_the_memory_holds() -> None:
    vae, decoded = VAE(1, 4, 4).freeze(), list[int]()
    z = torch.randn(7, 4, requires_grad=True)
    expected = vae.decode(z)
    plain = vae.decode

    def of_at_most_two(z: torch.Tensor) -> torch.Tensor:
        if len(z) > 2:
            raise RuntimeError("not enough memory")
        decoded.append(len(z))
        return plain(z)

    vae.decode = of_at_most_two  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="does not hold 5 at once: going on with 2"):
        x = vae.decode_many(z, batch_size=5)
    torch.testing.assert_close(x, expected)
    assert not x.requires_grad
    assert decoded == [2, 2, 2, 1]
    assert vae.decode_many(z[:0]).shape == (0, 1, 32, 32)


def test_the_papers_vae_has_the_layers_of_dcgan() -> None:
    vae = VAE()
    shapes = [tuple(m.weight.shape) for m in vae.decoder if isinstance(m, nn.ConvTranspose2d)]
    assert shapes == [(100, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 1, 4, 4)]


def test_the_papers_energy_has_three_blocks_of_64_and_three_of_128() -> None:
    energy = make_energy("resnet", (1, 32, 32), 64)
    assert [block.second.out_channels for block in energy.blocks] == [64] * 3 + [128] * 3  # type: ignore[union-attr]
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)) for m in energy.modules())


def test_the_training_loss_is_the_negative_elbo() -> None:
    """The KL part against torch's own, the Bernoulli part against its definition, for the same z."""
    vae = VAE(1, 6, 8).eval()
    x = torch.rand(4, 1, 32, 32) * 2 - 1
    mean, deviation = vae.posterior(x)
    z = mean + deviation * torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    p = ((vae.decode(z) + 1) / 2).clamp(1e-7, 1 - 1e-7)
    t = (x + 1) / 2
    reconstruction = -(t * p.log() + (1 - t) * (1 - p).log()).flatten(1).sum(1)
    divergence = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum(1)
    loss = vae.training_loss(x, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loss, reconstruction + divergence, rtol=1e-4, atol=1e-2)


def test_the_toy_elbo_is_below_the_importance_weighted_bound() -> None:
    vae = ToyVAE(2, 2, 16).eval()
    x = torch.randn(64, 2)
    with torch.no_grad():
        mean, deviation = vae.posterior(x)
        log_weights = []
        for _ in range(200):
            z = mean + deviation * torch.randn_like(mean)
            log_q = Normal(mean, deviation).log_prob(z).sum(1)
            log_weights.append(vae.prior.log_prob(z) - vae.reconstruction_loss(x, z) - log_q)
        weighted = torch.logsumexp(torch.stack(log_weights), 0) - math.log(200)
        elbo = torch.stack(log_weights).mean(0)
        one = torch.stack([-vae.training_loss(x) for _ in range(200)])
    assert bool((elbo <= weighted).all())
    standard_error = one.std(0) / math.sqrt(200) + torch.stack(log_weights).std(0) / math.sqrt(200)
    assert bool(((one.mean(0) - elbo).abs() < 6 * standard_error + 1e-3).all())


def test_the_standard_normal_prior_has_its_density() -> None:
    vae = ToyVAE(2, 3, 8)
    z = torch.randn(5, 3)
    torch.testing.assert_close(vae.prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(1))


def test_a_generator_without_encoder_or_density_says_so() -> None:
    generator = wrap(lambda z: z, (2,))
    with pytest.raises(InputError, match="no encoder"):
        generator.encode(torch.zeros(1, 2))
    with pytest.raises(InputError, match="no density"):
        generator.log_prob(torch.zeros(1, 2))


def test_wrap_maps_the_decoders_range_and_the_encoders_input() -> None:
    class Decoder(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(z).view(-1, 1, 2, 2)

    generator = wrap(Decoder(), (4,), encode=lambda x: torch.logit(x.flatten(1)), output_range=(0, 1))
    assert generator.data_shape == (1, 2, 2)
    z = torch.randn(3, 4)
    torch.testing.assert_close(generator.decode(z), 2 * torch.sigmoid(z).view(-1, 1, 2, 2) - 1)
    torch.testing.assert_close(generator.encode(generator.decode(z)), z, rtol=1e-4, atol=1e-4)


def test_wrap_freezes_a_module_in_evaluation_mode() -> None:
    decoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    generator = wrap(decoder, (3,))
    assert not decoder.training
    assert not any(p.requires_grad for p in generator.parameters())


@pytest.mark.parametrize("prior", [Uniform(-1.0, 1.0), Uniform(-torch.ones(3), torch.ones(3)), Normal(1.0, 2.0)])
def test_wrap_takes_any_prior_with_reproducible_samples(prior: torch.distributions.Distribution) -> None:
    generator = wrap(lambda z: z, (3,), prior=prior)
    whole = generator.sample(2000, seed=4)
    assert torch.equal(generator.sample(5, seed=4, start=10), whole[10:15])
    deviation = float(prior.stddev.mean())
    assert abs(float(whole.mean()) - float(prior.mean.mean())) < 4.8 * deviation / math.sqrt(whole.numel())
    assert abs(float(whole.std()) - deviation) < 0.05 * deviation
    inside = whole[:4] * 0.5
    torch.testing.assert_close(generator.latent_map.code_log_prob(inside), prior.log_prob(inside).sum(1))


@pytest.mark.parametrize(
    ("decoder", "shape", "words"),
    [
        (nn.Linear(100, 2), (64,), "fails on latents of shape"),
        (lambda z: z.sum(), (4,), "for 16 latents"),
        (lambda z: z.detach(), (4,), "no gradient"),
        (lambda z: z / 0, (4,), "not finite"),
    ],
)
def test_wrap_refuses_what_cannot_be_tilted(decoder, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        wrap(decoder, shape)
    assert "\n" not in str(caught.value)


def test_a_wrong_prior_is_refused() -> None:
    with pytest.raises(InputError, match="one draw has shape"):
        wrap(lambda z: z, (3,), prior=Normal(torch.zeros(2), torch.ones(2)))
