"""Tilting in stages: against samples of the model as it is tilted so far, by likelihood after a ratio, E(x) on E(z)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

import exptilt
from exptilt.config import SamplerConfig, TiltConfig, override
from exptilt.data import DataSet
from exptilt.density import LatentPotential
from exptilt.energies.mlp import MLPEnergy
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.generators.wrap import wrap
from exptilt.presets import RECIPES
from exptilt.training import stages
from exptilt.training.calibrate import Calibration, Trial
from exptilt.training.codes import Codes, draw_codes
from exptilt.training.fit import tilt
from exptilt.training.run_folder import RunFolder
from exptilt.training.stages import Made, nearest

MALA = SamplerConfig(kernel="mala", steps=40, step_size=0.3)
RATIO = override(
    RECIPES["default"],
    energy="mlp",
    dropout=0.0,
    energy_width=32,
    batch_size=256,
    ema_decay=0.9,
    check_every=20,
    sampler=MALA,
    pool=2000,
    mirror=False,
)


def identity() -> Generator:
    """z ~ N(0, I) of two dimensions; the encoder gives data as they are."""
    return wrap(lambda z: 1.0 * z, (2,), encode=lambda x: 1.0 * x)


def normal(mean: float, deviation: float, n: int = 4000) -> torch.Tensor:
    return mean + deviation * torch.randn(n, 2, generator=torch.Generator().manual_seed(1))


def moments(tilted: exptilt.TiltedGenerator, n: int = 4000) -> tuple[float, float]:
    x = tilted.sample(n, seed=3)
    return float(x.mean()), float(x.std(0).mean())


def test_later_stages_close_what_the_first_has_left() -> None:
    """Data N(1.5, ½²): a first stage of 20 updates stops far from them, and two short ones more get there."""
    data = normal(1.5, 0.5)
    short = override(RATIO, iterations=20, stage_iterations=150, stage_learning_rate=3e-3, learning_rate=3e-3)
    mean, deviation = moments(tilt(identity(), data, config=short))
    assert abs(mean - 1.5) > 0.2
    mean, deviation = moments(tilt(identity(), data, config=override(short, stages=3)))
    assert mean == pytest.approx(1.5, abs=0.05)
    assert deviation == pytest.approx(0.5, abs=0.05)


def test_a_tilted_generator_is_tilted_on_with_one_energy() -> None:
    data = normal(1.0, 0.7)
    first = tilt(identity(), data, config=override(RATIO, iterations=20))
    energy = {name: value.clone() for name, value in first.latent_energy.state_dict().items()}  # type: ignore[union-attr]
    second = exptilt.tilt(first, data, config=override(RATIO, iterations=300, learning_rate=3e-3))
    assert isinstance(second.latent_energy, MLPEnergy)
    assert second.energy is None
    assert abs(moments(first)[0] - 1.0) > 0.2
    assert moments(second) == pytest.approx((1.0, 0.7), abs=0.1)
    # What was tilted stays as it was.
    assert all(torch.equal(first.latent_energy.state_dict()[name], value) for name, value in energy.items())  # type: ignore[union-attr]


class Quadratic(torch.nn.Module):
    """E(z) = |z|²/2: tilts N(0, I) to N(0, ½ I)."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 0.5 * z.square().sum(1)


def test_an_energy_on_samples_is_learned_on_top_of_one_on_latents() -> None:
    """E(z) takes the prior to the deviation √½, E(x) from there to that of the data, ½: their sum is the density."""
    on_z = exptilt.TiltedGenerator(identity(), latent_energy=Quadratic(), sampler=MALA)
    settings = override(RATIO, space="x", iterations=400, learning_rate=3e-3, target_acceptance=0.0)
    both = tilt(on_z, normal(0.0, 0.5), config=settings)
    assert both.latent_energy is on_z.latent_energy
    assert moments(both)[1] == pytest.approx(0.5, abs=0.03)
    # U of N(0, ¼ I) is 2|z|²; of it the prior has ½|z|², E(z) another ½|z|², and E(x) has learned the rest.
    z = 0.5 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(2))
    error = both.potential(z) - 2 * z.square().sum(1)
    assert float(error.std()) < 0.2
    assert float((both.energy(z) - z.square().sum(1)).std()) < 0.2  # type: ignore[misc]


