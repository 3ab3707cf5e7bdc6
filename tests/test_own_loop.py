"""Objectives in a loop of one's own: the same training as ``tilt``'s, resumable, on what a user brings."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import exptilt
from exptilt import InputError, LogisticRatio, MaximumLikelihood, SamplerConfig, TiltConfig
from exptilt.data import batch_indices, load_dataset
from exptilt.energies import make_energy
from exptilt.training.fit import as_data_set
from exptilt.training.fit import tilt as fit_tilt
from exptilt.training.own_loop import Objective

CHAIN = SamplerConfig("mala", steps=3, step_size=0.1)
MAKE: dict[str, Callable[[exptilt.Generator, nn.Module], Objective]] = {
    "ratio": lambda generator, energy: LogisticRatio(generator, energy, regularization=0.01, seed=1),
    "short_run": lambda generator, energy: MaximumLikelihood(generator, energy, chain=CHAIN, seed=1),
    "persistent": lambda generator, energy: MaximumLikelihood(
        generator, energy, chain=CHAIN, chains="persistent", walkers=24, seed=1
    ),
    "jarzynski": lambda generator, energy: MaximumLikelihood(
        generator, energy, chain=CHAIN, chains="jarzynski", walkers=24, seed=1
    ),
}


def _generator(shift: float = 0.0) -> exptilt.Generator:
    """Points z + shift of N(0, I), with their own encoder."""
    return exptilt.wrap(lambda z: z + shift, (2,), encode=lambda x: x - shift)


def _energy(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return make_energy("mlp", (2,), 16)


def _optimizer(objective: Objective) -> torch.optim.Optimizer:
    return torch.optim.AdamW(objective.energy.parameters(), lr=1e-2, weight_decay=0.0, fused=True)


def _train(objective: Objective, optimizer: torch.optim.Optimizer, points: torch.Tensor, steps: range) -> None:
    for step in steps:
        loss = objective.loss(points[batch_indices(len(points), 16, 1, step)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", MAKE)
def test_a_plain_loop_trains_what_tilt_trains(name: str) -> None:
    points = torch.randn(64, 2) + 1
    objective = MAKE[name](_generator(), _energy())
    _train(objective, _optimizer(objective), points, range(5))
    config = TiltConfig(
        objective="logistic_ratio" if name == "ratio" else "maximum_likelihood",
        energy="mlp",
        energy_width=16,
        iterations=5,
        batch_size=16,
        learning_rate=1e-2,
        energy_regularization=0.01 if name == "ratio" else 0.1,
        chain=CHAIN,
        chains="short_run" if name == "ratio" else name,  # type: ignore[arg-type]
        walkers=24,
        seed=1,
    )
    tilted = fit_tilt(_generator(), as_data_set(points), config=config)
    assert tilted.energy is not None
    assert _same(objective.energy, tilted.energy)
    assert objective.figures.keys() >= {"energy_data", "energy_model", "energy_gap"}


@pytest.mark.parametrize("name", ["ratio", "persistent", "jarzynski"])
def test_a_loop_goes_on_from_its_state_to_the_same_result(name: str) -> None:
    points, file = torch.randn(64, 2) + 1, io.BytesIO()
    through = MAKE[name](_generator(), _energy())
    _train(through, _optimizer(through), points, range(6))
    first = MAKE[name](_generator(), _energy())
    optimizer = _optimizer(first)
    _train(first, optimizer, points, range(3))
    torch.save({"objective": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = MAKE[name](_generator(), _energy(seed=2))
    again.load_state_dict(state["objective"])
    optimizer = _optimizer(again)
    optimizer.load_state_dict(state["optimizer"])
    _train(again, optimizer, points, range(3, 6))
    assert _same(again.energy, through.energy)
    assert not _same(again.energy, first.energy)


def test_a_ratio_on_latents_turns_the_prior_into_the_codes_of_data() -> None:
    data = 0.5 * torch.randn(4000, 2) + 3  # The generator gives N(2, 1).
    objective = LogisticRatio(_generator(2.0), latent_energy=_energy())
    optimizer = torch.optim.Adam(objective.energy.parameters(), lr=1e-2)
    for step in range(300):
        loss = objective.loss(data[batch_indices(len(data), 256, 0, step)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = objective.tilted(SamplerConfig("mala", steps=100, step_size=0.1)).sample(1000)
    assert x.mean(0).sub(3).abs().max() < 0.15
    assert x.std(0).sub(0.5).abs().max() < 0.1


def test_what_is_tilted_is_a_copy_and_training_goes_on() -> None:
    objective = LogisticRatio(_generator(), _energy())
    objective.loss(torch.randn(8, 2)).backward()
    tilted = objective.tilted()
    assert tilted.energy is not objective.energy
    assert all(parameter.requires_grad for parameter in objective.energy.parameters())
    objective.loss(torch.randn(5, 2)).backward()


def test_the_generator_stays_frozen_in_evaluation_mode_and_batches_may_differ_in_size() -> None:
    decoder = nn.Sequential(nn.Linear(3, 1024), nn.BatchNorm1d(1024), nn.Tanh(), nn.Unflatten(1, (1, 32, 32)))
    generator = exptilt.wrap(decoder, (3,))
    objective = MaximumLikelihood(generator, exptilt.SmallEnergy(width=4), chain=SamplerConfig(steps=2)).train()
    assert objective.energy.training
    assert not decoder.training
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    for n in (4, 2):
        objective.loss(torch.rand(n, 1, 32, 32) * 2 - 1).backward()
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert all(parameter.grad is not None for parameter in objective.energy.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LogisticRatio(_generator()), "LogisticRatio: needs one energy"),
        (lambda: LogisticRatio(_generator(), _energy(), latent_energy=_energy()), "needs one energy"),
        (lambda: LogisticRatio(_generator(), nn.Linear(2, 2)), r"gives \(2, 2\) for 2 inputs"),
        (lambda: LogisticRatio(_generator(), nn.Linear(3, 1)), "fails on inputs of shape"),
        (lambda: LogisticRatio(exptilt.wrap(nn.Tanh(), (2,)), latent_energy=_energy()), "has no encoder"),
        (lambda: MaximumLikelihood(_generator(), _energy(), chains="jarzynski"), "biased with kernel langevin"),
        (lambda: LogisticRatio(_generator(), _energy()).loss(torch.zeros(4, 3)), "has elements of shape"),
        (lambda: LogisticRatio(_generator(), _energy()).loss(torch.full((4, 2), torch.nan)), "NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(make, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.data
@pytest.mark.skipif("EXPTILT_DATA" not in os.environ, reason="EXPTILT_DATA is not set: no real MNIST")
@pytest.mark.filterwarnings("ignore")  # What Lightning says of torch, and of a module in evaluation mode.
@pytest.mark.parametrize("name", ["own_loop", "own_loop_lightning"])
def test_the_examples_loops_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if name == "own_loop_lightning":
        pytest.importorskip("pytorch_lightning", reason="needs pytorch-lightning")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exptilt, "load_dataset", lambda name: load_dataset(name, "train", 600))
    tilted = importlib.import_module(name).train(steps=3)
    assert tilted.sample(4, sampler=SamplerConfig(steps=2)).shape == (4, 1, 32, 32)


def test_a_batch_may_be_bright_where_not_all_data_are() -> None:
    generator = exptilt.wrap(lambda z: z.tanh().view(-1, 1, 8, 8), (64,))
    objective = LogisticRatio(generator, make_energy("mlp", (1, 8, 8), 4))
    objective.loss(torch.rand(2, 1, 8, 8)).backward()
    with pytest.raises(InputError, match="as images in"):
        as_data_set(torch.rand(2, 1, 8, 8))
