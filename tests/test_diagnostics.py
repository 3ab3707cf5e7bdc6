"""What chains tell of themselves, and the chains of a tilted generator from its settings."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import exptilt
from exptilt.config import SamplerConfig
from exptilt.energies.mlp import MLPEnergy
from exptilt.errors import InputError
from exptilt.generators.vae import ToyVAE
from exptilt.generators.wrap import wrap
from exptilt.sampling.chains import ChainsDiverged
from exptilt.sampling.diagnostics import SampleInfo, join
from exptilt.tilted import TiltedGenerator


class Quadratic(nn.Module):
    """3/2 ‖x − 2‖²: with G(z) = z, z has mean 1.5 and variance 1/4 in each coordinate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.5 * (x - 2.0).square().flatten(1).sum(1)


def tilted(**sampler: object) -> TiltedGenerator:
    return TiltedGenerator(wrap(lambda z: z, (2,)), Quadratic(), sampler=SamplerConfig(**sampler))  # type: ignore[arg-type]


def info_of(model: TiltedGenerator, n: int = 400) -> SampleInfo:
    return model.sample(n, batch_size=n // 2, return_info=True)[1]


def test_chains_that_mix_have_an_r_hat_of_1_and_many_effective_samples() -> None:
    info = info_of(tilted(kernel="hmc", steps=200, step_size=0.1, leapfrog_steps=3))
    assert info.projections.shape == (200, 400, 3)
    assert info.rhat < 1.01
    assert 50 < info.ess < 300
    assert abs(info.correlation) < 4.8 / math.sqrt(800)
    assert "have left their start behind" in info.sentence
    assert not info.sentence.endswith("raise steps.")


def test_short_chains_say_so_and_what_to_do() -> None:
    info = info_of(tilted(kernel="mala", steps=20, step_size=0.01))
    assert info.rhat > 1.5
    assert info.ess < 5
    assert info.correlation > 0.5
    assert "so the samples are those of a short run, not of the limit" in info.sentence
    assert info.sentence.endswith("so single chains have not mixed: raise ε.")


@pytest.mark.parametrize(
    ("sampler", "end"),
    [
        ({"kernel": "langevin", "steps": 10}, ": raise steps or ε."),
        ({"kernel": "mala", "steps": 20, "step_size": 4.0}, ": lower ε."),
        ({"kernel": "mala", "steps": 20, "step_size": 0.3}, ": raise steps."),
        ({"kernel": "isir", "steps": 20, "candidates": 2}, ": raise candidates, or use kernel ex2mcmc."),
        ({"kernel": "langevin", "steps": 3, "step_size": 0.05}, ": raise steps or ε."),
        ({"steps": 0}, "No step was taken: these are samples of the prior."),
    ],
)
def test_the_sentence_ends_with_advice(sampler: dict[str, object], end: str) -> None:
    sentence = info_of(tilted(**sampler)).sentence
    assert sentence.endswith(end)
    assert sentence.count(". ") == 0


def test_too_few_steps_or_chains_have_no_r_hat() -> None:
    assert math.isnan(info_of(tilted(steps=18)).rhat)
    assert math.isnan(tilted(steps=20).sample(1, return_info=True)[1].ess)
    assert math.isnan(join([], (2,)).rhat)


def test_chains_that_never_move_are_no_error() -> None:
    never = tilted(kernel="mala", steps=20, step_size=1e6)
    assert info_of(never).rhat > 1.01
    assert info_of(never).sentence.endswith(": lower ε.")


def test_without_strength_the_latents_alone_are_diagnosed() -> None:
    model = tilted(kernel="mala", steps=100, step_size=1.0)
    model.strength = 0.0
    info = info_of(model)
    assert info.energy.shape == (0, 400)
    assert info.rhat < 1.05


def test_pure_resampling_is_told_and_starts_at_the_generators_latent() -> None:
    model = tilted(steps=0, resample=16)
    z, info = model.sample(300, return_latents=True, return_info=True)
    assert info.equal_candidates.shape == (300,)
    assert bool(((info.equal_candidates >= 1) & (info.equal_candidates <= 16.001)).all())
    assert "each sample is one of 16 of the prior, whose weights have ESS" in info.sentence
    own = model.generator.sample_prior(300)
    kept = (z == own).all(1).float().mean()
    # Each of 16 exchangeable candidates is chosen with probability 1/16.
    assert abs(float(kept) - 1 / 16) < 4.8 * math.sqrt(15 / 256 / 300)
    parts = torch.cat([model.sample(100, start=first, batch_size=30, return_latents=True) for first in (0, 100, 200)])
    assert torch.equal(parts, z)


@pytest.mark.parametrize("kernel", ["mala", "hmc", "ex2mcmc"])
def test_a_tilted_generator_adapts_its_step_size_and_keeps_it(kernel: str) -> None:
    model = tilted(kernel=kernel, steps=40, step_size=1e-4, resample=4)
    before = model.sampler
    adapted = model.adapted_sampler(0.6, seed=3)
    assert model.sampler == before
    assert adapted == dataclasses.replace(before, step_size=adapted.step_size)
    assert adapted == model.adapted_sampler(0.6, seed=3)
    assert adapted != model.adapted_sampler(0.6, seed=4)
    model.sampler = adapted
    assert abs(float(info_of(model).acceptance.mean()) - 0.6) < 0.1
    # Frozen: the step size does not follow what the samples do, one by one or many together.
    whole = model.sample(6, seed=1)
    torch.testing.assert_close(torch.cat([model.sample(1, seed=1, start=i) for i in range(6)]), whole)
    assert model.sampler == adapted


@pytest.mark.parametrize(
    ("kernel", "target", "words"),
    [("langevin", 0.6, "has no acceptance"), ("isir", 0.6, "has no acceptance"), ("mala", 1.5, "out of range")],
)
def test_what_cannot_be_adapted_is_refused(kernel: str, target: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tilted(kernel=kernel).adapted_sampler(target)


def test_a_model_saved_before_there_were_other_kernels_is_loaded(tmp_path: Path) -> None:
    model = TiltedGenerator(ToyVAE(2, 3, 16), latent_energy=MLPEnergy(3, 8), sampler=SamplerConfig(kernel="mala"))
    model.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    index["sampler"] = {name: index["sampler"][name] for name in ("kernel", "steps", "step_size", "noise_scale")}
    path.write_text(json.dumps(index))
    loaded = exptilt.load(tmp_path)
    assert isinstance(loaded, TiltedGenerator)
    assert loaded.sampler == model.sampler
    assert torch.equal(loaded.sample(3), model.sample(3))


def test_the_correlation_with_the_start_does_not_depend_on_the_batch() -> None:
    model = TiltedGenerator(wrap(lambda z: 1.0 * z, (1,)), Quadratic(), sampler=SamplerConfig(steps=5))
    whole, in_two = (model.sample(65, batch_size=size, return_info=True)[1] for size in (65, 64))
    assert whole.correlation > 0.5
    assert in_two.correlation == pytest.approx(whole.correlation, rel=1e-9)


def test_of_few_numbers_no_correlation_is_told() -> None:
    info = tilted(steps=5).sample(1, return_info=True)[1]
    assert math.isnan(info.correlation)
    assert info.sentence == "After 5 steps there are too few numbers to tell how far the chains are from their start."


def test_chains_that_explode_are_told_of_with_the_step() -> None:
    with pytest.raises(ChainsDiverged, match="by step 10 ") as caught:
        tilted(steps=500, step_size=50.0).sample(2)
    assert caught.value.step == 10
