"""The page of results is made from the files of runs, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exptilt import provenance
from exptilt.errors import InputError
from exptilt.reproduce import checkpoints
from exptilt.reproduce.results import Collect, collect, entry, publish

MEASURED = {
    "fid": 4.0,
    "fid_ci": [3.5, 4.5],
    "fid_per_seed": [3.9, 4.1],
    "kid": 0.5,
    "precision": 0.9,
    "recall": 0.8,
    "density": 1.0,
    "coverage": 0.7,
    "class_entropy": 2.3,
}


def write_run(folder: Path, fid: float = 4.0) -> Path:
    folder.mkdir()
    result = {
        "base": MEASURED | {"fid": 20.0},
        "tilted": MEASURED | {"fid": fid},
        "floor": None,
        "reconstruction": MEASURED | {"fid": 2.0},
        "n": 1000,
        "seeds": [0, 1],
        "protocol": {"hash": "abc"},
        "command": "exptilt evaluate RUN",
    }
    (folder / "result.json").write_text(json.dumps(result))
    run = {"command": "exptilt tilt RUN", "gradient_evaluations": 12_000, "seconds": 30.4, "commit": "0123"}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_a_run_becomes_one_row_and_is_replaced_by_its_repetition(tmp_path: Path) -> None:
    rows = tmp_path / "docs" / "results.json"
    for name, fid in (("first", 4.0), ("second", 5.6)):
        run = write_run(tmp_path / name, fid)
        collect(Collect(run, generator="vae", dataset="mnist", method="paper", note="Shortened.", docs=rows.parent))
    (row,) = json.loads(rows.read_text())
    assert (row["fid_base"], row["fid"], row["protocol"], row["commit"]) == (20.0, 5.6, "abc", "0123")
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| 20.00 → **5.60** [3.50, 4.50] | -72% | 80% |" in page
    assert "exptilt tilt RUN\nexptilt evaluate RUN" in page
    assert "Shortened." in page


def test_figures_of_other_sample_sizes_stay_beside_each_other(tmp_path: Path) -> None:
    row = entry(write_run(tmp_path / "run"), "vae", "mnist", "default", "laptop", "")
    publish([row, row | {"n": 2000}], tmp_path / "docs")
    publish([row | {"fid": 3.0}], tmp_path / "docs")
    kept = json.loads((tmp_path / "docs" / "results.json").read_text())
    assert [(row["n"], row["fid"]) for row in kept] == [(1000, 3.0), (2000, 4.0)]


def test_a_generators_own_run_is_collected(tmp_path: Path) -> None:
    """It records no seconds, and the features of a user's own network may tell no classes."""
    docs = tmp_path / "docs"
    measured = MEASURED | {"class_entropy": None}
    for name, log in (("with", '{"iteration": 3, "seconds": 61.7}\n'), ("without", "")):
        run = write_run(tmp_path / name)
        result = json.loads((run / "result.json").read_text()) | {"base": measured, "tilted": None}
        (run / "result.json").write_text(json.dumps(result))
        (run / "run.json").write_text(json.dumps({"command": "exptilt pretrain"}))
        (run / "log.jsonl").write_text(log)
        collect(Collect(run, generator="vae", dataset="mnist", method=name, docs=docs))
    assert [row["seconds"] for row in json.loads((docs / "results.json").read_text())] == [61.7, None]
    page = (docs / "results.md").read_text()
    assert "| – → – | 1,000 × 2 | 0 | 62 | `abc` |" in page
    assert "| 0 | – | `abc` |" in page
    assert checkpoints._time(tmp_path / "with", {"threads": 2}) == "1.0 min, 2 threads"
    assert checkpoints._time(tmp_path / "without", {"threads": 1}) == "–, 1 thread"


def test_a_row_that_cannot_be_shown_does_not_stay_in_the_file(tmp_path: Path) -> None:
    row = entry(write_run(tmp_path / "run"), "vae", "mnist", "paper", "laptop", "")
    with pytest.raises(TypeError):
        publish([row | {"method": "default", "fid_ci": None}], tmp_path / "docs")
    publish([row], tmp_path / "docs")
    assert json.loads((tmp_path / "docs" / "results.json").read_text()) == [row]


def test_a_run_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        collect(Collect(tmp_path, generator="vae", dataset="mnist", method="paper", docs=tmp_path))


def test_a_result_tells_the_command_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = Path(__file__).parents[1] / "benchmarks" / "seeds.py"
    for script, told in (
        ("/usr/bin/exptilt", "exptilt run 'my runs/a'"),
        (str(benchmark), "python benchmarks/seeds.py run 'my runs/a'"),
        ("/home/me/notebook.py", "(Python API)"),
    ):
        monkeypatch.setattr("sys.argv", [script, "run", "my runs/a"])
        assert provenance.command() == told


def test_the_source_knows_its_commit_or_that_it_has_none() -> None:
    commit = provenance.commit()
    assert commit is None or len(commit.removesuffix("-dirty")) >= 12


def test_outside_of_a_checkout_the_environment_names_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "0123456789ab")
    inside = provenance._of_checkout()
    assert provenance.commit() == (inside or "0123456789ab")
    monkeypatch.setenv("PATH", "")  # no git, as in a container
    assert provenance.commit() == "0123456789ab"