def test_likelihood_goes_on_from_a_ratio() -> None:
    data = normal(1.5, 0.5)
    first = tilt(identity(), data, config=override(RATIO, iterations=20))
    likelihood = TiltConfig(
        objective="maximum_likelihood",
        space="z",
        energy="mlp",
        iterations=1,
        batch_size=256,
        learning_rate=1e-9,
        energy_regularization=0.0,
        chain=override(MALA, steps=5),
        chains="persistent",
        walkers=512,
        sampler=MALA,
    )
    z = torch.randn(10, 2)
    same = tilt(first, data, config=likelihood)
    torch.testing.assert_close(same.potential(z), first.potential(z), atol=1e-4, rtol=0)
    longer = override(likelihood, iterations=300, learning_rate=3e-3, schedule="cosine", target_acceptance=0.6)
    mean, deviation = moments(tilt(first, data, config=longer))
    assert mean == pytest.approx(1.5, abs=0.07)
    assert deviation == pytest.approx(0.5, abs=0.07)


def test_the_strength_of_what_is_tilted_on_is_kept() -> None:
    """λ multiplies what was there and what is learned alike."""
    twice = exptilt.TiltedGenerator(identity(), latent_energy=MLPEnergy(2, 16), sampler=MALA, strength=2.0)
    after = tilt(twice, normal(1.0, 0.7), config=override(RATIO, iterations=300, learning_rate=3e-3))
    assert after.strength == 2.0
    assert moments(after) == pytest.approx((1.0, 0.7), abs=0.1)


def test_where_there_is_nothing_to_learn_samples_stay_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    generator = identity()
    tilted = tilt(generator, normal(0.0, 1.0, 1000), config=override(RATIO, iterations=60, learning_rate=1e-2))
    assert tilted.strength == 0
    assert torch.equal(tilted.sample(5, seed=1), generator.sample(5, seed=1))
    assert "does not tell held-out data from the samples" in capsys.readouterr().err
    # It is a model as any other: it is saved, and tilted anew.
    assert tilt(tilted, normal(1.5, 0.5), config=override(RATIO, iterations=40)).strength == 1.0


def test_where_no_strength_helps_samples_stay_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A monitor that likes the generator's own samples best, and held-out data enough for a calibration."""
    generator = identity()
    config = override(RATIO, iterations=40, strengths=(1.0, 2.0))
    held_out = DataSet("tensor", "test", normal(1.5, 0.5, 600), None, "")

    def monitor(x: torch.Tensor) -> dict[str, float]:
        return {"fid": abs(float(x.mean()))}

    folder = RunFolder(tmp_path / "run", {"kind": "tilt"})
    with folder.writing():
        tilted = tilt(generator, normal(1.5, 0.5), config=config, held_out=held_out, monitor=monitor, folder=folder)
    assert torch.equal(tilted.sample(5), generator.sample(5))
    assert "no strength brings the samples nearer" in capsys.readouterr().err
    loaded = exptilt.load(tmp_path / "run", generator=generator)
    assert isinstance(loaded, exptilt.TiltedGenerator)
    assert torch.equal(loaded.sample(5), generator.sample(5))


