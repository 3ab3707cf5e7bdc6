"""Numbers that go wrong: NaN, overflow, dead energies, exploding chains, latents that carry nothing, half precision."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import exptilt
from exptilt.config import SamplerConfig, TiltConfig, override
from exptilt.data import DataSet
from exptilt.energies import make_energy
from exptilt.errors import InputError, RunError
from exptilt.generators.base import Generator
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.generators.wrap import wrap
from exptilt.presets import PRESETS, RECIPES
from exptilt.report.run_report import build_sections, read_log
from exptilt.sampling.chains import ChainsDiverged, make_kernel
from exptilt.sampling.chains import run as run_chains
from exptilt.sampling.kernel import value_and_gradient
from exptilt.sampling.random import SampleStreams
from exptilt.training import fitting, starting
from exptilt.training.fit import resolve_recipe, tilt
from exptilt.training.loop import Loop, LoopConfig
from exptilt.training.pretrain import pretrain
from exptilt.training.run_folder import RunFolder


def identity(encode: bool = True) -> Generator:
    return wrap(lambda z: 1.0 * z, (2,), encode=(lambda x: 1.0 * x) if encode else None)


def short(**changes: object) -> TiltConfig:
    settings = {"iterations": 6, "energy_width": 8, "batch_size": 16, "check_every": 3}
    return resolve_recipe("paper", identity(encode=False), **(settings | changes))


# ------------------------------------------------------------------------------------------- data


def test_data_that_are_not_finite_are_refused_wherever_they_come_from() -> None:
    points = torch.randn(20, 2)
    points[3, 1], points[7] = torch.nan, torch.inf
    data = DataSet("mine", "train", points, None, "here")
    with pytest.raises(InputError, match="data 'mine': 2 elements hold NaN or infinite values; remove them"):
        tilt(identity(), data)
    with pytest.raises(InputError, match="2 elements hold NaN"):
        pretrain(ToyVAE(2, 2, 8), data, PRESETS["toy-gaussians"])


def test_bytes_and_whole_numbers_are_taken_for_the_images_that_they_are() -> None:
    vae = VAE(1, 4, 4)
    config = override(resolve_recipe("default-x", vae), iterations=2, batch_size=4, energy_width=4)
    images = torch.randint(0, 256, (8, 1, 32, 32))
    energies = [
        tilt(vae, x, config=config).energy for x in (images / 127.5 - 1, images, images.to(torch.uint8), images.short())
    ]
    states = [energy.state_dict() for energy in energies if energy is not None]
    assert len(states) == 4
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)


def test_dark_images_are_no_mistake_and_images_in_0_1_are_one() -> None:
    vae = VAE(1, 4, 4)
    config = override(resolve_recipe("default-x", vae), iterations=1, batch_size=4, energy_width=4)
    dark = torch.full((8, 1, 32, 32), -1.0)
    dark[:, :, 4, 4] = -0.9
    assert isinstance(tilt(vae, dark, config=config), exptilt.TiltedGenerator)
    with pytest.raises(InputError, match=r"lie in \[0, 1\], as images in \[0, 1\] do; give 2x − 1, or bytes"):
        tilt(vae, (dark == -1).float(), config=config)


# ------------------------------------------------------------------------------------------- updates


@pytest.mark.parametrize(
    ("breaks", "cause"),
    [
        (lambda loss, x: loss * torch.nan, "its loss was nan"),
        (lambda loss, x: loss + (x.sum() * 1e38).exp(), "its loss was inf"),
        # The value is finite and its derivative is not.
        (lambda loss, x: loss + (x * 0).abs().sqrt().sum(), "its loss was .*, but the norm of its gradient nan"),
    ],
)
def test_overflow_is_rolled_back_with_its_cause(breaks, cause: str, tmp_path: Path, capsys) -> None:
    module, failures = make_energy("mlp", (2,), 8), iter([True])

    def loss(iteration: int):
        value = module(torch.randn(8, 2, generator=torch.Generator().manual_seed(iteration)))
        broken = iteration == 7 and next(failures, False)
        return (breaks(value.square().mean(), value.abs() + 1) if broken else value.square().mean()), {}

    with (folder := RunFolder(tmp_path, {})).writing():
        Loop(module, LoopConfig(12, 1e-3, check_every=5, log_every=1), loss, folder=folder).run()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "exptilt: iteration 7 failed: its loss was" in told
    assert re.search(cause, told)
    log, damaged = read_log(tmp_path / "log.jsonl")
    assert (damaged, [line["iteration"] for line in log]) == (0, [1, 2, 3, 4, 5, 5, *range(6, 13)])
    assert log[5] == {**log[5], "rollback_from": 7.0, "rollbacks": 1.0, "learning_rate_factor": 0.5}


def test_a_module_without_a_gradient_is_given_up_with_its_cause(capsys) -> None:
    module = make_energy("mlp", (2,), 8)
    loop = Loop(module, LoopConfig(12, 1e-3, check_every=4), lambda k: (0 * module(torch.ones(3, 2)).sum(), {}))
    with pytest.raises(RunError, match="no update since the last check had a gradient, so that nothing is learned"):
        loop.run()
    assert capsys.readouterr().err.count("iteration 4 failed") == 3


class Dead(nn.Module):
    """An energy whose hidden units are never active: constant, with a gradient for its last offset alone."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(2, 4), nn.Linear(4, 1)
        nn.init.constant_(self.hidden.bias, -1e6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.hidden(x).relu()).squeeze(1)


