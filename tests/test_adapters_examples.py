"""The examples' models, which know nothing of exptilt, as its generators; and how long the scripts are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import exptilt

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
