"""``exptilt.tilt``: what it makes of data whose features are known, and of data whose features are not."""

from __future__ import annotations

import pytest
import torch

import exptilt
from exptilt.config import SamplerConfig, TiltConfig, override
from exptilt.data import load_dataset
from exptilt.errors import InputError
from exptilt.evaluation.features import load_features
from exptilt.generators.vae import VAE
from exptilt.presets import RECIPES

SHORT = override(
    RECIPES["default"],
    iterations=3,
    energy_width=8,
    batch_size=16,
    sampler=SamplerConfig(kernel="mala", steps=2, step_size=0.1),
    target_acceptance=0.0,
    strengths=(1.0, 2.0),
    largest_strength=2.0,
)


def strengths_tried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    tried: list[float] = []
    from exptilt import tilting
    from exptilt.training import calibrate, outcome

    def spy(tilted, strengths, *rest, **settings):
        tried.extend(strengths)
        return calibrate.calibrate(tilted, strengths, *rest, **settings)

    monkeypatch.setattr(tilting, "RANDOM_FROM", 1000)
    monkeypatch.setattr(calibrate, "SAMPLES", 100)
    monkeypatch.setattr(outcome, "calibrate", spy)
    # An untrained VAE's codes are its prior's, so that nothing is learned.
    monkeypatch.setattr(outcome.Fitting, "learned", lambda fitting, loss: True)
    return tried


def test_a_known_data_set_is_calibrated_by_its_features_and_another_by_random_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = strengths_tried(monkeypatch)
    vae, digits = VAE(1, 8, 8), load_dataset("digits", "train")
    exptilt.tilt(vae, digits, config=SHORT)
    assert tried == [1.0, 2.0]
    tried.clear()
    capsys.readouterr()
    as_tensor = digits.batch(slice(None))
    exptilt.tilt(vae, as_tensor, config=SHORT)
    assert tried == [1.0, 2.0]
    assert "quality is judged by a network with random weights" in capsys.readouterr().err
    tried.clear()
    assert exptilt.tilt(vae, as_tensor[:200], config=SHORT).strength == 1.0
    told = "exptilt: λ = 1 and 2 steps are the recipe's, as quality is not measured: there is no feature network"
    assert told in capsys.readouterr().err
    exptilt.tilt(vae, load_dataset("digits", "train", 200), config=SHORT)
    assert "20 held-out images are less than 100" in capsys.readouterr().err
    assert exptilt.tilt(vae, digits, features="none", config=SHORT).strength == 1.0
    assert tried == []
    exptilt.tilt(vae, as_tensor, features=load_features("digits"), config=SHORT)
    assert tried == [1.0, 2.0]


def test_what_does_not_fit_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(InputError, match="has elements of shape"):
        exptilt.tilt(VAE(1, 8, 8), -torch.ones(20, 3, 32, 32))
    with pytest.raises(InputError, match=r"generator: is a Linear; give exptilt.wrap"):
        exptilt.tilt(torch.nn.Linear(2, 2), torch.randn(50, 2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no feature network of that name"):
        exptilt.tilt(VAE(1, 8, 8), -torch.ones(20, 1, 32, 32), features="nothing")


def test_a_seed_that_is_given_is_that_of_the_settings_too() -> None:
    vae, digits = VAE(1, 8, 8), load_dataset("digits", "train", 40)

    def weights(config: TiltConfig, **seed: int) -> torch.Tensor:
        energy = exptilt.tilt(vae, digits, features="none", config=config, **seed).latent_energy
        assert energy is not None
        return torch.cat([x.flatten() for x in energy.state_dict().values()])

    of_seed_5 = weights(override(SHORT, seed=5))
    assert torch.equal(weights(SHORT, seed=5), of_seed_5)
    assert torch.equal(weights(override(SHORT, seed=3), seed=5), of_seed_5)
    assert not torch.equal(weights(SHORT), of_seed_5)
