"""What the page to play with is made of, without the page: models, settings, rewards, chains, pictures."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
import socket
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import exptilt
from exptilt import cli
from exptilt.config import SamplerConfig
from exptilt.errors import InputError, RunError
from exptilt.web.catalogue import Catalogue, find_models, models_in
from exptilt.web.pictures import frames_for, painter
from exptilt.web.play import play
from exptilt.web.rewards import with_reward
from exptilt.web.settings import LIMITS, Settings
from exptilt.web.stage import MOST_SECONDS, density, stages

CHAIN = SamplerConfig(kernel="mala", steps=12, step_size=0.05)
SETTINGS = Settings(steps=12, step_size=0.05, strength=1.0, seed=3, n=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tilted models, of digits and of points."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    digits = exptilt.VAE(channels=1, latent_size=16, width=8, likelihood="bernoulli")
    energy = exptilt.MLPEnergy(16, 8)
    exptilt.TiltedGenerator(digits, latent_energy=energy, sampler=CHAIN).save_pretrained(root / "digits")
    (root / "digits" / "result.json").write_text(json.dumps({"protocol": {"data": "digits"}}))
    toy = exptilt.ToyVAE(width=8)
    with torch.no_grad():
        for weight in toy.decoder.parameters():
            weight *= 3  # fresh weights hardly see z
    points = exptilt.TiltedGenerator(toy, exptilt.MLPEnergy(2, 8), sampler=CHAIN)
    points.save_pretrained(root / "toys" / "points")
    digits.save_pretrained(root / "base")
    exptilt.TiltedGenerator(digits, latent_energy=energy).save_pretrained(root / ".unfinished" / "digits")
    return root


@pytest.fixture
def catalogue(folder: Path) -> Catalogue:
    return Catalogue({"digits": folder / "digits", "points": folder / "toys" / "points"})


def pictures(stage: str) -> list[Image.Image]:
    """What is before and after, in order."""
    encoded = re.findall(r'<img src="data:image/png;base64,([^"]+)"', stage)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGBA"))


def test_models_are_found_two_levels_deep_and_hidden_ones_are_not(folder: Path) -> None:
    assert list(models_in(folder)) == [str(folder / "digits"), str(folder / "toys" / "points")]
    assert list(find_models([folder / "digits"])) == [str(folder / "digits")]
    for path, words in ((folder / "base", "holds no tilted model"), (folder / "a b", "no such folder")):
        with pytest.raises(InputError, match=words):
            find_models([path])


def test_a_catalogue_offers_nothing_else(catalogue: Catalogue, folder: Path) -> None:
    assert catalogue["digits"] is catalogue["digits"]
    for name in ("other", str(folder / "digits"), "../digits", None, ["digits"], {}):
        with pytest.raises(InputError, match="is not offered"):
            catalogue[name]  # type: ignore[index]


def test_a_catalogue_keeps_four_models(folder: Path) -> None:
    many = Catalogue({str(i): folder / "digits" for i in range(6)})
    first = many["0"]
    for name in ("1", "2", "3"):
        many[name]
    assert many["0"] is first
    many["4"], many["5"]
    assert many["0"] is first
    many["1"], many["2"], many["3"], many["4"]
    assert many["0"] is not first


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 501),
        ("steps", -1),
        ("steps", 1.5),
        ("steps", None),
        ("steps", "9"),
        ("steps", True),
        ("steps", 10**400),
        ("step_size", 0),
        ("step_size", float("nan")),
        ("strength", 8.01),
        ("strength", float("inf")),
        ("seed", 2**64),
        ("seed", [1]),
        ("n", 65),
        ("n", 16.0),
        ("n", True),
        ("n", {}),
        ("weight", -5.1),
        ("reward", None),
        ("reward", {}),
    ],
)
def test_what_is_out_of_bounds_is_refused_in_a_line(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{name}: ") as refused:
        dataclasses.replace(SETTINGS, **{name: value})
    assert len(str(refused.value)) < 150
    assert "\n" not in str(refused.value)


def test_bounds_are_within_bounds() -> None:
    for name, limit in LIMITS.items():
        for end in (limit.low, limit.high):
            assert getattr(dataclasses.replace(SETTINGS, **{name: end}), name) == end


@pytest.mark.parametrize("kernel", ["langevin", "mala", "hmc", "underdamped", "isir", "ex2mcmc"])
def test_the_last_frame_is_what_sample_gives(catalogue: Catalogue, kernel: str) -> None:
    tilted, sampler = catalogue["digits"].tilted, SamplerConfig(kernel=kernel, steps=12, step_size=0.05, resample=3)  # type: ignore[arg-type]
    frames = list(play(tilted, 5, seed=7, sampler=sampler, record_every=5))
    assert [frame.step for frame in frames] == [0, 5, 10, 12]
    z, info = tilted.sample(5, seed=7, sampler=sampler, return_latents=True, return_info=True, record_every=5)
    assert torch.equal(torch.stack([frame.latents for frame in frames]), info.trajectory)
    assert torch.equal(frames[-1].samples, tilted.generator.decode(z))
    told = frames[-1].info
    assert told is not None
    assert told.sentence == info.sentence
    assert all(frame.info is None for frame in frames[:-1])


def test_without_steps_there_is_one_frame(catalogue: Catalogue) -> None:
    model = catalogue["digits"]
    (frame,) = play(model.tilted, 4, seed=3, sampler=SamplerConfig(steps=0), record_every=1)
    assert torch.equal(frame.samples, model.tilted.generator.sample(4, seed=3))
    (stage,) = stages(model, "digits", dataclasses.replace(SETTINGS, steps=0))
    before, after = pictures(stage)
    assert np.array_equal(pixels(before), pixels(after))
    assert 'type="range"' not in stage


def test_a_run_that_takes_too_long_is_stopped(catalogue: Catalogue) -> None:
    assert 10 <= MOST_SECONDS <= 120
    with pytest.raises(RunError, match=r"step 1 of 12 was reached in the 0 s.*fewer steps"):
        list(play(catalogue["digits"].tilted, 2, seed=0, sampler=CHAIN, record_every=1, most_seconds=0))


def test_chains_that_diverge_are_told(catalogue: Catalogue) -> None:
    wild = with_reward(catalogue["points"].tilted, 1.0, catalogue["points"].rewards["position"], 5.0)
    wild.energy = exptilt.RewardEnergy(lambda x: 1e30 * x.square().sum(1))
    with pytest.raises(RunError, match="left the finite numbers"):
        list(play(wild, 2, seed=0, sampler=SamplerConfig(steps=20, step_size=1), record_every=20))


def test_strength_and_reward_make_the_potential_that_they_say(catalogue: Catalogue) -> None:
    model = catalogue["points"]
    tilted, reward, z = model.tilted, model.rewards["position"], torch.randn(6, 2)
    assert tilted.energy is not None
    x, prior = tilted.generator.decode(z), tilted.generator.prior.log_prob(z)
    energy = tilted.energy(x).flatten()
    for strength, weight in ((0.5, 2.0), (0.0, -3.0), (2.0, 0.0)):
        expected = strength * energy - weight * x[:, 0] - prior
        assert torch.allclose(with_reward(tilted, strength, reward, weight).potential(z), expected, atol=1e-5)
    on_latents = catalogue["digits"]
    z = torch.randn(6, 16)
    assert on_latents.tilted.latent_energy is not None
    x = on_latents.tilted.generator.decode(z)
    expected = 0.5 * on_latents.tilted.latent_energy(z).flatten() - on_latents.tilted.generator.prior.log_prob(z)
    expected = expected - 2 * 5 * (x + 1).flatten(1).mean(1)
    made = with_reward(on_latents.tilted, 0.5, on_latents.rewards["brightness"], 2.0)
    assert torch.allclose(made.potential(z), expected, atol=1e-4)


def test_a_reward_is_raised_by_its_weight_and_lowered_by_a_negative_one(catalogue: Catalogue) -> None:
    model = catalogue["points"]
    means = []
    for weight in (-5.0, 5.0):
        tilted = with_reward(model.tilted, 0.0, model.rewards["position"], weight)
        *_, last = play(tilted, 200, seed=0, sampler=SamplerConfig(steps=60, step_size=0.2), record_every=60)
        means.append(model.rewards["position"].mean(last.samples))
    base = model.rewards["position"].mean(model.tilted.generator.sample(200))
    assert means[0] < base < means[1]


def test_classes_are_offered_where_their_network_is_shipped(catalogue: Catalogue) -> None:
    digits, points = catalogue["digits"].rewards, catalogue["points"].rewards
    assert list(digits) == ["brightness", *(f"class {k}" for k in range(10))]
    assert list(points) == ["position"]
    data = exptilt.load_dataset("digits", "test")
    images = data.stored[:50].float() / 127.5 - 1
    assert data.labels is not None
    scores = torch.stack([-digits[f"class {k}"].energy(images) for k in range(10)], dim=1)
    assert torch.allclose(scores.exp().sum(1), torch.ones(50), atol=1e-4)
    assert (scores.argmax(1) == data.labels[:50]).float().mean() > 0.9


def test_densities_are_written_as_they_are_sampled(catalogue: Catalogue) -> None:
    model = catalogue["digits"]
    for changes, text in (
        ({}, "p(z)·exp(−E(z))/Z"),
        ({"strength": 0.5}, "p(z)·exp(−0.5·E(z))/Z"),
        ({"reward": "class 3", "weight": 1.0}, "p(z)·exp(−E(z) + log p(3|x))/Z"),
        ({"reward": "class 3", "weight": -2.0}, "p(z)·exp(−E(z) − 2·log p(3|x))/Z"),
        ({"reward": "class 3", "weight": 0.0}, "p(z)·exp(−E(z))/Z"),
    ):
        assert density(model, dataclasses.replace(SETTINGS, **changes)) == text


def test_grids_have_one_pixel_a_pixel_and_can_be_seen_through_between_images(catalogue: Catalogue) -> None:
    base = catalogue["digits"].tilted.generator.sample(4, seed=1)
    base[0] = 1.0
    drawn = pixels(painter(base)(base))
    assert drawn.shape == (66, 66, 4)
    expected = ((base + 1) * 127.5).round().to(torch.uint8).numpy()
    for index, (top, left) in enumerate(((0, 0), (0, 34), (34, 0), (34, 34))):
        cell = drawn[top : top + 32, left : left + 32]
        assert np.array_equal(cell[..., :3], expected[index].transpose(1, 2, 0).repeat(3, axis=2))
        assert (cell[..., 3] == 255).all()
    assert (drawn[32:34, :, 3] == 0).all()
    assert (drawn[:, 32:34, 3] == 0).all()


def test_points_are_drawn_where_they_are() -> None:
    base = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    paint = painter(base)
    drawn = pixels(paint(torch.tensor([[0.5, -0.25], [9.0, 9.0], [float("nan"), 0.0]])))[..., 3]
    rows, columns = np.nonzero(drawn)
    side = drawn.shape[0]
    assert columns.mean() / side == pytest.approx(0.5 + 0.5 / 2.24, abs=0.01)
    assert rows.mean() / side == pytest.approx(0.5 + 0.25 / 2.24, abs=0.01)
    assert len(np.unique(rows)) < 8


def test_frames_are_fewer_where_samples_are_large() -> None:
    assert frames_for(16, (1, 32, 32)) == 26
    assert 5 < frames_for(64, (3, 32, 32)) < 20
    assert frames_for(64, (3, 256, 256)) == 5


def test_a_run_shows_its_way_and_ends_with_diagnosis_and_files(catalogue: Catalogue, tmp_path: Path) -> None:
    model = catalogue["digits"]
    *way, last = stages(model, "runs/a b", SETTINGS)
    assert all("data-done" not in stage for stage in way)
    assert len(pictures(way[0])) == 2
    assert "data-done" in last
    shown = pictures(last)
    assert len(shown) == 1 + 13
    assert np.array_equal(pixels(shown[0]), pixels(shown[1])), "the chain starts at the base sample"
    assert not np.array_equal(pixels(shown[1]), pixels(shown[-1]))
    samples, info = model.tilted.sample(4, seed=3, sampler=CHAIN, return_info=True)
    assert np.array_equal(pixels(shown[-1]), pixels(painter(samples)(samples)))
    assert info.sentence in last
    assert last.count("hidden") == 12
    links = dict(re.findall(r'download="([^"]+)" href="data:[a-z/-]+;base64,([^"]+)"', last))
    assert list(links) == ["runs-a b-seed3.png", "runs-a b-seed3.npz"]
    png, npz = (io.BytesIO(base64.b64decode(text)) for text in links.values())
    assert Image.open(png).format == "PNG"
    held = np.load(npz)
    assert np.array_equal(held["images"], ((samples + 1) * 127.5).round().to(torch.uint8).numpy().transpose(0, 2, 3, 1))
    assert held["latents"].shape == (4, 16)
    assert json.loads(str(held["settings"])) == {"model": "runs/a b", **dataclasses.asdict(SETTINGS)}


def test_the_command_on_the_page_draws_the_images_on_the_page(folder: Path, tmp_path: Path) -> None:
    name = str(folder / "digits")
    *_, last = stages(Catalogue({name: folder / "digits"})[name], name, SETTINGS)
    words = re.sub(r"<[^>]+>", "", re.findall(r"<code>(.*?)</code>", last)[0]).split()
    assert words[:2] == ["exptilt", "sample"]
    words[-1] = str(tmp_path / "images.npz")
    with pytest.raises(SystemExit) as stop:
        cli.main([*words[1:], "--quiet"])
    assert stop.value.code == 0
    shown, drawn = pixels(pictures(last)[-1]), np.load(tmp_path / "images.npz")["images"]
    assert np.array_equal(shown[:32, :32, 0], drawn[0, ..., 0])
    assert np.array_equal(shown[34:, 34:, 0], drawn[3, ..., 0])


def test_points_are_played_too_and_names_are_escaped(catalogue: Catalogue) -> None:
    settings = dataclasses.replace(SETTINGS, steps=2, reward="position", weight=2.0)
    *_, last = stages(catalogue["points"], "<b>&", settings)
    assert "1000 points" in last
    assert "<b>" not in last
    assert "mean x₁: " in last
    assert "<code>" not in last, "no command has this reward"


def test_a_reward_of_another_model_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(InputError, match="reward: 'class 3' is not one of this model's; use one of none, position"):
        list(stages(catalogue["points"], "points", dataclasses.replace(SETTINGS, reward="class 3")))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{folder}/base", "--web"), "holds no tilted model"),
        (("{folder}/none", "--web"), "no such folder"),
        (("{folder}/digits",), "is of no use to the demo; add --web"),
        (("{folder}/digits", "--web", "--port", "{port}"), "--port {port}: cannot be listened on"),
        (("{folder}/digits", "--web", "--port", "65536"), "--port 65536: is out of range; give a number from 1"),
        (("{folder}/digits", "--web", "--host", "192.0.2.1"), "--host 192.0.2.1: cannot be listened on"),
    ],
)
def test_a_wrong_call_is_told_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        values = {"folder": folder, "port": other.getsockname()[1]}
        with pytest.raises(SystemExit) as stop:
            cli.main(["demo", *(argument.format(**values) for argument in arguments)])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert words.format(**values) in told


def test_without_gradio_the_page_says_how_to_install_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", str(folder / "digits"), "--web"])
    assert stop.value.code == 2
    assert "needs gradio" in (told := capsys.readouterr().err)
    assert "pip install 'exptilt[demo]'" in told


def test_without_a_model_the_demo_makes_one_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story and the server are stood in for: this is about what is served."""
    offered: list[Catalogue] = []

    def make(out: Path, **_: object) -> None:
        shutil.copytree(folder / "digits", out / "vae-tilted")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("exptilt.demo.run", make)
    stand_in = types.SimpleNamespace(serve=lambda catalogue, **_: offered.append(catalogue))
    monkeypatch.setitem(sys.modules, "exptilt.web.serve", stand_in)
    for told in ("the demo makes one first", ""):
        with pytest.raises(SystemExit) as stop:
            cli.main(["demo", "--web"])
        assert stop.value.code == 0
        assert (told in capsys.readouterr().err) if told else not capsys.readouterr().err
        assert offered.pop().names == ["runs/demo/vae-tilted"]
