"""The ablation of the default recipe, on tiny cells."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from exptilt.config import SamplerConfig
from exptilt.errors import InputError
from exptilt.presets import RECIPES
from exptilt.reproduce import ablation
from exptilt.reproduce.cells import Cells, Settings

TINY = Settings(
    n=130,
    seeds=(0,),
    epochs=1,
    limit=200,
    changes={"iterations": 2, "batch_size": 8, "sampler": SamplerConfig(kernel="mala", steps=2), "check_every": 1},
)


def test_each_choice_is_one_cell_of_each_seed_and_is_made_once(tmp_path: Path) -> None:
    lines: list[str] = []
    only = ("default", "no-average", "one-strength")
    cells = Cells(tmp_path, TINY, lines.append)
    told = ablation.run_ablation(cells, ["digits"], generators=["vae"], seeds=[0, 1], only=only)
    assert [(cell["training_seed"], cell["choice"]) for cell in told["cells"]] == [(s, c) for s in (0, 1) for c in only]
    assert not told["failed"]
    assert len(lines) == 6

    configs = {
        (seed, name): json.loads((tmp_path / f"ablation/seed-{seed}/digits/vae-{name}/run.json").read_text())["config"]
        for seed in (0, 1)
        for name in only
    }
    reference = configs[0, "default"]
    changed = {key for key in reference if configs[0, "no-average"][key] != reference[key]}
    assert changed == {"ema_decay"}
    assert configs[1, "default"]["seed"] == 1

    page = (tmp_path / "ablation/ablation.md").read_text()
    assert page.count("\n| no running mean") == 1
    assert "## VAE, digits" in page
    assert "In all tilts, other than the recipe has it: iterations 2, batch_size 8, sampler" in page
    without = [next(cell["base"] for cell in told["cells"] if cell["training_seed"] == seed)["fid"] for seed in (0, 1)]
    assert without[0] != without[1]
    spread = f"{statistics.fmean(without):.2f} ± {statistics.stdev(without):.2f}"
    assert f"Without a tilt: FID {spread}, recall" in page
    # A choice that failed with one seed is compared over the others.
    without_seed = [cell for cell in told["cells"] if (cell["choice"], cell["training_seed"]) != ("no-average", 1)]
    plain, average = (
        next(cell["fid"] for cell in told["cells"] if (cell["choice"], cell["training_seed"]) == (name, 0))
        for name in ("default", "no-average")
    )
    lines_of_page = ablation.markdown({**told, "cells": without_seed}).splitlines()
    line = next(line for line in lines_of_page if "no running" in line)
    assert line.split(" | ")[2] == f"{100 * (average / plain - 1):+.0f}%".replace("-", "−")
    # Repeated, nothing is made anew.
    again = ablation.run_ablation(cells, ["digits"], generators=["vae"], seeds=[0, 1], only=only)
    assert len(lines) == 6
    assert again["cells"] == told["cells"]


def test_every_choice_is_a_setting_of_the_default_recipe_that_it_changes() -> None:
    recipe = RECIPES["default"]
    for name, choice in ablation.CHOICES.items():
        assert all(getattr(recipe, key) != value for key, value in choice.changes.items()), name
        assert (name == ablation.REFERENCE) == (not choice.changes and choice.recipe == "default")
    with pytest.raises(InputError, match="is no choice of the default recipe"):
        ablation.run_ablation(Cells(Path("nowhere"), TINY), ["digits"], only=["everything"])
