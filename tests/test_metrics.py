"""The metrics against closed forms, against another implementation, and against defects put there on purpose."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from prdc import compute_prdc
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from exptilt.errors import InputError
from exptilt.evaluation import neighbours
from exptilt.evaluation.metrics import FrechetDistance, class_entropy, class_histogram, kernel_distance
from exptilt.evaluation.neighbours import Neighbours


@pytest.fixture(autouse=True)
def _one_thread():
    """Arithmetic this small gains nothing from threads, and on a busy machine they wait seconds for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Features(nn.Module):
    """Features as the features that torchmetrics asks a network for."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def gaussian(n: int, size: int = 8, seed: int = 0, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, size, generator=generator)


def mixture(n: int, modes: int, seed: int) -> torch.Tensor:
    """Ten far-apart clusters in eight dimensions, of which the first ``modes`` occur."""
    centres = 8 * torch.randn(10, 8, generator=torch.Generator().manual_seed(100))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, modes, (n,), generator=generator)
    return centres[chosen] + torch.randn(n, 8, generator=generator)


def theirs(reference: torch.Tensor, features: torch.Tensor, k: int) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the sizes
        return compute_prdc(reference.numpy(), features.numpy(), nearest_k=k)


def test_fid_of_two_gaussians_is_the_closed_form() -> None:
    n = 20_000
    mixing = torch.linspace(0.5, 1.5, 8)
    a = gaussian(n, seed=1) * mixing
    b = gaussian(n, seed=2, mean=0.3) * 2
    # Diagonal covariances: ‖μ − m‖² + Σ (σ − s)².
    truth = 8 * 0.6**2 + float((mixing - 2).square().sum())
    assert FrechetDistance(a)(b) == pytest.approx(truth, rel=4 / math.sqrt(n))


def test_fid_of_correlated_gaussians_is_the_closed_form() -> None:
    n, correlation = 40_000, 0.8
    x = gaussian(n, 2, seed=3)
    y = gaussian(n, 2, seed=4)
    correlated = torch.stack([y[:, 0], correlation * y[:, 0] + math.sqrt(1 - correlation**2) * y[:, 1]], 1)
    # Against the identity: Σ (√λ − 1)² over the eigenvalues 1 ± ρ of the covariance.
    truth = sum((math.sqrt(eigenvalue) - 1) ** 2 for eigenvalue in (1.8, 0.2))
    assert FrechetDistance(x)(correlated) == pytest.approx(truth, abs=4 / math.sqrt(n))


def test_real_against_real_is_near_zero() -> None:
    a, b = gaussian(3000, seed=1), gaussian(3000, seed=2)
    assert 0 <= FrechetDistance(a)(b) < 0.03
    assert abs(kernel_distance(a, b, subset_size=500, subsets=20)) < 0.01
    assert FrechetDistance(a)(a) == pytest.approx(0, abs=1e-8)


def test_fid_survives_features_that_never_vary() -> None:
    a, b = gaussian(500, seed=1), gaussian(500, seed=2)
    a[:, 3] = b[:, 3] = 0
    assert 0 <= FrechetDistance(a)(b) < 0.2


def test_fid_is_the_same_in_any_order_and_after_other_calls() -> None:
    reference, samples = gaussian(500, seed=1), gaussian(400, seed=2, mean=0.2)
    frechet = FrechetDistance(reference)
    first = frechet(samples)
    frechet(gaussian(300, seed=3, mean=5))
    assert frechet(samples.flip(0)) == pytest.approx(first, rel=1e-10)


@pytest.mark.parametrize("n", [2, 8])
def test_too_few_images_for_a_covariance_are_refused_in_one_line(n: int) -> None:
    frechet = FrechetDistance(gaussian(100))
    with pytest.raises(InputError, match=rf"^n={n}: .*8 features needs more than 8 images; give -n \d+") as caught:
        frechet(gaussian(n))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=rf"^reference of {n} images: "):
        FrechetDistance(gaussian(n))


def test_bootstrap_error_is_the_spread_over_repetitions() -> None:
    frechet = FrechetDistance(gaussian(20_000, 4, seed=1))
    sets = [gaussian(500, 4, seed=10 + i, mean=0.3) for i in range(60)]
    spread = float(np.std([frechet(each) for each in sets], ddof=1))
    assert frechet.standard_error(sets[0]) == pytest.approx(spread, rel=0.35)


def test_bootstrap_interval_covers_the_truth() -> None:
    frechet = FrechetDistance(gaussian(50_000, 2, seed=1))
    truth = frechet(gaussian(200_000, 2, seed=2, mean=0.5))
    hits = 0
    for i in range(50):
        samples = gaussian(1000, 2, seed=10 + i, mean=0.5)
        hits += abs(frechet(samples) - truth) <= 1.96 * frechet.standard_error(samples, replicates=40)
    assert hits >= 42  # 47.5 expected; fewer than 42 has a chance of 1 in 300


def test_bootstrap_is_reproducible_and_leaves_the_metric_as_it_was() -> None:
    frechet, samples = FrechetDistance(gaussian(300, seed=1)), gaussian(300, seed=2)
    before = frechet(samples)
    assert frechet.standard_error(samples, seed=5) == frechet.standard_error(samples, seed=5)
    assert frechet.standard_error(samples, seed=5) != frechet.standard_error(samples, seed=6)
    assert frechet(samples) == before


@pytest.mark.parametrize(("n", "constant"), [(300, 0), (300, 3), (26, 0)])
def test_bootstrap_replicates_are_torchmetrics_fid(n: int, constant: int) -> None:
    """Also of singular covariances: of features that never vary, and of fewer different images than features."""
    scales = torch.linspace(0.1, 3, 24)
    a, b = gaussian(500, 24, seed=1) * scales, gaussian(n, 24, seed=2, mean=0.1) * scales.flip(0)
    a[:, :constant] = b[:, :constant] = 0.7
    reference = a.double()
    frechet, fid = FrechetDistance(a), FrechetInceptionDistance(feature=Features(24)).set_dtype(torch.float64)
    generator, figures = torch.Generator().manual_seed(5), []
    for _ in range(10):
        fid.reset()
        fid.update(reference, real=True)
        fid.update(b.double()[torch.randint(n, (n,), generator=generator)], real=False)
        figures.append(float(fid.compute()))
    assert frechet.standard_error(b, replicates=10, seed=5) == pytest.approx(float(np.std(figures, ddof=1)), rel=1e-6)


def test_kid_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    a, b = gaussian(600, seed=1), gaussian(500, seed=2, mean=0.2)
    torch.manual_seed(0)
    first = kernel_distance(a, b, subset_size=200, subsets=20, seed=3)
    state = torch.get_rng_state()
    assert kernel_distance(a, b, subset_size=200, subsets=20, seed=3) == first
    assert kernel_distance(a, b, subset_size=200, subsets=20, seed=4) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_kid_is_the_unbiased_estimate_when_a_subset_is_everything() -> None:
    a, b = gaussian(50, 3, seed=1).double(), gaussian(50, 3, seed=2, mean=1).double()

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / 3 + 1) ** 3

    within = sum((kernel(x, x).sum() - kernel(x, x).diag().sum()) / (50 * 49) for x in (a, b))
    truth = float(within - 2 * kernel(a, b).mean())
    assert kernel_distance(a, b, subset_size=50, subsets=2) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("size", [1, 101])
def test_kid_subsets_that_do_not_exist_are_refused(size: int) -> None:
    with pytest.raises(InputError, match="KID subsets"):
        kernel_distance(gaussian(100), gaussian(200), subset_size=size)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_neighbour_metrics_are_those_of_prdc(k: int, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", 50_000)  # several blocks, the last one partial
    reference = gaussian(700, 16, seed=1) + offset
    features = gaussian(500, 16, seed=2, mean=0.1, scale=0.9) + offset
    ours = Neighbours(reference, k)(features)
    assert ours == pytest.approx(theirs(reference, features, k), rel=1e-4)


def test_identical_sets_are_dense_and_covered() -> None:
    reference = gaussian(500, seed=1)
    figures = Neighbours(reference)(reference)
    assert figures["precision"] == figures["recall"] == figures["coverage"] == 1
    # Within a radius lie the point itself and its k − 1 nearest neighbours; the k-th is on it (rounding decides).
    assert figures["density"] == pytest.approx(1, abs=0.01)


def test_equal_distributions_have_density_and_coverage_near_one() -> None:
    figures = Neighbours(gaussian(2000, 4, seed=1))(gaussian(2000, 4, seed=2))
    assert figures["density"] == pytest.approx(1, abs=0.05)
    assert figures["coverage"] > 0.94  # 1 − 2⁻⁵ expected (Naeem et al. 2020, eq. 7)


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, features = gaussian(300, seed=1), gaussian(200, seed=2)
    whole = Neighbours(reference)(features)
    monkeypatch.setattr(neighbours, "_BLOCK", 1)
    assert Neighbours(reference)(features) == whole


@pytest.mark.parametrize(("n", "k"), [(5, 5), (10, 0)])
def test_neighbours_that_do_not_exist_are_refused(n: int, k: int) -> None:
    with pytest.raises(InputError, match="neighbours"):
        Neighbours(gaussian(n), k)


def test_a_dropped_mode_shows_in_recall_coverage_and_entropy() -> None:
    reference, whole, lacking = mixture(2000, 10, 1), mixture(2000, 10, 2), mixture(2000, 9, 3)
    measure = Neighbours(reference)
    complete, incomplete = measure(whole), measure(lacking)
    assert incomplete["precision"] == pytest.approx(complete["precision"], abs=0.03)
    assert incomplete["recall"] < complete["recall"] - 0.05
    assert incomplete["coverage"] < complete["coverage"] - 0.05
    centres = 8 * torch.randn(10, 8, generator=torch.Generator().manual_seed(100))
    entropies = [class_entropy(class_histogram(torch.cdist(x, centres).argmin(1), 10)) for x in (whole, lacking)]
    assert entropies == pytest.approx([math.log(10), math.log(9)], abs=0.01)


def test_entropy_of_known_histograms() -> None:
    assert class_histogram(torch.tensor([0, 0, 2, 2]), 4) == [0.5, 0, 0.5, 0]
    assert class_entropy([0.5, 0, 0.5, 0]) == pytest.approx(math.log(2))
    assert class_entropy([1.0, 0.0]) == 0


# Agreement with other implementations on the same features


def test_fid_is_that_of_the_matrix_square_root() -> None:
    a, b = gaussian(900, 24, seed=1), gaussian(700, 24, seed=2, mean=0.2, scale=1.3)
    b[:, 1] += 0.7 * b[:, 0]
    x, y = (each.double().numpy() for each in (a, b))
    root = scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    spread = np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root)
    truth = float(np.square(x.mean(0) - y.mean(0)).sum() + spread)
    assert FrechetDistance(a)(b) == pytest.approx(truth, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all:UserWarning")
def test_fid_and_kid_are_those_of_torchmetrics() -> None:
    a, b = gaussian(600, 12, seed=1).double(), gaussian(500, 12, seed=2, mean=0.2).double()
    fid = FrechetInceptionDistance(feature=Features(12)).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Features(12), subsets=2, subset_size=500)
    for metric, reference in ((fid, a), (kid, a[:500])):
        metric.update(reference, real=True)
        metric.update(b, real=False)
    assert FrechetDistance(a)(b) == pytest.approx(float(fid.compute()), rel=1e-4)
    theirs = float(kid.compute()[0])
    assert kernel_distance(a[:500], b, subset_size=500, subsets=2) == pytest.approx(theirs, rel=1e-4)


def test_fid_kid_precision_and_recall_are_those_of_torch_fidelity() -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed (extra eval)", exc_type=ImportError)
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = gaussian(600, 16, seed=1).double(), gaussian(600, 16, seed=2, mean=0.2, scale=1.2).double()
    statistics = (fid_features_to_statistics(each) for each in (a, b))
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert FrechetDistance(a)(b) == pytest.approx(fid, rel=1e-4)
    settings = {"kid_subsets": 1, "kid_subset_size": 600, "rng_seed": 0, "verbose": False}
    kid = kid_features_to_metric(b, a, **settings)["kernel_inception_distance_mean"]
    assert kernel_distance(a, b, subset_size=600, subsets=1) == pytest.approx(kid, rel=1e-4)
    for k in (3, 5):
        told = prc_features_to_metric(b, a, prc_neighborhood=k, verbose=False)
        ours = Neighbours(a, k)(b)
        assert (ours["precision"], ours["recall"]) == pytest.approx((told["precision"], told["recall"]), rel=1e-4)
