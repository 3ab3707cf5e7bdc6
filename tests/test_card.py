"""Model cards: what the Hub reads of them, and that they claim nothing that was not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from exptilt.report.card import Facts, model_card

ROOT = Path(__file__).parents[1]
FACTS = Facts("VAE", 1234, (1, 32, 32), 2048, "float16", tilted=True, whole=True)


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    """run.json and result.json of a published model."""
    folder = ROOT / "checkpoints" / "vae-mnist-tilted"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("run", "result")}


def test_the_header_is_what_the_hub_reads(checkpoint: dict[str, Any]) -> None:
    result = checkpoint["result"]
    data = ModelCard(model_card("user/name", FACTS, checkpoint["run"], result, weights_license="mit")).data
    assert (data.license, data.library_name, data.datasets) == ("mit", "exptilt", ["ylecun/mnist"])
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.tags == ["exptilt", "vae", "energy-based-model"]
    assert data.metrics == ["fid", "kid"]
    fid = next(entry for entry in data.eval_results if entry.metric_type == "fid")
    assert fid.metric_value == round(result["tilted"]["fid"], 4)
    assert fid.metric_name == f"FID (features mnist, 10,000 samples × 3 seeds, protocol {result['protocol']['hash']})"
    assert (fid.dataset_type, fid.dataset_name, fid.dataset_split) == ("ylecun/mnist", "MNIST", "test")
    assert data.model_name == "name"


def test_a_generators_figures_are_those_of_the_base(checkpoint: dict[str, Any]) -> None:
    facts = Facts("VAE", 1234, (1, 32, 32), 2048, "float16", tilted=False, whole=True)
    result = {**checkpoint["result"], "tilted": None}
    data = ModelCard(model_card("name", facts, {}, result)).data
    assert data.eval_results[0].metric_value == round(result["base"]["fid"], 4)


def test_table_protocol_and_example_stand_in_the_text(checkpoint: dict[str, Any]) -> None:
    card = model_card("user/name", FACTS, checkpoint["run"], checkpoint["result"], revision="v1")
    figures = checkpoint["result"]["tilted"]
    low, high = figures["fid_ci"]
    assert f"| tilted | {figures['fid']:.2f} [{low:.2f}, {high:.2f}] |" in card
    for name, value in checkpoint["result"]["protocol"].items():
        assert f"| {name} | `{value}` |" in card
    assert 'exptilt.load("user/name", revision="v1")' in card
    assert f"`{checkpoint['run']['command']}`" in card
    local = model_card("name", FACTS, checkpoint["run"], checkpoint["result"])
    assert 'exptilt.load("name")  # the folder\'s path' in local


def test_the_optimizer_is_the_one_that_trained(checkpoint: dict[str, Any]) -> None:
    assert "| optimizer | Adam, batch 512," in model_card("name", FACTS, checkpoint["run"], None)
    decayed = {**checkpoint["run"], "config": checkpoint["run"]["config"] | {"weight_decay": 0.01}}
    assert "| optimizer | AdamW of weight decay 0.01, batch 512," in model_card("name", FACTS, decayed, None)


def test_nothing_is_claimed_that_is_not_known() -> None:
    card = model_card("user/name", FACTS, {}, None, has_grid=False)
    data = ModelCard(card).data
    assert data.eval_results is None
    assert data.metrics is None
    assert data.datasets is None
    assert "samples.png" not in card
    assert "## Samples" not in card
    assert "Not recorded." in card


def test_points_have_their_own_figures() -> None:
    figures = {"n": 100, "high_quality": 0.9, "log_density": -1.0, "seconds": 1.0}
    result = {
        "protocol": {"data": "gaussians", "hash": "abc"},
        "n": 100,
        "seeds": [0],
        "base": figures,
        "tilted": {**figures, "high_quality": 0.95},
        "floor": None,
    }
    facts = Facts("ToyVAE", 10, (2,), 100, "float32", tilted=True, whole=True)
    card = model_card("user/points", facts, {"config": {}}, result)
    data = ModelCard(card).data
    assert data.pipeline_tag is None
    assert data.eval_results is None
    assert "within 3σ" in card
    assert "in [-1, 1]" not in card
    assert "Protocol `abc`." in card
