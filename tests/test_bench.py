"""The benchmark at sizes where nothing is measured: what it writes, and that what it compares samples the same."""

from __future__ import annotations

import json
import sys
import typing
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from exptilt import cli, provenance
from exptilt.bench.agreement import agreement, plain_chain
from exptilt.bench.ceiling import Ceiling, OperationsAlone, dominating_operation, flops_of_gradient
from exptilt.bench.methods import METHODS, Exptilt
from exptilt.bench.plain import plain_potential
from exptilt.bench.rows import Rows
from exptilt.bench.run import Timing, bench, make_records
from exptilt.bench.scaling import scaling
from exptilt.bench.workloads import WORKLOADS, Workload, make
from exptilt.energies import MLPEnergy, ResNetEnergy
from exptilt.generators import GLF, VAE
from exptilt.sampling.kernel import value_and_gradient

CPU = torch.device("cpu")


def refuse(text: str) -> None:
    raise AssertionError(f"left out, and should not be: {text}")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def test_the_command_writes_a_record_for_each_workload_and_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    workloads, methods = ("toy", "latent"), ("exptilt", "exptilt-float32", "plain")
    options = ("--workload", *workloads, "--method", *methods, "--rounds", 2, "--quick", "--json", out)
    assert call("bench", *options, "--device", "cpu") == 0
    records = json.loads(out.read_text())
    assert [(r["workload"], r["method"]) for r in records] == [(w, m) for w in workloads for m in methods]
    for record in records:
        chains, steps = record["chains"], record["steps"]
        assert record["gradient_evaluations"] == chains * (steps + (record["workload"] == "latent"))
        assert record["device"] == "cpu"
        assert record["seconds_spread"][0] <= record["seconds"] <= record["seconds_spread"][1]
        assert record["ratio_spread"][0] <= record["ratio_to_plain"] <= record["ratio_spread"][1]
        assert record["ceiling_fraction"] > 0
        assert record["flops"] > 0
        assert record["threads"] == torch.get_num_threads()
        assert record["torch"] == torch.__version__
        assert {"commit", "command", "cpu_seconds", "kernel", "dtype", "agreement"} <= record.keys()
        if record["method"] == "plain":
            assert record["ratio_to_plain"] == 1
    printed = capsys.readouterr()
    assert max(map(len, printed.out.splitlines())) <= 80
    assert "with the same noise" in printed.err


@pytest.mark.parametrize(("option", "value"), [("--rounds", 0), ("--threads", 0)])
def test_numbers_out_of_range_are_refused(option: str, value: int) -> None:
    assert call("bench", "--quick", option, value) == 2


def test_the_command_line_names_every_workload_and_method() -> None:
    hints = typing.get_type_hints(cli.Bench)
    assert set(typing.get_args(typing.get_args(hints["workload"])[0])) == set(WORKLOADS)
    assert set(typing.get_args(typing.get_args(hints["method"])[0])) == set(METHODS)


@pytest.mark.parametrize("name", WORKLOADS)
def test_exptilt_and_the_plain_loop_sample_the_same(name: str) -> None:
    figures = agreement(make(name, quick=True), CPU)
    # Rounding of float32 through three steps; on latents of size about 1.
    assert figures["float32_max"] < 1e-5
    assert figures["plain_max"] < 1e-5
    # Half the step times the error of a gradient of size about 1 that has three digits, plus what it grows by.
    assert figures["bfloat16_max"] < 3e-2
    assert figures["bfloat16_rms"] <= figures["bfloat16_max"]


def test_the_plain_loop_moves_its_chains() -> None:
    workload = make("vae", quick=True)
    start = workload.generator.sample_prior(workload.chains)
    moved = plain_chain(workload, CPU, torch.float32, seed=0)
    # Two steps of √ε ω, with ε = 0.01.
    assert float((moved - start).std()) == pytest.approx(0.02**0.5, rel=0.5)


@pytest.mark.parametrize("name", WORKLOADS)
def test_chains_of_every_method_stay_finite_and_count_as_many_gradients(name: str) -> None:
    workload = make(name, quick=True)
    seen: dict[str, int] = {}
    for method in ("exptilt", "plain"):
        made = METHODS[method](workload, CPU)
        count = _count_calls(made)
        assert bool(torch.isfinite(made(0)).all())
        seen[method] = count[0]
    assert seen["exptilt"] == seen["plain"] == workload.gradient_evaluations


