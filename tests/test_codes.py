"""The codes of data that an energy on latents is trained on."""

from __future__ import annotations

import math

import pytest
import torch

from exptilt.config import override
from exptilt.data import DataSet
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.generators.vae import VAE, GaussianEncoderVAE
from exptilt.generators.wrap import wrap
from exptilt.presets import RECIPES
from exptilt.training import codes
from exptilt.training.codes import draw_codes

IMAGES = 700


def images(count: int = IMAGES) -> DataSet:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
    return DataSet("made up", "train", pixels, None, "")


class Corner(GaussianEncoderVAE):
    """q(z|x) has the mean of an image's first pixels; of how many images it was asked for is counted."""

    latent_shape, data_shape = (8,), (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1e-3))
        self.encoded = 0

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.encoded += len(x)
        return x[:, 0, 0], self.scale.expand(len(x), 8)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z.view(-1, 1, 1, 8).expand(-1, 1, 8, 8)

    def reconstruction_loss(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return (x - self.decode(z)).square().sum((1, 2, 3))


def drawn(generator: Generator, mirror: bool, data: DataSet | None = None) -> torch.Tensor:
    config = override(RECIPES["default"], mirror=mirror, precision="float32")
    return draw_codes(generator.freeze(), data or images(), None, config, quiet=True).fitted


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_passes_are_of_all_images_in_order_and_every_second_of_mirror_images(
    mirror: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "_MOST_NUMBERS", most * IMAGES * 8)
    corner, first = Corner(), images().batch(slice(0, IMAGES))[:, 0, 0]
    passes = drawn(corner, mirror).split(IMAGES)
    assert len(passes) == most
    for index, z in enumerate(passes):
        expected = first.flip(1) if mirror and index % 2 == 1 else first
        if mirror and most == 1:
            odd = (torch.arange(IMAGES) % 2 == 1).unsqueeze(1)
            expected = torch.where(odd, first.flip(1), first)
        # Far above the posterior's deviation of 0.001, far below what two pixels differ by.
        assert float((z - expected).abs().max()) < 0.01
    assert corner.encoded == IMAGES * (2 if mirror and most > 1 else 1)


def test_draws_of_an_image_are_independent() -> None:
    draws = drawn(Corner(), mirror=False).split(IMAGES)
    mean = images().batch(slice(0, IMAGES))[:, 0, 0]
    noise = torch.stack([(z - mean) / 1e-3 for z in draws]).flatten(1)
    # Of 5,600 numbers: the deviation of a correlation of 0 is 0.013.
    assert float((torch.corrcoef(noise) - torch.eye(len(draws))).abs().max()) < 0.065
    assert float((noise.std(1) - 1).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("count", "size", "passes"),
    [
        (1297, 16, 64),
        (10_000, 100, 24),
        (60_000, 100, 4),
        # Of a GLOW on CIFAR-10 memory allows none but one, of 40,000 images.
        (40_000, 3072, 1),
        (10_000, 3072, 4),
    ],
)
def test_the_fewer_images_the_more_codes_of_each(count: int, size: int, passes: int) -> None:
    assert codes.passes_of(count, size) == passes


def test_few_images_have_codes_of_all_passes() -> None:
    assert len(drawn(Corner(), mirror=False)) == 64 * IMAGES


@pytest.mark.parametrize("mirror", [False, True])
def test_held_out_codes_have_noise_of_their_own(mirror: bool) -> None:
    collapsed, config = Corner(), override(RECIPES["default"], mirror=mirror, precision="float32")
    # All but the prior is a trace of the image.
    collapsed.posterior = lambda x: (1e-3 * x[:, 0, 0], torch.ones(len(x), 8))  # type: ignore[method-assign]
    found = draw_codes(collapsed.freeze(), images(), images(300), config, quiet=True)
    assert found.held_out is not None
    # Of few images several, so that they are 2,000 or more.
    assert len(found.held_out) == 7 * 300
    nearest = torch.cdist(found.held_out, found.fitted).min(1).values
    among_fitted = torch.cdist(found.fitted[:300], found.fitted[300:]).min(1).values
    assert nearest.median() > 0.9 * among_fitted.median()


def test_one_draw_of_many_is_the_draw_of_encode() -> None:
    vae = VAE(channels=1, latent_size=4, width=8).freeze()
    x = torch.rand(5, 1, 32, 32) * 2 - 1
    one = vae.encode(x, torch.Generator().manual_seed(1))
    many = vae.encode_many(x, 3, torch.Generator().manual_seed(1))
    assert many.shape == (5, 3, 4)
    assert torch.equal(many[:, 0], one)


class Same(Corner):
    """One code for each image, as a latent flow has."""

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.posterior(x)[0]

    def encode_many(self, x: torch.Tensor, draws: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.encode(x).unsqueeze(1).expand(-1, draws, -1)


def test_codes_of_an_encoder_without_noise_get_some_and_only_those_of_training_images() -> None:
    means, amount = images().batch(slice(0, IMAGES))[:, 0, 0], 0.3
    config = override(RECIPES["default"], mirror=False, precision="float32", code_noise=amount)
    drawn_codes = draw_codes(Same().freeze(), images(), images(300), config, quiet=True)
    noise = torch.stack(drawn_codes.fitted.split(IMAGES)) - math.sqrt(1 - amount**2) * means
    # Standard errors of a mean, a variance and a correlation of so many normal numbers.
    count = noise.numel()
    assert abs(noise.mean()) < 5 * amount / count**0.5
    assert noise.var().item() == pytest.approx(amount**2, rel=5 * (2 / count) ** 0.5)
    assert abs((noise[0] * noise[1]).mean()) < 5 * amount**2 / noise[0].numel() ** 0.5
    assert drawn_codes.held_out is not None
    assert torch.equal(drawn_codes.held_out[:300], means[:300])
    again = draw_codes(Same().freeze(), images(), None, config, quiet=True)
    assert torch.equal(again.fitted, drawn_codes.fitted)


@pytest.mark.parametrize("generator", [Same(), Corner()])
def test_no_noise_is_put_on_codes_that_have_some_or_are_to_have_none(generator: Generator) -> None:
    plain = override(RECIPES["default"], mirror=False, precision="float32", code_noise=0.0)
    noisy = override(plain, code_noise=0.0 if isinstance(generator, Same) else 0.3)
    one, other = (draw_codes(generator.freeze(), images(), None, config, quiet=True) for config in (plain, noisy))
    assert torch.equal(one.fitted, other.fitted)
    assert one.fitted.unique(dim=0).shape[0] == (IMAGES if isinstance(generator, Same) else len(one.fitted))


def test_the_same_code_for_all_images_is_told_before_noise_hides_it() -> None:
    class Constant(Same):
        def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ones(len(x), 8), self.scale.expand(len(x), 8)

    config = override(RECIPES["default"], mirror=False, precision="float32", code_noise=0.3)
    with pytest.raises(InputError, match="the same latent for all data"):
        draw_codes(Constant().freeze(), images(), None, config, quiet=True)


def test_points_by_an_encoder_without_noise_stay_as_they_are() -> None:
    points = torch.randn(400, 2)
    data = DataSet("made up", "train", points, None, "")
    generator = wrap(lambda z: 1.0 * z, (2,), encode=lambda x: 1.0 * x)
    config = override(RECIPES["default"], code_noise=0.3)
    fitted = draw_codes(generator.freeze(), data, None, config, quiet=True).fitted
    assert torch.equal(fitted[:400], points)
