"""The command line as a user meets it: every command on a tiny slice, every wrong input in one line."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import exptilt
from exptilt import cli, commands
from exptilt.config import SamplerConfig
from exptilt.data import to_uint8
from exptilt.energies.mlp import MLPEnergy
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.report.files import write_samples
from exptilt.storage import read_tensors
from exptilt.tilted import TiltedGenerator


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator and two tilted generators, from the command line."""
    folder = tmp_path_factory.mktemp("runs")
    pretrain = ("pretrain", "vae-digits", "--epochs", 1, "--limit", 300, "--quiet")
    assert call(*pretrain, "--out", folder / "vae", "--log", "tensorboard") == 0
    tilt = ("tilt", folder / "vae", "--data", "digits", "--limit", 300, "--energy-width", 8, "--quiet")
    paper = ("--recipe", "paper", "--energy", "small", "--iterations", 4, "--check-every", 2, "--batch-size", 8)
    assert call(*tilt, *paper, "--chain-steps", 3, "--steps", 5, "--out", folder / "paper") == 0
    assert call(*tilt, "--iterations", 20, "--steps", 5, "--out", folder / "default") == 0
    return folder


def test_a_run_leaves_its_configuration_log_checkpoint_and_model(run: Path) -> None:
    names = {p.name for p in (run / "vae").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "run.json",
        "log.jsonl",
        "checkpoint.safetensors",
        "samples.png",
    } <= names
    record = json.loads((run / "vae" / "run.json").read_text())
    assert record["config"]["epochs"] == 1
    assert record["test"]["elbo"] < 0
    assert list((run / "vae").rglob("events.out.tfevents*"))
    record = json.loads((run / "paper" / "run.json").read_text())
    assert record["device"] == "cpu"
    assert record["gradient_evaluations"] == 4 * 8 * 3
    assert record["config"]["recipe"] == "paper"
    assert record["chosen_iteration"] in (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["glow-mnist", "glf-mnist", "two-stage-mnist", "vae-flow-mnist"])
def test_every_generator_of_the_paper_is_trained_tilted_and_sampled(run: Path, tmp_path: Path, preset: str) -> None:
    """At the paper's size, for a few updates on digits: that the path is whole."""
    first_stage = ("--vae", run / "vae") if preset.startswith(("two-stage", "vae-flow")) else ()
    model, tilted = tmp_path / "model", tmp_path / "tilted"
    pretrain = ("pretrain", preset, "--data", "digits", "--limit", 48, "--batch-size", 16, "--epochs", 1, "--quiet")
    assert call(*pretrain, "--out", model, *first_stage) == 0
    tilt = ("tilt", model, "--data", "digits", "--limit", 48, "--iterations", 3, "--energy-width", 8, "--steps", 3)
    assert call(*tilt, "--out", tilted, "--features", "none", "--quiet") == 0
    assert call("sample", tilted, "-n", 4, "--out", tmp_path / "samples.npz", "--quiet") == 0
    assert np.load(tmp_path / "samples.npz")["images"].shape == (4, 32, 32, 1)


def test_a_tilted_generator_is_tilted_on_from_its_folder(run: Path, tmp_path: Path) -> None:
    """By likelihood, on latents: the energy on images of the first run stays beside the new one."""
    on = ("tilt", run / "paper", "--data", "digits", "--limit", 60, "--features", "none", "--quiet")
    likelihood = ("--recipe", "likelihood", "--energy-width", 8, "--iterations", 2, "--batch-size", 8)
    chains = ("--walkers", 8, "--chain-steps", 1, "--steps", 2)
    assert call(*on, *likelihood, *chains, "--out", tmp_path / "on") == 0
    index = json.loads((tmp_path / "on" / "model_index.json").read_text())
    assert index["parts"] == ["generator", "energy", "latent_energy"]
    # The chain is that of what was tilted, but for what the command changes.
    assert index["sampler"]["kernel"] == "langevin"
    assert index["sampler"]["steps"] == 2
    record = json.loads((tmp_path / "on" / "run.json").read_text())
    assert record["config"]["generator"] == str(run / "paper")
    assert record["config"]["chain"]["step_size"] == index["sampler"]["step_size"] == 0.01
    assert call("sample", tmp_path / "on", "-n", 2, "--out", tmp_path / "x.png", "--quiet") == 0


