"""Training: what it learns in closed form, that it freezes the generator, and that nothing is lost when it stops."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import exptilt
from exptilt.config import SamplerConfig, override
from exptilt.data import load_dataset
from exptilt.data.augment import augment
from exptilt.energies import make_energy
from exptilt.errors import InputError, RunError
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.generators.wrap import wrap
from exptilt.presets import PRESETS, RECIPES
from exptilt.training import objectives
from exptilt.training.fit import resolve_recipe, tilt
from exptilt.training.loop import Loop, LoopConfig
from exptilt.training.pretrain import pretrain
from exptilt.training.run_folder import RunFolder
from exptilt.training.trackers import make_tracker


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def identity(encode: bool) -> exptilt.Generator:
    return wrap(lambda z: 1.0 * z, (2,), encode=(lambda x: 1.0 * x) if encode else None)


# ------------------------------------------------------------------------------------------- objectives


def test_maximum_likelihood_is_eq_5_and_7_with_regularization() -> None:
    positive, negative = torch.tensor([1.0, 3.0]), torch.tensor([0.0, -2.0, 2.0])
    loss, figures = objectives.maximum_likelihood(positive, negative, 0.1)
    assert float(loss) == pytest.approx(2.0 - 0.0 + 0.1 * (5.0 + 8.0 / 3))
    assert figures["energy_gap"] == pytest.approx(-2.0)


def test_logistic_ratio_is_binary_cross_entropy_with_logit_minus_energy() -> None:
    positive, negative = torch.randn(5), torch.randn(7)
    loss, _ = objectives.logistic_ratio(positive, negative, 0.0)
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = bce(-positive, torch.ones(5)) + bce(-negative, torch.zeros(7))
    torch.testing.assert_close(loss, expected)


# ------------------------------------------------------------------------------------------- what is learned


@pytest.mark.slow
@pytest.mark.parametrize("space", ["z", "x"])
def test_the_ratio_of_two_gaussians_is_learned(space: str) -> None:
    """Data N(1, 0.8²) against the prior N(0, 1): E = −log p/q is a parabola; samples have the data's moments."""
    mean, deviation = 1.0, 0.8
    data = mean + deviation * torch.randn(20_000, 2)
    config = override(RECIPES["default"], space=space, energy_width=64, iterations=1500, batch_size=256, ema_decay=0.99)
    tilted = tilt(identity(encode=True), data, config=config)
    energy = tilted.latent_energy if space == "z" else tilted.energy
    assert energy is not None
    z = torch.randn(2000, 2) * 0.7 + 0.5
    expected = 0.5 * ((z - mean) / deviation).square().sum(1) + 2 * math.log(deviation) - 0.5 * z.square().sum(1)
    assert float((energy(z) - expected).abs().mean()) < 0.1
    x = tilted.sample(4000, seed=1)
    assert abs(float(x.mean()) - mean) < 0.06
    assert abs(float(x.std()) - deviation) < 0.06


@pytest.mark.slow
def test_the_papers_objective_moves_the_chains_samples_onto_the_data() -> None:
    """Maximum likelihood fits what the training's own chain gives: the means of data and of that chain agree."""
    data = 0.7 + 0.9 * torch.randn(5000, 2)
    chain = SamplerConfig(steps=20, step_size=0.1)
    config = override(
        resolve_recipe("paper", identity(encode=False)),
        iterations=300,
        energy_width=32,
        chain=chain,
        sampler=chain,
        energy_regularization=0.01,
        beta1=0.0,
        ema_decay=0.98,
    )
    tilted = tilt(identity(encode=False), data, config=config)
    assert abs(float(tilted.generator.sample(4000).mean()) - 0.7) > 0.6
    assert abs(float(tilted.sample(4000).mean()) - 0.7) < 0.1


