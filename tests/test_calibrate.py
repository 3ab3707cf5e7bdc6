"""Calibration of the tilt's strength, and the energy and the held-out loss that the default recipe trains with."""

from __future__ import annotations

import itertools
import json
import math
import runpy
from pathlib import Path

import pytest
import torch

import exptilt
from exptilt.config import SamplerConfig, override
from exptilt.data import DataSet, load_dataset
from exptilt.energies import make_energy
from exptilt.energies.gated import GatedEnergy
from exptilt.energies.relative import RelativeEnergy
from exptilt.errors import InputError
from exptilt.evaluation.monitor import quality_monitor
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.generators.wrap import wrap
from exptilt.presets import RECIPES
from exptilt.training.calibrate import (
    GENERATOR_SETS,
    NOTICED,
    SAMPLES,
    Calibration,
    Monitor,
    Trial,
    above,
    calibrate,
    choose,
)
from exptilt.training.fit import resolve_recipe, tilt
from exptilt.training.run_folder import RunFolder


class Parabola(torch.nn.Module):
    """E(x) = |x|²/2: tilting N(0, I) by λE gives N(0, I/(1 + λ))."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.square().sum(1)


def on_points(energy: torch.nn.Module) -> exptilt.TiltedGenerator:
    sampler = SamplerConfig(kernel="mala", steps=40, step_size=0.3)
    return exptilt.TiltedGenerator(wrap(lambda z: 1.0 * z, (2,)), energy, sampler=sampler)


def test_the_strength_is_found_that_the_data_have() -> None:
    """Data of variance 1/3 are what λ = 2 gives; 1,000 samples tell it from λ = 1 and λ = 3."""

    def monitor(x: torch.Tensor) -> dict[str, float]:
        return {"fid": (float(x.var()) - 1 / 3) ** 2}

    tilted = on_points(Parabola())
    found = calibrate(tilted, (1.0, 2.0, 3.0), 0.6, monitor, reachable=None, seed=0)
    trials, best = found.trials, found.best
    assert [trial.strength for trial in trials] == [1.0, 2.0, 3.0]
    assert best is not None
    assert best.strength == 2.0
    assert found.gradients == 3 * (SAMPLES * 41 + 256 * 101)
    assert math.sqrt(best.distance) < 4 * (1 / 3) * math.sqrt(2 / (2 * SAMPLES))
    # A narrower target has a smaller step, and what was given is left as it was.
    assert trials[0].sampler.step_size > trials[2].sampler.step_size
    assert tilted.strength == 1.0
    assert tilted.sampler.step_size == 0.3


def trial(strength: float, **figures: float) -> Trial:
    return Trial(strength, SamplerConfig(), figures)


def test_a_strength_that_loses_diversity_is_not_chosen() -> None:
    kept, lost = trial(1.0, fid=5.0, recall=0.80), trial(2.0, fid=3.0, recall=0.60)
    assert choose([kept, lost], {"recall": 0.75}) is kept
    assert choose([kept, lost], {}) is lost
    # Where all lose, the one that loses least.
    assert choose([kept, lost], {"recall": 0.9}) is kept
    # Without a Fréchet distance, KID decides.
    assert choose([trial(1.0, kid=0.2), trial(2.0, kid=0.1)], {}).strength == 2.0


def test_no_more_diversity_is_asked_for_than_the_decoder_has() -> None:
    of_generator = [{"fid": 9.0, "recall": 0.9}] * GENERATOR_SETS
    figures = iter([*of_generator, {"fid": 1.0, "recall": 0.7}, {"fid": 2.0, "recall": 0.67}])
    best = calibrate(
        on_points(Parabola()), (1.0,), 0.0, lambda x: next(figures), reachable=torch.zeros(2, 2), seed=0
    ).best
    assert best is not None
    assert best.figures["recall"] == 0.67


def test_diversity_may_fall_by_what_a_set_of_the_generators_own_samples_does() -> None:
    """Recall 0.40 is a loss where all sets of the generator have 0.5, and is none where they have 0.4 to 0.6."""

    def found(recalls: list[float]) -> Calibration:
        of_generator = [{"fid": 9.0, "recall": recall} for recall in recalls]
        of_trials = [{"fid": 3.0, "recall": 0.50}, {"fid": 2.0, "recall": 0.40}]
        figures = iter(of_generator + of_trials)
        return calibrate(on_points(Parabola()), (1.0, 2.0), 0.0, lambda x: next(figures), reachable=None, seed=0)

    alike, unlike = found([0.5] * 4), found([0.4, 0.6, 0.4, 0.6])
    assert alike.best is not None
    assert unlike.best is not None
    assert (alike.best.strength, unlike.best.strength) == (1.0, 2.0)
    assert alike.least == {"recall": pytest.approx(0.5 - NOTICED)}
    # The standard deviation of the four is 0.1 × √(4/3); of one less the mean of four, √(5/4) times that.
    assert unlike.least == {"recall": pytest.approx(0.5 - 2 * 0.1 * math.sqrt(5 / 3))}
    assert unlike.before == {"fid": 9.0, "recall": pytest.approx(0.5)}


def test_the_length_of_the_chain_is_chosen_with_the_strength() -> None:
    """Chains from N(0, I) tend to variance 1/3; the data have what is on the way there."""
    tilted, seen = on_points(Parabola()), list[torch.Tensor]()
    tilted.sampler = SamplerConfig(kernel="mala", steps=8, step_size=0.05)
    halfway = 1 / 3 + 2 / 3 * (1 - 3 * 0.05 / 2) ** 8

    def monitor(x: torch.Tensor) -> dict[str, float]:
        seen.append(x)
        return variance_of(halfway)(x)

    found = calibrate(tilted, (2.0,), 0.0, monitor, reachable=None, seed=0, lengths=(0.5, 1.0))
    assert [trial.sampler.steps for trial in found.trials] == [4, 8]
    assert found.best is found.trials[0]
    assert found.recorded([1])["calibration"][0]["steps"] == 4
    # They are states of the same chains, and what the model gives with so many steps.
    assert found.gradients == SAMPLES * 9
    tilted.strength = 2.0
    for trial, states in zip(found.trials, seen[1:], strict=True):
        torch.testing.assert_close(states, tilted.sample(SAMPLES, seed=0, start=1 << 43, sampler=trial.sampler))


def variance_of(wanted: float) -> Monitor:
    return lambda x: {"fid": (float(x.var()) - wanted) ** 2}


def test_larger_strengths_are_tried_while_the_largest_is_the_best() -> None:
    """Data of variance 1/5 are what λ = 4 gives: 4 is beyond the candidates, and 6.4 is too much."""
    tilted = on_points(Parabola())
    found = calibrate(tilted, (1.0, 1.6, 2.5), 0.6, variance_of(1 / 5), reachable=None, seed=0, largest=6.4)
    assert [trial.strength for trial in found.trials] == [1.0, 1.6, 2.5, 4.0, 6.4]
    assert found.best is not None
    assert found.best.strength == 4.0
    bounded = calibrate(tilted, (1.0, 1.6), 0.6, variance_of(0.0), reachable=None, seed=0, largest=4.0)
    assert [trial.strength for trial in bounded.trials] == [1.0, 1.6, 2.56]
    inside = calibrate(tilted, (1.0, 1.6), 0.6, variance_of(1 / 2), reachable=None, seed=0, largest=6.4)
    assert [trial.strength for trial in inside.trials] == [1.0, 1.6]


class Steeper(Parabola):
    """Twice the parabola."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_the_state_of_the_energy_is_chosen_with_the_strength() -> None:
    """Data of variance 1/5 are what λ = 2 gives by the second state only."""
    tilted, other = on_points(Parabola()), on_points(Steeper())
    found = calibrate(tilted, (1.0, 2.0), 0.6, variance_of(1 / 5), reachable=None, seed=0, other=other)
    assert [(trial.state, trial.strength) for trial in found.trials] == [(0, 1.0), (0, 2.0), (1, 1.0), (1, 2.0)]
    assert found.best is found.trials[3]
    told = found.recorded([500, 3000])["calibration"]
    assert [trial["iteration"] for trial in told] == [500, 500, 3000, 3000]


