"""Configurations: round trips, checks, and what needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from exptilt.config import PretrainConfig, SamplerConfig, TiltConfig, from_dict, override, to_dict
from exptilt.errors import InputError
from exptilt.presets import PRESETS, RECIPES, preset


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    assert from_dict(TiltConfig, json.loads(json.dumps(to_dict(RECIPES[name])))) == RECIPES[name]


@pytest.mark.parametrize("name", ["vae-mnist", "glf-fashion", "glow-cifar10", "two-stage-mnist", "vae-flow-cifar10"])
def test_the_laptop_scale_is_shorter_and_of_the_same_data(name: str) -> None:
    paper, laptop = preset(name, "paper"), preset(name, "laptop")
    assert laptop.epochs < paper.epochs
    assert (laptop.preset, laptop.model, laptop.data) == (paper.preset, paper.model, paper.data)
    assert preset("toy-gaussians", "laptop") == preset("toy-gaussians", "paper")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    assert from_dict(PretrainConfig, json.loads(json.dumps(to_dict(PRESETS[name])))) == PRESETS[name]


def test_the_papers_recipe_has_the_papers_numbers() -> None:
    paper = RECIPES["paper"]
    assert (paper.energy, paper.energy_width) == ("resnet", 64)
    assert (paper.chain.steps, paper.sampler.steps) == (60, 100)
    assert paper.chain.step_size == paper.sampler.step_size == 0.01
    assert paper.energy_regularization == 0.1
    assert paper.iterations == 1000


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"itterations": 3}, "no setting 'itterations'"),
        ({"iterations": "3"}, "is not int"),
        ({"iterations": True}, "is not int"),
        ({"iterations": 0}, "out of range"),
        ({"learning_rate": -1}, "out of range"),
        ({"objective": "gan"}, "is not known"),
        ({"chain": {"steps": -1}}, "out of range"),
        ({"seed": 2**64}, "seed: 18446744073709551616 is out of range"),
        ({"chain": 3}, "must be a JSON object"),
        ([], "must be a JSON object"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(values: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        from_dict(TiltConfig, values)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(InputError, match="preset"):
        from_dict(PretrainConfig, {"model": "VAE"})


def test_override_leaves_what_is_none() -> None:
    assert override(SamplerConfig(), steps=None, step_size=0.5) == SamplerConfig(step_size=0.5)


def test_help_imports_no_torch() -> None:
    code = "import sys, exptilt.cli, exptilt.config; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "wrong", [{"energy": "resnt"}, {"objective": "logistic"}, {"space": "y"}, {"chains": "persist"}, {"schedule": "no"}]
)
def test_a_misspelt_name_is_refused_in_python_too(wrong: dict[str, str]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"{name}: '{value}' is not known; use one of "):
        TiltConfig(**wrong)  # type: ignore[arg-type]
