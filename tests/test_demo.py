"""The demo, shortened: that every part of it is made and fits together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import exptilt
from exptilt import demo
from exptilt.data.toy import sample_gaussians, sample_swissroll
from exptilt.presets import PRESETS, RECIPES
from exptilt.training import calibrate


@pytest.mark.slow
def test_the_demo_leaves_result_grid_page_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {name: dataclasses.replace(PRESETS[name], epochs=2) for name in PRESETS}
    monkeypatch.setattr(demo, "PRESETS", short)
    monkeypatch.setattr(demo, "SAMPLES", 200)
    monkeypatch.setattr(demo, "_DIGITS_CHANGES", {"energy_width": 32, "iterations": 30, "check_every": 15})
    monkeypatch.setattr(calibrate, "SAMPLES", 100)
    few = dataclasses.replace(RECIPES["default-points"], energy_width=16, iterations=20)
    monkeypatch.setitem(RECIPES, "default-points", few)
    out, tmp_path = tmp_path, tmp_path / "a b"
    result = demo.run(tmp_path, seed=1, quiet=True)
    assert result["command"] == f"exptilt demo --out '{out}/a b' --seed 1"
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    for part in ("base", "tilted", "floor", "reconstruction"):
        assert {"fid", "fid_ci", "kid", "precision", "recall", "density", "coverage"} <= result[part].keys()
    assert result["toys"]["gaussians"]["data"]["modes"] == 25
    for name in ("grid.png", "toy.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
    page = (tmp_path / "report.html").read_text()
    assert result["protocol"]["hash"] in page
    for title in ("Result", "Samples", "Chains", "Quality along the chains", "Training of the energy", "Toy sets"):
        assert f">{title}" in page
    assert exptilt.load(tmp_path / "vae-tilted").sample(2).shape == (2, 1, 32, 32)


def test_toy_figures_know_good_points_from_bad() -> None:
    points, _ = sample_gaussians(2000, seed=5)
    figures = demo.toy_figures("gaussians", points)
    # 3σ holds 1 − e^(−9/2) = 98.9% of a Gaussian of the plane.
    assert figures["within_3_sigma"] == pytest.approx(0.9889, abs=4.8 * (0.0110 / 2000) ** 0.5)
    assert figures["modes"] == 25
    assert demo.toy_figures("gaussians", points + 0.35)["within_3_sigma"] == 0
    assert demo.toy_figures("swissroll", sample_swissroll(2000, seed=5))["within_3_sigma"] > 0.99
    assert demo.toy_figures("swissroll", torch.zeros(10, 2))["within_3_sigma"] == 0
