"""A user's decoder as a generator: its images, its prior, and what is said of one that cannot be tilted."""

from __future__ import annotations

import contextlib
import math
import warnings

import pytest
import torch
import zuko
from torch import nn
from torch.distributions import Bernoulli, Beta, Dirichlet, LogNormal, MultivariateNormal, Normal, Uniform

from exptilt import InputError, SamplerConfig, TiltedGenerator, from_gan, tilt, wrap
from exptilt.data.images import pad as pad_as_data_sets_are
from exptilt.data.types import to_uint8
from exptilt.generators.image_format import ImageFormat
from exptilt.generators.prior import DistributionPrior
from exptilt.generators.wrap import WrappedGenerator
from exptilt.sampling.random import BatchStreams

MALA = SamplerConfig(kernel="mala", steps=100, step_size=0.5)


class Digits(nn.Module):
    """A fully connected VAE's parts: images of 28×28 as flat vectors in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 784), nn.Linear(784, 5)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.up(z))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(x) + 0.1 * torch.randn(len(x), 5)


class Linear(nn.Module):
    """E(x) = slope · Σ xᵢ."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * x.flatten(1).sum(1)


def test_flat_images_of_28_by_28_get_the_border_of_the_data_sets() -> None:
    vae = Digits()
    generator = wrap(vae.decode, (5,), encode=vae.encode, output_range=(0, 1), data_shape=(1, 28, 28))
    assert generator.data_shape == (1, 32, 32)
    z = torch.randn(3, 5)
    inner = 2 * vae.decode(z).reshape(3, 1, 28, 28) - 1
    assert torch.equal(to_uint8(generator.decode(z)), pad_as_data_sets_are(to_uint8(inner)))


