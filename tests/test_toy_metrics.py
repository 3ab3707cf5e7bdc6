"""Figures of points: hand-made sets whose figures are known, and the tests' own error rates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import exptilt
from exptilt import cli
from exptilt.config import SamplerConfig
from exptilt.data import DataSet, load_dataset
from exptilt.data.toy import (
    GAUSSIAN_STD,
    SWISSROLL_STD,
    gaussian_centres,
    gaussians_log_density,
    sample_gaussians,
    sample_swissroll,
    swissroll_curve,
)
from exptilt.energies.mlp import MLPEnergy
from exptilt.errors import InputError, RunError
from exptilt.evaluation.energy_distance import energy_test
from exptilt.evaluation.protocol import compare
from exptilt.evaluation.toy import evaluate_points, point_figures, summary_rows, weight_divergence
from exptilt.generators.vae import ToyVAE
from exptilt.report.numbers import metric_table
from exptilt.tilted import TiltedGenerator

# Deviations allowed in standard errors: a correct figure fails one such check in 500,000.
ALLOWED = 4.8


# Figures of one set


def test_points_at_the_centres_have_perfect_figures() -> None:
    figures = point_figures("gaussians", gaussian_centres().repeat(4, 1))
    assert figures["high_quality"] == 1
    assert figures["modes"] == 25
    assert figures["weight_kl"] == 0
    # The density at a centre, of one component alone: the others are 40 standard deviations away.
    assert figures["log_density"] == pytest.approx(-math.log(25) - math.log(2 * math.pi * GAUSSIAN_STD**2), abs=1e-4)


@pytest.mark.parametrize("dropped", [1, 5])
def test_a_dropped_mode_shows(dropped: int) -> None:
    figures = point_figures("gaussians", gaussian_centres()[dropped:].repeat(7, 1))
    assert figures["modes"] == 25 - dropped
    assert figures["weight_kl"] == pytest.approx(math.log(25 / (25 - dropped)))
    assert figures["high_quality"] == 1


def test_points_of_the_truth_have_the_figures_of_the_truth() -> None:
    n = 10_000
    figures = point_figures("gaussians", sample_gaussians(n, seed=5)[0])
    share = 1 - math.exp(-4.5)  # of a Gaussian of the plane, within 3σ
    assert figures["high_quality"] == pytest.approx(share, abs=ALLOWED * math.sqrt(share * (1 - share) / n))
    entropy = math.log(25) + math.log(2 * math.pi * math.e * GAUSSIAN_STD**2)
    assert figures["log_density"] == pytest.approx(-entropy, abs=ALLOWED / math.sqrt(n))
    # 2n KL is χ² with 24 degrees of freedom.
    assert figures["weight_kl"] is not None
    assert stats.chi2(24).cdf(2 * n * share * figures["weight_kl"]) == pytest.approx(0.5, abs=0.4999)


def test_quality_ends_at_three_standard_deviations() -> None:
    for distance, share in ((2.99, 1), (3.01, 0)):
        offset = torch.tensor([distance * GAUSSIAN_STD, 0.0])
        assert point_figures("gaussians", gaussian_centres() + offset)["high_quality"] == share
        # Beyond the end of the roll, along it: the last piece of the curve is nearly straight.
        angles = torch.tensor([4.5 * math.pi, 4.5 * math.pi - 1e-3], dtype=torch.float64)
        end, before = swissroll_curve(angles)
        direction = (end - before) / (end - before).norm()
        point = (end + distance * SWISSROLL_STD * direction)[None]
        assert point_figures("swissroll", point)["high_quality"] == share


def test_where_no_point_is_near_a_mode_the_weights_do_not_exist() -> None:
    figures = point_figures("gaussians", gaussian_centres() + 0.3)
    assert (figures["high_quality"], figures["modes"], figures["weight_kl"]) == (0, 0, None)
    assert figures["log_density"] is not None
    assert figures["log_density"] < -50


def test_the_roll_has_no_modes_and_a_density_that_knows_the_curve() -> None:
    points = sample_swissroll(5000, seed=5)
    figures = point_figures("swissroll", points)
    assert figures["modes"] is figures["weight_kl"] is None
    assert figures["high_quality"] is not None
    assert 0.98 < figures["high_quality"] < 1
    away = point_figures("swissroll", points * 1.2)
    assert away["high_quality"] is not None
    assert away["log_density"] is not None
    assert figures["log_density"] is not None
    assert away["high_quality"] < 0.5
    assert away["log_density"] < figures["log_density"] - 1


def test_weight_divergence_in_closed_form() -> None:
    assert weight_divergence(torch.tensor([3, 3, 3])) == 0
    assert weight_divergence(torch.tensor([1, 0, 0, 0])) == pytest.approx(math.log(4))
    assert weight_divergence(torch.tensor([3, 1])) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert weight_divergence(torch.tensor([0, 0])) is None


# Energy distance


def test_the_energy_distance_is_scipys_in_one_dimension_and_its_definition_in_two() -> None:
    x, y = torch.randn(40, 1), 0.5 + 2 * torch.randn(60, 1)
    assert energy_test(x, y, 9).distance == pytest.approx(stats.energy_distance(x[:, 0], y[:, 0]), rel=1e-6)
    x, y = torch.randn(30, 2).double(), torch.rand(20, 2).double()
    mean = lambda a, b: float((a[:, None] - b[None]).norm(dim=2).mean())  # noqa: E731 - the formula's E‖A − B‖
    assert energy_test(x, y, 9).distance ** 2 == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), rel=1e-9)


def test_p_values_of_equal_distributions_are_uniform() -> None:
    p_values = [
        energy_test(torch.randn(20, 2), torch.randn(15, 2), permutations=99, seed=i).p_value for i in range(400)
    ]
    assert stats.kstest(np.array(p_values) - 0.005, "uniform").pvalue > 1e-4
    assert min(p_values) >= 0.01


def test_the_same_set_twice_has_no_distance_and_a_dropped_mode_has_one() -> None:
    points = sample_gaussians(500, seed=1)[0]
    same = energy_test(points, points, 99)
    assert same.distance == pytest.approx(0, abs=1e-6)
    assert same.p_value > 0.9
    other, mode = sample_gaussians(1000, seed=2)
    assert energy_test(points, other[mode > 4], 199).p_value == 1 / 200
    assert energy_test(points, other, 199).p_value > 1e-2


def test_the_permutation_test_counts_ties() -> None:
    """Two points each: of the 6 deals 2 give the observed distance, so p is about 1/3 however many are tried."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[10.0], [12.0]])
    assert energy_test(x, y, 6000).p_value == pytest.approx(1 / 3, abs=ALLOWED * math.sqrt(2 / 9 / 6000))


