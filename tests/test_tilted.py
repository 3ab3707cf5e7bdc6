"""The tilted generator: eq. 6 in closed form, gradients, reproducibility, saving, errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import exptilt
from exptilt.config import SamplerConfig
from exptilt.energies import make_energy
from exptilt.energies.compose import RewardEnergy
from exptilt.energies.mlp import MLPEnergy
from exptilt.energies.small import SmallEnergy
from exptilt.errors import InputError
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.generators.wrap import wrap
from exptilt.tilted import LatentPotential, TiltedGenerator


class QuadraticEnergy(nn.Module):
    """k/2 ‖x − m‖²."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.5 * (x - 2.0).square().flatten(1).sum(1)


def small_model(**kwargs: object) -> TiltedGenerator:
    torch.manual_seed(1)
    return TiltedGenerator(VAE(1, 8, 8), SmallEnergy(1, 8), precision="float32", **kwargs)  # type: ignore[arg-type]


def test_linear_decoder_and_quadratic_energy_have_a_gaussian_posterior() -> None:
    """x = a z, E = k/2 ‖x − m‖²: z has precision 1 + k a² and mean k a m / (1 + k a²)."""
    a, k, m = 0.7, 3.0, 2.0
    sampler = SamplerConfig(kernel="mala", steps=60, step_size=0.3)
    tilted = TiltedGenerator(wrap(lambda z: a * z, (2,)), QuadraticEnergy(), sampler=sampler)
    z = tilted.sample(4000, seed=3, return_latents=True)
    precision = 1 + k * a**2
    n = z.numel()
    assert abs(float(z.mean()) - k * a * m / precision) < 4.8 / math.sqrt(precision * n)
    assert abs(float(z.var()) * precision - 1) < 4.8 * math.sqrt(2 / n)
    torch.testing.assert_close(tilted.sample(10, seed=3), a * z[:10])


def test_strength_scales_the_energy_and_zero_is_the_prior() -> None:
    generator = wrap(lambda z: z, (2,))
    z = torch.randn(5, 2)
    energy = QuadraticEnergy()
    u = LatentPotential(generator, energy, strength=0.5)(z)
    torch.testing.assert_close(u, 0.5 * energy(z) - generator.prior.log_prob(z))
    torch.testing.assert_close(LatentPotential(generator, energy, strength=0.0)(z), -generator.prior.log_prob(z))


def test_energies_on_x_and_z_add_up() -> None:
    generator = wrap(lambda z: 2 * z, (3,))
    on_z = MLPEnergy(3, 8)
    tilted = TiltedGenerator(generator, QuadraticEnergy(), latent_energy=on_z)
    z = torch.randn(5, 3)
    expected = QuadraticEnergy()(2 * z) + on_z(z) - generator.prior.log_prob(z)
    torch.testing.assert_close(tilted.potential(z), expected)