def test_no_strength_is_chosen_where_none_is_nearer_to_the_data_than_what_was_tilted() -> None:
    tilted = on_points(Parabola())
    found = calibrate(tilted, (1.0, 2.0), 0.0, variance_of(1.0), reachable=None, seed=0)
    assert found.best is None
    assert len(found.trials) == 2
    # Tilted by λ = 1 already, a generator has the variance ½: that is better than 1/3, and worse than 1/2.5.
    after = calibrate(tilted, (2.0,), 0.0, variance_of(0.45), reachable=None, seed=0, base=tilted)
    assert after.best is None
    assert calibrate(tilted, (1.5,), 0.0, variance_of(0.4), reachable=None, seed=0, base=tilted).best is not None


def test_the_monitor_sees_a_lost_class() -> None:
    digits = load_dataset("digits", "test")
    assert digits.labels is not None
    half = digits.select(torch.arange(0, len(digits), 2))
    rest = digits.select(torch.arange(1, len(digits), 2))
    assert rest.labels is not None
    monitor = quality_monitor("digits", half.stored)
    whole, without = monitor(rest.batch(slice(None))), monitor(rest.batch(rest.labels > 4))
    assert without["entropy"] < whole["entropy"] - 0.5
    assert without["recall"] < whole["recall"] - 0.2
    assert without["coverage"] < whole["coverage"] - 0.2