def test_empty_sets_are_refused() -> None:
    with pytest.raises(InputError, match="sets of 0 and 3 points"):
        energy_test(torch.zeros(0, 2), torch.zeros(3, 2))
    with pytest.raises(InputError, match="permutations: 0"):
        energy_test(torch.zeros(2, 2), torch.zeros(3, 2), 0)


# The whole evaluation


class Points:
    """Draws from the true mixture but for its first modes; sample i of a seed depends on (seed, i) alone."""

    data_shape = (2,)

    def __init__(self, dropped: int) -> None:
        self.dropped = dropped

    def sample(self, n: int, *, seed: int, start: int) -> torch.Tensor:
        points, mode = sample_gaussians(40_000, 10 + seed)
        return points[mode >= self.dropped][start : start + n]


class TiltedPoints(Points):
    def __init__(self, dropped: int, generator: Points) -> None:
        super().__init__(dropped)
        self.generator = generator


def test_the_evaluation_tells_a_dropped_mode_from_the_truth() -> None:
    test, train = load_dataset("gaussians", "test"), load_dataset("gaussians", "train")
    result = evaluate_points(TiltedPoints(0, Points(5)), test, n=3000, train=train, permutations=99)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    base, tilted, floor = (result[part] for part in ("base", "tilted", "floor"))
    assert (base["modes"], tilted["modes"], floor["modes"]) == (20, 25, 25)
    assert base["weight_kl_ci"][0] > tilted["weight_kl_ci"][1]
    assert base["p_value_per_seed"] == [1 / 100] * 3
    assert base["p_value"] == pytest.approx(2 / 100)
    assert tilted["p_value"] > 0.05
    assert base["energy_distance"] > 2 * tilted["energy_distance"]
    assert floor["log_density"] == pytest.approx(float(gaussians_log_density(train.stored[:3000]).mean()), abs=1e-4)
    assert floor["high_quality_ci"] is None
    for figures in (base, tilted):
        each = figures["log_density_per_seed"]
        half = stats.t(2).ppf(0.975) * np.std(each, ddof=1) / math.sqrt(3)
        assert figures["log_density"] == pytest.approx(np.mean(each))
        assert figures["log_density_ci"] == pytest.approx([np.mean(each) - half, np.mean(each) + half])
    assert any("within 3σ" in name for name in metric_table(result).header)
    rows = summary_rows(result)
    assert [row[0] for row in rows] == ["", "base", "tilted", "floor"]
    assert {len(row) for row in rows} == {7}