@pytest.mark.slow
def test_pretraining_raises_the_elbo() -> None:
    data, test = load_dataset("gaussians", "train"), load_dataset("gaussians", "test")
    vae = ToyVAE(2, 2, 64)
    config = override(PRESETS["toy-gaussians"], epochs=3)
    before = float(-vae.training_loss(test.stored).detach().mean())
    figures = pretrain(vae, data, config, test=test)
    assert figures["elbo"] > before + 0.5


# ------------------------------------------------------------------------------------------- the frozen generator


@pytest.mark.parametrize("recipe", ["paper", "default", "default-no-encoder", "default-x"])
def test_tilting_changes_no_bit_of_the_generator(recipe: str) -> None:
    """Parameters and buffers, the batch normalisation's running statistics among them."""
    vae = VAE(1, 8, 8).train()
    vae.training_loss(torch.rand(16, 1, 32, 32))  # moves the running statistics away from their start
    before = state_of(vae)
    short = {"iterations": 3, "encoder_iterations": 2, "batch_size": 4, "energy_width": 4, "check_every": 2}
    config = resolve_recipe(recipe, vae, **short)
    config = override(config, chain=SamplerConfig(steps=2), sampler=override(config.sampler, steps=2))
    tilted = tilt(vae, torch.rand(16, 1, 32, 32) * 2 - 1, config=config, monitor=lambda x: {"kid": float(x.mean())})
    tilted.sample(4)
    assert_same(state_of(vae), before)
    assert not any(p.requires_grad for p in vae.parameters())


