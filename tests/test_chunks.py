"""The number of chains side by side that a short measurement chooses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from exptilt.config import SamplerConfig
from exptilt.energies import MLPEnergy, SmallEnergy
from exptilt.errors import InputError
from exptilt.generators import VAE, ToyVAE
from exptilt.sampling import chunks
from exptilt.sampling.chunks import candidates, fastest
from exptilt.tilted import TiltedGenerator

CPU = torch.device("cpu")


class Machine:
    """A clock, and chains that take as long as they are said to; of size s, the k-th run ``seconds(s, k)``."""

    def __init__(self, seconds: Callable[[int, int], float]) -> None:
        self.seconds, self.now, self.runs = seconds, 0.0, list[int]()

    def run(self, size: int) -> None:
        self.now += self.seconds(size, self.runs.count(size))
        self.runs.append(size)

    def clock(self) -> float:
        return self.now


def model() -> TiltedGenerator:
    return TiltedGenerator(VAE(1, 8, 4), SmallEnergy(1, 4), sampler=SamplerConfig(steps=5), precision="float32")


def test_the_size_with_the_least_time_a_chain_is_chosen() -> None:
    seconds = {16: 0.20, 32: 0.33, 64: 0.80}
    machine = Machine(lambda size, _: seconds[size])
    assert fastest(machine.run, [16, 32, 64], machine.clock) == 32
    # Once to warm up, then in turns.
    assert machine.runs == [16, 32, 64] * 3


def test_neither_a_slow_first_run_nor_one_disturbance_counts() -> None:
    def seconds(size: int, k: int) -> float:
        steady = {16: 0.16, 32: 0.30}[size]
        return steady + (9.0 if k == 0 or (size, k) == (32, 1) else 0.0)

    assert fastest(Machine(seconds).run, [16, 32], Machine(seconds).clock) == 16
    machine = Machine(seconds)
    assert fastest(machine.run, [16, 32], machine.clock) == 32


def test_of_equals_the_smallest_is_chosen() -> None:
    machine = Machine(lambda size, _: size / 64)
    assert fastest(machine.run, [16, 32, 64], machine.clock) == 16


def test_sizes_beyond_a_gpus_memory_are_passed_over() -> None:
    machine = Machine(lambda size, _: 1.0)

    def run(size: int) -> None:
        if size > 32:
            raise torch.cuda.OutOfMemoryError
        machine.run(size)

    assert fastest(run, [16, 32, 64, 128], machine.clock) == 32
    with pytest.raises(torch.cuda.OutOfMemoryError):
        fastest(run, [64, 128], machine.clock)


def test_no_size_is_above_the_number_of_samples() -> None:
    assert candidates(64, 500, CPU) == [16, 32, 64, 128, 256]
    assert candidates(64, 100, CPU) == [16, 32, 64, 100]
    assert candidates(64, 5, CPU) == [5]
    assert candidates(64, 0, CPU) == [1]
    assert candidates(1024, 10_000, torch.device("cuda")) == [256, 1024, 4096, 10_000]


def test_trials_run_the_models_chain_for_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, seen = list[int](), list[int]()

    def choose(run_chains: Callable[[int], None], sizes: list[int]) -> int:
        tried.extend(sizes)
        run_chains(3)
        return 7

    monkeypatch.setattr("exptilt.tilted.fastest", choose)
    tilted = model()
    assert tilted.energy is not None
    tilted.energy.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    assert tilted.fastest_batch_size(40) == 7
    assert tried == [16, 32, 40]
    # Langevin: one gradient at the start of a step.
    assert seen == [3] * chunks.STEPS


def test_auto_gives_the_samples_of_any_other_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tilted, sizes = model(), list[int]()
    expected = tilted.sample(20, seed=3)
    monkeypatch.setattr("exptilt.tilted.fastest", lambda run_chains, sizes: 7)
    assert tilted.energy is not None
    tilted.energy.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    torch.testing.assert_close(tilted.sample(20, seed=3, batch_size="auto"), expected, rtol=0, atol=1e-4)
    assert set(sizes) == {7, 6}


def test_a_measurement_takes_no_random_number_from_samples() -> None:
    tilted = TiltedGenerator(ToyVAE(2, 2, 8), latent_energy=MLPEnergy(2, 8), sampler=SamplerConfig(steps=3))
    expected, state = tilted.sample(9, seed=1), torch.random.get_rng_state()
    assert 1 <= tilted.fastest_batch_size(9) <= 9
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(tilted.sample(9, seed=1), expected)


def test_a_batch_size_of_the_model_holds_where_none_is_given() -> None:
    tilted, sizes = model(), list[int]()
    assert tilted.energy is not None
    tilted.energy.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    tilted.batch_size = 4
    tilted.sample(8)
    assert set(sizes) == {4}
    sizes.clear()
    tilted.sample(8, batch_size=8)
    assert set(sizes) == {8}
    with pytest.raises(InputError, match="batch_size"):
        tilted.sample(8, batch_size=0)