@pytest.mark.parametrize("objective", ["maximum_likelihood", "logistic_ratio"])
def test_a_dead_energy_is_given_up_with_its_cause(objective: str, monkeypatch) -> None:
    monkeypatch.setattr(starting, "make_energy", lambda *_: Dead())
    with pytest.raises(RunError, match="the energy gave the same value for all data and samples since the last check"):
        tilt(identity(encode=False), torch.randn(100, 2), config=short(objective=objective))


# ------------------------------------------------------------------------------------------- chains


def test_chains_that_explode_are_found_before_they_leave_the_numbers() -> None:
    """|1 − ε/2| = 4 on U = z²/2: a step makes z four times as large, so that 20 steps end near 10¹²."""
    streams = SampleStreams(0, 0, 3, (2,), torch.device("cpu"))
    prior = identity().prior
    kernel = make_kernel(SamplerConfig(step_size=10.0), lambda z: 0.5 * z.square().sum(1), prior)
    with pytest.raises(ChainsDiverged, match=r"3 chains exploded: .* by step 20 .* use a step size smaller than 10"):
        run_chains(kernel, prior.sample(streams), 100, streams)
    kernel = make_kernel(SamplerConfig(step_size=2.0), lambda z: 0.5 * z.square().sum(1), prior)
    far = run_chains(kernel, 1e9 * prior.sample(streams), 100, streams).position
    assert float(far.abs().max()) < 100  # Latents may be large where they begin; these come back.


@pytest.mark.parametrize("chains", ["short_run", "persistent", "replay"])
def test_chains_that_explode_in_training_go_on_with_half_the_step(chains: str, tmp_path: Path, capsys) -> None:
    """ε = 6 explodes on the normal prior and 3 does not; a run that is resumed keeps the shorter step."""
    explosive = SamplerConfig(steps=25, step_size=6.0)
    config = short(chain=explosive, chains=chains, walkers=16, iterations=4, check_every=2)
    data = torch.randn(100, 2)
    (expected := RunFolder(tmp_path / "whole", {})).path.mkdir()
    with expected.writing():
        tilted = tilt(identity(encode=False), data, config=config, folder=expected)
    assert "step size × 0.5" in capsys.readouterr().err
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert (record["rollbacks"], record["chain"]["step_size"]) == (1, 3.0)
    assert tilted.sampler == config.sampler
    log, _ = read_log(tmp_path / "whole" / "log.jsonl")
    assert log[0]["step_size_factor"] == 0.5
    page = build_sections(record, log, None, None, run=tmp_path)
    assert any("went on with 0.5 of their step size" in section.text for section in page)

    monkey = pytest.MonkeyPatch()
    usual = fitting.Fitting.loss

    def stops(self: fitting.Fitting, iteration: int):
        if iteration == 3:
            raise SystemExit
        return usual(self, iteration)

    monkey.setattr(fitting.Fitting, "loss", stops)
    with (folder := RunFolder(tmp_path / "parts", {})).writing(), pytest.raises(SystemExit):
        tilt(identity(encode=False), data, config=config, folder=folder)
    monkey.undo()
    with (folder := RunFolder(tmp_path / "parts", {}, resume=True)).writing():
        resumed = tilt(identity(encode=False), data, config=config, folder=folder)
    assert torch.equal(resumed.sample(8), tilted.sample(8))
    again, _ = read_log(tmp_path / "parts" / "log.jsonl")
    assert [{**line, "seconds": 0} for line in again] == [{**line, "seconds": 0} for line in log]


# ------------------------------------------------------------------------------------------- latents


def test_a_generator_that_ignores_its_latents_is_refused() -> None:
    collapsed = ToyVAE(2, 2, 8)
    collapsed.decode = lambda z: 0 * z + torch.tensor([0.3, -0.2])
    with pytest.raises(InputError, match=r"gives the same sample for 8 latents .posterior collapse.*; train it anew"):
        tilt(collapsed, torch.randn(100, 2))


