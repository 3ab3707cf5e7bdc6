"""The energy on latents of several resolutions, and the recipe that uses it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import exptilt
from exptilt import hub
from exptilt.config import SamplerConfig, override
from exptilt.energies import make_energy
from exptilt.energies.pyramid import PyramidEnergy, part_shapes
from exptilt.errors import InputError
from exptilt.generators.glow import Glow
from exptilt.generators.vae import VAE
from exptilt.presets import RECIPES
from exptilt.training.fit import resolve_recipe, tilt

LEVELS = [(1, 16, 2), (1, 16, 3), (3, 32, 3), (1, 32, 4)]


@pytest.mark.parametrize(("channels", "size", "levels"), LEVELS)
def test_its_parts_are_those_of_glow(channels: int, size: int, levels: int) -> None:
    glow = Glow(channels, size, levels, steps=1, hidden=4)
    first = glow.latent_parts[0]
    assert list(glow.latent_parts) == part_shapes(first[0], first[1], levels)
    energy = make_energy("pyramid", glow.latent_shape, 4, parts=glow.latent_parts)
    assert isinstance(energy, PyramidEnergy)
    z = torch.randn(5, *glow.latent_shape, requires_grad=True)
    assert energy(z).shape == (5,)
    (gradient,) = torch.autograd.grad(energy(z).sum(), z)
    # Every number of every part counts.
    assert bool((gradient.abs().sum(0) > 0).all())


def test_each_latent_is_seen_on_its_own() -> None:
    energy = PyramidEnergy(2, 8, 3, width=4, units=16)
    z = torch.randn(6, sum(map(math.prod, energy.part_shapes)))
    torch.testing.assert_close(energy(z)[2:4], energy(z[2:4]), rtol=1e-5, atol=1e-5)


def test_it_sees_what_holds_at_every_pixel_from_fewer_data() -> None:
    """Neighbours in each row of the finest part are alike; each number alone has the distribution of the prior."""
    random = torch.Generator().manual_seed(0)

    def data(n: int) -> torch.Tensor:
        finest, rest = torch.randn(n, 8, 9, generator=random), torch.randn(n, 64, generator=random)
        return torch.cat([((finest[:, :, :-1] + finest[:, :, 1:]) / math.sqrt(2)).flatten(1), rest], dim=1)

    fitted, held_out = data(1000), data(1000)
    noise = torch.randn(1000, 128, generator=random)
    wrong = {}
    for name in ("pyramid", "gated"):
        torch.manual_seed(0)
        energy = make_energy(name, (128,), 16, parts=[(1, 8, 8), (4, 4, 4)])
        optimizer = torch.optim.Adam(energy.parameters(), 3e-3)
        for _ in range(150):
            chosen = torch.randint(0, 1000, (128,), generator=random)
            negative = torch.randn(128, 128, generator=random)
            loss = F.softplus(energy(fitted[chosen])).mean() + F.softplus(-energy(negative)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            wrong[name] = float(((energy(held_out) > 0).float().mean() + (energy(noise) < 0).float().mean()) / 2)
    assert wrong["pyramid"] < 0.1, wrong
    assert wrong["pyramid"] < 0.5 * wrong["gated"], wrong


def test_it_is_the_default_on_glow_and_only_there() -> None:
    glow = Glow(1, 16, 2, steps=1, hidden=4)
    assert resolve_recipe("default", glow).recipe == "default-flow"
    assert resolve_recipe("default", glow, energy="gated") == override(RECIPES["default"], energy="gated")
    assert resolve_recipe("default", Glow(1, 16, 1, steps=1, hidden=4)).recipe == "default"
    assert resolve_recipe("default", VAE(latent_size=4, width=4)).recipe == "default"


def test_a_tilt_by_it_is_saved_and_samples_the_same(tmp_path: Path) -> None:
    glow = Glow(1, 16, 2, steps=1, hidden=4)
    images = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = override(
        RECIPES["default-flow"],
        energy_width=4,
        iterations=3,
        batch_size=16,
        sampler=SamplerConfig(kernel="mala", steps=3, step_size=0.1),
    )
    tilted = tilt(glow, images, config=config)
    assert isinstance(tilted.latent_energy, PyramidEnergy)
    tilted.save_pretrained(tmp_path)
    again = hub.load(tmp_path)
    expected = tilted.sample(6, seed=1)
    torch.testing.assert_close(again.sample(6, seed=1), expected)
    torch.testing.assert_close(torch.cat([again.sample(3, seed=1, start=first) for first in (0, 3)]), expected)


@pytest.mark.parametrize(
    ("parts", "words"),
    [((), "needs a latent of images"), (((2, 8, 8),), "needs a latent"), (((1, 8, 8), (3, 4, 4)), "needs a latent")],
)
def test_latents_without_such_parts_are_refused(parts: tuple[tuple[int, int, int], ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_energy("pyramid", (128,), 8, parts=parts)


@pytest.mark.parametrize("levels", [1, 3, 60000])
def test_parts_that_do_not_fit_are_refused(levels: int) -> None:
    with pytest.raises(InputError, match="parts of a latent"):
        exptilt.PyramidEnergy(1, 6, levels)


def test_it_has_no_normalization() -> None:
    with pytest.raises(InputError, match="normalization"):
        make_energy("pyramid", (128,), 8, "spectral", parts=[(1, 8, 8), (4, 4, 4)])
