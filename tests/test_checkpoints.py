"""The published checkpoints: that each loads, fits its bounds, and says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import exptilt
from exptilt.storage import read_tensors
from exptilt.tilted import TiltedGenerator

ROOT = Path(__file__).parents[1]
CHECKPOINTS = sorted(path for path in (ROOT / "checkpoints").glob("[!.]*") if path.is_dir())
MEBIBYTE = 1 << 20


def test_every_generator_of_the_paper_is_published_for_every_set() -> None:
    names = {f"{model}-{data}" for model in ("vae", "glf", "glow") for data in ("mnist", "fashion", "cifar10")}
    assert names <= {path.name for path in CHECKPOINTS}


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_a_checkpoint_loads_samples_and_has_a_card(folder: Path) -> None:
    model = exptilt.load(folder)
    data = json.loads((folder / "run.json").read_text())["config"]["data"]
    assert model.data_shape == ((3, 32, 32) if data == "cifar10" else (1, 32, 32))
    generator = model.generator if isinstance(model, TiltedGenerator) else model
    x = generator.sample(2, seed=0)
    assert bool(x.isfinite().all())
    if generator.has_encoder:
        assert bool(generator.encode(x.clamp(-1, 1), torch.Generator().manual_seed(0)).isfinite().all())
    result = json.loads((folder / "result.json").read_text())
    card = (folder / "README.md").read_text()
    assert result["n"] >= 2000
    assert len(result["seeds"]) == 3
    assert f"`{result['protocol']['hash']}`" in card
    assert (folder / "samples.png").exists()


def test_weights_in_the_repository_are_half_precision_and_small() -> None:
    """At most 8 MiB a file and 48 MiB in all; rglob does not follow the links of tilted checkpoints."""
    files = [path for folder in ("checkpoints", "src") for path in (ROOT / folder).rglob("*.safetensors")]
    files = list({path.resolve() for path in files})
    assert sum(path.stat().st_size for path in files) <= 48 * MEBIBYTE
    for path in files:
        assert path.stat().st_size <= 8 * MEBIBYTE, path
        tensors, _ = read_tensors(path)
        floats = {value.dtype for value in tensors.values() if value.is_floating_point()}
        assert floats <= {torch.float16}, path