@pytest.mark.parametrize(
    ("recipe", "generator", "changes", "words"),
    [
        ("default-x", VAE(1, 8, 8), {}, "mirror: is of no use in space 'x'"),
        ("default", identity(encode=True), {"space": "z"}, r"mirror: is for images, and these data have shape \(2,\)"),
    ],
)
def test_mirror_images_are_refused_where_nothing_takes_them(
    recipe: str, generator: exptilt.Generator, changes: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        resolve_recipe(recipe, generator, **changes, mirror=True)
    config = resolve_recipe(recipe, generator, **changes)
    assert config.mirror is None
    with pytest.raises(InputError, match=words):
        tilt(generator, -torch.ones(20, *generator.data_shape), config=override(config, mirror=True))


def test_tilting_is_reproducible() -> None:
    data = torch.randn(500, 2)
    config = override(RECIPES["default"], iterations=5, energy_width=8, batch_size=32)
    first, second = (tilt(identity(encode=True), data, config=config).sample(5) for _ in range(2))
    assert torch.equal(first, second)


# ------------------------------------------------------------------------------------------- stopping and going on


def interrupted_at(loop: Loop, iteration: int) -> None:
    loss = loop.loss

    def stops(k: int):
        if k == iteration:
            raise KeyboardInterrupt
        return loss(k)

    loop.loss = stops
    with pytest.raises(KeyboardInterrupt):
        loop.run()


def small_loop(folder: RunFolder | None, **changes: object) -> Loop:
    torch.manual_seed(3)
    module = make_energy("mlp", (2,), 8)

    def loss(iteration: int):
        x = torch.randn(16, 2, generator=torch.Generator().manual_seed(iteration))
        value = module(x).sub(x.sum(1)).square().mean()
        return value, {"iteration_seen": float(iteration)}

    settings = {"iterations": 40, "learning_rate": 1e-2, "schedule": "cosine", "ema_decay": 0.9, "check_every": 7}
    config = LoopConfig(**(settings | changes))  # type: ignore[arg-type]
    score = {"check": lambda k: {"kid": abs(k - 20) + 1.0}, "choose": "kid"}
    return Loop(module, config, loss, folder=folder, **score)  # type: ignore[arg-type]


SGD = {"optimizer": "sgd", "schedule": "triangles", "bias_factor": 4.0, "learning_rate": 1e-3}


@pytest.mark.parametrize(("stop", "settings"), [*((stop, {}) for stop in (3, 7, 8, 25, 39)), (3, SGD), (25, SGD)])
def test_an_interrupted_loop_goes_on_to_the_same_result(tmp_path: Path, stop: int, settings: dict[str, object]) -> None:
    whole = small_loop(RunFolder(tmp_path / "whole", {}), **settings)
    with RunFolder(tmp_path / "whole", {}).writing():
        whole.run()
    with (folder := RunFolder(tmp_path / "parts", {})).writing():
        interrupted_at(small_loop(folder, **settings), stop)
    with (folder := RunFolder(tmp_path / "parts", {}, resume=True)).writing():
        resumed = small_loop(folder, **settings)
        resumed.run()
    assert_same(state_of(resumed.module), state_of(whole.module))
    assert resumed.best_iteration == whole.best_iteration == 21
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_sgd_steps_by_its_schedule_and_its_factors() -> None:
    """On a linear loss: lr · Σ shape, with 0.23 · (0.2 + 1)/2 + 0.77/2 as a triangle's mean; decay alike for all."""
    mean = 0.523 * (2 + 0.4) / 3
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.fill_(1.0)
    settings = {"optimizer": "sgd", "beta1": 0.0, "schedule": "triangles", "bias_factor": 8.0, "learning_rate": 1e-4}
    decay, slope, steps = 0.5, 3.0, 1000
    config = LoopConfig(iterations=steps, weight_decay=decay, **settings)  # type: ignore[arg-type]
    Loop(module, config, lambda _: (slope * (module.weight + module.bias).sum(), {})).run()
    shrunk = math.exp(-1e-4 * decay * steps * mean)
    for value, factor in ((module.weight, 1.0), (module.bias, 8.0)):
        expected = shrunk - factor * slope / decay * (1 - shrunk)
        assert float(value.detach()) == pytest.approx(expected, abs=2e-3)


def test_mirror_images_alternate() -> None:
    x = torch.randn(6, 3, 8, 8).clamp(-1, 1)
    shown = []
    for epoch in range(2):
        moved = augment(x, "shift-alternate", torch.Generator().manual_seed(0), torch.arange(6) + epoch)
        assert moved.shape == x.shape
        for image, original in zip(moved, x, strict=True):
            padded = nn.functional.pad(original[None], (2, 2, 2, 2), mode="reflect")[0]
            views = [padded.unfold(1, 8, 1).unfold(2, 8, 1)[:, i, j] for i in range(5) for j in range(5)]
            as_it_is = any(torch.equal(image, view) for view in views)
            assert as_it_is or any(torch.equal(image.flip(2), view) for view in views)
            shown.append(as_it_is)
    assert shown == [True, False] * 3 + [False, True] * 3


def test_moments_are_restored_in_the_memory_order_of_their_parameters(tmp_path: Path) -> None:
    """The fused optimizer pairs elements by their place in memory: channels-last weights need such moments."""

    def loop(folder: RunFolder | None) -> Loop:
        torch.manual_seed(3)
        energy = make_energy("small", (1, 32, 32), 4).to(memory_format=torch.channels_last)

        def loss(iteration: int):
            x = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(iteration))
            return energy(x).square().mean(), {}

        return Loop(energy, LoopConfig(iterations=9, learning_rate=1e-2, check_every=3), loss, folder=folder)

    (whole := loop(None)).run()
    with (folder := RunFolder(tmp_path, {})).writing():
        interrupted_at(loop(folder), 7)
    with (folder := RunFolder(tmp_path, {}, resume=True)).writing():
        (resumed := loop(folder)).run()
    assert_same(state_of(resumed.module), state_of(whole.module))


def read_log(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path: Path, capsys) -> None:
    with (folder := RunFolder(tmp_path, {})).writing():
        interrupted_at(small_loop(folder), 30)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with (folder := RunFolder(tmp_path, {}, resume=True)).writing():
        resumed = small_loop(folder)
        resumed.run()
    reference = small_loop(None)
    reference.run()
    assert_same(state_of(resumed.module), state_of(reference.module))
    assert "going on with what was written before" in capsys.readouterr().err