def test_an_encoder_sees_what_the_decoder_gives() -> None:
    vae, seen = Digits(), []

    def encode(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return vae.down(x)

    generator = wrap(vae.decode, (5,), encode=encode, output_range=(0, 1), data_shape=(1, 28, 28))
    z = torch.randn(3, 5)
    x = generator.decode(z)
    x[..., 0, 0] = 0.7  # The border is cut off, whatever it holds.
    code = generator.encode(x)
    torch.testing.assert_close(seen[-1], vae.decode(z))
    torch.testing.assert_close(code, vae.down(vae.decode(z)))


@pytest.mark.parametrize(("pad", "shape"), [(0, (1, 28, 28)), (None, (1, 32, 32)), (3, (1, 34, 34))])
def test_the_border_can_be_chosen(pad: int | None, shape: tuple[int, ...]) -> None:
    vae = Digits()
    generator = wrap(vae.decode, (5,), output_range=(0, 1), data_shape=(1, 28, 28), pad=pad)
    assert generator.data_shape == shape
    assert generator.sample(2).shape == (2, *shape)


def test_images_of_28_by_28_without_border_are_told_of_it() -> None:
    generator = wrap(Digits().decode, (5,), output_range=(0, 1), data_shape=(1, 28, 28))
    with pytest.raises(InputError, match=r"pad=0"):
        tilt(generator, -torch.ones(40, 1, 28, 28))


def test_images_of_other_sizes_and_points_get_no_border() -> None:
    assert wrap(lambda z: torch.tanh(z).view(-1, 1, 4, 4), (16,)).data_shape == (1, 4, 4)
    assert wrap(lambda z: z, (28,)).data_shape == (28,)


def test_images_without_channels_are_given_one() -> None:
    generator = wrap(lambda z: torch.tanh(z).view(-1, 3, 4), (12,), data_shape=(1, 3, 4))
    assert generator.sample(2).shape == (2, 1, 3, 4)


def test_a_native_network_sees_the_decoders_images() -> None:
    vae, discriminator = Digits(), nn.Linear(784, 1)
    generator = wrap(vae.decode, (5,), output_range=(0, 1), data_shape=(1, 28, 28))
    z = torch.randn(4, 5)
    native = generator.native(discriminator)
    torch.testing.assert_close(native(generator.decode(z)), discriminator(vae.decode(z)), rtol=1e-4, atol=1e-5)
    assert [*native.parameters()] == [*discriminator.parameters()]


@pytest.mark.parametrize("kernel", ["langevin", "mala", "hmc"])
def test_chains_stay_within_the_bounds_of_a_uniform_prior(kernel: str) -> None:
    sampler = SamplerConfig(kernel=kernel, steps=50, step_size=0.05)  # type: ignore[arg-type]
    tilted = TiltedGenerator(wrap(lambda z: z, (3,), prior=Uniform(-1.0, 1.0)), Linear(-20.0), sampler=sampler)
    x = tilted.sample(50)
    assert float(x.abs().max()) <= 1
    assert float(x.mean()) > 0.5


def test_a_tilted_uniform_prior_is_the_truncated_exponential() -> None:
    low, high, slope = -1.0, 3.0, 1.5
    tilted = TiltedGenerator(wrap(lambda z: z, (2,), prior=Uniform(low, high)), Linear(slope), sampler=MALA)
    x = tilted.sample(2000, seed=1)
    width = high - low
    mean = low + 1 / slope - width / math.expm1(slope * width)
    variance = 1 / slope**2 - width**2 * math.exp(slope * width) / math.expm1(slope * width) ** 2
    assert abs(float(x.mean()) - mean) < 4.8 * math.sqrt(variance / x.numel())
    assert abs(float(x.var()) / variance - 1) < 0.1


@pytest.mark.parametrize(
    "prior",
    [
        Beta(torch.tensor([2.0, 1.0]), torch.tensor([3.0, 1.0])),
        LogNormal(torch.zeros(2), 0.5 * torch.ones(2)),
        Dirichlet(torch.tensor([2.0, 1.0, 3.0])),
    ],
)
def test_chains_keep_any_bounded_prior(prior: torch.distributions.Distribution) -> None:
    shape = tuple(prior.batch_shape + prior.event_shape)
    tilted = TiltedGenerator(wrap(lambda z: 1.0 * z, shape, prior=prior), Linear(0.0), sampler=MALA)
    x = tilted.sample(1500, seed=2)
    assert bool(prior.support.check(x.double()).all())
    standard_error = prior.stddev / math.sqrt(len(x))
    assert bool(((x.mean(0) - prior.mean).abs() < 4.8 * standard_error).all())
    assert bool(((x.std(0) / prior.stddev - 1).abs() < 0.15).all())


def test_a_prior_over_the_whole_vector_has_its_density() -> None:
    prior = MultivariateNormal(torch.tensor([1.0, -1.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    generator = wrap(lambda z: 1.0 * z, (2,), prior=prior)
    z = torch.randn(4, 2)
    torch.testing.assert_close(generator.prior.log_prob(z), prior.log_prob(z))


def test_batches_of_training_draw_new_latents_of_any_prior() -> None:
    prior = DistributionPrior(Normal(1.0, 2.0), (3,))
    first, second = (prior.sample(BatchStreams(0, iteration, 8, (3,))) for iteration in (0, 1))
    assert not set(first.flatten().tolist()) & set(second.flatten().tolist())


def test_a_prior_on_a_gpu_draws_by_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = torch.Generator()

    class Draws:
        def sample(self, sample_shape: torch.Size) -> torch.Tensor:
            return torch.randn((*sample_shape, 3), generator=on_gpu)

        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            return Normal(0.0, 1.0).log_prob(value)

    prior = DistributionPrior(Draws(), (3,))
    prior.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (on_gpu,))
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    first, second = (prior.sample(BatchStreams(0, 0, 8, (3,))) for _ in range(2))
    assert torch.equal(first, second)
    assert len(set(first.flatten().tolist())) == first.numel()


def test_uniform_noise_goes_where_the_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(generator: WrappedGenerator, *_: object) -> None:
        generator.format = ImageFormat((-1.0, 1.0), (3,), (3,), 0)

    monkeypatch.setattr(WrappedGenerator, "_check", unchecked)
    elsewhere = nn.Linear(3, 3, device="meta")
    noise = wrap(elsewhere, (3,), prior=Uniform(-1, 1)).latent_map, from_gan(elsewhere, 3, prior="uniform").decoder
    assert {buffer.device.type for part in noise for buffer in part.buffers()} == {"meta"}


def test_a_uniform_prior_in_float64_gives_codes_as_others_do() -> None:
    bounds = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert wrap(nn.Linear(3, 3), (3,), prior=Uniform(bounds[0], bounds[1])).sample(2).dtype == torch.float32


def test_the_latents_of_a_flow_prior_are_those_of_its_base() -> None:
    flow = zuko.flows.NSF(3, transforms=2, hidden_features=(16,))
    generator = wrap(lambda c: 2 * c, (3,), encode=lambda x: x / 2, prior=flow)
    z = torch.randn(5, 3)
    torch.testing.assert_close(generator.decode(z), 2 * flow().transform.inv(z))
    torch.testing.assert_close(generator.encode(generator.decode(z)), z, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(generator.prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(1))
    assert not any(parameter.requires_grad for parameter in flow.parameters())


def test_a_mixture_of_zuko_is_a_prior_as_it_is() -> None:
    mixture = zuko.flows.GMM(2, components=3)
    generator = wrap(lambda z: 1.0 * z, (2,), prior=mixture)
    z = torch.randn(4, 2)
    torch.testing.assert_close(generator.prior.log_prob(z), mixture().log_prob(z))
    assert generator.sample(3).shape == (3, 2)


def test_the_module_of_a_method_is_frozen() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))

        def generate(self, z: torch.Tensor) -> torch.Tensor:
            return self.layers(z)

    model = Model()
    generator = wrap(model.generate, (3,))
    assert not model.training
    assert not model.layers.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {*map(id, model.parameters())} == {*map(id, generator.parameters())}


def test_a_module_of_torch_export_is_taken() -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations inside of the export
        sizes = ({0: torch.export.Dim("n", min=1)},)
        exported = torch.export.export(network, (torch.randn(2, 3),), dynamic_shapes=sizes).module()
    tilted = TiltedGenerator(wrap(exported, (3,)), Linear(0.0))
    z = torch.randn(4, 3)
    torch.testing.assert_close(tilted.generator.decode(z), network(z))


def test_an_encoder_draws_anew_or_by_its_generator() -> None:
    vae = Digits()
    generator = wrap(vae.decode, (5,), encode=vae.encode, output_range=(0, 1), data_shape=(1, 28, 28))
    x = generator.sample(2)
    state = torch.random.get_rng_state()
    first, second = (generator.encode(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(generator.encode(x), generator.encode(x))


def _for_one(z: torch.Tensor) -> torch.Tensor:
    return torch.tanh(z).view(1, 4)


@pytest.mark.parametrize(
    ("decoder", "options", "words"),
    [
        (nn.Linear(4, 2).double(), {}, r"\.float\(\)"),
        (_for_one, {}, "batch dimension of any size"),
        (torch.round, {}, "gradient of 0"),
        (lambda z: (z - z.detach()).abs().sqrt(), {}, "gradient that is not finite"),
        (lambda z: torch.tanh(z).view(-1, 2, 2), {}, "give data_shape"),
        (lambda z: torch.tanh(z), {"data_shape": (1, 3, 3)}, "does not fit an output of shape"),
        (lambda z: z, {"pad": 1}, "pad: 1 does not fit"),
        (lambda z: torch.tanh(z).view(-1, 1, 2, 2), {"pad": -1}, "pad: -1 does not fit"),
        (lambda z: z, {"output_range": (1, 0)}, "is empty"),
        (lambda z: z, {"encode": lambda x: (x, x)}, "encode: gives tuple"),
        (lambda z: z, {"encode": lambda x: x[:, :3]}, r"encode: gives \(16, 3\)"),
        (lambda z: z, {"encode": lambda x: x / 0}, "encode: gives values that are not finite"),
        (lambda z: z, {"encode": nn.Linear(3, 4)}, "encode: fails on samples of shape"),
        (lambda z: z, {"encode": lambda x: -x, "prior": LogNormal(0.0, 1.0)}, "codes that the prior never draws"),
        (lambda z: z, {"prior": Bernoulli(0.5)}, "is discrete"),
        (lambda z: z, {"prior": 3}, "is a int"),
        (lambda z: z, {"prior": zuko.flows.NSF(3)}, "one draw has shape"),
        (lambda z: z, {"prior": zuko.flows.NSF(4, context=2)}, "give the context"),
    ],
)
def test_what_cannot_be_wrapped_is_told_in_a_line(decoder, options, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        wrap(decoder, (4,), **options)
    assert "\n" not in str(caught.value)
