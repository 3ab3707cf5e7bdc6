"""CUDA graphs of chains, without a GPU: what is recorded, when, and what comes of it. A stand-in records."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import exptilt
from exptilt import captured as module
from exptilt.captured import CapturedPotential, captured, is_capturable
from exptilt.config import SamplerConfig
from exptilt.density import LatentPotential
from exptilt.energies import MLPEnergy, ResNetEnergy, SmallEnergy
from exptilt.energies.compose import DiscriminatorEnergy, SumEnergy
from exptilt.generators import GLF, VAE, Generator, ToyVAE
from exptilt.sampling.kernel import value_and_gradient
from exptilt.tilted import TiltedGenerator
from exptilt.training.fit import resolve_recipe


class Recorder:
    """Stands for :func:`exptilt.captured.record`: a replay computes anew, into the memory of the recorded results."""

    def __init__(self) -> None:
        self.recorded = list[str]()
        self.replays = 0

    def __call__(self, function: Callable[[], Any], device: torch.device) -> tuple[Any, Callable[[], object]]:
        results = function()
        self.recorded.append(type(results).__name__)

        def replay() -> None:
            self.replays += 1
            anew = function()
            if isinstance(results, LatentPotential):
                vars(results).update(vars(anew))
            else:
                for old, new in zip(results, anew, strict=True):
                    old.copy_(new)

        return results, replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(module, "record", recorder)
    return recorder


def points() -> TiltedGenerator:
    torch.manual_seed(1)
    return TiltedGenerator(ToyVAE(2, 3, 8), MLPEnergy(2, 8, 1), precision="float32")


def assert_same(potential: CapturedPotential, tilted: TiltedGenerator, z: torch.Tensor) -> None:
    for ours, theirs in zip(value_and_gradient(potential, z), value_and_gradient(tilted.potential, z), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_it_is_recorded_once_and_serves_fewer_chains_too(recorder: Recorder) -> None:
    tilted = points()
    potential = CapturedPotential(tilted.chain_potential)
    first = value_and_gradient(potential, torch.ones(7, 3))
    kept = [part.clone() for part in first]
    for n in (7, 3, 1, 7):
        assert_same(potential, tilted, torch.randn(n, 3))
    assert recorder.recorded == ["tuple"]
    assert recorder.replays == 5
    # Nobody's results are written over.
    assert all(torch.equal(now, then) for now, then in zip(first, kept, strict=True))
    assert_same(potential, tilted, torch.randn(8, 3))
    assert_same(potential, tilted, torch.randn(7, 3))
    assert recorder.recorded == ["tuple"] * 2
    torch.testing.assert_close(potential(torch.ones(2, 3)), tilted.potential(torch.ones(2, 3)))


def test_samples_are_the_same(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    tilted = points()
    for kernel in ("langevin", "mala", "hmc"):
        sampler = SamplerConfig(kernel=kernel, steps=5, step_size=0.05)  # type: ignore[arg-type]
        plain = tilted.sample(11, seed=2, batch_size=4, sampler=sampler)
        with monkeypatch.context() as patch:
            patch.setattr("exptilt.tilted.captured", lambda potential: CapturedPotential(lambda: potential))
            torch.testing.assert_close(tilted.sample(11, seed=2, batch_size=4, sampler=sampler), plain)
    assert recorder.recorded == ["tuple"] * 3


def test_changed_weights_are_seen_when_it_is_renewed_and_nothing_is_recorded_anew(recorder: Recorder) -> None:
    tilted, z = points(), torch.randn(4, 3)
    potential = CapturedPotential(tilted.chain_potential)
    potential.renew()
    assert_same(potential, tilted, z)
    assert tilted.energy is not None
    for _ in range(2):
        with torch.no_grad():
            for parameter in tilted.energy.parameters():
                parameter += 0.1
        potential.renew()
        assert_same(potential, tilted, z)
        torch.testing.assert_close(potential(z), tilted.potential(z))
    assert recorder.recorded == ["LatentPotential", "tuple"]


def test_where_recording_fails_one_line_says_why_and_the_samples_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = list[int]()

    def fail(*_: object) -> Any:
        attempts.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nand a page about it")

    monkeypatch.setattr(module, "record", fail)
    tilted = points()
    potential = CapturedPotential(tilted.chain_potential)
    with pytest.warns(UserWarning, match=r"without a CUDA graph: recording failed: RuntimeError: [a-z ]*capturing$"):
        assert_same(potential, tilted, torch.randn(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential.renew()
        assert_same(potential, tilted, torch.randn(5, 3))
    assert len(attempts) == 1


def test_memory_that_is_full_is_no_fault_of_the_recording(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(function: Callable[[], Any], device: torch.device) -> Any:
        results = function()
        if len(results[0]) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return recorder(function, device)

    monkeypatch.setattr(module, "record", small)
    monkeypatch.setattr("exptilt.tilted.captured", lambda potential: CapturedPotential(lambda: potential))
    tilted = points()
    with pytest.warns(UserWarning, match="does not hold 8 at once: going on with 4"):
        samples = tilted.sample(8, batch_size=8)
    assert tilted.batch_size == 4
    assert recorder.recorded == ["tuple"]
    torch.testing.assert_close(samples, points().sample(8, batch_size=4))


def test_only_networks_of_our_own_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked, user = SmallEnergy(1, 4), nn.Sequential(nn.Flatten(), nn.Linear(1024, 1))
    hooked.layers[0].register_forward_hook(lambda *_: None)
    vae = VAE(1, 6, 4)
    wrapped = exptilt.wrap(nn.Sequential(nn.Linear(6, 1024), nn.Tanh(), nn.Unflatten(1, (1, 32, 32))), (6,))
    ours = [SmallEnergy(1, 4), ResNetEnergy(1, 4), SumEnergy([SmallEnergy(1, 4), ResNetEnergy(1, 4)])]
    ours.append(ResNetEnergy(1, 4, normalization="spectral"))
    theirs = [hooked, DiscriminatorEnergy(user), SumEnergy([SmallEnergy(1, 4), DiscriminatorEnergy(user)]), user]
    cases = [
        *((vae, energy, True) for energy in ours),
        *((vae, energy, False) for energy in theirs),
        (GLF(1, 6, 4), SmallEnergy(1, 4), True),
        (wrapped, SmallEnergy(1, 4), False),
    ]
    potentials = [(TiltedGenerator(generator, energy).chain_potential(), right) for generator, energy, right in cases]
    # They say that they are on a GPU.
    monkeypatch.setattr(Generator, "device", property(lambda self: torch.device("cuda")))
    for potential, expected in potentials:
        assert is_capturable(potential) is expected, (potential.generator, potential.energy_on_x)
        assert isinstance(captured(potential), CapturedPotential) is expected


def test_on_a_cpu_nothing_is_recorded() -> None:
    potential = points().chain_potential()
    assert not is_capturable(potential)
    assert captured(potential) is potential


@pytest.mark.parametrize("chains", ["short_run", "persistent", "jarzynski"])
def test_training_renews_one_recording(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, chains: str) -> None:
    torch.manual_seed(0)
    generator, data = ToyVAE(2, 2, 8), torch.randn(64, 2)
    settings = {"energy": "mlp", "energy_width": 8, "iterations": 4, "batch_size": 16, "walkers": 16}
    chain = SamplerConfig(kernel="mala", steps=3, step_size=0.05)
    config = resolve_recipe("paper", generator, **settings, chain=chain, chains=chains)
    plain = exptilt.tilt(generator, data, config=config).energy
    monkeypatch.setattr("exptilt.training.potential.is_capturable", lambda _: True)
    recorded = exptilt.tilt(generator, data, config=config).energy
    assert recorder.recorded == ["LatentPotential", "tuple"]
    assert recorder.replays > 4 * 3
    assert plain is not None
    assert recorded is not None
    for ours, theirs in zip(recorded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
