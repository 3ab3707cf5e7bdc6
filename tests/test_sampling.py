"""Kernels against distributions known in closed form; streams of random numbers; the running of chains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from exptilt.config import SamplerConfig
from exptilt.errors import InputError
from exptilt.generators.prior import StandardNormal
from exptilt.sampling import random
from exptilt.sampling.chains import ChainsDiverged, adapt_step_size, make_kernel, run
from exptilt.sampling.kernel import value_and_gradient
from exptilt.sampling.langevin import Langevin
from exptilt.sampling.mala import MALA
from exptilt.sampling.random import BatchStreams, SampleStreams

# Deviations allowed in standard errors: a correct sampler fails one such check in 500,000.
ALLOWED = 4.8
CHAINS, SIZE = 4000, 3

# Base N(0, I), energy k/2 ‖z − m‖²: the tilted density is N(k m/(1 + k), 1/(1 + k)) in each coordinate.
STRENGTH, CENTRE = 3.0, 2.0
PRECISION, MEAN = 1 + STRENGTH, STRENGTH * CENTRE / (1 + STRENGTH)


def tilted_gaussian(z: torch.Tensor) -> torch.Tensor:
    energy = 0.5 * STRENGTH * (z - CENTRE).square().sum(1)
    return energy + 0.5 * z.square().sum(1)


def start(chains: int = CHAINS, size: int = SIZE) -> tuple[torch.Tensor, SampleStreams]:
    streams = SampleStreams(0, 0, chains, (size,))
    return streams.normal(), streams


def assert_moments(z: torch.Tensor, mean: float, variance: float) -> None:
    n = z.numel()
    assert abs(float(z.mean()) - mean) < ALLOWED * math.sqrt(variance / n)
    assert abs(float(z.var()) - variance) < ALLOWED * variance * math.sqrt(2 / n)


@pytest.mark.parametrize("steps", [1, 10, 200])
@pytest.mark.parametrize("noise_scale", [1.0, 0.5])
def test_langevin_has_the_mean_and_variance_of_its_recursion(steps: int, noise_scale: float) -> None:
    """For a Gaussian, eq. 8 is an autoregression: moments after n steps are known, discretisation bias included."""
    ε = 0.05
    z0, streams = start()
    z = run(Langevin(tilted_gaussian, ε, noise_scale), z0, steps, streams).position
    r = 1 - 0.5 * ε * PRECISION
    stationary = ε * noise_scale**2 / (1 - r**2)
    assert_moments(z, MEAN * (1 - r**steps), r ** (2 * steps) + stationary * (1 - r ** (2 * steps)))


def test_langevin_recovers_the_tilted_gaussian_up_to_its_known_bias() -> None:
    ε = 0.02
    z0, streams = start()
    z = run(Langevin(tilted_gaussian, ε), z0, 400, streams).position
    σ2 = 1 / PRECISION
    assert_moments(z, MEAN, σ2 / (1 - ε / (4 * σ2)))


def test_mala_has_no_bias_where_langevin_has() -> None:
    """A step so large that unadjusted Langevin would have 1.67 times the variance."""
    ε = 0.4
    z0, streams = start()
    chains = run(MALA(tilted_gaussian, ε), z0, 100, streams)
    assert_moments(chains.position, MEAN, 1 / PRECISION)
    assert 0.3 < float(chains.acceptance.mean()) < 0.95
    whole = stats.kstest(chains.position.flatten().numpy(), stats.norm(MEAN, PRECISION**-0.5).cdf)
    assert whole.pvalue > 1e-4


def test_mala_keeps_the_weights_of_a_mixture() -> None:
    """Modes at ±1 with weights 0.8 and 0.2, close enough for the chain to cross."""
    log_weights, centres, variance = torch.tensor([0.8, 0.2]).log(), torch.tensor([-1.0, 1.0]), 0.3

    def potential(z: torch.Tensor) -> torch.Tensor:
        return -torch.logsumexp(log_weights - 0.5 * (z - centres).square() / variance, dim=1)

    z0, streams = start(size=1)
    z = run(MALA(potential, 0.5), z0, 300, streams).position[:, 0]
    cdf = 0.8 * stats.norm(-1, variance**0.5).cdf(0) + 0.2 * stats.norm(1, variance**0.5).cdf(0)
    assert abs(float((z < 0).float().mean()) - cdf) < ALLOWED * math.sqrt(cdf * (1 - cdf) / CHAINS)


def test_mala_satisfies_detailed_balance() -> None:
    """Started in equilibrium, the pairs (before, after) and (after, before) have one distribution."""
    _, streams = start(size=1)
    z0 = MEAN + streams.normal() / math.sqrt(PRECISION)
    z = run(MALA(tilted_gaussian, 0.5), z0, 1, streams).position
    moved = (z != z0)[:, 0]
    forward, backward = (z0 * z0 * z)[moved, 0], (z * z * z0)[moved, 0]
    difference = forward - backward
    assert abs(float(difference.mean())) < ALLOWED * float(difference.std()) / math.sqrt(int(moved.sum()))


def test_mala_stays_where_the_potential_is_not_a_number() -> None:
    def potential(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, 0] > 0, 0.5 * z[:, 0].square(), z[:, 0] * torch.nan)

    _, streams = start(size=1)
    z0 = streams.normal().abs()
    z = run(MALA(potential, 0.1), z0, 20, streams).position
    assert bool((z > 0).all())


def test_adaptation_reaches_its_target_and_is_then_frozen() -> None:
    z0, streams = start(chains=500)
    kernel = MALA(tilted_gaussian, 0.001)
    step_size, position = adapt_step_size(kernel, z0, streams, 0.6, 200)
    assert kernel.step_size == step_size
    chains = run(kernel, position, 50, streams)
    assert abs(float(chains.acceptance.mean()) - 0.6) < 0.05
    assert kernel.step_size == step_size


@pytest.mark.parametrize("kernel", ["langevin", "mala"])
def test_every_kernel_keeps_its_contract(kernel: str) -> None:
    config = SamplerConfig(kernel=kernel, step_size=0.1)  # type: ignore[arg-type]
    made = make_kernel(config, lambda z: tilted_gaussian(z.flatten(1)), StandardNormal())
    streams = SampleStreams(1, 0, 5, (2, 3))
    state = made.init(streams.normal())
    for _ in range(3):
        state, info = made.step(state, streams)
        assert state.position.shape == info.evaluated.shape == (5, 2, 3)
        assert info.potential.shape == info.acceptance.shape == (5,)
        assert bool(((info.acceptance >= 0) & (info.acceptance <= 1)).all())
        assert not state.position.requires_grad
        torch.testing.assert_close(info.potential, tilted_gaussian(info.evaluated.flatten(1)))


def test_value_and_gradient_in_float64() -> None:
    z = torch.randn(4, 3, dtype=torch.float64)
    value, gradient = value_and_gradient(tilted_gaussian, z)
    torch.testing.assert_close(value, tilted_gaussian(z))
    torch.testing.assert_close(gradient, STRENGTH * (z - CENTRE) + z)


def test_recorded_steps_start_with_the_start_and_end_with_the_end() -> None:
    z0, streams = start(chains=4)
    steps = []
    chains = run(
        Langevin(tilted_gaussian, 0.01), z0, 25, streams, record_every=10, callback=lambda step, _: steps.append(step)
    )
    assert chains.recorded_steps == [0, 10, 20, 25]
    torch.testing.assert_close(chains.trajectory[0], z0)
    torch.testing.assert_close(chains.trajectory[-1], chains.position)
    assert steps == list(range(1, 26))


def test_diverged_chains_are_named() -> None:
    def potential(z: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(len(z)) == 2, -1e30 * z[:, 0].pow(4), z[:, 0].square())

    z0, streams = start(chains=4)
    with pytest.raises(ChainsDiverged, match=r"1 chains exploded: .* by step 10 \(chains 2\)"):
        run(Langevin(potential, 1.0), z0, 30, streams)


def test_streams_belong_to_samples() -> None:
    whole = SampleStreams(7, 0, 10, (50,))
    part = SampleStreams(7, 4, 3, (50,))
    for _ in range(70):  # longer than one block
        torch.testing.assert_close(whole.normal()[4:7], part.normal(), rtol=0, atol=0)
    torch.testing.assert_close(whole.uniform()[4:7], part.uniform(), rtol=0, atol=0)
    assert not torch.equal(SampleStreams(8, 4, 3, (50,)).normal(), SampleStreams(7, 4, 3, (50,)).normal())


def test_random_numbers_do_not_depend_on_threads_or_on_how_many_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = SampleStreams(7, 3, 11, (5,))
    expected = [(usual.normal(), usual.uniform()) for _ in range(200)]
    monkeypatch.setattr(random, "_WORTH_THREADS", 1)
    monkeypatch.setattr(random, "_BLOCK", 11 * 5 * 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    other = SampleStreams(7, 3, 11, (5,))
    for normal, uniform in expected:
        assert torch.equal(other.normal(), normal)
        assert torch.equal(other.uniform(), uniform)


def test_streams_of_one_and_of_many_samples_draw_the_same_whatever_the_block() -> None:
    many, one = SampleStreams(3, 0, 5000, (100,)), SampleStreams(3, 4999, 1, (100,))
    for _ in range(9):
        assert torch.equal(many.normal()[-1], one.normal()[0])


def test_streams_are_normal_uniform_and_uncorrelated() -> None:
    streams = SampleStreams(0, 0, 2000, (20,))
    normal, uniform = streams.normal(), streams.uniform()
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-4
    neighbours = np.corrcoef(normal[:-1].flatten(), normal[1:].flatten())[0, 1]
    assert abs(neighbours) < ALLOWED / math.sqrt(normal[1:].numel())


def test_streams_of_neighbouring_seeds_are_uncorrelated() -> None:
    draws = torch.stack([SampleStreams(seed, 0, 200, (50,)).normal().flatten() for seed in range(20)])
    off = torch.corrcoef(draws)[~torch.eye(20, dtype=torch.bool)]
    assert float(off.abs().max()) < ALLOWED / math.sqrt(draws.shape[1])


def test_streams_of_batches_are_normal_and_differ() -> None:
    draws = torch.stack([BatchStreams(0, k, 256, (2,)).normal() for k in range(300)])
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-4
    assert len(draws[:, 0, 0].unique()) == 300
    assert torch.equal(BatchStreams(0, 5, 256, (2,)).normal(), draws[5])


@pytest.mark.parametrize("kind", [SampleStreams, BatchStreams])
@pytest.mark.parametrize("drawn_before", [False, True])
def test_forks_share_no_number_with_each_other_or_their_parent(kind: type, drawn_before: bool) -> None:
    parent = kind(3, 0, 4, (5,))
    earlier = [parent.normal(), parent.uniform()] if drawn_before else []
    first, second = parent.fork(), parent.fork()
    everything = [first, first.fork(), second, parent]
    draws = [*earlier, *(one.normal() for one in everything), *(one.uniform() for one in everything)]
    numbers = torch.cat([draw.flatten() for draw in draws])
    assert len(numbers.unique()) == len(numbers)


def test_the_largest_seeds_differ() -> None:
    first, second = (SampleStreams(2**64 - k, 2**60, 1, (4,)).normal() for k in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match="out of range"):
        SampleStreams(seed, 0, 1, (1,))