@pytest.mark.parametrize("kind", ["resnet", "small"])
def test_the_gradient_of_the_potential_through_the_decoder_agrees_with_finite_differences(kind: str) -> None:
    torch.manual_seed(0)
    generator = VAE(1, 5, 4).double()
    tilted = TiltedGenerator(generator, make_energy(kind, (1, 32, 32), 4).double())
    z = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tilted.potential, (z,), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_sample_i_is_the_same_in_batches_of_7_and_of_64() -> None:
    tilted = small_model(sampler=SamplerConfig(steps=20, step_size=0.05))
    whole = tilted.sample(64, seed=5, batch_size=64)
    torch.testing.assert_close(tilted.sample(64, seed=5, batch_size=7), whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(tilted.sample(10, seed=5, start=30), whole[30:40], rtol=0, atol=1e-4)
    assert not torch.allclose(tilted.sample(64, seed=6), whole, atol=1e-2)


def test_base_and_tilted_start_at_the_same_latents() -> None:
    tilted = small_model(sampler=SamplerConfig(steps=0))
    torch.testing.assert_close(tilted.sample(5, seed=2), tilted.generator.sample(5, seed=2))


@pytest.mark.parametrize("kernel", ["langevin", "mala"])
def test_info_traces_energy_and_trajectory(kernel: str) -> None:
    tilted = small_model(sampler=SamplerConfig(kernel=kernel, steps=12, step_size=0.01))  # type: ignore[arg-type]
    z, info = tilted.sample(9, seed=0, return_latents=True, return_info=True, record_every=5, batch_size=4)
    assert z.shape == (9, 8)
    assert info.energy.shape == (12, 9)
    assert info.recorded_steps == [0, 5, 10, 12]
    assert info.trajectory.shape == (4, 9, 8)
    torch.testing.assert_close(info.trajectory[-1], z)
    before = tilted.generator.sample_prior(9, seed=0)
    torch.testing.assert_close(info.trajectory[0], before)
    at = before if kernel == "langevin" else None
    if at is not None:
        assert tilted.energy is not None
        torch.testing.assert_close(info.energy[0], tilted.energy(tilted.generator.decode(at)), rtol=1e-3, atol=1e-4)
    assert 0 < float(info.acceptance.mean()) <= 1
    assert "correlated with their start" in info.sentence


def test_no_samples_are_no_samples() -> None:
    assert small_model().sample(0).shape == (0, 1, 32, 32)


def test_save_load_sample_gives_the_same_samples(tmp_path: Path) -> None:
    tilted = small_model(sampler=SamplerConfig(kernel="mala", steps=7, step_size=0.02), strength=0.7)
    tilted.save_pretrained(tmp_path / "model")
    loaded = exptilt.load(tmp_path / "model")
    assert isinstance(loaded, TiltedGenerator)
    assert loaded.sampler == tilted.sampler
    assert loaded.strength == tilted.strength
    assert torch.equal(loaded.sample(6, seed=9), tilted.sample(6, seed=9))
    names = sorted(str(p.relative_to(tmp_path / "model")) for p in (tmp_path / "model").rglob("*") if p.is_file())
    parts = [f"{part}/{name}" for part in ("energy", "generator") for name in ("config.json", "model.safetensors")]
    assert names == [*parts, "model_index.json"]


def test_a_latent_energy_and_a_toy_generator_survive_saving(tmp_path: Path) -> None:
    tilted = TiltedGenerator(ToyVAE(2, 3, 16), latent_energy=MLPEnergy(3, 8))
    tilted.save_pretrained(tmp_path)
    assert torch.equal(exptilt.load(tmp_path).sample(4), tilted.sample(4))


def test_a_wrapped_decoder_is_given_again_at_loading(tmp_path: Path) -> None:
    generator = wrap(nn.Linear(4, 2), (4,))
    tilted = TiltedGenerator(generator, MLPEnergy(2, 8), sampler=SamplerConfig(steps=3))
    tilted.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="saved without its generator"):
        exptilt.load(tmp_path)
    assert torch.equal(exptilt.load(tmp_path, generator=generator).sample(4), tilted.sample(4))


def test_a_generator_beside_the_folders_own_is_refused(tmp_path: Path) -> None:
    generator = ToyVAE(2, 3, 16)
    TiltedGenerator(generator, latent_energy=MLPEnergy(3, 8)).save_pretrained(tmp_path / "tilted")
    generator.save_pretrained(tmp_path / "plain")
    for folder in ("tilted", "plain"):
        with pytest.raises(InputError, match=r"generator=: is of no use: .* leave it out"):
            exptilt.load(tmp_path / folder, generator=generator)


