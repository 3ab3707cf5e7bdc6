"""The encoder that is learned for a decoder without one."""

from __future__ import annotations

import math

import pytest
import torch

from exptilt.config import override
from exptilt.errors import InputError
from exptilt.generators.wrap import wrap
from exptilt.presets import RECIPES
from exptilt.training.fit import resolve_recipe, tilt
from exptilt.training.recognition import RecognitionNetwork, learn_encoder

NOISE = 0.1


def test_the_posterior_of_a_linear_decoder_is_found() -> None:
    """x = 2 z₁ and z₂ unused: given x, z₁ is known up to the noise, and z₂ has its prior N(0, 1)."""
    generator = wrap(lambda z: 2.0 * z[:, :1], (2,)).freeze()
    network = learn_encoder(generator, 600, seed=0, dtype=torch.float32, quiet=True)
    z = torch.randn(2000, 2)
    with torch.no_grad():
        mean, log_variance = network(2.0 * z[:, :1])
        sample = network.encode_many(2.0 * z[:, :1], 1, generator=torch.Generator().manual_seed(0))[:, 0]
    deviation = (0.5 * log_variance).exp()
    assert float((mean[:, 0] - z[:, 0]).abs().mean()) < NOISE / 2
    assert float(deviation[:, 0].mean()) < NOISE
    assert float(mean[:, 1].abs().mean()) < 0.15
    assert abs(float(deviation[:, 1].mean()) - 1) < 0.1
    assert abs(float(sample[:, 1].std()) - 1) < 0.1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 48), (3, 64, 64), (7,)])
def test_images_of_any_size_and_points_are_encoded(shape: tuple[int, ...]) -> None:
    network = RecognitionNetwork(shape, (2, 3))
    assert network.encode_many(torch.randn(5, *shape), 2).shape == (5, 2, 2, 3)


def test_it_is_reproducible_and_leaves_the_global_stream_alone() -> None:
    generator = wrap(lambda z: 2.0 * z, (2,)).freeze()
    before = torch.random.get_rng_state()
    first, second = (learn_encoder(generator, 5, seed=3, dtype=torch.float32, quiet=True) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_decoder_alone_is_tilted_onto_the_data() -> None:
    """Data N(1, 0.8²) seen through x = 2z: the tilted decoder has its mean and deviation."""
    mean, deviation = 1.0, 0.8
    data = mean + deviation * torch.randn(20_000, 2)
    generator = wrap(lambda z: 2.0 * z, (2,))
    config = override(
        RECIPES["default-no-encoder"], energy_width=32, iterations=1000, batch_size=256, ema_decay=0.99, dropout=0.0
    )
    x = tilt(generator, data, config=config).sample(4000, seed=1)
    # An encoder's error, up to the noise that it was learned with, comes on top of the chains'.
    assert abs(float(x.mean()) - mean) < 0.06 + NOISE / 2
    assert abs(float(x.std()) - deviation) < 0.06 + NOISE / 2
    assert math.isfinite(float(x.sum()))


def test_the_recipe_depends_on_the_prior() -> None:
    laplace = torch.distributions.Laplace(torch.zeros(4), torch.ones(4))
    normal, heavy = wrap(lambda z: 1.0 * z, (4,)), wrap(lambda z: 1.0 * z, (4,), prior=laplace)
    assert resolve_recipe("default", normal).recipe == "default-no-encoder"
    assert resolve_recipe("default", normal, space="x").recipe == "default-x"
    assert resolve_recipe("default", heavy).recipe == "default-x"
    with pytest.raises(InputError, match="standard normal prior"):
        resolve_recipe("default-no-encoder", heavy)