def test_samples_go_to_a_grid_an_archive_or_a_folder(run: Path, tmp_path: Path) -> None:
    sample = ("sample", run / "paper", "-n", 10, "--seed", 3, "--quiet")
    assert call(*sample, "--out", tmp_path / "grid.png", "--columns", 5) == 0
    assert call(*sample, "--out", tmp_path / "samples.npz", "--batch-size", 4) == 0
    assert call(*sample, "--out", tmp_path / "folder") == 0
    assert pixels(tmp_path / "grid.png").shape[1] >= 5 * 32
    images = np.load(tmp_path / "samples.npz")["images"]
    assert images.shape == (10, 32, 32, 1)
    files = sorted((tmp_path / "folder").glob("*.png"))
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(10)]
    assert np.abs(pixels(files[3]) - images[3, :, :, 0]).max() <= 2


def test_any_number_of_samples_is_written_in_the_memory_of_a_block(tmp_path: Path) -> None:
    """Of the blocks of an archive, only the one that is being made is alive."""
    alive: list[weakref.ref] = []

    def blocks() -> Iterator[torch.Tensor]:
        for number in range(30):
            assert sum(ref() is not None for ref in alive) <= 1
            block = torch.full((100, 1, 4, 4), number / 30)
            alive.append(weakref.ref(block))
            yield block

    write_samples(tmp_path / "x.npz", blocks(), 3000)
    images = np.load(tmp_path / "x.npz")["images"]
    assert (images.shape, images.dtype) == ((3000, 4, 4, 1), np.uint8)
    assert np.array_equal(images[::100, 0, 0, 0], to_uint8(torch.arange(30) / 30).numpy())
    points = torch.randn(70, 2)
    write_samples(tmp_path / "points.npz", points.split(30), 70)
    assert np.array_equal(np.load(tmp_path / "points.npz")["images"], points.numpy())


def test_an_archive_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    def blocks() -> Iterator[torch.Tensor]:
        yield torch.zeros(5, 1, 4, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / "x.npz", blocks(), 10)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def latent_tilt(tmp_path: Path) -> Path:
    """A small tilted generator with an energy on latents, untrained."""
    torch.manual_seed(0)
    model = TiltedGenerator(VAE(latent_size=4, width=4), latent_energy=MLPEnergy(4, 8), sampler=SamplerConfig(steps=2))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ((), [1000, 300]),
        (("--batch-size", 1200), [1200, 100]),
        (("--batch-size", 64), [500, 500, 300]),
        (("--batch-size", "auto"), [700, 600]),
    ],
)
@pytest.mark.parametrize("out", ["x.npz", "folder"])
def test_as_many_samples_are_drawn_at_once_as_chains_run_side_by_side(
    latent_tilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options, drawn: list[int], out: str
) -> None:
    sizes, asked = [], []

    def sample(self: TiltedGenerator, n: int, *, seed: int, start: int) -> torch.Tensor:
        sizes.append(n)
        return torch.full((n, 1, 2, 2), start / 2000)

    def fastest(self: TiltedGenerator, n: int) -> int:
        asked.append(n)
        return 700

    monkeypatch.setattr(TiltedGenerator, "sample", sample)
    monkeypatch.setattr(TiltedGenerator, "fastest_batch_size", fastest)
    assert call("sample", latent_tilt, "-n", 1300, *options, "--out", tmp_path / out, "--quiet") == 0
    assert sizes == drawn
    assert asked == ([1300] if "auto" in options else [])