def test_the_protocol_holds_the_figures_apart() -> None:
    test = load_dataset("gaussians", "test", 50)
    first, second = (evaluate_points(Points(0), test, n=n, seeds=(0,))["protocol"] for n in (10, 20))
    assert first["hash"] != second["hash"]
    with pytest.raises(InputError, match="n 10 and 20"):
        compare(first, second)


def test_wrong_settings_data_and_samples_are_refused() -> None:
    test = load_dataset("gaussians", "test", 50)
    with pytest.raises(InputError, match="n: 0"):
        evaluate_points(Points(0), test, n=0)
    with pytest.raises(InputError, match="seeds"):
        evaluate_points(Points(0), test, n=10, seeds=(1, 1))
    with pytest.raises(InputError, match="'spiral': is not a toy set"):
        evaluate_points(Points(0), DataSet("spiral", "test", torch.zeros(9, 2), None, "made up"))
    with pytest.raises(InputError, match="the model needs"):
        evaluate_points(exptilt.VAE(1, 4, 4), test)
    with pytest.raises(InputError, match=r"points: have shape \(3, 5\)"):
        point_figures("gaussians", torch.zeros(3, 5))

    class Diverged(Points):
        def sample(self, n: int, *, seed: int, start: int) -> torch.Tensor:
            return torch.full((n, 2), math.nan)

    with pytest.raises(RunError, match="base: samples of seed 0 are not finite"):
        evaluate_points(Diverged(0), test, n=10, seeds=(0,))


def test_the_command_evaluates_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tilted = TiltedGenerator(ToyVAE(2, 2, 16), latent_energy=MLPEnergy(2, 8), sampler=SamplerConfig(steps=2))
    tilted.save_pretrained(tmp_path)
    for data in ("gaussians", "swissroll"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["evaluate", str(tmp_path), "--data", data, "-n", "200", "--seeds", "3", "4", "--quiet"])
        assert stop.value.code == 0
        result = json.loads((tmp_path / "result.json").read_text())
        assert {"protocol", "n", "seeds", "base", "tilted", "floor", "model", "command", "commit"} <= result.keys()
        assert (result["n"], result["seeds"], result["protocol"]["data"]) == (200, [3, 4], data)
        told = capsys.readouterr().out
        assert result["protocol"]["hash"] in told
        assert "within 3σ" in told
        assert max(map(len, told.splitlines())) <= 80
