"""The relative density ratio, and the energy of Fourier features that learns it on points."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import exptilt
from exptilt import hub
from exptilt.config import SamplerConfig, TiltConfig, override
from exptilt.data import load_dataset
from exptilt.energies import make_energy
from exptilt.energies.fourier import FourierEnergy
from exptilt.errors import InputError
from exptilt.evaluation.toy import point_figures
from exptilt.generators.vae import ToyVAE
from exptilt.generators.wrap import wrap
from exptilt.presets import RECIPES
from exptilt.training import objectives
from exptilt.training.fit import resolve_recipe, tilt


@pytest.mark.parametrize("relative", [0.0, 0.05, 0.5])
def test_its_optimum_is_the_ratio_to_the_mixture(relative: float) -> None:
    """On three places E is free: at the minimum exp(−E) = p/(αp + (1−α)q), also where q is 0 and α is not."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.1, 0.9, 0.0] if relative else [0.1, 0.6, 0.3], dtype=torch.float64)
    energy = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    # Means over so many places are expectations under p and q.
    data, samples = (torch.repeat_interleave(torch.arange(3), (10 * weights).long()) for weights in (p, q))
    optimizer = torch.optim.LBFGS([energy], lr=1.0, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss, _ = objectives.logistic_ratio(energy[data], energy[samples], 0.0, relative)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    torch.testing.assert_close((-energy.detach()).exp(), p / (relative * p + (1 - relative) * q), rtol=1e-5, atol=0)


def test_a_share_outside_of_its_range_is_refused() -> None:
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match="relative"):
            override(RECIPES["default"], relative=share)


def test_points_of_few_numbers_have_a_recipe_of_their_own() -> None:
    few = wrap(lambda z: 2.0 * z, (2,))
    laplace = wrap(lambda z: z, (3,), prior=torch.distributions.Laplace(torch.zeros(3), torch.ones(3)))
    many = wrap(lambda z: 1.0 * z, (4,), encode=lambda x: 1.0 * x)
    assert [resolve_recipe("default", each).recipe for each in (few, laplace, many)] == [
        "default-points",
        "default-points",
        "default",
    ]
    assert resolve_recipe("default", few).energy == "fourier"
    assert resolve_recipe("default", few, space="z").recipe == "default-no-encoder"


def test_the_frequencies_follow_the_data() -> None:
    """The energy sees the shape of the data: a tilt of data and decoder in other units has the same samples."""
    data = 0.3 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(1)) + 0.5
    energies = []
    for unit in (1.0, 100.0):
        config = override(RECIPES["default-points"], iterations=1, energy_width=8)
        energy = tilt(wrap(lambda z, unit=unit: unit * z, (2,)), unit * data, config=config).energy
        assert isinstance(energy, FourierEnergy)
        energies.append(energy)
    small, large = energies
    assert small.frequency == pytest.approx(10 / 0.3, rel=0.03)
    torch.testing.assert_close(small.projections, 100 * large.projections)


def test_it_learns_what_a_plain_network_does_not() -> None:
    """Stripes 0.4 wide on a line of 3.4, told from those between: the same network, updates and learning rate."""
    random = torch.Generator().manual_seed(0)
    x = 3.4 * torch.rand(3000, 1, generator=random) - 1.7
    inside = ((x * 8).sin() > 0).squeeze(1)
    accuracies = {}
    for kind in ("fourier", "mlp"):
        torch.manual_seed(0)
        energy = make_energy(kind, (1,), 32)
        optimizer = torch.optim.Adam(energy.parameters(), 1e-3)
        for _ in range(100):
            loss = nn.functional.softplus(energy(x) * torch.where(inside, 1.0, -1.0)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracies[kind] = float(((energy(x) < 0) == inside).float().mean())
    assert accuracies["fourier"] > 0.95 > 0.75 > accuracies["mlp"]


def test_it_is_saved_and_loaded_with_its_frequencies(tmp_path: Path) -> None:
    sampler = SamplerConfig(kernel="isir", steps=3, candidates=4)
    tilted = exptilt.TiltedGenerator(ToyVAE(2, 2, 8), FourierEnergy(2, 8, features=4, frequency=3.0), sampler=sampler)
    tilted.save_pretrained(tmp_path)
    again = hub.load(tmp_path)
    x = torch.randn(5, 2)
    torch.testing.assert_close(again.energy(x), tilted.energy(x), rtol=0, atol=0)  # type: ignore[operator]
    torch.testing.assert_close(again.sample(8, seed=1), tilted.sample(8, seed=1))


def test_it_takes_inputs_of_any_shape() -> None:
    energy = make_energy("fourier", (2, 3, 3), 8)
    x = torch.randn(4, 2, 3, 3)
    torch.testing.assert_close(energy(x), energy(x.flatten(1)))
    with pytest.raises(InputError, match="energy 'fouriers': is not known; use one of resnet"):
        make_energy("fouriers", (2, 3, 3), 8)


def test_it_has_no_normalization() -> None:
    with pytest.raises(InputError, match="normalization"):
        make_energy("fourier", (2,), 8, "spectral")
    assert TiltConfig(energy="fourier").energy == "fourier"


@pytest.mark.slow
def test_narrow_modes_are_found_in_a_generator_that_spreads_over_all() -> None:
    """One with the density of a square: circles of 3σ about the 25 modes are 2% of it."""
    data = load_dataset("gaussians", "train")
    square = wrap(lambda z: 3.2 * torch.special.ndtr(z) - 1.6, (2,))
    base = point_figures("gaussians", square.sample(4000, seed=1))
    tilted = tilt(square, data, config=override(resolve_recipe("default", square), iterations=400, ema_decay=0.95))
    figures = point_figures("gaussians", tilted.sample(4000, seed=1))
    assert base["high_quality"] < 0.08
    assert figures["high_quality"] > 0.8
    assert figures["modes"] == 25
    assert math.isfinite(figures["log_density"])