def _count_calls(method: object) -> list[int]:
    """Sums the batch sizes that the energy sees."""
    count = [0]
    energies: list[nn.Module] = []
    if isinstance(method, Exptilt):
        energies = [e for e in (method.tilted.energy, method.tilted.latent_energy) if e is not None]
    else:
        cells = method.potential.__closure__  # type: ignore[attr-defined]
        energies = [c.cell_contents for c in cells if isinstance(c.cell_contents, (ResNetEnergy, MLPEnergy))]
    for energy in energies:
        energy.register_forward_pre_hook(lambda _, inputs: count.__setitem__(0, count[0] + len(inputs[0])))
    return count


def test_a_missing_library_is_reported_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchebm", None)
    monkeypatch.setitem(sys.modules, "blackjax", None)
    told: list[str] = []
    methods = ("plain", "torchebm", "blackjax")
    records = bench(("toy", "latent"), methods, device=CPU, rounds=1, quick=True, warn=told.append)
    assert {r["method"] for r in records} == {"plain"}
    assert len(told) == 2
    for library, line in zip(methods[1:], told, strict=True):
        assert f"{library} is not installed" in line
        assert "pip install 'exptilt[bench]'" in line


def test_torchebm_runs_the_same_number_of_gradients() -> None:
    pytest.importorskip("torchebm", reason="torchebm is not installed: pip install 'exptilt[bench]'")
    workload = make("latent", quick=True)
    method = METHODS["torchebm"](workload, CPU)
    count = _count_calls_of_potential(method)
    z = method(0)
    assert z.shape == (workload.chains, *workload.generator.latent_shape)
    assert count[0] == workload.gradient_evaluations


def _count_calls_of_potential(method: object) -> list[int]:
    count = [0]
    model = method.sampler.model  # type: ignore[attr-defined]
    model.register_forward_pre_hook(lambda _, inputs: count.__setitem__(0, count[0] + len(inputs[0])))
    # torchebm calls forward() itself, past hooks.
    forward = model.forward
    model.forward = lambda x: (count.__setitem__(0, count[0] + len(x)), forward(x))[1]
    return count


def test_blackjax_is_left_out_where_it_has_no_network() -> None:
    _require_jax()
    told: list[str] = []
    records = bench(("toy", "glf"), ("plain", "blackjax"), device=CPU, rounds=1, quick=True, warn=told.append)
    assert [(r["workload"], r["method"]) for r in records] == [("toy", "plain"), ("toy", "blackjax"), ("glf", "plain")]
    assert len(told) == 1
    assert "GLF" in told[0]


def test_blackjax_moves_chains_that_follow_from_the_seed() -> None:
    _require_jax()
    workload = make("latent", quick=True)
    first, again, other = (METHODS["blackjax"](workload, CPU)(seed) for seed in (1, 1, 2))
    assert first.shape == (workload.chains, *workload.generator.latent_shape)
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other)


def test_jax_modules_equal_torchs() -> None:
    _require_jax()
    import jax
    import jax.numpy as jnp

    from exptilt.bench.jax_modules import Unconvertible, to_jax

    workload = make("vae", quick=True)
    generator, energy = workload.generator, workload.energy
    assert energy is not None
    decode, evaluate = to_jax(generator), to_jax(energy)
    z = torch.randn(5, 8, requires_grad=True)
    x = generator.decode(z)
    in_jax = decode.function(decode.parameters, jnp.asarray(z.detach().numpy()))
    torch.testing.assert_close(
        torch.tensor(jax.device_get(in_jax)).permute(0, 3, 1, 2), x.detach(), rtol=1e-3, atol=1e-4
    )

    def potential(z: jax.Array) -> jax.Array:
        return evaluate.function(evaluate.parameters, decode.function(decode.parameters, z)).sum()

    value, gradient = jax.value_and_grad(potential)(jnp.asarray(z.detach().numpy()))
    expected = energy(x).sum()
    (expected_gradient,) = torch.autograd.grad(expected, z)
    assert float(value) == pytest.approx(expected.item(), rel=1e-3, abs=1e-3)
    torch.testing.assert_close(torch.tensor(jax.device_get(gradient)), expected_gradient, rtol=1e-3, atol=1e-4)

    strided = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.SiLU(), nn.Conv2d(4, 2, 3, bias=False), nn.Sigmoid())
    images = torch.randn(2, 3, 12, 10)
    converted = to_jax(strided)
    in_jax = converted.function(converted.parameters, jnp.asarray(images.permute(0, 2, 3, 1).numpy()))
    expected_images = strided(images).permute(0, 2, 3, 1).detach()
    torch.testing.assert_close(torch.tensor(jax.device_get(in_jax)), expected_images, rtol=1e-3, atol=1e-4)
    with pytest.raises(Unconvertible, match="GLF"):
        to_jax(GLF(1, 4, 4))
    with pytest.raises(Unconvertible, match="groups"):
        to_jax(nn.Conv2d(4, 4, 3, groups=2))