def test_blocks_of_another_size_give_the_same_samples(latent_tilt: Path, tmp_path: Path) -> None:
    sample = ("sample", latent_tilt, "-n", 600, "--quiet")
    images = []
    for size in (100, 550):
        assert call(*sample, "--batch-size", size, "--out", tmp_path / f"{size}.npz") == 0
        images.append(np.load(tmp_path / f"{size}.npz")["images"].astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1


def test_a_path_is_no_markup(latent_tilt: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "runs[/a]" / "[red]:smile:.png"
    assert call("sample", latent_tilt, "-n", 2, "--out", out) == 0
    assert f"2 samples in {out}. After 2 steps" in capsys.readouterr().err


def test_log_z_is_not_lost_where_the_models_folder_cannot_be_written(
    latent_tilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    before = {path: path.read_bytes() for path in latent_tilt.rglob("*.*")}
    command = ("likelihood", latent_tilt, "-n", 8, "--method", "importance", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, _: Path(path) != latent_tilt)
        patch.setattr("exptilt.commands.use.measure_likelihood", None)
        assert call(*command) == 2
        assert f"{latent_tilt}: cannot be written, and the result would go there" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, _: Path(path) != latent_tilt)
        with pytest.warns(UserWarning, match=r"the result goes to .*z\.json alone"):
            assert call(*command, "--json", tmp_path / "z.json") == 0
    assert "log Z" in capsys.readouterr().out
    assert json.loads((tmp_path / "z.json").read_text())["log_z"]["n"] == 8
    assert {path: path.read_bytes() for path in latent_tilt.rglob("*.*")} == before
    assert call(*command) == 0
    assert (latent_tilt / "likelihood.json").exists()


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (("--kernel", "hmc", "--leapfrog-steps", 2, "--adapt", 0.7), {"kernel": "hmc", "leapfrog_steps": 2}),
        (("--kernel", "isir", "--candidates", 4), {"kernel": "isir", "candidates": 4}),
        (("--kernel", "ex2mcmc", "--step-size", 0.2), {"kernel": "ex2mcmc", "step_size": 0.2}),
        (("--kernel", "underdamped", "--friction", 2), {"kernel": "underdamped", "friction": 2.0}),
        (("--kernel", "langevin", "--noise-scale", 0.5), {"kernel": "langevin", "noise_scale": 0.5}),
        (("--replicas", 3, "--resample", 4), {"kernel": "mala", "replicas": 3, "resample": 4}),
    ],
)
def test_the_chain_is_chosen_on_the_command_line(run: Path, tmp_path: Path, capsys, options, settings) -> None:
    out = ("-n", 30, "--steps", 10, "--out", tmp_path / "x.npz")
    assert call("sample", run / "default", *out, *options) == 0
    told = capsys.readouterr().err
    shown = json.JSONDecoder().raw_decode(told[told.index("{") :])[0]["sampler"]
    assert settings.items() <= shown.items()
    assert ("--adapt" in options) == (shown["step_size"] not in (0.01, 0.2, default_step_size(run)))
    assert "After 10 steps the chains" in told
    assert np.load(tmp_path / "x.npz")["images"].shape == (30, 32, 32, 1)


def default_step_size(run: Path) -> float:
    return json.loads((run / "default" / "model_index.json").read_text())["sampler"]["step_size"]


def test_a_tilted_generator_keeps_the_chain_it_was_given(run: Path, tmp_path: Path) -> None:
    tilt = ("tilt", run / "vae", "--data", "digits", "--limit", 300, "--energy-width", 8, "--iterations", 5, "--quiet")
    assert call(*tilt, "--features", "none", "--kernel", "underdamped", "--steps", 4, "--out", tmp_path / "m") == 0
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert (index["sampler"]["kernel"], index["sampler"]["steps"]) == ("underdamped", 4)


def test_the_base_is_sampled_too(run: Path, tmp_path: Path) -> None:
    for model, flags in ((run / "vae", ()), (run / "paper", ("--base",))):
        assert call("sample", model, "-n", 4, "--quiet", "--out", tmp_path / f"{model.name}.npz", *flags) == 0
    vae, base = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("vae", "paper"))
    assert np.abs(vae.astype(int) - base).max() <= 1