def test_a_update_that_is_not_finite_is_rolled_back_and_reported(tmp_path: Path, capsys) -> None:
    loop = small_loop(folder := RunFolder(tmp_path, {}))
    loss, failures = loop.loss, iter([True])

    def breaks_once(k: int):
        value, figures = loss(k)
        return (value * torch.nan if k == 10 and next(failures, False) else value), figures

    loop.loss = breaks_once
    with folder.writing():
        loop.run()
    assert all(bool(torch.isfinite(v).all()) for v in loop.module.state_dict().values())
    told = "iteration 10 failed: its loss was nan: back to iteration 7, learning rate × 0.5"
    assert told in capsys.readouterr().err
    assert any("rollback_from" in line for line in read_log(tmp_path / "log.jsonl"))


def test_a_run_that_never_becomes_finite_is_given_up_with_a_report(capsys) -> None:
    loop = small_loop(None)
    loss = loop.loss
    loop.loss = lambda k: (loss(k)[0] * torch.inf, {})
    with pytest.raises(RunError, match="3 rollbacks with a halved learning rate: its loss was inf"):
        loop.run()
    assert capsys.readouterr().err.count("failed: its loss was") == 3


def test_chains_that_diverge_in_training_are_rolled_back_reported_and_given_up(capsys) -> None:
    generator = wrap(lambda z: z.pow(3), (2,))
    explosive = SamplerConfig(steps=200, step_size=1e4)
    config = override(resolve_recipe("paper", generator), iterations=3, energy_width=8, chain=explosive)
    with pytest.raises(RunError, match=r"3 rollbacks .* chains exploded"):
        tilt(generator, torch.randn(300, 2), config=config)
    told = capsys.readouterr().err
    assert told.count("chains exploded") == 3
    assert "learning rate × 0.125, step size × 0.125" in told


def test_a_folder_is_not_overwritten_and_not_shared(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path, {"seed": 0}), RunFolder(tmp_path, {"seed": 0})
    with first.writing(), pytest.raises(InputError, match="another run"), second.writing():
        pass
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder(tmp_path, {"seed": 0})
    with pytest.raises(InputError, match=r"other settings \(seed\)"):
        RunFolder(tmp_path, {"seed": 1}, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "file", {})


def test_tensorboard_receives_the_figures(tmp_path: Path) -> None:
    tracker, close = make_tracker("tensorboard", tmp_path, {"seed": 1, "nested": {}})
    tracker({"loss": 1.5}, 3)
    close()
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not installed or not known"):
        make_tracker("nothing", tmp_path, {})


# ------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(4, 3, 32, 32) - 0.5, r"has elements of shape \(3, 32, 32\)"),
        (torch.rand(4, 1, 32, 32) * 255, "map them to"),
        (torch.rand(4, 1, 32, 32), r"as images in \[0, 1\] do; give 2x − 1, or bytes"),
        (torch.full((4, 1, 32, 32), torch.nan), "4 elements hold NaN"),
        (torch.full((4, 1, 32, 32), 300), r"are torch.int64 beyond 0 … 255; give floats in \[-1, 1\], or bytes"),
        (torch.zeros(4, 1, 32, 32, dtype=torch.bool), "are torch.bool"),
        (torch.zeros(0, 1, 32, 32), "give a tensor"),
        ([1, 2], "are list"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_line(images, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        tilt(VAE(1, 8, 8), images)
    assert "\n" not in str(caught.value)


def test_recipes_that_do_not_fit_the_generator_are_refused() -> None:
    with pytest.raises(InputError, match="is not known"):
        resolve_recipe("best", identity(encode=True))
    with pytest.raises(InputError, match="needs an encoder"):
        resolve_recipe("paper", identity(encode=False), space="z")
    assert resolve_recipe("paper", identity(encode=True), space="z").energy == "mlp"
    assert resolve_recipe("default", wrap(lambda z: 1.0 * z, (4,))).recipe == "default-no-encoder"
    assert resolve_recipe("paper", identity(encode=True)).energy == "mlp"