def test_an_encoder_that_gives_one_latent_for_all_is_refused_and_a_dead_latent_is_told_of(capsys) -> None:
    config = override(RECIPES["default"], iterations=2, energy_width=8, batch_size=16, target_acceptance=0.0)
    constant = wrap(lambda z: 1.0 * z, (2,), encode=lambda x: 0 * x + 0.7)
    with pytest.raises(InputError, match=r"gives the same latent for all data .* recipe default-x, which needs none"):
        tilt(constant, torch.randn(300, 2), config=config)
    half = wrap(lambda z: 1.0 * z, (2,), encode=lambda x: x * torch.tensor([1.0, 0.0]))
    tilt(half, torch.randn(300, 2), config=config)
    assert "1 of 2 latent coordinates are the same in the codes of all data" in capsys.readouterr().err


def test_posterior_collapse_of_all_latents_is_told_of(capsys) -> None:
    """q(z|x) = p(z) whatever x; with one latent that depends on x nothing is said."""
    config = override(RECIPES["default"], iterations=2, energy_width=8, batch_size=16, target_acceptance=0.0)

    def encoder(share: float):
        return lambda x: torch.cat([share * x[:, :1] + torch.randn(len(x), 1), torch.randn(len(x), 1)], 1)

    for share in (0.0, 1.0):
        tilt(wrap(lambda z: 1.0 * z, (2,), encode=encoder(share)), torch.randn(900, 2), config=config)
        told = capsys.readouterr().err
        assert ("the codes q(z|x) do not depend on the data" in told) == (share == 0.0), told


# ------------------------------------------------------------------------------------------- half precision

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@pytest.fixture(scope="module")
def on_images() -> exptilt.TiltedGenerator:
    """A published VAE of MNIST with an energy on images, which pulls about as much as the prior."""
    vae = exptilt.load(CHECKPOINTS / "vae-mnist")
    assert isinstance(vae, Generator)
    short = {"iterations": 15, "batch_size": 16, "energy_width": 8, "learning_rate": 3e-3, "precision": "float32"}
    tilted = tilt(vae, torch.rand(64, 1, 32, 32) * 2 - 1, config=override(resolve_recipe("default-x", vae), **short))
    tilted.strength, tilted.sampler = 20.0, SamplerConfig(steps=8, step_size=0.02)
    return tilted


@pytest.fixture(scope="module")
def on_latents() -> exptilt.TiltedGenerator:
    """A published VAE of MNIST with its published energy on latents, and its 100 steps of MALA."""
    tilted = exptilt.load(CHECKPOINTS / "vae-mnist-tilted")
    assert isinstance(tilted, exptilt.TiltedGenerator)
    return tilted


def in_both(tilted: exptilt.TiltedGenerator, use):
    """What ``use`` makes in float32 and in bfloat16."""
    made = []
    for precision in ("float32", "bfloat16"):
        tilted.precision = precision
        made.append(use())
    return made


@pytest.mark.parametrize(
    ("name", "of_potential", "of_gradient"), [("on_images", 0.02, 0.05), ("on_latents", 0.01, 0.01)]
)
def test_bfloat16_and_float32_agree_on_potential_and_gradient(
    name: str, of_potential: float, of_gradient: float, request
) -> None:
    """The tolerances that docs/reliability.md states: shares of E's deviation and of its gradient's norm."""
    tilted = request.getfixturevalue(name)
    z = tilted.generator.sample_prior(64, seed=1)
    single, half = in_both(tilted, lambda: value_and_gradient(tilted.chain_potential(), z))
    # The prior's parts are exact in both.
    deviation, norm = (single[0] + tilted.generator.prior.log_prob(z)).std(), (single[1] - z).norm()
    assert float(norm / z.norm()) > 0.5
    assert 0 < float((single[0] - half[0]).square().mean().sqrt() / deviation) < of_potential
    assert 0 < float((single[1] - half[1]).norm() / norm) < of_gradient


@pytest.mark.parametrize(("name", "n", "errors"), [("on_images", 48, 0.1), ("on_latents", 128, 3.0)])
def test_bfloat16_and_float32_agree_on_the_statistics_of_samples(name: str, n: int, errors: float, request) -> None:
    """Langevin chains of the same noise stay together; of MALA, a proposal that only one accepts parts them for good.

    So those agree like two sets of samples: the largest of 200 differences stays below 3 standard errors of a mean.
    """
    tilted = request.getfixturevalue(name)
    single, half = in_both(tilted, lambda: tilted.sample(n, seed=2, return_latents=True))
    error = single.std(0) / n**0.5
    assert not torch.equal(single, half)
    assert float(((half.mean(0) - single.mean(0)).abs() / error).max()) < errors
    assert float(((half.std(0) - single.std(0)).abs() / error).max()) < errors