@pytest.mark.slow
def test_evaluate_writes_the_schema_and_report_a_page(run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "result.json"
    assert (
        call("evaluate", run / "default", "--data", "digits", "-n", 200, "--seeds", 0, 1, "--json", out, "--quiet") == 0
    )
    result = json.loads(out.read_text())
    assert {"protocol", "n", "seeds", "base", "tilted", "floor", "reconstruction"} <= result.keys()
    for part in ("base", "tilted", "floor", "reconstruction"):
        assert {"fid", "fid_ci", "kid", "precision", "recall", "density", "coverage"} <= result[part].keys()
    assert result["protocol"]["hash"] in capsys.readouterr().out
    assert call("report", run / "default", "-n", 8, "--quiet") == 0
    page = (run / "default" / "report.html").read_text()
    assert result["protocol"]["hash"] in page


def test_a_finished_run_is_resumed_to_the_same_model(run: Path) -> None:
    before = (run / "vae" / "model.safetensors").read_bytes()
    command = ("pretrain", "vae-digits", "--epochs", 1, "--limit", 300, "--quiet", "--out", run / "vae")
    assert call(*command, "--resume") == 0
    assert (run / "vae" / "model.safetensors").read_bytes() == before


def test_a_tilt_goes_on_only_with_the_weights_that_it_began_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "vae", tmp_path / "vae")
    model = exptilt.load(tmp_path / "vae")
    command = ("tilt", tmp_path / "vae", "--data", "digits", "--limit", 300, "--iterations", 2, "--check-every", 1)
    command = (*command, "--features", "none", "--quiet", "--out", tmp_path / "tilted")
    assert call(*command) == 0
    assert call(*command, "--resume") == 0
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    model.save_pretrained(tmp_path / "vae")
    capsys.readouterr()
    assert call(*command, "--resume") == 2
    assert "began with other settings (weights)" in capsys.readouterr().err


