"""The paper's table and figures from the command, on tiny cells; what is measured at full size is in docs/results."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exptilt import VAE, MLPEnergy, TiltedGenerator, cli, load
from exptilt.config import SamplerConfig
from exptilt.data import to_uint8
from exptilt.errors import InputError
from exptilt.presets import RECIPES, preset, tilt_changes
from exptilt.reproduce import operations
from exptilt.reproduce.b2 import check_statements
from exptilt.reproduce.cells import Cells, Settings
from exptilt.reproduce.grids import draw_chains, draw_grids
from exptilt.reproduce.models import short_names, tilted_folders
from exptilt.reproduce.overfitting import draw_overfitting
from exptilt.reproduce.paper import CLAIMS, DATA_SETS, ROWS
from exptilt.reproduce.quality_cost import draw_cost
from exptilt.reproduce.reach import measure_reach
from exptilt.reproduce.results import publish
from exptilt.reproduce.table1 import make_table
from exptilt.reproduce.toys import draw_toys
from exptilt.reproduce.verdict import verdict
from exptilt.training.fitting import MONITORED

CPU = torch.device("cpu")
SHORT = SamplerConfig(steps=2)
TINY = Settings(
    n=130,
    seeds=(0,),
    epochs=1,
    limit=200,
    changes={
        "iterations": 2,
        "energy_width": 4,
        "batch_size": 8,
        "check_every": 1,
        "chain": SHORT,
        "sampler": SHORT,
        "strengths": (1.0,),
        "target_acceptance": 0.0,
        "walkers": 16,
    },
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("table")
    return out, make_table(Cells(out, TINY), ["vae", "two-stage", "vae-ebm"], ["digits"])


def test_each_cell_tells_its_figures_and_their_cost(made: tuple[Path, dict]) -> None:
    out, table = made
    cells = {cell["name"]: cell for cell in table["cells"]}
    assert set(cells) == {"vae", "two-stage", "vae-ebm"}
    result = json.loads((out / "digits" / "vae-ebm" / "result.json").read_text())
    cell = cells["vae-ebm"]
    assert cell["fid"] == result["tilted"]["fid"]
    assert cell["protocol"] == result["protocol"]["hash"] == cells["vae"]["protocol"]
    assert cell["change"] == pytest.approx(result["tilted"]["fid"] / result["base"]["fid"] - 1)
    # 2 updates of 8 chains of 2 gradients; checks look at the chains of training.
    assert cell["cost"]["gradient_evaluations"] == 32
    assert (cell["cost"]["iterations"], cell["cost"]["gradients_a_sample"]) == (2, 2)
    flops = cell["cost"]["flops"]
    assert flops["sampling"] == 130 * 2 * flops["gradient"] > 0
    assert flops["training"] > 32 * flops["gradient"]
    # What was shortened.
    assert cell["note"].endswith("walkers 16, chain 2 steps, sampler 2 steps, 200 training images")
    # Of the same frozen generator: the same samples, the same figure.
    assert cell["base"]["fid"] == pytest.approx(cells["vae"]["fid"])
    assert "| VAE + EBM | **" in (out / "table1.md").read_text()
    entries = {row["generator"] + "/" + row["method"]: row for row in json.loads((out / "results.json").read_text())}
    assert set(entries) == {"vae/base", "vae/paper", "two-stage/base"}
    assert entries["vae/paper"]["gradient_evaluations"] == 32


def test_all_chains_that_go_on_are_counted_as_negatives() -> None:
    tilted = TiltedGenerator(VAE(latent_size=4, width=4), latent_energy=MLPEnergy(4, 8))
    config = {"objective": "maximum_likelihood", "iterations": 10, "batch_size": 8, "walkers": 40}

    def training(chains: str) -> int:
        record = {"gradient_evaluations": 0, "config": config | {"chains": chains}}
        return operations.of_tilt(tilted, record, 0)["training"]

    # 8 positives and 40 negatives, against 8 of each.
    assert training("persistent") == training("jarzynski") == 3 * training("replay") > 0
    assert training("short_run") == training("replay")


def test_values_that_a_sample_is_chosen_by_are_counted() -> None:
    """i-SIR has no gradients, and a value of each candidate."""
    sampler = SamplerConfig(kernel="isir", steps=3, candidates=5)
    tilted = TiltedGenerator(VAE(latent_size=4, width=4), latent_energy=MLPEnergy(4, 8), sampler=sampler)
    config = {"objective": "logistic_ratio", "iterations": 1, "batch_size": 8}
    z = torch.zeros(1, 4)
    value = operations.counted(lambda: tilted.potential(z))
    assert operations.of_tilt(tilted, {"gradient_evaluations": 0, "config": config}, 10)["sampling"] == 10 * 13 * value


def test_a_table_that_is_done_is_only_read(made: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch) -> None:
    out, table = made
    monkeypatch.setattr(Cells, "measure", lambda *_: pytest.fail("measured again"))
    again = make_table(Cells(out, TINY), ["vae", "two-stage", "vae-ebm"], ["digits"])
    assert again["cells"] == table["cells"]


def test_figures_come_from_the_cells_alone(made: tuple[Path, dict], tmp_path: Path) -> None:
    """Those of a published table, whose runs are gone."""
    out, _ = made
    for cell in out.rglob("cell.json"):
        (kept := tmp_path / cell.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(cell, kept)
    make_table(Cells(tmp_path, TINY), ["vae", "two-stage", "vae-ebm"], ["digits"])
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows == json.loads((out / "results.json").read_text())
    publish(rows, tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert f"| vae | digits | paper (laptop) | {rows[-1]['fid_base']:.2f} → **{rows[-1]['fid']:.2f}** [" in page
    # Of a generator alone there is no change to tell.
    assert f"| vae | digits | base (laptop) | **{rows[0]['fid']:.2f}** [" in page


def test_cells_of_other_settings_are_not_mixed(made: tuple[Path, dict]) -> None:
    out, _ = made
    with pytest.raises(InputError, match="began with other settings"):
        make_table(Cells(out, Settings(n=130, seeds=(0,), epochs=2, limit=200)), ["vae"], ["digits"])
    with pytest.raises(InputError, match="no row of table 1"):
        make_table(Cells(out, TINY), ["gan"], ["digits"])


@pytest.mark.slow
def test_a_killed_table_goes_on_with_its_cell(tmp_path: Path) -> None:
    arguments = ["reproduce", "table1", "--only", "vae", "--data-sets", "digits", "-n", "130", "--seeds", "0"]
    arguments += ["--limit", "200", "--epochs", "40", "--out", str(tmp_path), "--quiet"]
    command = [sys.executable, "-m", "exptilt.cli", *arguments]
    run = tmp_path / "laptop" / "digits" / "vae"
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run / "checkpoint.safetensors").exists()
    assert not (run / "cell.json").exists()
    before = len((run / "log.jsonl").read_text().splitlines())
    began = json.loads((run / "run.json").read_text())["started"]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert not stop.value.code
    cell = json.loads((run / "cell.json").read_text())
    assert cell["cost"]["iterations"] == 120  # 3 batches of 64 in each of 40 epochs
    assert json.loads((run / "run.json").read_text())["started"] == began
    iterations = [json.loads(line)["iteration"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert iterations == sorted(set(iterations))
    assert len(iterations) >= before - 10


def test_grids_are_the_models_own_samples_pixel_for_pixel(made: tuple[Path, dict], tmp_path: Path) -> None:
    folder = made[0] / "digits" / "vae-ebm"
    told = draw_grids("fig5.2", [folder], tmp_path, n=4, seed=3, device=CPU)
    (one,) = told["models"]
    model = load(folder)
    with Image.open(tmp_path / "fig5.2" / f"{one['name']}-tilted.png") as image:
        drawn = torch.from_numpy(np.asarray(image).copy())[:, :, 0]
    expected = to_uint8(model.sample(4, seed=3))[:, 0]
    assert torch.equal(drawn[32:, :32], expected[2])
    assert one["energy"]["prior"] != one["energy"]["tilted"]
    with Image.open(tmp_path / "fig5.2" / f"{one['name']}-prior.png") as image:
        assert image.size == (64, 64)
    told = draw_chains([folder], tmp_path, seed=0, device=CPU)
    assert told["models"][0]["steps"][0] == 0
    assert len(told["models"][0]["energy"][0]) == 8
    model.sampler = model.sampler.change(steps=0)
    model.save_pretrained(tmp_path / "still")
    with pytest.raises(InputError, match="has a chain without steps"):
        draw_chains([tmp_path / "still"], tmp_path, seed=0, device=CPU)


def test_cost_counts_gradients_and_overfitting_marks_what_was_kept(made: tuple[Path, dict], tmp_path: Path) -> None:
    folder = made[0] / "digits" / "vae-ebm"
    cost = draw_cost([folder], tmp_path, kernels=["langevin", "hmc"], n=130, seed=0, device=CPU, steps=2, every=1)
    langevin, hmc = (curve["at"] for curve in cost["curves"])
    assert [look["gradients"] for look in langevin] == [0, 1, 2]
    assert [look["gradients"] for look in hmc] == [0, 6, 11]
    # The same z₀ of the same prior.
    assert langevin[0]["fid"] == pytest.approx(hmc[0]["fid"])
    (run,) = draw_overfitting([folder], tmp_path)["runs"]
    assert run["values"][run["iterations"].index(run["chosen"])] == min(run["values"])
    assert (tmp_path / "cost.png").exists()
    assert (tmp_path / "overfitting.png").exists()
    with pytest.raises(InputError, match="no log"):
        draw_overfitting([tmp_path], tmp_path)


def test_reach_tells_the_first_check_at_a_fid_and_what_it_had_cost(made: tuple[Path, dict], tmp_path: Path) -> None:
    folders = [tmp_path / "latent", tmp_path / "pixel"]
    logs = {"latent": (90.0, 60.0, 70.0), "pixel": (120.0, 80.0, 50.0)}
    for folder in folders:
        shutil.copytree(made[0] / "digits" / "vae-ebm", folder)
        record = json.loads((folder / "run.json").read_text())
        record["config"] |= {"iterations": 30, "generator": "uniform"} if folder.name == "pixel" else {"iterations": 30}
        (folder / "run.json").write_text(json.dumps(record | {"gradient_evaluations": 300}))
        lines = [{"iteration": 10 * (i + 1), "fid": fid, "seconds": i} for i, fid in enumerate(logs[folder.name])]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ({"iteration": 5}, *lines)))
    told = measure_reach(folders, tmp_path, device=CPU)
    assert [run["space"] for run in told["runs"]] == ["latents", "pixels"]
    reached = {level["fid"]: level["runs"] for level in told["reached"]}
    assert list(reached) == [60.0, 50.0]
    assert reached[60.0]["latent"]["iterations"] == 20
    assert reached[60.0]["latent"]["gradients"] == 200
    assert reached[60.0]["pixel"]["iterations"] == 30
    assert reached[60.0]["pixel"]["operations"] == pytest.approx(1.5 * reached[60.0]["latent"]["operations"], rel=1e-6)
    assert reached[50.0]["latent"] is None
    page = (tmp_path / "reach.md").read_text()
    assert "| 50.0 | latent | latents | never (30 made) |" in page
    assert f"(whole batches, at least {MONITORED})" in page
    assert (tmp_path / "reach.png").exists()
    (at_85,) = measure_reach(folders, tmp_path, levels=[85.0], device=CPU)["reached"]
    assert [costs["iterations"] for costs in at_85["runs"].values()] == [20, 20]
    (folders[0] / "log.jsonl").unlink()
    with pytest.raises(InputError, match="no log"):
        measure_reach(folders, tmp_path, device=CPU)


def test_toys_have_the_data_the_vae_and_both_recipes(tmp_path: Path) -> None:
    changes = {"iterations": 2, "energy_width": 8, "chain": SHORT, "sampler": SHORT, "target_acceptance": 0.0}
    told = draw_toys(tmp_path, sets=["gaussians"], seed=0, device=CPU, epochs=1, changes=changes, points=300)
    figures = told["sets"]["gaussians"]["figures"]
    assert list(figures) == ["data", "VAE", "VAE + EBM", "VAE + EBM, default recipe"]
    assert figures["data"]["high_quality"] > 0.95 > figures["VAE"]["high_quality"]


def test_b2_compares_runs_that_differ_in_one_setting(made: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = made
    only = ["reference", "less-noise", "sampling-60", "small-energy"]
    told = check_statements(Cells(out, TINY), "digits", only=only)
    reference, noisy = (
        json.loads((out / "digits" / f"b2-{name}" / "run.json").read_text())["config"]
        for name in ("reference", "less-noise")
    )
    assert {key for key in reference if reference[key] != noisy[key]} == {"chain", "sampler"}
    verdicts = {statement["worse"]: statement["verdict"] for statement in told["statements"]}
    assert verdicts["small-steps"] == "missing"
    assert verdicts["less-noise"] in ("reproduced", "contrary", "undecided")
    reference, longer = (told["runs"][name] for name in ("reference", "sampling-60"))
    measured = json.loads((out / "digits" / "b2-sampling-60" / "result.json").read_text())["tilted"]
    assert measured["fid"] != reference["fid"]
    for name in ("fid", "fid_per_seed", "kid", "precision", "density", "class_entropy"):
        assert longer[name] == measured[name]
    # The chains at sampling have another length and cost, all else is the reference's.
    assert longer["cost"]["gradients_a_sample"] == 60
    assert longer["cost"]["flops"]["sampling"] == 30 * reference["cost"]["flops"]["sampling"]
    assert longer["cost"]["gradient_evaluations"] == reference["cost"]["gradient_evaluations"]
    assert longer["energy_gap"] == reference["energy_gap"] is not None
    # At the laptop's scale the smaller energy is the recipe's own.
    assert told["runs"]["small-energy"] == reference
    assert not (out / "digits" / "b2-small-energy").exists()
    monkeypatch.setattr(Cells, "measure", lambda *_: pytest.fail("measured again"))
    assert check_statements(Cells(out, TINY), "digits", only=only)["runs"] == told["runs"]


def test_a_verdict_needs_a_difference_beyond_its_interval_and_one_protocol() -> None:
    low, high = ({"fid": fid, "fid_ci": [fid - 1, fid + 1], "protocol": "a"} for fid in (4.0, 9.0))
    assert verdict(-0.2, low, high) == "reproduced"
    assert verdict(0.2, low, high) == "contrary"
    assert verdict(-0.2, low, {**high, "fid": 5.0, "fid_ci": [4.0, 6.0]}) == "undecided"
    assert verdict(-0.2, low, {**high, "protocol": "b"}) == "missing"
    assert verdict(-0.2, None, high) == "missing"


def test_the_papers_table_is_whole() -> None:
    assert sum(len(row.fid) for row in ROWS.values()) == 27
    assert ROWS["vae-ebm"].paper_fid("fashion") == 38.1
    assert ROWS["pixel"].paper_fid("digits") is None
    for a, b in CLAIMS:
        worse = a in ("two-stage", "vae-flow")
        for data in DATA_SETS:
            x, y = ROWS[a].paper_fid(data), ROWS[b].paper_fid(data)
            assert x is not None
            assert y is not None
            assert worse or b == "pixel" or x < y


def test_the_paper_scale_is_the_recipe_and_200_updates_on_flows() -> None:
    assert tilt_changes("paper", "VAE", "paper", "mnist") == {}
    assert tilt_changes("paper", "Glow", "paper", "mnist") == {"iterations": 200}
    assert tilt_changes("default", "VAE", "laptop", "mnist") == {}
    shorter = tilt_changes("pixel-ebm-cifar10", "UniformPixels", "laptop", "cifar10")
    assert shorter["iterations"] < RECIPES["pixel-ebm-cifar10"].iterations


def test_networks_of_digits_are_narrow_at_both_scales() -> None:
    assert preset("vae-digits", "laptop") == preset("vae-digits", "paper")
    assert tilt_changes("paper", "VAE", "paper", "digits") == {"energy_width": 24}
    assert tilt_changes("pixel-ebm", "UniformPixels", "laptop", "digits")["energy_width"] == 24
    assert tilt_changes("default", "VAE", "laptop", "digits") == {}


def test_models_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("a/vae", "b/vae"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model_index.json").write_text("{}")
    found = tilted_folders([tmp_path], [])
    assert [folder.parent.name for folder in found] == ["a", "b"]
    assert short_names(found) == ["a-vae", "b-vae"]
    with pytest.raises(InputError, match="holds no tilted model"):
        tilted_folders([tmp_path / "c"], [])
