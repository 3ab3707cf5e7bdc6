"""Nearest training images: against brute force, on copies made on purpose, and on the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from exptilt.evaluation import memorisation
from exptilt.evaluation.memorisation import Memorisation
from exptilt.report.nearest import nearest_section, write_nearest
from exptilt.report.page import Picture, Table


def features(n: int, seed: int, size: int = 6) -> torch.Tensor:
    return 50 + torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def test_nearest_images_are_those_of_brute_force_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out, samples = features(300, 1), features(90, 2), features(70, 3)
    distances, indices = torch.cdist(samples.double(), train.double()).sort(1)
    for block in (1 << 22, 70 * 101, 1):  # one block, three, one for each training image
        monkeypatch.setattr(memorisation, "_BLOCK", block)
        told = Memorisation(train, held_out)(samples)
        order = distances[:, 0].argsort()[:8]
        assert [each["sample"] for each in told["nearest"]] == order.tolist()
        assert [each["train"] for each in told["nearest"]] == indices[order, :3].tolist()
        found = torch.tensor([each["distances"] for each in told["nearest"]], dtype=torch.float64)
        torch.testing.assert_close(found, distances[order, :3], rtol=1e-6, atol=1e-6)


def test_new_samples_are_as_far_as_held_out_ones() -> None:
    told = Memorisation(features(3000, 1), features(2000, 2))(features(2000, 3))
    assert told["median_ratio"] == pytest.approx(1, abs=0.05)
    assert told["share_below"] == pytest.approx(0.01, abs=0.009)  # four standard errors
    assert told["n"] == 2000


def test_copies_of_training_images_show() -> None:
    train = features(3000, 1)
    samples = features(1000, 3)
    samples[::5] = train[1000:1200]
    told = Memorisation(train, features(1000, 2))(samples)
    assert told["share_below"] == pytest.approx(0.21, abs=0.02)
    assert all(each["sample"] % 5 == 0 for each in told["nearest"])
    assert all(each["train"][0] == 1000 + each["sample"] // 5 for each in told["nearest"])
    assert told["median_ratio"] < 1
    everything = Memorisation(train, features(1000, 2))(train)
    assert everything["share_below"] == 1
    assert everything["median_ratio"] < 1e-6


def test_only_some_samples_are_looked_at_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "QUERIES", 10)
    assert memorisation.spread(7).tolist() == list(range(7))
    assert memorisation.spread(95).tolist() == [0, 9, 19, 28, 38, 47, 57, 66, 76, 85]
    told = Memorisation(features(50, 1), features(40, 2))
    assert told.facts["n_held_out"] == 10
    assert told(features(95, 3))["n"] == 10


def test_small_or_repeated_sets_give_json() -> None:
    train = features(2, 1)
    told = Memorisation(train, train)
    figures = told(features(20, 2))
    assert figures["median_ratio"] is None
    assert {len(each["train"]) for each in figures["nearest"]} == {2}
    json.dumps([figures, told.facts], allow_nan=False)


def test_the_page_shows_figures_and_picture(tmp_path: Path) -> None:
    samples = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 32, 32)
    path = write_nearest(tmp_path, samples, (10 + samples)[:, None].expand(-1, 3, -1, -1, -1))
    with Image.open(path) as picture:
        grid = picture.convert("L")
    assert grid.size == (4 * 64 + 3 * 4, 4 * 64 + 3 * 4)
    assert [grid.getpixel((68 * column + 5, 68 * row + 5)) for column in (0, 3) for row in (0, 3)] == [0, 10, 3, 13]
    neighbours = {
        "n_train": 100,
        "n_held_out": 50,
        "base": {"n": 20, "median_ratio": 1.25, "share_below": 0.005},
        "tilted": {"n": 20, "median_ratio": None, "share_below": 0.02},
    }
    section = nearest_section({"neighbours": neighbours}, path.read_bytes())
    assert section is not None
    table, picture = section.blocks
    assert isinstance(table, Table)
    assert table.rows == [["base", "1.25", "0.5%"], ["tilted", "–", "2.0%"]]
    assert isinstance(picture, Picture)
    for damaged in (None, b"", b"no picture"):
        section = nearest_section({"neighbours": neighbours}, damaged)
        assert section is not None
        assert len(section.blocks) == 1
    for nothing in ({}, {"neighbours": None}, {"neighbours": {"n_train": 3}}):
        assert nearest_section(nothing) is None