def test_a_tilt_whose_chains_all_diverge_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Langevin steps of ε = 8 multiply latents by −3 or more, whatever the energy."""
    diverging = SamplerConfig(steps=40, step_size=8.0)
    config = override(RATIO, iterations=40, strengths=(1.0, 2.0), sampler=diverging, target_acceptance=0.0)
    held_out = DataSet("tensor", "test", normal(1.5, 0.5, 600), None, "")
    folder, generator = RunFolder(tmp_path / "run", {"kind": "tilt"}), identity()
    with folder.writing():
        tilted = tilt(
            generator,
            normal(1.5, 0.5),
            config=config,
            held_out=held_out,
            monitor=lambda x: {"fid": float(x.var())},
            folder=folder,
        )
    assert torch.equal(tilted.sample(5), generator.sample(5))
    assert "all chains of the tilt diverge" in capsys.readouterr().err
    record = json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=pytest.fail)
    assert not record["helps"]


def test_one_strength_leaves_floor_and_length_to_be_chosen(tmp_path: Path) -> None:
    config = override(RATIO, iterations=40, strengths=(1.0,), floor=0.1, lengths=(0.5, 1.0), target_acceptance=0.0)
    held_out, fids = DataSet("tensor", "test", normal(1.5, 0.5, 600), None, ""), itertools.count(100.0, -1.0)

    def monitor(x: torch.Tensor) -> dict[str, float]:
        """Nearer with every look, so that a larger strength would be the best."""
        return {"fid": next(fids)}

    folder = RunFolder(tmp_path / "run", {"kind": "tilt"})
    with folder.writing():
        tilt(identity(), normal(1.5, 0.5), config=config, held_out=held_out, monitor=monitor, folder=folder)
    trials = json.loads((tmp_path / "run" / "run.json").read_text())["calibration"]
    assert {trial["strength"] for trial in trials} == {1.0}
    assert {trial["steps"] for trial in trials} == {20, 40}
    assert len({trial["floor"] for trial in trials}) == 2


def test_data_are_held_out_from_tilting_on_whatever_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DataSet] = []

    def spy(generator: Generator, data: DataSet, held_out: DataSet, *rest: object, **settings: object) -> Codes:
        seen.append(held_out)
        return draw_codes(generator, data, held_out, *rest, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "draw_codes", spy)
    data, short = normal(1.0, 0.7, 1000), override(RATIO, iterations=2, pool=64)
    first = tilt(identity(), data, config=short)
    tilt(first, data, config=override(short, seed=5))
    assert torch.equal(seen[0].stored, seen[1].stored)


def test_every_seed_of_64_bits_will_do() -> None:
    config = override(RATIO, energy="gated", dropout=0.3, iterations=1, target_acceptance=0.0, encoder="learned")
    config = override(config, encoder_iterations=1)
    tilt(identity(), normal(1.5, 0.5, 100), config=config, seed=2**64 - 1)


def test_the_gradients_of_all_chains_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, plain = [0], LatentPotential.__call__

    def count(potential: LatentPotential, z: torch.Tensor) -> torch.Tensor:
        seen[0] += len(z) if z.requires_grad else 0
        return plain(potential, z)

    monkeypatch.setattr(LatentPotential, "__call__", count)
    short = override(RATIO, sampler=override(MALA, steps=3), target_acceptance=0.0, pool=64, stage_iterations=5)
    config = override(short, iterations=40, learning_rate=3e-3, stages=3)
    folder = RunFolder(tmp_path / "run", {"kind": "tilt"})
    with folder.writing():
        tilt(identity(), normal(1.5, 0.5, 1010), config=config, folder=folder)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["later_stages"]) == 2
    assert record["gradient_evaluations"] == seen[0]


def test_a_stage_that_makes_samples_worse_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = normal(1.0, 0.7, 1500)
    held_out = DataSet("tensor", "test", normal(1.0, 0.7, 600), None, "")

    def monitor(x: torch.Tensor) -> dict[str, float]:
        return {"fid": (float(x.mean()) - 1.0) ** 2 + (float(x.std()) - 0.7) ** 2}

    def fit(**changes) -> torch.Tensor:
        folder = RunFolder(tmp_path / str(changes), {"kind": "tilt"})
        config = override(RATIO, iterations=100, learning_rate=3e-3, strengths=(1.0, 1.6), **changes)
        with folder.writing():
            return tilt(identity(), data, config=config, held_out=held_out, monitor=monitor, folder=folder).sample(5)

    alone = fit(stages=1)
    # At such a rate nothing is learned but noise.
    changes = {"stages": 3, "stage_iterations": 20, "stage_learning_rate": 10.0}
    assert torch.equal(fit(**changes), alone)
    assert "the tilt is not used" in capsys.readouterr().err
    record = json.loads((tmp_path / str(changes) / "run.json").read_text())
    assert [stage["helps"] for stage in record["later_stages"]] == [False]
    assert record["chosen_iteration"] <= 100


@pytest.mark.parametrize("dies_at", [2, 4])
def test_a_run_goes_on_in_the_stage_it_was_in(tmp_path: Path, dies_at: int) -> None:
    data = normal(1.5, 0.5, 1500)
    config = override(RATIO, iterations=30, stages=3, stage_iterations=30, check_every=15, batch_size=64, pool=200)
    config = override(config, target_acceptance=0.0)
    settings = {"kind": "tilt"}

    def fit(folder: RunFolder) -> torch.Tensor:
        with folder.writing():
            return tilt(identity(), data, config=config, folder=folder).sample(5)

    whole = RunFolder(tmp_path / "whole", settings)
    expected = fit(whole)
    saved = 0
    save = RunFolder.save_checkpoint

    class Dying(RunFolder):
        def save_checkpoint(self, *state) -> None:
            nonlocal saved
            save(self, *state)
            saved += 1
            if saved == dies_at:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Dying(tmp_path / "parts", settings))
    assert torch.equal(fit(RunFolder(tmp_path / "parts", settings, resume=True)), expected)

    def logged(folder: str) -> list[str]:
        return [line.split(', "seconds"')[0] for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]

    assert logged("parts") == logged("whole")
    assert '"iteration": 90' in logged("whole")[-1]


def narrow(shrinks: float) -> Generator:
    """As :func:`identity`, with an encoder that draws all data together."""
    return wrap(lambda z: 1.0 * z, (2,), encode=lambda x: 1.0 + shrinks * (x - 1.0))


def test_where_codes_lack_diversity_an_encoder_is_learned_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data N(1, 0.7²) whose own codes have a tenth of their deviation: only a learned encoder leads to the data."""
    data, held_out = normal(1.0, 0.7, 3000), DataSet("tensor", "test", normal(1.0, 0.7, 600), None, "")
    changes = {"learning_rate": 3e-3, "strengths": (1.0, 1.6), "encoder_iterations": 150, "target_acceptance": 0.0}
    config = override(RATIO, iterations=100, **changes)

    def monitor(x: torch.Tensor) -> dict[str, float]:
        spread = float(x.std(0).mean())
        return {"fid": float((x.mean(0) - 1.0).square().sum()) + (spread - 0.7) ** 2, "recall": min(1.0, spread / 0.7)}

    def fit(name: str, generator: Generator, config: TiltConfig = config, dies: bool = False) -> torch.Tensor:
        class Dying(RunFolder):
            def save_checkpoint(self, *state) -> None:
                super().save_checkpoint(*state)
                if dies and self.number:
                    raise KeyboardInterrupt

        folder = Dying(tmp_path / name, {"kind": "tilt"}, resume=(tmp_path / name).exists())
        with folder.writing():
            return tilt(generator, data, config=config, held_out=held_out, monitor=monitor, folder=folder).sample(2000)

    def record(name: str) -> dict:
        return json.loads((tmp_path / name / "run.json").read_text())

    best = fit("best", narrow(0.1))
    assert (float(best.mean()), float(best.std(0).mean())) == pytest.approx((1.0, 0.8), abs=0.2)
    err = capsys.readouterr().err
    assert "codes of the generator's encoder decode to less diversity" in err
    assert "kept: the tilt by the learned encoder" in err
    both = record("best")
    assert (both["encoder"], both["updates"]) == ("learned", 200)
    assert 100 < both["chosen_iteration"] <= 200
    assert [stage["helps"] for stage in both["by_own_encoder"]] == [True]
    # The figures of the one that was kept, and the gradients of both.
    assert torch.equal(fit("learned", narrow(0.1), override(config, encoder="learned")), best)
    fit("own", narrow(0.1), override(config, encoder="own"))
    assert record("learned")["calibration"] == [
        trial | {"iteration": trial["iteration"] - 100} for trial in both["calibration"]
    ]
    assert both["gradient_evaluations"] == sum(record(name)["gradient_evaluations"] for name in ("own", "learned"))
    # Cut off in the second tilt, it goes on there.
    with pytest.raises(KeyboardInterrupt):
        fit("parts", narrow(0.1), dies=True)
    assert torch.equal(fit("parts", narrow(0.1)), best)

    # An encoder whose codes lack nothing is not doubted.
    fit("plain", narrow(1.0))
    assert "encoder" not in record("plain")
    assert record("plain")["updates"] == 100