def test_a_monitor_needs_two_images() -> None:
    with pytest.raises(InputError, match=r"^reference of 1 images: tells no quality; hold out two or more$"):
        quality_monitor("digits", load_dataset("digits", "test", 1).stored)


def test_a_gated_energy_learns_a_product_of_units() -> None:
    """E(z) = z₁ z₂, which no sum of functions of one coordinate is."""
    torch.manual_seed(0)
    energy = GatedEnergy(2, width=32, depth=2)
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-2)
    for _ in range(300):
        z = torch.randn(128, 2)
        loss = (energy(z) - z[:, 0] * z[:, 1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


def test_dropout_is_for_gated_energies_and_for_training_only() -> None:
    energy = make_energy("gated", (4,), 16, dropout=0.5)
    z = torch.randn(8, 4)
    assert not torch.equal(energy.train()(z), energy(z))
    assert torch.equal(energy.eval()(z), energy(z))
    with pytest.raises(InputError, match="not for energy 'mlp'"):
        make_energy("mlp", (4,), 16, dropout=0.5)
    vae = VAE(1, 8, 8)
    assert resolve_recipe("default", vae).dropout > 0
    assert resolve_recipe("default", vae, energy="mlp").dropout == 0


def test_a_run_with_dropout_goes_on_to_the_same_result(tmp_path: Path) -> None:
    data = torch.randn(1200, 2) * 0.5
    config = override(RECIPES["default"], iterations=8, energy_width=8, batch_size=32, check_every=3)

    def fit(folder: RunFolder | None) -> exptilt.TiltedGenerator:
        generator = wrap(lambda z: 1.0 * z, (2,), encode=lambda x: 1.0 * x)
        return tilt(generator, data, config=config, folder=folder)

    expected = fit(None).sample(5)
    settings = {"kind": "tilt"}
    first = RunFolder(tmp_path / "run", settings)
    save = first.save_checkpoint

    def save_and_die(*state) -> None:
        save(*state)
        raise KeyboardInterrupt

    first.save_checkpoint = save_and_die  # type: ignore[method-assign]
    with first.writing(), pytest.raises(KeyboardInterrupt):
        fit(first)
    second = RunFolder(tmp_path / "run", settings, resume=True)
    with second.writing():
        assert torch.equal(fit(second).sample(5), expected)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert log.count("held_out_loss") == 3


def test_the_last_state_is_kept_where_its_samples_are_nearer_to_held_out_data(tmp_path: Path) -> None:
    """By a monitor that likes what it sees last, however bad the held-out loss."""
    torch.manual_seed(1)
    data, held_out = 0.7 * torch.randn(1000, 16), DataSet("tensor", "test", 0.7 * torch.randn(600, 16), None, "")
    settings = {"iterations": 200, "energy_width": 64, "batch_size": 256, "check_every": 50, "dropout": 0.0}
    settings |= {"strengths": (1.0, 1.1), "largest_strength": 1.1, "ema_decay": 0.0, "target_acceptance": 0.0}
    config = override(RECIPES["default"], **settings, schedule="constant")
    generator = wrap(lambda z: 1.0 * z, (16,), encode=lambda x: 1.0 * x)
    fids = itertools.count(100.0, -1.0)

    def monitor(x: torch.Tensor) -> dict[str, float]:
        return {"fid": next(fids)}

    folder = RunFolder(tmp_path / "run", {"kind": "tilt"})
    with folder.writing():
        tilted = tilt(generator, data, config=config, held_out=held_out, monitor=monitor, folder=folder)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    states = {trial["iteration"] for trial in record["calibration"]}
    assert len(states) == 2
    assert record["chosen_iteration"] == max(states) == 200
    # What is stored is what was chosen.
    loaded = exptilt.load(tmp_path / "run", generator=generator)
    assert torch.equal(loaded.sample(5), tilted.sample(5))


def test_the_state_with_the_least_held_out_loss_is_kept(tmp_path: Path) -> None:
    """300 points and a large network: the loss on data that it has seen goes on falling, the other one rises."""
    torch.manual_seed(1)
    data = 0.7 * torch.randn(1000, 16)
    settings = {"iterations": 300, "energy_width": 64, "batch_size": 256, "check_every": 50, "dropout": 0.0}
    config = override(RECIPES["default"], **settings, schedule="constant", ema_decay=0.0, target_acceptance=0.0)
    generator = wrap(lambda z: 1.0 * z, (16,), encode=lambda x: 1.0 * x)
    folder = RunFolder(tmp_path / "run", {"kind": "tilt"})
    with folder.writing():
        tilt(generator, data, config=config, folder=folder)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {line["iteration"]: line["held_out_loss"] for line in lines if "held_out_loss" in line}
    chosen = json.loads((tmp_path / "run" / "run.json").read_text())["chosen_iteration"]
    assert losses[chosen] == min(losses.values())
    assert losses[300] > losses[chosen] + 0.1


@pytest.mark.parametrize(("of_floored", "taken"), [(3.9, True), (4.1, False)])
def test_a_floor_is_taken_if_it_is_better_than_both_lengths_in_the_mean(of_floored: float, taken: bool) -> None:
    """Distances of the prior, the tilt, its chains five times as long, and the tilt above a floor."""
    distances = iter([9.0, 3.0, 5.0, of_floored])
    sampler = SamplerConfig(kernel="mala", steps=4, step_size=0.3)
    tilted = exptilt.TiltedGenerator(wrap(lambda z: 1.0 * z, (2,)), latent_energy=Parabola(), sampler=sampler)
    seen: list[int] = []

    def monitor(x: torch.Tensor) -> dict[str, float]:
        seen.append(len(x))
        return {"fid": next(distances)}

    found = calibrate(tilted, (1.0,), 0.0, monitor, reachable=None, seed=0, floor_of=lambda _: -0.5)
    assert seen == [SAMPLES] * 4
    assert [trial.floor for trial in found.trials] == [None, -0.5]
    assert found.best is found.trials[int(taken)]
    assert found.longer is not None
    assert found.longer["fid"] == 5.0
    assert found.gradients == SAMPLES * (5 + 21 + 5)


@pytest.mark.parametrize(
    ("recalls", "of_floored", "taken"),
    [((0.8, 0.6), 1.0, False), ((0.6, 0.8), 8.0, True), ((0.5, 0.6), 8.0, True), ((0.6, 0.6), 4.1, False)],
)
def test_diversity_comes_before_distance_where_a_floor_is_chosen(
    recalls: tuple[float, float], of_floored: float, taken: bool
) -> None:
    """Recall without a floor and with one, where 0.76 is asked for; distances of 3 and 5 without one."""
    without, floored = recalls
    of_generator = [{"fid": 9.0, "recall": 0.8}] * GENERATOR_SETS
    of_trials = [{"fid": 3.0, "recall": without}, {"fid": 5.0, "recall": 0.8}, {"fid": of_floored, "recall": floored}]
    figures = iter(of_generator + of_trials)
    sampler = SamplerConfig(kernel="mala", steps=4, step_size=0.3)
    tilted = exptilt.TiltedGenerator(wrap(lambda z: 1.0 * z, (2,)), latent_energy=Parabola(), sampler=sampler)
    found = calibrate(tilted, (1.0,), 0.0, lambda x: next(figures), reachable=None, seed=0, floor_of=lambda _: -0.5)
    assert found.best is found.trials[int(taken)]


def test_a_strength_whose_chains_diverge_is_not_chosen_and_none_beyond_it_is_tried() -> None:
    """Langevin steps with ε = 1.5 multiply x by 1 − ε(1 + λ)/2: by −½ where λ = 1, by −2¾ where λ = 4."""
    figures = iter([{"fid": 9.0, "recall": 0.5}] * GENERATOR_SETS + [{"fid": 3.0, "recall": 0.4}])
    tilted = on_points(Parabola())
    tilted.sampler = SamplerConfig(steps=40, step_size=1.5)
    strengths = (1.0, 4.0, 8.0)
    found = calibrate(tilted, strengths, 0.0, lambda x: next(figures), reachable=None, seed=0, largest=100.0)
    assert [trial.strength for trial in found.trials] == [1.0, 4.0]
    # Although its recall is below what was asked for, and that of no samples is unknown.
    assert found.best is found.trials[0]
    kept, diverged = json.loads(json.dumps(found.recorded([1]), allow_nan=False))["calibration"]
    assert kept["recall"] == 0.4
    assert diverged["fid"] is diverged["recall"] is diverged["acceptance"] is None


def test_a_floor_is_taken_where_the_longer_chain_without_one_diverges() -> None:
    """Langevin steps that multiply by −1¼: some hundredfold in 20 of them, some 10⁹-fold in 100."""
    distances = iter([9.0, 3.0, 5.0])
    sampler = SamplerConfig(steps=20, step_size=1.5)
    tilted = exptilt.TiltedGenerator(wrap(lambda z: 1.0 * z, (2,)), latent_energy=Parabola(), sampler=sampler)
    monitor = lambda x: {"fid": next(distances)}  # noqa: E731
    found = calibrate(tilted, (2.0,), 0.0, monitor, reachable=None, seed=0, floor_of=lambda _: -0.5)
    assert found.longer == {"strength": 2.0, "steps": 100}
    assert found.best is found.trials[1]


def test_chains_above_a_floor_have_its_density() -> None:
    """N(0, 1) tilted by E(z) = 2 (z − 1)² above a floor of 0.7, against quadrature."""

    class Slope(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return 2 * (z[:, 0] - 1).square()

    generator = wrap(lambda z: 1.0 * z, (1,))
    sampler = SamplerConfig(kernel="mala", steps=60, step_size=0.8)
    tilted = above(exptilt.TiltedGenerator(generator, latent_energy=Slope(), sampler=sampler), 0.7)
    z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    log_density = -0.5 * z.square() - torch.logaddexp(2 * (z - 1).square(), torch.tensor(0.7, dtype=torch.float64))
    weights = torch.softmax(log_density, 0)
    mean = float((weights * z).sum())
    variance = float((weights * (z - mean).square()).sum())
    fourth = float((weights * (z - mean).pow(4)).sum())
    n = 20_000
    x = tilted.sample(n, seed=0).double()
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(variance / n)
    assert abs(float(x.var()) - variance) < 4 * math.sqrt((fourth - variance**2) / n)


def test_the_floor_is_the_share_of_held_out_codes_and_is_saved(tmp_path: Path) -> None:
    energy, z = GatedEnergy(3, 8), torch.randn(6, 3)
    floor = -0.3
    relative = RelativeEnergy.above(energy, floor)
    expected = torch.log(energy(z).exp() + math.exp(floor))
    torch.testing.assert_close(relative(z), expected)
    assert relative.floor == pytest.approx(floor)
    for share in (0.0, -1.0, math.nan, "much"):
        with pytest.raises(InputError, match="share"):
            RelativeEnergy(energy, share)  # type: ignore[arg-type]
    # Never below the floor, and untouched far above it.
    steep = RelativeEnergy.above(torch.nn.Identity(), floor)
    torch.testing.assert_close(steep(torch.tensor([-50.0, 50.0])), torch.tensor([floor, 50.0]))
    tilted = exptilt.TiltedGenerator(ToyVAE(2, 3, 8), latent_energy=relative, sampler=SamplerConfig(steps=3))
    tilted.save_pretrained(tmp_path, torch.float16)
    again = exptilt.load(tmp_path)
    assert isinstance(again.latent_energy, RelativeEnergy)
    assert again.latent_energy.share == relative.share
    torch.testing.assert_close(again.latent_energy(z), relative(z), rtol=1e-2, atol=1e-2)


def test_an_energy_goes_on_from_above_its_floor() -> None:
    energy = GatedEnergy(2, 8)
    generator = wrap(lambda z: 1.0 * z, (2,), encode=lambda x: 1.0 * x)
    floored = exptilt.TiltedGenerator(generator, latent_energy=RelativeEnergy.above(energy, 0.0))
    config = override(RECIPES["default"], space="z", iterations=2, batch_size=16, pool=64, strengths=(1.0,))
    further = tilt(floored, torch.randn(100, 2), config=config)
    assert isinstance(further.latent_energy, GatedEnergy)
    assert isinstance(floored.latent_energy, RelativeEnergy)


def test_the_benchmark_of_longer_chains_asks_for_a_calibration_only_where_there_is_a_floor(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "longer_chains.py"
    without_floor = runpy.run_path(str(script))["without_floor"]
    sampler = SamplerConfig(kernel="mala", steps=2)
    plain = exptilt.TiltedGenerator(wrap(lambda z: 1.0 * z, (2,)), latent_energy=Parabola(), sampler=sampler)
    assert without_floor(plain, tmp_path) is None
    floored = above(plain, -0.5)
    assert without_floor(floored, tmp_path, 2.0).strength == 2.0
    (tmp_path / "run.json").write_text(json.dumps({"longer": {"strength": 1.6}}))
    assert without_floor(floored, tmp_path).strength == 1.6


@pytest.mark.parametrize(
    ("codes", "data", "is_narrow"), [(0.5, 1.0, True), (0.5, None, True), (0.5, 0.5, False), (1.0, 1.0, False)]
)
def test_codes_are_narrow_only_beside_data_that_are_not(codes: float, data: float | None, is_narrow: bool) -> None:
    """By the deviation of samples, which is 1 for the generator's own, as if it were recall."""
    noise = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(1))
    given = {"reachable": codes * noise, "data": None if data is None else data * noise}
    found = calibrate(
        on_points(Parabola()), (1.0,), 0.0, lambda x: {"fid": 1.0, "recall": float(x.std())}, **given, seed=0
    )
    assert found.is_narrow is is_narrow
