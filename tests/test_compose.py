"""Energies made of a user's parts, against posteriors in closed form, and what a wrapped decoder is checked for."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from exptilt.config import SamplerConfig
from exptilt.energies.compose import ClassifierEnergy, DiscriminatorEnergy, RewardEnergy, SumEnergy
from exptilt.errors import InputError
from exptilt.generators.wrap import WrappedGenerator, wrap
from exptilt.tilted import TiltedGenerator

N, SIZE = 4000, 2
MALA = SamplerConfig(kernel="mala", steps=60, step_size=0.5)
# A correct sampler fails one such check in 500,000.
ALLOWED = 4.8


class Linear(nn.Module):
    """k times the sum of x."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.k * x.sum(1)


def identity() -> WrappedGenerator:
    return wrap(lambda z: 1.0 * z, (SIZE,))


def identity_tilted() -> TiltedGenerator:
    return TiltedGenerator(identity(), Linear(1.0))


def assert_mean(z: torch.Tensor, mean: float, variance: float = 1.0) -> None:
    assert abs(float(z.mean()) - mean) < ALLOWED * math.sqrt(variance / z.numel())


def test_a_linear_reward_moves_the_prior_by_its_gradient_over_the_temperature() -> None:
    """N(0, I) exp(k Σx/T) is N(k/T, I)."""
    tilted = TiltedGenerator(identity(), RewardEnergy(Linear(0.6), temperature=2.0), sampler=MALA)
    assert_mean(tilted.sample(N), 0.3)


def test_the_optimal_discriminator_turns_the_prior_into_data() -> None:
    """Data N(½, I) against N(0, I): the log ratio is Σx/2 − d/8."""
    tilted = TiltedGenerator(identity(), DiscriminatorEnergy(lambda x: 0.5 * x.sum(1) - SIZE / 8), sampler=MALA)
    assert_mean(tilted.sample(N), 0.5)
    x = torch.randn(50, SIZE)
    probability = DiscriminatorEnergy(lambda x: torch.sigmoid(0.5 * x.sum(1) - SIZE / 8), probability=True)
    torch.testing.assert_close(probability(x), tilted.energy(x), atol=1e-5, rtol=1e-5)


def test_a_probability_near_1_is_not_rounded_to_it_in_bfloat16() -> None:
    logit = nn.Linear(1, 1)
    nn.init.constant_(logit.weight, 8.0)
    nn.init.zeros_(logit.bias)
    energy = DiscriminatorEnergy(nn.Sequential(logit, nn.Sigmoid()), probability=True)
    chain = TiltedGenerator(wrap(lambda z: 1.0 * z, (1,)), energy, precision="bfloat16").chain_potential()
    torch.testing.assert_close(chain.energy(torch.tensor([[1.0], [-1.0]])), torch.tensor([-8.0, 8.0]), atol=0.1, rtol=0)


def test_a_classifier_gives_the_posterior_of_its_class() -> None:
    """With p(1|x) = sigmoid(a x₀), E[x₀|1] = ∫ x φ(x) sigmoid(ax) dx / ½, by quadrature."""
    a = 3.0
    tilted = TiltedGenerator(
        identity(), ClassifierEnergy(lambda x: torch.stack([torch.zeros(len(x)), a * x[:, 0]], 1), 1), sampler=MALA
    )
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-0.5 * grid.square()) * torch.sigmoid(a * grid)
    mean = float((grid * weight).sum() / weight.sum())
    variance = float((grid.square() * weight).sum() / weight.sum()) - mean**2
    z = tilted.sample(N)
    assert_mean(z[:, 0], mean, variance)
    assert_mean(z[:, 1], 0.0)


def test_energies_add_with_weights_and_to_a_tilted_generator() -> None:
    x = torch.randn(7, SIZE)
    total = SumEnergy([Linear(1.0), Linear(2.0)], weights=[0.5, -1.0])
    torch.testing.assert_close(total(x), -1.5 * x.sum(1))
    tilted = TiltedGenerator(identity(), Linear(-0.2), sampler=MALA) + RewardEnergy(Linear(0.3))
    assert tilted.sampler == MALA
    assert_mean(tilted.sample(N), 0.5)
    on_latents = TiltedGenerator(identity(), latent_energy=Linear(-0.2), sampler=MALA) + Linear(-0.3)
    assert_mean(on_latents.sample(N), 0.5)


class Model(nn.Module):
    """Whose score is not what calling it gives, and which is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(), nn.Linear(SIZE, 1))

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)[:, 0]

    def classes(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.layers(x), -self.layers(x)], dim=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: DiscriminatorEnergy(model.score),
        lambda model: ClassifierEnergy(model.classes, 0),
        lambda model: RewardEnergy(model.score),
    ],
)
def test_a_method_takes_its_module_into_evaluation(make) -> None:
    model, x = Model(), torch.randn(50, SIZE)
    energy = make(model)
    TiltedGenerator(identity(), energy, sampler=MALA)
    assert not model.layers.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # Without dropout's noise.
    assert torch.equal(energy(x), energy(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SumEnergy([]), "has no energy"),
        (lambda: identity_tilted() + torch.sum, "SumEnergy: is given a builtin_function_or_method as energy"),
        (lambda: SumEnergy([Linear(1)], [1, 2]), "are 2 for 1 energies"),
        (lambda: RewardEnergy(Linear(1), temperature=0), "temperature: 0 is out of range"),
        (lambda: ClassifierEnergy(nn.Linear(SIZE, 3), -1), "label: -1"),
        (lambda: ClassifierEnergy(nn.Linear(SIZE, 3), 3)(torch.zeros(2, SIZE)), "3 is not among 3 classes"),
        (lambda: ClassifierEnergy(Linear(1), 0)(torch.zeros(2, SIZE)), "return logits"),
        (lambda: DiscriminatorEnergy(nn.Linear(SIZE, 3))(torch.zeros(2, SIZE)), "one number a sample"),
    ],
)
def test_wrong_parts_are_one_line(make, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


class Frozen(nn.Module):
    """Batch normalisation that goes on using the batch, as a decoder that keeps itself in training mode does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(SIZE, track_running_stats=False)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.norm(z)


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        (Frozen(), "depends on the others of its batch"),
        (lambda z: z + torch.randn_like(z), "gives another output for the same latent"),
        (lambda z: (255 * torch.sigmoid(z)).view(-1, 1, 1, SIZE), "output_range"),
    ],
)
def test_wrap_checks_the_decoder_at_once(decoder, words: str) -> None:
    with pytest.raises(InputError, match=words):
        wrap(decoder, (SIZE,))


def test_wrap_warns_of_images_that_are_never_below_zero() -> None:
    def decoder(z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(z).view(-1, 1, 1, SIZE)

    with pytest.warns(UserWarning, match=r"output_range=\(0, 1\)"):
        wrap(decoder, (SIZE,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap(decoder, (SIZE,), output_range=(0, 1))
        wrap(lambda z: 300 * z, (SIZE,))  # points have no range


def test_wrap_gives_flat_outputs_the_shape_of_images() -> None:
    generator = wrap(lambda z: torch.tanh(z), (12,), data_shape=(3, 2, 2))
    assert generator.data_shape == (3, 2, 2)
    assert generator.sample(5).shape == (5, 3, 2, 2)
    with pytest.raises(InputError, match="data_shape"):
        wrap(lambda z: torch.tanh(z), (12,), data_shape=(3, 2, 3))
