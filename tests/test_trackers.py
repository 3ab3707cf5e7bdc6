"""Experiment trackers as the command line starts them, each without a network."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

PRETRAIN = ("pretrain", "vae-digits", "--epochs", "1", "--limit", "300", "--quiet")


def _run(out: Path, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "exptilt.cli", *PRETRAIN, "--out", str(out), "--log", name]
    secrets = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "TRACKIO_"))}
    return subprocess.run(
        command, env=secrets | environment, cwd=out.parent, capture_output=True, text=True, timeout=300, check=False
    )


def _require(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name} (pip install 'exptilt[{name}]')")


@pytest.mark.slow
def test_wandb_receives_the_figures_offline(tmp_path: Path) -> None:
    _require("wandb")
    done = _run(tmp_path / "vae", "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "vae" / "wandb").glob("offline-run-*/run-*.wandb")
    kept = record.read_bytes()
    assert all(word in kept for word in (b"exptilt", b"learning_rate", b"loss", b"gradient_norm", b"test_elbo"))
    assert not (tmp_path / "wandb").exists()


@pytest.mark.slow
def test_wandb_without_a_login_is_one_line(tmp_path: Path) -> None:
    _require("wandb")
    done = _run(tmp_path / "vae", "wandb", HOME=str(tmp_path), NETRC=str(tmp_path / "none"))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "--log wandb: does not start: " in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "vae" / "run.json").exists()


@pytest.mark.slow
def test_trackio_receives_the_figures(tmp_path: Path) -> None:
    _require("trackio")
    done = _run(tmp_path / "vae", "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "exptilt.db")) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert {name for name, _, _ in rows} == {"vae"}
    lines = [json.loads(line) for line in (tmp_path / "vae" / "log.jsonl").read_text().splitlines()]
    assert [step for _, step, _ in rows] == [line["iteration"] for line in lines]
    assert json.loads(rows[-1][2])["loss"] == lines[-1]["loss"]
