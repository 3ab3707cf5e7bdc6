"""The baselines against closed forms: what they keep, where they move points, and that samples are the seed's alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import exptilt
from exptilt import cli
from exptilt.baselines import Baseline, GradientFlow, OptimalTransport, PriorTemperature, Rejection, fit_mixture
from exptilt.config import SamplerConfig
from exptilt.energies import make_energy
from exptilt.errors import InputError, RunError
from exptilt.generators.mixture import MixtureGenerator
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.tilted import TiltedGenerator

# A correct estimate fails one such check in 500,000.
ALLOWED = 4.8
# The tilt of N(0, I) in two dimensions: E = κ ‖x − m‖²/2.
CURVATURE, CENTRE = 3.0, 1.0


class Bowl(nn.Module):
    """E(x) = κ ‖x − m‖²/2 + c."""

    def __init__(self, curvature: float = CURVATURE, centre: float = CENTRE, constant: float = 0.0) -> None:
        super().__init__()
        self.curvature, self.centre, self.constant = curvature, centre, constant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.curvature * (x - self.centre).square().sum(1) + self.constant


class Slope(nn.Module):
    """E(x) = 3 x₁ + 4 x₂: its Lipschitz constant is 5."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.tensor([3.0, 4.0])


def plane() -> exptilt.Generator:
    return exptilt.wrap(lambda z: 1.0 * z, (2,), encode=lambda x: 1.0 * x)


def tilted(energy: nn.Module | None = None) -> TiltedGenerator:
    return TiltedGenerator(plane(), energy or Bowl())


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return int(stop.value.code or 0)


ALL = {
    "temperature": lambda: PriorTemperature(plane(), 0.7),
    "rejection": lambda: Rejection(tilted(), pilot=50),
    "dot": lambda: OptimalTransport(tilted(), steps=5, pilot=20),
    "dgflow": lambda: GradientFlow(tilted(), steps=4, pilot=20),
    "mixture": lambda: fit_mixture(MixtureGenerator(plane(), 3), 3 * plane().sample(200) ** 3),
}


@pytest.mark.parametrize("name", ALL)
def test_a_sample_depends_on_seed_and_index_alone(name: str) -> None:
    model: Baseline | MixtureGenerator = ALL[name]()
    x = model.sample(30, seed=5)
    assert x.shape == (30, 2)
    torch.testing.assert_close(model.sample(7, seed=5, start=11), x[11:18])
    torch.testing.assert_close(model.sample(30, seed=5, batch_size=4), x)
    torch.testing.assert_close(ALL[name]().sample(30, seed=5), x)
    assert not torch.allclose(model.sample(30, seed=6), x)
    assert model.sample(0).shape == (0, 2)
    with pytest.raises(InputError, match="is negative"):
        model.sample(2, start=-1)


# ------------------------------------------------------------------------------------------- temperature


def test_temperature_scales_the_priors_latents() -> None:
    model = PriorTemperature(plane(), 0.8)
    z = model.sample(3000, seed=1)
    torch.testing.assert_close(z, 0.8 * model.generator.sample(3000, seed=1))
    assert abs(float(z.var()) - 0.64) < ALLOWED * 0.64 * math.sqrt(2 / z.numel())
    with pytest.raises(InputError, match="is not N"):
        PriorTemperature(MixtureGenerator(plane(), 2), 0.8)
    with pytest.raises(InputError, match="give a number > 0"):
        PriorTemperature(plane(), 0.0)


# ------------------------------------------------------------------------------------------- rejection


def test_rejection_samples_the_tilted_gaussian() -> None:
    """N(0, I) exp(−κ‖x − m‖²/2) has precision 1 + κ and mean κm/(1 + κ), and kept are Z of all, as W = 1."""
    model = Rejection(tilted(), log_bound=0.0, pilot=4000)
    x = model.sample(3000, seed=2, batch_size=1500)
    variance = 1 / (1 + CURVATURE)
    mean = CURVATURE * CENTRE * variance
    assert abs(float(x.mean()) - mean) < ALLOWED * math.sqrt(variance / x.numel())
    assert abs(float(x.var()) - variance) < ALLOWED * variance * math.sqrt(2 / x.numel())
    z = variance * math.exp(-CURVATURE * variance * CENTRE**2)
    # A mean of 4,000 weights in [0, 1].
    assert abs(model.acceptance - z) < ALLOWED * math.sqrt(z / 4000)


