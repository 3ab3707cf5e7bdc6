"""The command line as a user meets it: every command on a tiny slice, every wrong input in one line."""

from __future__ import annotations

import json
import os
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

from exptilt import cli
from exptilt.data import to_uint8
from exptilt.report.files import write_samples
from exptilt.storage import read_tensors


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
    files = sorted((tmp_path / "folder").iterdir())
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(10)]
    assert np.abs(pixels(files[3]) - images[3, :, :, 0]).max() <= 2


def test_any_number_of_samples_is_written_in_the_memory_of_a_block(tmp_path: Path) -> None:
    """Of the blocks of an archive or a folder, only the one that is being made is alive."""
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
    alive.clear()
    write_samples(tmp_path / "folder", (block[:1] for block in blocks()), 30, start=5)
    assert sorted(p.name for p in (tmp_path / "folder").iterdir())[0] == "000005.png"


def test_an_archive_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    def blocks() -> Iterator[torch.Tensor]:
        yield torch.zeros(5, 1, 4, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / "x.npz", blocks(), 10)
    assert list(tmp_path.iterdir()) == []


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
    (("sample", "{run}/vae", "--out", "x.png", "--device", "abacus"), "--device abacus: is not there"),
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
    (("dance",), "Unrecognized options: dance"),
    ((), "Expected one of"),
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
    places = {"run": run, "truncated": truncated, "latent": latent}
    assert call(*(a.format(**places) for a in arguments), *(("--quiet",) if len(arguments) > 1 else ())) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert told.startswith("exptilt: ")
    assert words in told
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.png").exists()


def test_version(capsys) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out.startswith("exptilt 0.")


@pytest.mark.parametrize("command", ["demo", "pretrain", "tilt", "sample", "evaluate", "likelihood", "report"])
def test_every_command_has_help_with_defaults(command: str, capsys) -> None:
    assert call(command, "--help") == 0
    told = capsys.readouterr().out
    assert "default:" in told
    assert "--seed INT" in told


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