def test_wrong_energies_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="has no energy"):
        TiltedGenerator(VAE(1, 8, 8))
    with pytest.raises(InputError, match="one number a sample"):
        TiltedGenerator(VAE(1, 8, 8), nn.Flatten())
    with pytest.raises(InputError, match="energy: fails on inputs of shape"):
        TiltedGenerator(VAE(1, 8, 8), SmallEnergy(3, 8))
    with pytest.raises(InputError, match=r"fails on inputs of shape .*: RuntimeError"):
        TiltedGenerator(VAE(1, 8, 8), RewardEnergy(_failing))
    points = wrap(lambda z: 1.0 * z, (2,))
    with pytest.raises(InputError, match="energy: fails on inputs of shape"):
        TiltedGenerator(points, nn.BatchNorm2d(2))
    with pytest.raises(InputError, match="energy: gives tuple for 2 inputs"):
        TiltedGenerator(points, nn.AdaptiveMaxPool1d(1, return_indices=True))
    with pytest.raises(InputError, match="is given a function as energy"):
        TiltedGenerator(points, lambda x: x.sum(1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"generator: is a Linear; give exptilt.wrap"):
        TiltedGenerator(nn.Linear(2, 2), QuadraticEnergy())  # type: ignore[arg-type]


def _failing(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError


def test_weights_of_five_dimensions_are_taken() -> None:
    """torch has no channels-last order of them."""

    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv3d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x[:, None]).flatten(1).sum(1)

    tilted = TiltedGenerator(VAE(1, 8, 8), Volume(), sampler=SamplerConfig(steps=1))
    assert tilted.sample(2).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(("argument", "value"), [("n", -1), ("start", -1), ("batch_size", -3), ("seed", -1)])
def test_arguments_out_of_range_are_refused(argument: str, value: int) -> None:
    with pytest.raises(InputError, match=argument):
        small_model().sample(**{"n": 2, argument: value})  # type: ignore[arg-type]


def corrupt_index(folder: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(path.read_text().replace('"TiltedGenerator"', '"os.system"'))


def corrupt_class(folder: Path) -> None:
    path = folder / "energy" / "config.json"
    path.write_text(path.read_text().replace('"SmallEnergy"', '"Popen"'))


def corrupt_argument(folder: Path) -> None:
    path = folder / "energy" / "config.json"
    path.write_text(path.read_text().replace('"width": 8', '"width": 1000000000'))


def truncate_weights(folder: Path) -> None:
    path = folder / "generator" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def shrink_latent(folder: Path) -> None:
    path = folder / "generator" / "config.json"
    path.write_text(path.read_text().replace('"latent_size": 8', '"latent_size": 9'))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (corrupt_index, "does not describe"),
        (corrupt_class, "'Popen' is not known"),
        (corrupt_argument, "out of range"),
        (truncate_weights, "not a whole safetensors file"),
        (shrink_latent, "has shape"),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(tmp_path: Path, damage, words: str) -> None:
    small_model().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        exptilt.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        exptilt.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no model"):
        exptilt.load(tmp_path)


def test_the_strength_does_not_multiply_an_energy_that_is_added() -> None:
    """N(0, 1) tilted by r = x₀ is N(1, 1), whatever λ is there for the energy that was learned."""

    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0 * x.sum(1)

    reward = exptilt.RewardEnergy(lambda x: x[:, 0])
    mala = SamplerConfig(kernel="mala", steps=40, step_size=0.5)
    for parts in ({"energy": Zero()}, {"latent_energy": Zero()}):
        learned = TiltedGenerator(wrap(lambda z: 1.0 * z, (2,)), **parts, sampler=mala, strength=2.5)
        both = learned + reward
        assert both.strength == 2.5
        x = both.sample(2000, seed=1)
        assert abs(float(x[:, 0].mean()) - 1) < 4.8 / math.sqrt(2000)
        assert abs(float(x[:, 1].mean())) < 4.8 / math.sqrt(2000)


def test_an_energy_added_to_a_tilt_that_was_of_no_help_counts_alone() -> None:
    none = SamplerConfig(kernel="mala", steps=0)
    unhelped = TiltedGenerator(wrap(lambda z: 1.0 * z, (2,)), QuadraticEnergy(), sampler=none, strength=0.0)
    both = unhelped + exptilt.RewardEnergy(lambda x: x[:, 0])
    assert both.strength == 1.0
    assert both.latent_energy is None
    assert both.sampler == SamplerConfig()
    x = torch.tensor([[1.0, 5.0]])
    torch.testing.assert_close(both.potential(x), -x[:, 0] - both.generator.prior.log_prob(x))


def test_chains_refuse_an_energy_without_a_gradient_unless_they_need_none() -> None:
    class Blind(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return 5 * (x - 3).square().sum(1)

    tilted = TiltedGenerator(wrap(lambda z: 1.0 * z, (2,)), Blind())
    with pytest.raises(InputError, match="energy: has no gradient in its input"):
        tilted.sample(4)
    with pytest.raises(InputError, match="has no gradient"):
        TiltedGenerator(tilted.generator, latent_energy=Blind(), sampler=SamplerConfig("mala")).adapted_sampler(0.6)
    # A gradient in weights that nobody froze is none in the input.
    layer = nn.Linear(2, 1)
    with pytest.raises(InputError, match="has no gradient"):
        TiltedGenerator(tilted.generator, RewardEnergy(lambda x: layer(x.detach()))).sample(4)
    # i-SIR needs values alone, and finds where they are low.
    isir = SamplerConfig("isir", steps=30, candidates=64)
    assert float(tilted.sample(200, sampler=isir).mean()) > 1.5
    assert tilted.sample(4, sampler=SamplerConfig(steps=0)).shape == (4, 2)


def test_inside_of_a_module_in_training_it_stays_frozen() -> None:
    tilted = small_model(sampler=SamplerConfig(steps=2))
    before, weights = tilted.sample(4, seed=1), {k: v.clone() for k, v in tilted.state_dict().items()}
    nn.ModuleList([tilted]).train()
    assert not any(part.training for part in tilted.modules())
    assert torch.equal(tilted.sample(4, seed=1), before)
    assert all(torch.equal(value, weights[name]) for name, value in tilted.state_dict().items())


@pytest.mark.parametrize("kernel", ["langevin", "mala", "hmc", "underdamped", "isir", "ex2mcmc"])
def test_inference_mode_changes_no_sample(kernel: str) -> None:
    sampler = SamplerConfig(kernel, steps=3)  # type: ignore[arg-type]
    model = small_model(sampler=sampler)
    expected = model.sample(3)
    with torch.inference_mode():
        assert torch.equal(model.sample(3), expected)
        if kernel == "mala":
            model.adapted_sampler(0.6)
            exact = model.generator.sample_prior(4)
            assert math.isfinite(exptilt.estimate_log_z(model, n=20, bound_chains=10, exact=exact).value)


def test_weights_in_float64_are_refused_where_latents_are_drawn() -> None:
    model = TiltedGenerator(ToyVAE(2, 3, 16).double(), MLPEnergy(2, 8).double())
    for draw in (model.sample, model.generator.sample):
        with pytest.raises(InputError, match="has weights in float64"):
            draw(2)
    with pytest.raises(InputError, match="has weights in float64"):
        exptilt.estimate_log_z(model, n=20)
    assert model.potential(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_settings_of_a_sampling_that_make_no_sense_are_refused() -> None:
    model = TiltedGenerator(ToyVAE(2, 3, 16), MLPEnergy(2, 8), sampler=SamplerConfig(kernel="mala", steps=2))
    with pytest.raises(InputError, match="record_every: 0 is out of range; give a whole number ≥ 1"):
        model.sample(2, return_info=True, record_every=0)
    with pytest.raises(InputError, match="batch_size: 'big' is no number; give a whole number ≥ 1, or 'auto'"):
        model.sample(2, batch_size="big")  # type: ignore[call-overload]
    # Every proposal would be refused, and the samples be the generator's.
    model.strength = math.nan
    with pytest.raises(InputError, match="strength: nan is no finite number"):
        model.sample(2)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"strength": math.nan}, "strength: nan is no finite number"),
        ({"strength": "1"}, "strength: '1' is no finite number"),
        ({"precision": "bf16"}, "precision: 'bf16' is not known; use one of auto, float32, bfloat16"),
    ],
)
def test_settings_that_are_not_known_are_refused(argument: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TiltedGenerator(ToyVAE(2, 3, 16), MLPEnergy(2, 8), **argument)  # type: ignore[arg-type]