def test_the_first_latent_that_is_tried_is_the_generators_own() -> None:
    model = Rejection(tilted(Bowl(1e-9)), log_bound=0.0)
    torch.testing.assert_close(model.sample(20, seed=3), model.generator.sample(20, seed=3))


def test_a_constant_in_the_energy_changes_no_sample_and_the_bound_is_the_pilots() -> None:
    plain, shifted = Rejection(tilted()), Rejection(tilted(Bowl(constant=40.0)))
    torch.testing.assert_close(plain.sample(50), shifted.sample(50))
    energy = plain.pilot(2000)[1]
    assert plain.log_bound == pytest.approx(-float(energy.min()))


def test_a_percentile_is_kept_with_probability_one_half() -> None:
    exact, flat = Rejection(tilted(), pilot=999), Rejection(tilted(), pilot=999, percentile=70)
    _, energy = flat.pilot(999)
    probability = torch.sigmoid(flat._logit(energy))
    assert float(probability.quantile(0.7)) == pytest.approx(0.5, abs=1e-3)
    assert float((probability > 0.5).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert flat.acceptance > 2 * exact.acceptance
    assert float(flat.sample(2000).var()) > float(exact.sample(2000).var())


def test_rejection_gives_up_with_a_line_that_helps() -> None:
    with pytest.raises(RunError, match=r"of 5 samples were not found in 40 tries.*give a percentile"):
        Rejection(tilted(Bowl(1e5)), most_tries=40).sample(5)
    with pytest.raises(InputError, match="between 0 and 100"):
        Rejection(tilted(), percentile=100)


# ------------------------------------------------------------------------------------------- optimal transport


def test_transport_moves_points_to_the_ball_where_the_slope_is_k() -> None:
    """argmin ‖z − y‖ + κ‖z − m‖²/(2k) is y within radius k/κ of m, and else the point of that sphere towards y."""
    k, step = 3.0, 0.01
    model = OptimalTransport(tilted(), steps=600, step_size=step, lipschitz=k)
    y = model.generator.sample(200, seed=4)
    z = model.sample(200, seed=4)
    distance = (y - CENTRE).norm(dim=1, keepdim=True)
    radius = k / CURVATURE
    expected = CENTRE + (y - CENTRE) * (radius / distance).clamp(max=1)
    assert bool((distance > 1.5 * radius).any())
    assert bool((distance < 0.5 * radius).any())
    # Steps of a fixed length end within one of them of the kink of the distance.
    assert float((z - expected).norm(dim=1).max()) < 2 * step


def test_k_is_the_largest_slope_between_latents_and_never_above_the_lipschitz_constant() -> None:
    k = OptimalTransport(tilted(Slope()), pilot=500).lipschitz
    # Of 500 directions in the plane one is within 8π/500 of the gradient's line, but for one time in 10⁷.
    assert 5 * math.cos(8 * math.pi / 500) < k <= 5 * (1 + 1e-3)
    with pytest.raises(InputError, match="lipschitz: 0"):
        OptimalTransport(tilted(Bowl(0.0)))


# ------------------------------------------------------------------------------------------- gradient flow


def test_the_kl_flow_has_the_moments_of_its_recursion_and_comes_nearer_to_the_target() -> None:
    """Base N(0, 1), data N(m, s²): −∇E = m/s² − (1/s² − 1) x, so mean and variance follow linear recursions."""
    m, s, η, γ, steps = 1.0, 0.5, 0.02, 0.01, 10
    rate = 1 / s**2 - 1

    class Ratio(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (0.5 * ((x - m) / s).square() - 0.5 * x.square() + math.log(s)).sum(1)

    model = GradientFlow(tilted(Ratio()), steps=steps, step_size=η, noise=γ)
    x = model.sample(4000, seed=7)
    mean, variance = 0.0, 1.0
    for _ in range(steps):
        mean = (1 - η * rate) * mean + η * m / s**2
        variance = (1 - η * rate) ** 2 * variance + 2 * γ * η
    assert abs(float(x.mean()) - mean) < ALLOWED * math.sqrt(variance / x.numel())
    assert abs(float(x.var()) - variance) < ALLOWED * variance * math.sqrt(2 / x.numel())
    # The ratio of the densities of two Gaussians is exact, so log Z is 0 up to the error of its estimate.
    _, energy = model.pilot(1000)
    assert abs(model.log_z) < ALLOWED * float((-energy).exp().std()) / math.sqrt(1000)

    def divergence(mean: float, variance: float) -> float:
        return 0.5 * ((variance + (mean - m) ** 2) / s**2 - 1 + math.log(s**2 / variance))

    assert divergence(float(x.mean()), float(x.var())) < 0.3 * divergence(0.0, 1.0)


@pytest.mark.parametrize("name", ["kl", "js", "logd", "chi2"])
def test_a_step_goes_down_the_gradient_of_f_prime_of_the_ratio(name: Any) -> None:
    derivative = {
        "kl": lambda r: r.log() + 1,
        "js": lambda r: (2 * r / (r + 1)).log(),
        "logd": lambda r: (r + 1).log() + 1,
        "chi2": lambda r: 2 * (r - 1),
    }[name]
    base, log_z = tilted(), -1.3
    base.log_z = exptilt.LogZ(log_z)
    model = GradientFlow(base, divergence=name, steps=1, step_size=0.01, noise=0.0)
    z = base.generator.sample(20, seed=1).requires_grad_(True)
    ratio = torch.exp(Bowl()(z) + log_z)
    (gradient,) = torch.autograd.grad(derivative(ratio).sum(), z)
    torch.testing.assert_close(model.sample(20, seed=1), (z - 0.01 * gradient).detach(), rtol=1e-4, atol=1e-4)


def test_a_flow_that_leaves_the_numbers_is_reported() -> None:
    with pytest.raises(RunError, match="samples 0 to 4 are not finite; use a smaller step size"):
        GradientFlow(tilted(), divergence="chi2", step_size=100.0).sample(5)
    with pytest.raises(InputError, match="is not known"):
        GradientFlow(tilted(), divergence="tv")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- mixture


def test_a_mixture_is_fitted_to_codes_sampled_and_kept(tmp_path: Path) -> None:
    torch.manual_seed(1)
    n, share = 3000, 0.3
    first = torch.rand(n) < share
    codes = torch.where(first[:, None], 0.5 * torch.randn(n, 2) + 3, torch.randn(n, 2) * torch.tensor([1.0, 2.0]) - 3)
    model = fit_mixture(MixtureGenerator(plane(), 2), codes)
    order = model.mixture.means[:, 0].argsort()
    weights, means = model.mixture.weights[order], model.mixture.means[order]
    covariances = (model.mixture.factors @ model.mixture.factors.mT)[order]
    assert abs(float(weights[1]) - share) < ALLOWED * math.sqrt(share * (1 - share) / n)
    assert float((means - torch.tensor([[-3.0, -3.0], [3.0, 3.0]])).abs().max()) < ALLOWED * 2 / math.sqrt(0.7 * n)
    expected = torch.stack([torch.diag(torch.tensor([1.0, 4.0])), 0.25 * torch.eye(2)])
    assert float((covariances - expected).abs().max()) < ALLOWED * 4 * math.sqrt(2 / (0.7 * n))

    known = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights),
        torch.distributions.MultivariateNormal(means, covariances),
    )
    torch.testing.assert_close(model.prior.log_prob(codes[:50]), known.log_prob(codes[:50]), rtol=1e-4, atol=1e-4)
    x = model.sample(3000, seed=3)
    error = known.stddev / math.sqrt(len(x))
    assert bool(((x.mean(0) - known.mean).abs() < ALLOWED * error).all())
    assert abs(float((x[:, 0] > 0).float().mean()) - share) < ALLOWED * math.sqrt(2 * share * (1 - share) / n)

    vae = MixtureGenerator(ToyVAE(2, 3, 8).freeze(), 2)
    fit_mixture(vae, codes)
    vae.save_pretrained(tmp_path)
    loaded = exptilt.load(tmp_path)
    assert isinstance(loaded, MixtureGenerator)
    assert torch.equal(loaded.sample(4, seed=2), vae.sample(4, seed=2))
    # Any seed below 2⁶⁴, of which scikit-learn takes 32 bits.
    means = [fit_mixture(MixtureGenerator(plane(), 2), codes[:50], seed=seed).mixture.means for seed in (3, 2**40 + 3)]
    assert means[0].shape == means[1].shape
    with pytest.raises(InputError, match="are too few for 2 components"):
        fit_mixture(vae, codes[:3])
    with pytest.raises(InputError, match="has no encoder"):
        MixtureGenerator(exptilt.wrap(lambda z: 1.0 * z, (2,)))
    with pytest.raises(InputError, match="is built on another generator"):
        MixtureGenerator(vae)