def _require_jax() -> None:
    pytest.importorskip("jax", reason="JAX is not installed: pip install 'exptilt[bench]'")
    pytest.importorskip("blackjax", reason="blackjax is not installed: pip install 'exptilt[bench]'")


def test_operations_are_those_of_the_forward_pass_and_of_the_inputs_gradient() -> None:
    energy = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 1), nn.Flatten(0)).requires_grad_(False)
    assert flops_of_gradient(energy, torch.randn(3, 4)) == 2 * 2 * (4 * 32 + 32 * 1)


def test_the_ceiling_is_measured_on_what_most_of_the_arithmetic_goes_into() -> None:
    workload = make("vae", quick=True)
    potential = plain_potential(*workload.parts(CPU))
    operation = dominating_operation(potential, workload.generator.sample_prior(5))
    # The first block of the energy, at the images' resolution.
    assert str(operation) == "convolution 5×8×32×32 with 8×8×3×3"
    assert operation.flops == 2 * 5 * 8 * 8 * 9 * 32 * 32
    assert Ceiling(operation, CPU, torch.float32).measure(0.01) > 0


def test_operations_alone_are_all_of_a_gradient_and_take_a_part_of_its_time() -> None:
    tilted = Exptilt(make("vae", quick=True), CPU, "float32").tilted
    potential, z = tilted.chain_potential(), tilted.generator.sample_prior(3)
    alone = OperationsAlone(potential, z)
    with FlopCounterMode(display=False) as as_run:
        value_and_gradient(potential, z)
    with FlopCounterMode(display=False) as counted:
        assert alone.measure(1e-9) > 0
    # Each once to warm up and once on the clock; some are called more than once in a gradient.
    assert as_run.get_total_flops() / 2 < counted.get_total_flops() <= 2 * as_run.get_total_flops()


def test_a_ratio_is_how_many_times_faster_than_plain_a_method_is() -> None:
    workload = Workload("vae", VAE(1, 8, 8), None, None, make("vae", quick=True).sampler, 6)
    methods = {name: METHODS[name](make("toy", quick=True), CPU) for name in ("exptilt", "plain")}
    seconds = {"exptilt": [1.0, 2.0, 4.0], "plain": [4.0, 4.0, 4.0]}
    ceilings = {"bfloat16": 120.0, "float32": 60.0}
    timing = Timing(methods, seconds, seconds, {"exptilt": 10, "plain": 15}, {"exptilt": 0.1}, ceilings, "one")
    first, plain = make_records(workload, timing, CPU, {})
    assert (first["seconds"], first["ratio_to_plain"], first["ratio_spread"]) == (2.0, 2.0, [1.0, 4.0])
    # 6 chains × 2 steps × 10 operations in 2 s, of 120 a second.
    assert first["ceiling_fraction"] == pytest.approx(0.5)
    # Their operations alone: 12 gradients of 0.1 s.
    assert first["operations_fraction"] == pytest.approx(0.6)
    assert plain["ratio_to_plain"] == 1
    # And plain has more of them: 12 × 15 in 4 s.
    assert plain["ceiling_fraction"] == pytest.approx(0.375)
    assert plain["operations_fraction"] is None


def test_scaling_has_a_row_for_each_value_of_each_axis() -> None:
    records = scaling(device=CPU, rounds=1, quick=True, warn=refuse)
    axes = [record["scaling"]["axis"] for record in records if record["method"] == "plain"]
    assert axes == [axis for axis in ("chains", "steps", "latent size", "couplings a level") for _ in range(2)]
    assert {record["method"] for record in records} == {"exptilt", "plain"}


def test_rows_are_kept_one_by_one_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = Rows(path, seed=3)
    assert not rows.has({"model": "a"})
    rows.add({"model": "a", "n": 5, "fid": [1.0, 2.0]})
    again = Rows(path, seed=3)
    assert again.has({"model": "a", "n": 5})
    assert not again.has({"model": "a", "n": 6})
    again.add({"model": "b", "n": 5, "fid": [3.0, 4.0]})
    written = json.loads(path.read_text())
    assert (written["seed"], [row["model"] for row in written["rows"]]) == (3, ["a", "b"])
    assert written["commit"] == provenance.commit()
