"""log Z against closed forms and quadrature, its intervals and bounds, and the density of a tilted flow."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

import exptilt
from exptilt import cli
from exptilt.energies.mlp import MLPEnergy
from exptilt.errors import InputError, RunError
from exptilt.evaluation.annealing import Annealing, Schedule
from exptilt.evaluation.likelihood import bits_per_dim, likelihood
from exptilt.evaluation.partition import Method, estimate_log_z, jackknife_log_mean
from exptilt.generators.glow import Glow
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.generators.wrap import wrap
from exptilt.sampling.weights import effective_size, resample
from exptilt.tilted import TiltedGenerator

# Deviations allowed in standard errors: a correct estimator fails one such check in 500,000.
ALLOWED = 4.8
REPETITIONS = 200
METHODS: list[Method] = ["smc", "ais", "importance"]


class Quadratic(nn.Module):
    """k/2 ‖x − m‖²."""

    def __init__(self, k: float, m: float) -> None:
        super().__init__()
        self.k, self.m = k, m

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.k * (x - self.m).square().flatten(1).sum(1)


class Linear(nn.Module):
    """c + b·x, summed over the coordinates."""

    def __init__(self, b: float, c: float = 0.0) -> None:
        super().__init__()
        self.b, self.c = b, c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c + self.b * x.flatten(1).sum(1)


def linear_gaussian(d: int, k: float, m: float) -> tuple[TiltedGenerator, float, torch.Tensor, torch.Tensor]:
    """x = Az, E = k/2 ‖x − m‖²: the tilted generator, log Z, and mean and covariance of the tilted distribution."""
    generator = torch.Generator().manual_seed(d)
    A = 0.7 * torch.eye(d) + 0.2 / d**0.5 * torch.randn(d, d, generator=generator)
    precision = torch.eye(d, dtype=torch.float64) + k * (A.T @ A).double()
    covariance = torch.linalg.inv(precision)
    pull = k * m * A.double().sum(0)
    log_z = 0.5 * (pull @ covariance @ pull - k * m**2 * d - torch.logdet(precision))
    return TiltedGenerator(wrap(lambda z: z @ A.T, (d,)), Quadratic(k, m)), float(log_z), covariance @ pull, covariance


def exact_sample(n: int, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return (mean + noise @ torch.linalg.cholesky(covariance).T).float()


# log Z


@pytest.mark.parametrize(
    ("d", "k", "m", "method"),
    [(2, 3.0, 2.0, method) for method in METHODS]
    + [(8, 0.3, 1.0, "importance"), (64, 0.05, 0.5, "importance")]
    + [(d, 3.0, 1.0, method) for d in (8, 64) for method in METHODS[:2]],
)
def test_every_method_agrees_with_the_closed_form(d: int, k: float, m: float, method: Method) -> None:
    """Weak tilts for importance sampling, whose weights are useless for others."""
    tilted, truth, _, _ = linear_gaussian(d, k, m)
    n = 10_000 if method == "importance" else 500
    log_z = estimate_log_z(tilted, method, n=n, seed=1, chain_steps=20)
    assert abs(log_z.value - truth) < ALLOWED * log_z.standard_error < 1.3
    assert log_z.interval is not None
    assert log_z.interval[0] < log_z.value < log_z.interval[1]
    assert log_z.lower is not None
    assert log_z.upper is not None
    assert log_z.lower < truth < log_z.upper
    assert log_z.ess is not None
    assert 1 <= log_z.ess <= n
    assert log_z.steps == 1 if method == "importance" else log_z.steps >= 5
    assert tilted.log_z is log_z


@pytest.mark.parametrize(
    ("method", "d"), [("importance", 8), ("importance", 64), ("ais", 2), ("smc", 2), ("smc", 8), ("smc", 64)]
)
def test_intervals_and_bounds_hold_as_often_as_they_say(method: Method, d: int) -> None:
    """200 repetitions: 95% of the intervals cover log Z, and at least 95% of the bounds hold."""
    strong = method != "importance"
    tilted, truth, mean, covariance = linear_gaussian(d, 4.0 / d if strong else 1.6 / d, 1.0)
    schedule = Annealing(tilted, 0, 1, 1000).pilot(0.8)
    inside = below = above = 0
    for seed in range(REPETITIONS):
        exact = exact_sample(20 * REPETITIONS, mean, covariance)[20 * seed : 20 * seed + 20]
        log_z = estimate_log_z(tilted, method, n=100, seed=seed, transitions=1, schedule=schedule, exact=exact)
        assert log_z.interval is not None
        assert log_z.lower is not None
        assert log_z.upper is not None
        inside += log_z.interval[0] < truth < log_z.interval[1]
        below += log_z.lower < truth
        above += truth < log_z.upper
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], REPETITIONS, 0.95)
    assert low <= inside <= high
    assert below >= low
    assert above >= low


def test_the_estimate_of_z_is_unbiased() -> None:
    """E[Ẑ] = Z, also with few particles and an interval far from small."""
    tilted, truth, _, _ = linear_gaussian(2, 2.0, 1.0)
    schedule = Annealing(tilted, 0, 1, 1000).pilot(0.7)
    for resample_below in (0.0, 0.9):
        annealing = Annealing(tilted, 3, 1, 8000)
        log_z, _, _ = annealing.forward(schedule, 0, 1000, 8, resample_below)
        ratio = (log_z - truth).exp()
        assert abs(float(ratio.mean()) - 1) < ALLOWED * float(ratio.std()) / math.sqrt(1000) < 0.2


def test_bounds_from_exact_samples_bracket_the_truth_and_close_as_the_schedule_gets_finer() -> None:
    tilted, truth, mean, covariance = linear_gaussian(8, 3.0, 1.0)
    exact = exact_sample(200, mean, covariance)
    gaps = []
    for conditional_ess in (0.8, 0.99):
        log_z = estimate_log_z(tilted, "ais", n=200, seed=2, conditional_ess=conditional_ess, exact=exact)
        assert log_z.lower is not None
        assert log_z.upper is not None
        assert log_z.lower < truth < log_z.upper
        gaps.append(log_z.upper - log_z.lower)
    assert gaps[1] < 0.4 * gaps[0]


def test_particles_do_not_depend_on_the_batch() -> None:
    tilted, _, _, _ = linear_gaussian(3, 2.0, 1.0)
    for method in METHODS:
        settings = {"n": 40, "chain_steps": 3, "transitions": 1, "bound_chains": 20, "conditional_ess": 0.8}
        whole, parts = (estimate_log_z(tilted, method, batch_size=size, **settings) for size in (1000, 7))
        for name in ("value", "standard_error", "lower", "upper", "ess"):
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-3), (method, name)
        assert parts.gradient_evaluations == whole.gradient_evaluations
        assert estimate_log_z(tilted, method, seed=1, **settings).value != whole.value


def test_the_gradients_are_counted() -> None:
    tilted, _, _, _ = linear_gaussian(2, 2.0, 1.0)
    calls = []
    assert tilted.energy is not None
    tilted.energy.register_forward_hook(lambda module, inputs, output: calls.append(output.requires_grad * len(output)))
    log_z = estimate_log_z(tilted, "ais", n=30, transitions=2, chain_steps=5, bound_chains=20)
    assert log_z.gradient_evaluations == sum(calls)


def test_an_energy_that_is_constant_or_switched_off_has_a_log_z_without_error() -> None:
    constant = TiltedGenerator(wrap(lambda z: z, (2,)), Linear(0.0, 3.0))
    off = TiltedGenerator(wrap(lambda z: z, (2,)), Quadratic(1.0, 1.0), strength=0.0)
    for tilted, truth in ((constant, -3.0), (off, 0.0)):
        for method in METHODS:
            log_z = estimate_log_z(tilted, method, n=20, chain_steps=2)
            assert log_z.value == pytest.approx(truth, abs=1e-6)
            assert log_z.standard_error == pytest.approx(0, abs=1e-6)


def test_energies_on_x_and_z_and_the_strength_all_count() -> None:
    """log E[exp(−λ(b x + c + b' z))] = −λc + λ²(ab + b')² d/2 for x = az."""
    a, b, c, on_z, λ, d = 0.5, 1.0, 2.0, -0.2, 1.5, 3
    generator = wrap(lambda z: a * z, (d,))
    tilted = TiltedGenerator(generator, Linear(b, c), latent_energy=Linear(on_z), strength=λ)
    truth = -λ * c + 0.5 * (λ * (a * b + on_z)) ** 2 * d
    log_z = estimate_log_z(tilted, n=1000)
    assert abs(log_z.value - truth) < ALLOWED * log_z.standard_error < 0.2
    assert log_z.strength == λ


def test_the_jackknife_knows_the_error_of_a_mean_and_of_one_large_weight() -> None:
    values = 5 + 0.1 * torch.randn(400, dtype=torch.float64)
    value, error = jackknife_log_mean(values.log())
    assert value == pytest.approx(math.log(float(values.mean())))
    assert error == pytest.approx(float(values.std()) / 20 / float(values.mean()), rel=1e-2)
    value, error = jackknife_log_mean(torch.tensor([0.0, -1e3, -1e3]))
    assert value == pytest.approx(-math.log(3))
    assert 10 < error < math.inf


def test_resampling_draws_by_weight() -> None:
    log_weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 0.0]]).log() + 5
    drawn = resample(log_weights, torch.tensor([0.3, 0.99]), 1000)
    counts = torch.stack([torch.bincount(row, minlength=4) for row in drawn])
    assert (counts[0] - torch.tensor([100, 200, 300, 400])).abs().max() <= 1
    assert counts[1].tolist() == [0, 1000, 0, 0]
    assert effective_size(log_weights).tolist() == pytest.approx([1 / 0.3, 1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "annealing"}, "method: 'annealing' is not known; use one of smc, ais, importance"),
        ({"n": 1, "method": "ais"}, "n: 1 is out of range"),
        ({"n": 25}, "n: 25 does not fill the populations"),
        ({"n": 10}, "n: 10 does not fill the populations"),
        ({"repetitions": 1}, "repetitions: 1"),
        ({"transitions": 0}, "transitions: 0"),
        ({"conditional_ess": 1.0}, "conditional_ess: 1.0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments: dict[str, object], words: str) -> None:
    tilted, _, _, _ = linear_gaussian(2, 1.0, 1.0)
    with pytest.raises(InputError, match=words) as caught:
        estimate_log_z(tilted, **{"n": 20, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert tilted.log_z is None


def test_an_energy_that_is_not_finite_is_told() -> None:
    tilted = TiltedGenerator(wrap(lambda z: z, (2,)), Linear(math.inf))
    with pytest.raises(RunError, match="not finite"):
        estimate_log_z(tilted, n=20)


# The density of a tilted flow


def flow(seed: int = 0, **arguments: int) -> Glow:
    """A small flow away from the identity, of points that are images of one pixel with two channels."""
    torch.manual_seed(seed)
    glow = Glow(**({"channels": 2, "size": 1, "levels": 0, "steps": 2, "hidden": 8} | arguments))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in glow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return glow


def test_a_tilted_flow_integrates_to_one_by_quadrature() -> None:
    tilted = TiltedGenerator(flow(), Quadratic(2.0, 0.5), latent_energy=Linear(0.5), strength=0.8)
    log_z = estimate_log_z(tilted, "ais", n=1000, transitions=1, bound_chains=0, batch_size=1000)
    axis = torch.linspace(-12, 12, 241)
    x = torch.cartesian_prod(axis, axis).reshape(-1, 2, 1, 1)
    with torch.no_grad():
        value, error = tilted.log_prob(x, return_error=True)
        assert value.shape == (len(x),)
        log_integral = float(value.double().logsumexp(0)) + 2 * math.log(0.1)
        assert error == log_z.standard_error
        assert abs(log_integral) < ALLOWED * error < 0.15
        # Pointwise: the tilt is the ratio of the two densities, and z = f(x) is where the latent energy looks.
        torch.testing.assert_close(tilted.generator.decode(tilted.generator.latent(x)), x, atol=1e-4, rtol=1e-4)
        ratio = value - tilted.generator.log_prob(x)
        expected = -0.8 * (Quadratic(2.0, 0.5)(x) + Linear(0.5)(tilted.generator.latent(x))) - log_z.value
        torch.testing.assert_close(ratio, expected, atol=1e-3, rtol=1e-4)


def test_log_prob_without_log_z_or_density_is_refused() -> None:
    tilted = TiltedGenerator(flow(), Quadratic(1.0, 0.0))
    x = torch.zeros(3, 2, 1, 1)
    with pytest.raises(InputError, match=r"log Z is not known; call exptilt\.estimate_log_z"):
        tilted.log_prob(x)
    tilted.log_z = exptilt.LogZ(-0.5, strength=0.5)
    with pytest.raises(InputError, match=r"estimated for strength 0\.5, and this is 1"):
        tilted.log_prob(x)
    given = TiltedGenerator(flow(), Quadratic(1.0, 0.0), log_z=-0.5)
    torch.testing.assert_close(given.log_prob(x), given.generator.log_prob(x) + 0.5)
    with pytest.raises(InputError, match="has no density"):
        TiltedGenerator(ToyVAE(2, 2, 8), MLPEnergy(2, 8), log_z=0.0).log_prob(torch.zeros(3, 2))


def test_log_z_survives_saving_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    tilted = TiltedGenerator(ToyVAE(2, 2, 8), latent_energy=MLPEnergy(2, 8))
    tilted.save_pretrained(tmp_path)
    assert exptilt.load(tmp_path).log_z is None
    assert "log_z" not in json.loads((tmp_path / "model_index.json").read_text())
    log_z = estimate_log_z(tilted, n=40, chain_steps=2)
    tilted.save_pretrained(tmp_path)
    assert exptilt.load(tmp_path).log_z == log_z
    index = json.loads((tmp_path / "model_index.json").read_text())
    damaged = [
        {"value": math.nan},
        {"value": "1"},
        {"value": True},
        {"standard_error": -1.0},
        {"standard_error": math.inf},
        {"interval": [0.0]},
        {"interval": [0.0, "1"]},
        {"valu": 1.0},
        {"n": 0.5},
    ]
    for change in damaged:
        broken = {**index, "log_z": {**index["log_z"], **change}}
        (tmp_path / "model_index.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match="log_z") as caught:
            exptilt.load(tmp_path)
        assert "\n" not in str(caught.value)
    for broken in ({**index, "log_z": 3.0}, {**index, "log_z": {}}):
        (tmp_path / "model_index.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match="log_z"):
            exptilt.load(tmp_path)


# Bits per dimension


def random_bytes(n: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape)) / 127.5 - 1


def test_bits_per_dim_of_a_flow_are_its_own_metric_and_a_constant_energy_changes_nothing() -> None:
    glow = flow(channels=1, size=4, levels=2)
    x = random_bytes(30, glow.data_shape)
    own = glow.metrics(x, generator=torch.Generator().manual_seed(3))["bits_per_dim"]
    bits = bits_per_dim(glow, x, seed=3)
    assert bits["base"] == pytest.approx(float(own.mean()), rel=1e-5)
    assert bits["base_error"] == pytest.approx(float(own.std()) / math.sqrt(30), rel=1e-4)
    assert bits["tilted"] is bits["change"] is None
    tilted = TiltedGenerator(glow, Linear(0.0, 3.0), log_z=-3.0)
    bits = bits_per_dim(tilted, x, seed=3)
    assert bits["change"] == pytest.approx(0, abs=1e-6)
    assert bits["tilted"] == pytest.approx(bits["base"], abs=1e-6)
    tilted.log_z = exptilt.LogZ(-3.0, standard_error=0.5)
    assert bits_per_dim(tilted, x, seed=3)["change_error"] == pytest.approx(0.5 / (16 * math.log(2)), rel=1e-4)
    with pytest.raises(InputError, match="log Z is not known"):
        bits_per_dim(TiltedGenerator(glow, Linear(0.0)), x)
    with pytest.raises(InputError, match="has no density"):
        bits_per_dim(TiltedGenerator(VAE(1, 4, 4), Linear(0.0), log_z=0.0), torch.zeros(2, 1, 32, 32) - 1)


def test_bits_per_dim_bound_the_probability_of_discrete_images() -> None:
    """Two pixels of one bit: the tilted density, integrated over each of the four bins, is above what the bits say."""
    glow = flow(bits=1)
    tilted = TiltedGenerator(glow, Linear(0.5))
    fine = torch.linspace(-9, 9, 721)
    grid = torch.cartesian_prod(fine, fine).reshape(-1, 2, 1, 1)
    with torch.no_grad():
        mass = (glow.log_prob(grid) - Linear(0.5)(grid)).double().logsumexp(0)
    tilted.log_z = exptilt.LogZ(float(mass) + 2 * math.log(18 / 720))
    edge = 256 / 255
    cell = (torch.arange(200) + 0.5) / 200
    total = 0.0
    for first in (-1.0, 1.0):
        for second in (-1.0, 1.0):
            image = (torch.tensor([first, second]) > 0).to(torch.uint8).mul(255).reshape(1, 2, 1, 1)
            told = bits_per_dim(tilted, image.repeat(2000, 1, 1, 1), seed=1)
            low = torch.tensor([edge * min(value, 0) for value in (first, second)])
            inside = torch.cartesian_prod(edge * cell, edge * cell) + low
            with torch.no_grad():
                density = tilted.log_prob(inside.reshape(-1, 2, 1, 1)).double().exp()
            probability = float(density.mean()) * edge**2
            bound = 2 ** (-2 * told["tilted"])
            assert bound <= probability * (1 + ALLOWED * 2 * math.log(2) * told["tilted_error"])
            assert bound > 0.5 * probability
            total += probability
    assert 0.2 < total < 1


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def test_the_command_prints_writes_and_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    glow = Glow(channels=1, size=32, levels=2, steps=1, hidden=4)
    tilted = TiltedGenerator(glow, latent_energy=MLPEnergy(1024, 8))
    tilted.save_pretrained(tmp_path / "run")
    out = tmp_path / "copy.json"
    command = ("likelihood", tmp_path / "run", "--data", "digits", "--limit", 20, "-n", 20, "--seed", 5, "--quiet")
    assert call(*command, "--json", out) == 0
    result = json.loads(out.read_text())
    assert json.loads((tmp_path / "run" / "likelihood.json").read_text()) == result
    assert {"log_z", "bits_per_dim", "seed", "data", "model", "command", "commit", "version"} <= result.keys()
    assert (result["seed"], result["data"], result["bits_per_dim"]["n"]) == (5, "digits", 20)
    loaded = exptilt.load(tmp_path / "run")
    assert dataclasses.asdict(loaded.log_z) | {"interval": list(loaded.log_z.interval)} == result["log_z"]
    told = capsys.readouterr().out
    for word in ("log Z", "ESS", "bounds", "bits/dim", f"{result['log_z']['value']:.3f}"):
        assert word in told
    assert max(map(len, told.splitlines())) <= 80


def test_the_command_refuses_what_is_not_tilted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ToyVAE(2, 2, 8).save_pretrained(tmp_path)
    assert call("likelihood", tmp_path, "--quiet") == 2
    assert "is not tilted" in capsys.readouterr().err


def test_data_of_a_generator_without_density_are_of_no_use() -> None:
    tilted = TiltedGenerator(ToyVAE(2, 2, 8), latent_energy=MLPEnergy(2, 8))
    result = likelihood(tilted, exptilt.load_dataset("gaussians", "test", 10), method="importance", n=20)
    assert result["bits_per_dim"] is result["data"] is None
    assert result["log_z"]["method"] == "importance"


class TwoModes(nn.Module):
    """−log p/q of p = w N((−2, 0), 0.2²) + (1 − w) N((2, 0), 0.2²) and q = N(0, I): log Z = 0."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        modes = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
        each = -(x[:, None] - modes).square().sum(2) / (2 * 0.2**2) - 2 * math.log(0.2)
        log_p = (each + torch.tensor([self.w, 1 - self.w]).log()).logsumexp(1)
        return -x.square().sum(1) / 2 - log_p


@pytest.mark.parametrize("method", ["ais", "smc"])
def test_the_upper_bound_starts_in_each_mode_as_often_as_the_weights_say(method: Method) -> None:
    """Without weights half of the chains would start in a mode of weight 0.02, which no MALA step mends."""
    tilted = TiltedGenerator(wrap(lambda z: 1.0 * z, (2,)), TwoModes(0.02))
    log_z = estimate_log_z(tilted, method, n=1000, seed=1)
    assert abs(log_z.value) < ALLOWED * log_z.standard_error
    assert log_z.lower is not None
    assert log_z.upper is not None
    assert log_z.lower < 0 < log_z.upper


@pytest.mark.parametrize(
    ("betas", "step_sizes", "words"),
    [
        ((0.0, 0.25, 0.5), (1.0, 1.0), "do not rise from 0 to 1"),
        ((0.0, 0.5, 0.5, 1.0), (1.0, 1.0, 1.0), "do not rise from 0 to 1"),
        ((1.0,), (), "do not rise from 0 to 1"),
        ((0.0, 0.5, 1.0), (1.0,), "do not fit 3 β"),
        ((0.0, 1.0), (0.0,), "do not fit 2 β"),
    ],
)
def test_a_schedule_that_does_not_reach_the_tilt_is_refused(
    betas: tuple[float, ...], step_sizes: tuple[float, ...], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Schedule(betas, step_sizes)


def test_exact_samples_of_another_shape_are_refused() -> None:
    tilted, _, _, _ = linear_gaussian(2, 1.0, 1.0)
    for shape in ((5, 3), (0, 2), (2,)):
        with pytest.raises(InputError, match=r"exact: has shape .*; give latents \(N, 2\)"):
            estimate_log_z(tilted, n=20, exact=torch.zeros(shape))