# ------------------------------------------------------------------------------------------- command line


def test_baselines_are_drawn_and_measured_from_the_command_line(tmp_path: Path, capsys) -> None:
    vae = VAE(1, 4, 4).freeze()
    vae.save_pretrained(tmp_path / "vae")
    energy = make_energy("mlp", (4,), 8)
    model = TiltedGenerator(vae, latent_energy=energy, sampler=SamplerConfig(steps=3))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path / "tilted")
    sample = ("sample", "-n", 6, "--seed", 2, "--quiet", "--out", tmp_path / "x.npz")

    def drawn(*arguments: object) -> np.ndarray:
        assert call(*sample, *arguments) == 0
        return np.load(tmp_path / "x.npz")["images"].astype(int)

    def expected(baseline: Baseline) -> np.ndarray:
        x = baseline.sample(6, seed=2)
        return ((x.permute(0, 2, 3, 1) + 1) * 127.5).round().int().numpy()

    for arguments, baseline in (
        ((tmp_path / "vae", "--temperature", 0.5), PriorTemperature(vae, 0.5)),
        ((tmp_path / "tilted", "--baseline", "rejection", "--percentile", 80), Rejection(model, percentile=80)),
        ((tmp_path / "tilted", "--baseline", "dot", "--steps", 3), OptimalTransport(model, steps=3)),
        ((tmp_path / "tilted", "--baseline", "dgflow", "--divergence", "js"), GradientFlow(model, divergence="js")),
    ):
        assert np.abs(drawn(*arguments) - expected(baseline)).max() <= 1

    (tmp_path / "tilted" / "result.json").write_text("{}")
    evaluate = ("evaluate", tmp_path / "tilted", "--data", "digits", "-n", 150, "--seeds", 0, "--quiet")
    assert call(*evaluate, "--baseline", "dgflow", "--json", tmp_path / "result.json") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["baseline"] == "dgflow"
    assert result["base"]["fid"] > 0
    assert result["tilted"]["fid"] > 0
    # What was measured of the model's own chain stays.
    assert (tmp_path / "tilted" / "result.json").read_text() == "{}"
    assert not (tmp_path / "tilted" / "neighbours.png").exists()

    pretrain = ("pretrain", "mixture-mnist", "--data", "digits", "--limit", 100, "--epochs", 3, "--quiet")
    assert call(*pretrain, "--vae", tmp_path / "vae", "--out", tmp_path / "mixture") == 0
    assert "code_nll" in json.loads((tmp_path / "mixture" / "run.json").read_text())["test"]
    assert drawn(tmp_path / "mixture").shape == (6, 32, 32, 1)

    capsys.readouterr()
    for arguments, words in (
        ((tmp_path / "vae", "--baseline", "dot"), "needs an energy; give the folder of a tilted generator"),
        ((tmp_path / "tilted", "--temperature", 0.5), "give the folder of the generator"),
        ((tmp_path / "tilted", "--percentile", 5), "leave it out, or give --baseline rejection"),
        ((tmp_path / "tilted", "--baseline", "dot", "--kernel", "mala"), "--kernel: is of no use to dot"),
        ((tmp_path / "tilted", "--baseline", "dot", "--steps", -1), "steps: -1 is out of range"),
    ):
        assert call(*sample, *arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert call(*pretrain, "--vae", tmp_path / "tilted", "--out", tmp_path / "no") == 2
    assert "is tilted; give the folder of a generator" in capsys.readouterr().err
