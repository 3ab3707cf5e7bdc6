"""Flows of zuko and normflows as generators: exact densities, inverses, and samples that belong to their seeds."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import zuko
from torch import nn
from torch.distributions import Independent, Normal, Transform, constraints

import exptilt
from exptilt import InputError, SamplerConfig, TiltedGenerator
from exptilt.evaluation.likelihood import bits_per_dim, likelihood
from exptilt.generators.flow import FlowGenerator
from exptilt.generators.glow import Glow
from exptilt.generators.normflows_flow import AffineMap, NormflowsMap
from exptilt.generators.pixel import PixelSpace, UniformPixels


def _perturbed(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """The module with weights that are no identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def _zuko(name: str = "NSF", size: int = 3, **options) -> nn.Module:
    return _perturbed(getattr(zuko.flows, name)(size, transforms=2, hidden_features=(16,), **options))


def _real_nvp(base: nn.Module | None = None, size: int = 4):
    nf = pytest.importorskip("normflows", reason="needs normflows (pip install exptilt[adapters])")
    base = nf.distributions.DiagGaussian(size) if base is None else base
    layers = []
    for _ in range(2):
        layers += [nf.flows.AffineCouplingBlock(nf.nets.MLP([size // 2, 8, size])), nf.flows.Permute(size, "swap")]
    return _perturbed(nf.NormalizingFlow(base, layers))


def _multiscale(classes: int | None):
    nf = pytest.importorskip("normflows", reason="needs normflows (pip install exptilt[adapters])")
    shapes = [(8, 2, 2), (2, 4, 4)]  # Deepest level first: of images of 1×8×8, after two squeezes.
    bases, flows = [], []
    for shape in shapes:
        channels = shape[0] if shape is shapes[0] else 2 * shape[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # normflows calls what torch has deprecated.
            blocks = [nf.flows.GlowBlock(channels, 8, split_mode="channel", scale=True) for _ in range(2)]
        flows.append([*blocks, nf.flows.Squeeze()])
        bases.append(nf.distributions.GlowBase(shape, classes))
    model = nf.MultiscaleFlow(bases, flows, [nf.flows.Merge()], class_cond=classes is not None)
    for module in model.modules():
        if hasattr(module, "data_dep_init_done"):
            module.data_dep_init_done.fill_(1.0)  # As after training.
    return _perturbed(model, 0.03)


def _check_density(generator: FlowGenerator, x: torch.Tensor) -> None:
    """log p(x) = log p(f(x)) + log|det ∂f/∂x|, by autograd; the border of images is no variable."""
    for one in x:
        code = generator.format.native(one[None]).double()[0]
        jacobian = torch.autograd.functional.jacobian(
            lambda c: generator.latent(generator.format.sample(c[None].float()))[0].flatten(), code
        ).reshape(code.numel(), code.numel())
        # The Jacobian is by the flow's own values; those of exptilt are a multiple of them.
        log_det = torch.linalg.slogdet(jacobian.double()).logabsdet + generator.format.log_volume
        expected = generator.prior.log_prob(generator.latent(one[None])).double() + log_det
        torch.testing.assert_close(generator.log_prob(one[None]).double(), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: exptilt.from_zuko(_zuko("NSF")),
        lambda: exptilt.from_zuko(_zuko("NSF", passes=2)),
        lambda: exptilt.from_zuko(_zuko("RealNVP", 4)),
        lambda: exptilt.from_zuko(_zuko("MAF", context=2), context=torch.tensor([0.3, -1.0])),
        lambda: exptilt.from_zuko(_zuko("NSF", 4), data_shape=(1, 2, 2), output_range=(-40, 40), pad=1),
        lambda: exptilt.from_normflows(_real_nvp()),
        lambda: exptilt.from_normflows(_multiscale(None), output_range=(-50, 50)),
        lambda: exptilt.from_normflows(_multiscale(3), label=2, output_range=(-50, 50)),
    ],
    ids=["nsf", "coupling", "realnvp", "context", "image", "normflows", "multiscale", "classes"],
)
def test_a_flow_has_its_density_its_inverse_and_its_samples(make) -> None:
    generator = make()
    x = generator.sample(40, seed=3)
    torch.testing.assert_close(generator.sample(5, seed=3, start=7), x[7:12], rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    z = generator.sample_prior(20)
    torch.testing.assert_close(generator.latent(generator.decode(z)), z, rtol=1e-2, atol=2e-2)
    _check_density(generator, x[:2])


def test_points_of_a_zuko_flow_have_the_flows_own_density() -> None:
    flow = _zuko()
    generator = exptilt.from_zuko(flow)
    x = torch.randn(5, 3)
    torch.testing.assert_close(generator.log_prob(x), flow().log_prob(x))
    assert torch.equal(generator.encode(x), generator.latent(x))  # Points get no noise.


def test_a_uniform_base_becomes_a_normal_one() -> None:
    generator = exptilt.from_zuko(_zuko("NCSF", 2))
    x = generator.sample(500)
    assert float(x.abs().max()) <= math.pi
    torch.testing.assert_close(generator.prior.log_prob(torch.zeros(1, 2)), torch.tensor([-math.log(2 * math.pi)]))
    _check_density(generator, x[:3])


def test_a_base_with_mean_and_scale_is_the_prior() -> None:
    base = zuko.flows.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.tensor([3.0, -2.0]), torch.tensor([0.5, 2.0]), buffer=True
    )
    flow = zuko.flows.Flow([zuko.flows.MaskedAutoregressiveTransform(2, hidden_features=(8,))], base)
    generator = exptilt.from_zuko(_perturbed(flow))
    z = generator.sample_prior(2000)
    assert bool(((z.mean(0) - torch.tensor([3.0, -2.0])).abs() < torch.tensor([0.06, 0.22])).all())
    _check_density(generator, generator.sample(3))


def test_the_tilted_density_of_a_zuko_flow_is_normalised() -> None:
    generator = exptilt.from_zuko(_zuko("RealNVP", 2))
    tilted = TiltedGenerator(generator, exptilt.RewardEnergy(lambda x: -x.square().sum(1)))
    tilted.log_z = exptilt.estimate_log_z(tilted, method="importance", n=8000)
    side = torch.linspace(-6, 6, 121)
    grid = torch.cartesian_prod(side, side)
    total = float(tilted.log_prob(grid).double().exp().sum()) * float(side[1] - side[0]) ** 2
    assert abs(total - 1) < 0.03


def test_chains_on_a_zuko_flow_sample_the_tilted_density() -> None:
    flow = zuko.flows.Flow(
        [zuko.flows.UnconditionalTransform(zuko.transforms.MonotonicAffineTransform, *_shift_and_scale())],
        zuko.flows.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.zeros(2), torch.ones(2), buffer=True),
    )
    # x ~ N(1, 4), and E(x) = x²/2 makes it N(1/5, 4/5).
    sampler = SamplerConfig(kernel="mala", steps=60, step_size=0.4)
    energy = exptilt.RewardEnergy(lambda x: -0.5 * x.square().sum(1))
    x = TiltedGenerator(exptilt.from_zuko(flow), energy, sampler=sampler).sample(1500)
    assert abs(float(x.mean()) - 0.2) < 4.8 * math.sqrt(0.8 / x.numel())
    assert abs(float(x.var()) / 0.8 - 1) < 0.12


def _shift_and_scale() -> tuple[torch.Tensor, torch.Tensor]:
    # z = (x − 1)/2, as shift and logarithm of the scale.
    return torch.tensor([-0.5, -0.5]), torch.tensor([math.log(0.5)] * 2)


def test_images_are_dequantised_within_their_bytes() -> None:
    flow = zuko.flows.NICE(4, transforms=2, hidden_features=(8,))
    generator = exptilt.from_zuko(flow, data_shape=(1, 2, 2), output_range=(-30, 30))
    byte = torch.randint(0, 256, (50, 1, 2, 2))
    x = byte / 127.5 - 1
    decoded = generator.decode(generator.encode(x, torch.Generator().manual_seed(1)))
    offset = (decoded - x) * 127.5
    assert float(offset.abs().max()) < 0.51
    assert float(offset.std()) == pytest.approx(1 / math.sqrt(12), rel=0.2)
    same = generator.decode(generator.encode(x, torch.Generator().manual_seed(1)))
    assert torch.equal(same, decoded)
    exact = exptilt.from_zuko(flow, data_shape=(1, 2, 2), output_range=(-30, 30), dequantize=False)
    torch.testing.assert_close(exact.decode(exact.encode(x)), x, rtol=2e-3, atol=2e-3)


def _gaussian_of_zuko(mean: torch.Tensor, deviation: float) -> nn.Module:
    base = zuko.flows.UnconditionalDistribution(
        zuko.distributions.DiagNormal, mean, torch.full_like(mean, deviation), buffer=True
    )
    same = zuko.flows.UnconditionalTransform(zuko.transforms.PermutationTransform, torch.arange(len(mean)), buffer=True)
    return zuko.flows.Flow([same], base)


def _gaussian_of_normflows(mean: torch.Tensor, deviation: float) -> nn.Module:
    nf = pytest.importorskip("normflows", reason="needs normflows (pip install exptilt[adapters])")
    base = nf.distributions.DiagGaussian(len(mean))
    with torch.no_grad():
        base.loc.copy_(mean[None])
        base.log_scale.fill_(math.log(deviation))
    return nf.NormalizingFlow(base, [])


@pytest.mark.parametrize(
    ("adapt", "gaussian"),
    [(exptilt.from_zuko, _gaussian_of_zuko), (exptilt.from_normflows, _gaussian_of_normflows)],
)
def test_bits_per_dim_of_a_gaussian_flow_are_the_closed_form(adapt, gaussian) -> None:
    """E −log₂ p(y + (u − ½)δ)δ over u ~ U[0, 1), in the flow's own units; the border counts for nothing."""
    mean, deviation, width = torch.tensor([0.2, 0.4, 0.6, 0.8]), 0.3, 1 / 255
    generator = adapt(gaussian(mean, deviation), data_shape=(1, 2, 2), output_range=(0.0, 1.0), pad=1)
    bytes_ = torch.tensor([0, 90, 200, 255])
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[0, 0, 1:3, 1:3] = bytes_.view(2, 2)
    tilted = TiltedGenerator(generator, _Corner(), log_z=0.5)
    told = bits_per_dim(tilted, image.repeat(4000, 1, 1, 1))
    square = (bytes_ / 255 - mean).square() + width**2 / 12
    nats = square / (2 * deviation**2) + math.log(deviation * math.sqrt(2 * math.pi)) - math.log(width)
    assert told["base"] == pytest.approx(float(nats.mean()) / math.log(2), abs=5 * told["base_error"])
    assert 0 < told["base_error"] < 1e-3
    assert told["change"] == pytest.approx((0.5 - 1) / (4 * math.log(2)), abs=1e-5)
    with pytest.raises(InputError, match="the model needs"):
        likelihood(tilted, exptilt.load_dataset("digits", "test", 2), n=20)


class _Corner(nn.Module):
    """The value of the first pixel, which is one of the border: −1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0, 0]


def test_bits_per_dim_in_pixel_space() -> None:
    """Uniform noise has 8 bits exactly; a flow whose pixels are the latents has its own."""
    images = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    assert bits_per_dim(UniformPixels(1, 4, 4), images)["base"] == pytest.approx(8, abs=1e-5)
    glow = Glow(1, size=4, levels=1, steps=1, hidden=4)
    assert bits_per_dim(PixelSpace(glow), images) == bits_per_dim(glow, images)


def test_points_and_samples_without_density_have_no_bits() -> None:
    for generator in (exptilt.from_zuko(_zuko("NSF", 2)), exptilt.wrap(lambda z: z.tanh().view(-1, 1, 2, 2), (4,))):
        with pytest.raises(InputError, match="no density of images"):
            bits_per_dim(generator, torch.zeros(2, *generator.data_shape))


class Logit(Transform):
    """log x − log(1 − x), which is no number outside of (0, 1)."""

    bijective, domain, codomain = True, constraints.unit_interval, constraints.real

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        return x.log() - torch.log1p(-x)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return y.sigmoid()

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -x.log() - torch.log1p(-x)


def test_a_flow_through_a_logit_needs_the_centres_of_the_bins() -> None:
    base = zuko.flows.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(4), torch.ones(4), buffer=True
    )
    flow = zuko.flows.Flow(
        [zuko.flows.UnconditionalTransform(Logit), zuko.flows.MaskedAutoregressiveTransform(4, hidden_features=(8,))],
        base,
    )
    with pytest.raises(InputError, match=r"1/512, 511/512"):
        exptilt.from_zuko(flow, data_shape=(1, 2, 2), output_range=(0, 1))
    generator = exptilt.from_zuko(flow, data_shape=(1, 2, 2), output_range=(1 / 512, 511 / 512))
    assert bool(generator.encode(torch.full((20, 1, 2, 2), -1.0)).isfinite().all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: exptilt.from_zuko(nn.Linear(2, 2)), "is a Linear"),  # type: ignore[arg-type]
        (lambda: exptilt.from_zuko(zuko.flows.GMM(2)), "wrap"),
        (lambda: exptilt.from_zuko(_zuko("NSF", context=2)), "give the context"),
        (lambda: exptilt.from_zuko(_zuko("NSF", context=2), context=torch.zeros(3, 2)), r"of shape \(C,\)"),
        (lambda: exptilt.from_zuko(_zuko("NSF", 4), data_shape=(1, 2, 2)), "output_range"),
        (lambda: exptilt.from_normflows(nn.Linear(2, 2)), "is a Linear"),
        (lambda: exptilt.from_normflows(_real_nvp(), label=1), "has no classes"),
        (lambda: exptilt.from_normflows(_multiscale(3)), "is needed"),
    ],
)
def test_what_is_no_flow_is_told_in_a_line(make, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_gaussian_base_of_normflows_becomes_a_standard_one() -> None:
    nf = pytest.importorskip("normflows", reason="needs normflows (pip install exptilt[adapters])")
    base = nf.distributions.DiagGaussian(4)
    with torch.no_grad():
        base.loc.copy_(torch.tensor([[1.0, -2.0, 0.0, 5.0]]))
        base.log_scale.copy_(torch.tensor([[0.3, -1.0, 0.0, 1.0]]))
    found = NormflowsMap(nf.NormalizingFlow(base, [])).bases[0]
    assert isinstance(found, AffineMap)
    torch.testing.assert_close(found.loc, base.loc[0].detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.scale, base.log_scale[0].detach().exp(), rtol=1e-3, atol=1e-3)
    model = _real_nvp(base)
    generator = exptilt.from_normflows(model)
    x = generator.sample(10)
    torch.testing.assert_close(generator.log_prob(x), model.log_prob(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # normflows calls what NumPy has deprecated.
def test_a_uniform_base_of_normflows_becomes_a_normal_one() -> None:
    nf = pytest.importorskip("normflows", reason="needs normflows (pip install exptilt[adapters])")
    generator = exptilt.from_normflows(nf.NormalizingFlow(nf.distributions.base.Uniform(2, -1.0, 3.0), []))
    x = generator.sample(1000)
    assert -1 <= float(x.min()) < -0.9
    assert 2.9 < float(x.max()) <= 3
    torch.testing.assert_close(generator.prior.log_prob(torch.zeros(1, 2)), torch.tensor([-math.log(2 * math.pi)]))


def test_another_base_of_normflows_is_the_prior() -> None:
    nf = pytest.importorskip("normflows", reason="needs normflows (pip install exptilt[adapters])")
    base = nf.distributions.GaussianMixture(2, 4, loc=[[3.0] * 4, [-3.0] * 4], trainable=False).float()
    model = _real_nvp(base)
    generator = exptilt.from_normflows(model)
    z = generator.sample_prior(400)
    assert float((z > 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(generator.prior.log_prob(z), base.log_prob(z), rtol=1e-4, atol=1e-4)
    assert torch.equal(generator.sample_prior(3, start=5), z[5:8])


def test_a_flow_without_inverse_is_wrapped_as_a_decoder() -> None:
    nf = pytest.importorskip("normflows", reason="needs normflows (pip install exptilt[adapters])")
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2, trainable=False), [nf.flows.Planar((2,))])
    with pytest.raises(InputError, match="needs no inverse"):
        exptilt.from_normflows(model)
    generator = exptilt.wrap(model, (2,), prior=Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
    assert generator.sample(3).shape == (3, 2)