def test_the_better_of_two_tilts_keeps_the_diversity_that_either_can() -> None:
    def made(encoder: str, least: float, **figures: float) -> Made:
        trial = Trial(1.0, MALA, figures) if figures else None
        calibration = Calibration([], trial, {}, 0, {"recall": least})
        tilted = exptilt.TiltedGenerator(identity(), latent_energy=Quadratic(), sampler=MALA)
        return Made(tilted, encoder, calibration, 0, 0, [], MALA, 0.0, 0, 0)

    own, learned = made("own", 0.5, fid=3.0, recall=0.52), made("learned", 0.7, fid=4.0, recall=0.72)
    assert nearest([own, learned]) is learned
    nearer = made("learned", 0.7, fid=2.0, recall=0.4)
    assert nearest([own, nearer]) is own
    assert nearest([made("own", 0.5), learned]) is learned
    assert nearest([own, made("learned", 0.7)]) is own
    assert nearest(unused := [made("own", 0.5), made("learned", 0.7)]) is unused[0]


def test_what_cannot_be_tilted_on_is_refused() -> None:
    foreign = exptilt.TiltedGenerator(identity(), latent_energy=Quadratic(), sampler=MALA)
    with pytest.raises(InputError, match="Quadratic is not a class of exptilt"):
        tilt(foreign, normal(0.0, 1.0), config=RATIO)
    with pytest.raises(InputError, match="stages: 2 are for logistic_ratio"):
        override(RECIPES["paper"], stages=2)
    with pytest.raises(InputError, match="a generator that is not tilted"):
        tilt(foreign, normal(0.0, 1.0), config=RECIPES["pixel"])