PRETRAIN = ("pretrain", "toy-gaussians", "--epochs", "12", "--limit", "5000")
# fmt: off
TILT = (
    "tilt", "{run}/vae", "--data", "digits", "--recipe", "paper", "--energy", "small", "--energy-width", "8",
    "--iterations", "60", "--check-every", "2", "--batch-size", "16", "--chain-steps", "4", "--steps", "4",
)
# fmt: on


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "model", "how"),
    [
        (PRETRAIN, "model.safetensors", signal.SIGKILL),
        (PRETRAIN, "model.safetensors", signal.SIGTERM),
        (TILT, "energy/model.safetensors", signal.SIGKILL),
    ],
    ids=["pretrain-kill", "pretrain-term", "tilt-kill"],
)
def test_a_killed_command_goes_on_to_the_same_result(
    run: Path, tmp_path: Path, arguments: tuple[str, ...], model: str, how: signal.Signals
) -> None:
    command = [sys.executable, "-m", "exptilt.cli", *(a.format(run=run) for a in arguments), "--quiet", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    process = subprocess.Popen([*command, str(tmp_path / "parts")], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "parts" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, how)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
    if how == signal.SIGTERM:
        told = complaint.splitlines()
        assert "stopping after this update" in told[0]
        assert told[1:] == ["exptilt: interrupted; repeat the command with --resume to go on"]
    assert not (tmp_path / "parts" / model).exists()
    subprocess.run([*command, str(tmp_path / "parts"), "--resume"], check=True)
    first, second = (read_tensors(tmp_path / name / model)[0] for name in ("whole", "parts"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


WRONG = [
    (("sample", "nothing", "--out", "x.png"), "nothing: no such folder; give"),
    (("sample", "{run}", "--out", "x.png"), "holds no model"),
    (("sample", "{run}/vae", "--out", "x.png", "-n", "-5"), "-n -5: is out of range; give"),
    (("sample", "{run}/vae", "--out", "x.jpeg"), "has an unknown ending"),
    (("sample", "{run}/vae", "--out", "x.png", "-n", "many"), "invalid literal for int()"),
    (("sample", "{run}/vae", "--out", "x.png", "--device", "abacus"), "--device abacus: is not available"),
    (("sample", "{run}/paper", "--out", "x.png", "--steps", "-1"), "steps: -1 is out of range"),
    (("sample", "{run}/vae"), "--out"),
    (("sample", "{run}/vae", "--out", "x.png", "--steps", "5"), "is not tilted, so it has no chain"),
    (("sample", "{run}/paper", "--out", "x.png", "--friction", "1"), "is of no use to kernel langevin"),
    (
        ("sample", "{run}/paper", "--out", "x.png", "--kernel", "isir", "--step-size", "1"),
        "is of no use to kernel isir",
    ),
    (("sample", "{run}/paper", "--out", "x.png", "--adapt", "0.6"), "kernel langevin has no acceptance"),
    (("sample", "{run}/paper", "--out", "x.png", "--kernel", "nuts"), "invalid choice 'nuts'"),
    (("evaluate", "{run}/default", "--data", "digits", "--adapt", "2"), "2.0 is out of range"),
    (("tilt", "{run}/vae", "--data", "digits", "--out", "x", "--replicas", "0"), "replicas: 0 is out of range"),
    (("pretrain", "gan-mnist", "--out", "x"), "invalid choice 'gan-mnist'"),
    (("pretrain", "vae-digits", "--out", "{run}/vae"), "holds a run already"),
    (("pretrain", "vae-digits", "--out", "x", "--epochs", "0"), "epochs: 0 is out of range"),
    (("pretrain", "vae-cifar10", "--data", "digits", "--out", "x"), "the model needs (3, 32, 32)"),
    (("pretrain", "vae-digits", "--data", "no-such-set", "--out", "x"), "no-such-set"),
    (("pretrain", "vae-digits", "--data", "{truncated}", "--out", "x"), "truncated"),
    (("pretrain", "two-stage-mnist", "--data", "digits", "--out", "x"), "give --vae FOLDER"),
    (("pretrain", "vae-digits", "--vae", "{run}/vae", "--out", "x"), "is of no use to preset vae-digits"),
    (("pretrain", "vae-flow-mnist", "--data", "digits", "--vae", "{run}/paper", "--out", "x"), "is a TiltedGenerator"),
    (("tilt", "{run}/vae", "--data", "gaussians", "--out", "x"), "the model needs (1, 32, 32)"),
    (("tilt", "{latent}", "--data", "digits", "--out", "x"), "has shape"),
    (("tilt", "{run}/vae", "--data", "digits", "--out", "x", "--recipe", "best"), "invalid choice 'best'"),
    (("evaluate", "{run}/vae", "--data", "digits", "-n", "20"), "give -n"),
    (("evaluate", "{run}/vae", "--data", "digits", "-n", "-2"), "-n -2: is out of range"),
    (("report", "nothing"), "no such folder"),
    (("report", "{run}/vae", "--device", "nonsense"), "--device nonsense: is not available"),
    (("compare", "a", "b", "--seed", "1"), "Unrecognized or misplaced options: --seed"),
    (("compare", "a", "b", "--device", "cpu"), "Unrecognized or misplaced options: --device"),
    (("export", "{run}/vae", "--out", "x", "--seed", "1"), "Unrecognized or misplaced options: --seed"),
    (("push", "{run}/vae", "--repo", "user/x", "--device", "cpu"), "Unrecognized or misplaced options: --device"),
    (("demo", "--out", "x", "--port", "7000"), "--port: is for the page only; add --web"),
    (("demo", "--out", "x", "--host", "127.0.0.1"), "--host: is for the page only; add --web"),
    (("likelihood", "{run}/paper", "--limit", "5"), "--limit: limits test images, and there are none; give --data"),
    (("likelihood", "{run}/paper", "--data", "digits"), "is no flow of images; leave it out"),
    (("likelihood", "{run}/paper", "--json", "."), "Is a directory"),
    (("evaluate", "{run}/vae", "--data", "digits", "-n", "140", "--json", "/dev/null"), "Is no regular file"),
    (("evaluate", "{points}", "--data", "gaussians", "--protocol", "paper"), "--protocol paper: is of no use to data"),
    (("evaluate", "{points}", "--data", "gaussians", "--features", "random"), "--features random: is of no use to"),
    (("export", "{run}/vae", "--out", "link"), "--out link: exists already"),
    (("export", "{run}/vae", "--out", "."), "--out .: exists already"),
    (("export", "{run}/vae", "--out", "x", "--data", "gaussians"), "the model needs (1, 32, 32)"),
    (("tilt", "{points}", "--data", "gaussians", "--out", "{points}"), "holds a model, and no run; give another"),
    (("sample", "{run}/paper", "--out", "x.png", "--resample", "999999999999"), "fit into memory"),
    (("tilt", "{run}/vae", "--data", "digits", "--out", "x", "--replicas", "999999999999"), "fit into memory"),
    (("sample", "{run}/paper", "--out", "x.png", "--step-size", "inf"), "step_size: inf is out of range"),
    (("sample", "{run}/vae", "--out", "x.png", "--start", "9223372036854775807"), "is out of range"),
    (("sample", "{run}/paper", "--out", "x.png", "--baseline", "dot", "--temperature", "1"), "to dot; leave it out"),
    (("sample", "{run}/vae", "--out", "x.png", "--columns", "0"), "--columns 0: is out of range"),
    (("sample", "{run}/vae", "--out", "x.npz", "--columns", "3"), "--columns: is for a grid only"),
    (("sample", "{run}/vae", "--out", "x", "--shard-size", "3"), "--shard-size: is for shards only; give --format"),
    (("sample", "{run}/vae", "--out", "x.npz", "--resume"), "--resume: is for folders only"),
    (("sample", "{run}/vae", "--out", "x", "--start", "-1"), "start: -1 is negative"),
    (("sample", "{run}/vae", "--out", "x", "--batch-size", "0"), "--batch-size 0: is out of range"),
    (
        ("sample", "{run}/vae", "--out", "x", "--base", "--temperature", "0.5"),
        "--temperature: is of no use with --base",
    ),
    (("sample", "{run}/paper", "--out", "x", "--base", "--steps", "0"), "--steps: is of no use with --base"),
    (("sample", "{run}/paper", "--out", "x", "--base", "--adapt", "0.6"), "--adapt: is of no use with --base"),
    (("sample", "{run}/paper", "--out", "x", "--base", "--compile"), "--compile: is of no use with --base"),
    (("sample", "{run}/paper", "--out", "x", "--base", "--baseline", "dot"), "--baseline: is of no use with --base"),
    (("dance",), "Unrecognized options: dance"),
    ((), "Expected one of"),
]


_ML = ("--objective", "maximum_likelihood", "--energy", "small", "--space", "x")
WRONG += [
    (
        ("tilt", "{run}/" + name, "--data", "digits", "--out", "x", *options),
        f"{options[-2]}: is of no use with {words}",
    )
    for name, options, words in (
        ("vae", ("--chains", "persistent"), "objective logistic_ratio; leave it out, or give --objective max"),
        ("vae", ("--walkers", "8"), "objective logistic_ratio"),
        ("vae", ("--restart", "0"), "objective logistic_ratio"),
        ("vae", ("--chain-steps", "3"), "objective logistic_ratio"),
        ("vae", ("--chain-kernel", "mala"), "objective logistic_ratio"),
        ("vae", (*_ML, "--relative", "0.1"), "objective maximum_likelihood; leave it out, or give --objective log"),
        ("vae", (*_ML, "--floor", "0.1"), "objective maximum_likelihood"),
        ("paper", (*_ML, "--pool", "9"), "objective maximum_likelihood"),
        ("vae", (*_ML, "--walkers", "8"), "chains short_run; leave it out, or give --chains persistent"),
        ("vae", (*_ML, "--chains", "jarzynski", "--chain-kernel", "mala", "--restart", "0.1"), "chains jarzynski"),
        ("vae", ("--recipe", "default-x", "--encoder", "own"), "space x; leave it out, or give --space z"),
        ("vae", ("--recipe", "default-x", "--floor", "0.1"), "space x"),
        ("vae", ("--pool", "9"), "one stage on a generator that is not tilted; leave it out, or give --stages 2"),
        ("vae", ("--stage-iterations", "9"), "one stage"),
        ("default", ("--stage-learning-rate", "0.1"), "one stage"),
    )
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda v: " ".join(v)[:60] if isinstance(v, tuple) else "")
def test_a_wrong_input_is_one_line_and_exit_code_2(
    run: Path, tmp_path: Path, monkeypatch, capsys, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    truncated = tmp_path / "truncated"
    truncated.mkdir()
    (truncated / "train.parquet").write_bytes(b"PAR1 and then nothing")
    latent = tmp_path / "latent"
    latent.mkdir()
    config = (run / "vae" / "config.json").read_text()
    (latent / "config.json").write_text(config.replace('"latent_size": 16', '"latent_size": 17'))
    (latent / "model.safetensors").write_bytes((run / "vae" / "model.safetensors").read_bytes())
    points = tmp_path / "points"
    ToyVAE(2, 2, 8).save_pretrained(points)
    (tmp_path / "link").symlink_to("nowhere")
    places = {"run": run, "truncated": truncated, "latent": latent, "points": points}
    assert call(*(a.format(**places) for a in arguments), *(("--quiet",) if len(arguments) > 1 else ())) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert told.startswith("exptilt: ")
    assert words in told
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.png").exists()


def test_a_full_memory_is_one_line_also_where_python_gives_no_message(monkeypatch, capsys) -> None:
    def compare(args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(commands, "compare", compare)
    assert call("compare", "a", "b") == 1
    assert capsys.readouterr().err == "exptilt: out of memory (MemoryError); use a smaller --batch-size\n"


def test_what_cannot_be_printed_loses_no_result(tmp_path: Path, monkeypatch) -> None:
    def gone(_: object) -> None:
        raise SystemExit(1)  # As rich ends where nobody reads on.

    ToyVAE(2, 2, 8).save_pretrained(tmp_path)
    monkeypatch.setattr("exptilt.measure_run.evaluate_points", lambda *_args, **_settings: {"n": 8})
    monkeypatch.setattr("exptilt.commands.use.print_table", gone)
    assert call("evaluate", tmp_path, "--data", "gaussians", "-n", 8, "--quiet") == 1
    assert json.loads((tmp_path / "result.json").read_text())["n"] == 8


def test_a_question_mark_stands_for_what_the_terminal_lacks(monkeypatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii", write_through=True))
    monkeypatch.setattr(commands, "compare", lambda _: print("1 ± λ"))
    assert call("compare", "a", "b") == 0
    assert printed.getvalue() == b"1 ? ?\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_help_that_is_read_in_part_and_complaints_in_one_line(encoding: str) -> None:
    command = f"{sys.executable} -m exptilt.cli tilt --help | true; {sys.executable} -m exptilt.cli tilt --out"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("exptilt: Missing value for argument"), done.stderr
    assert "---" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_version(capsys) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out.startswith("exptilt 0.")


@pytest.mark.parametrize("command", ["demo", "pretrain", "tilt", "sample", "evaluate", "likelihood", "report"])
def test_every_command_has_help_with_defaults(command: str, capsys) -> None:
    assert call(command, "--help") == 0
    told = capsys.readouterr().out
    assert "default:" in told
    assert "--seed INT" in told
    assert ("--adapt tunes" in told) == (command == "evaluate")


@pytest.mark.data
@pytest.mark.skipif("EXPTILT_DATA" not in os.environ, reason="EXPTILT_DATA is not set: no real MNIST")
def test_the_papers_recipe_runs_on_a_slice_of_mnist(tmp_path: Path) -> None:
    """The paper's networks, two updates: that the path is whole, not that it is good."""
    vae, tilted = tmp_path / "vae", tmp_path / "tilted"
    assert call("pretrain", "vae-mnist", "--data", "mnist", "--limit", 256, "--epochs", 1, "--out", vae, "--quiet") == 0
    command = ("tilt", vae, "--data", "mnist", "--recipe", "paper", "--limit", 256, "--out", tilted, "--quiet")
    assert call(*command, "--iterations", 2, "--chain-steps", 3, "--steps", 4, "--batch-size", 8) == 0
    assert call("sample", tilted, "-n", 9, "--out", tmp_path / "grid.png", "--quiet") == 0
    record = json.loads((tilted / "run.json").read_text())
    assert (record["config"]["energy"], record["config"]["energy_width"]) == ("resnet", 64)
    assert record["gradient_evaluations"] == 2 * 8 * 3
