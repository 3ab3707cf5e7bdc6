"""The examples' models, which know nothing of exptilt, as its generators; and how long the scripts are."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import re
import runpy
from pathlib import Path

import pytest
import torch

import exptilt
from exptilt.data import load_dataset
from exptilt.evaluation.evaluate import evaluate
from exptilt.presets import RECIPES

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("improve_*.py"))


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from foreign import train_flow, train_gan, train_vae

    return train_vae.VAE(), train_gan.GAN(), train_flow.PCAFlow()


def _statements(script: Path) -> int:
    lines = script.read_text().splitlines()
    _, *code = ast.parse(script.read_text()).body
    return sum(bool(line.strip()) for line in lines[code[0].lineno - 1 :])


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_a_script_is_at_most_ten_lines(script: Path) -> None:
    assert _statements(script) <= 10


def test_the_models_are_generators_of_images_like_the_data_sets(foreign) -> None:
    vae, gan, flow = foreign
    with torch.no_grad():
        flow.basis.copy_(torch.linalg.qr(torch.randn(784, 32))[0])
    flat = {"output_range": (0, 1), "data_shape": (1, 28, 28)}
    generators = [
        exptilt.wrap(vae.decode, (20,), encode=vae.encode, **flat),
        exptilt.from_gan(gan.generator, 64, data_shape=(1, 28, 28)),
        exptilt.wrap(flow.decode, (32,), prior=flow.flow, encode=flow.encode, **flat),
    ]
    for generator in generators:
        x = generator.sample(3, seed=1)
        assert x.shape == (3, 1, 32, 32)
        assert float(x.min()) >= -1
        assert float(x.max()) <= 1
    x = generators[2].sample(3, seed=1)
    assert generators[2].encode(x).shape == (3, 32)
    tilted = exptilt.TiltedGenerator(
        generators[1], exptilt.DiscriminatorEnergy(generators[1].native(gan.discriminator))
    )
    assert tilted.sample(2, sampler=exptilt.SamplerConfig(steps=2)).shape == (2, 1, 32, 32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the examples' training scripts have run, on a few images and for one epoch."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.chdir(folder)
        patch.syspath_prepend(str(EXAMPLES / "foreign"))
        few = importlib.import_module("mnist").training_images()[:512]
        patch.setattr("mnist.training_images", lambda: few)
        for name, length in (("train_vae", "EPOCHS"), ("train_gan", "EPOCHS"), ("train_flow", "STEPS")):
            module = importlib.import_module(name)
            patch.setattr(module, length, 1)
            module.main()
    return folder


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("EXPTILT_DATA" not in os.environ, reason="EXPTILT_DATA is not set: no real MNIST")
@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_a_script_runs(script: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """From training to the figures it prints, with few images and updates: that it runs, not how good it is."""
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name, recipe in RECIPES.items():
        short = dataclasses.replace(recipe, iterations=5, encoder_iterations=3, batch_size=64)
        monkeypatch.setitem(RECIPES, name, short)
    monkeypatch.setattr(exptilt, "load_dataset", lambda name, split="train": load_dataset(name, split, 400))
    monkeypatch.setattr(
        exptilt, "evaluate", lambda model, data, n: evaluate(model, data, n=300, seeds=(0,), progress=False)
    )
    runpy.run_path(str(script))
    assert re.fullmatch(r"FID \d+\.\d → \d+\.\d\n", capsys.readouterr().out)
