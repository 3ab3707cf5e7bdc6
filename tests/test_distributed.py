"""Several processes share the work: figures as of one, errors on all, a lost process stops the others, resuming."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed_story import story
from exptilt import distributed, rows
from exptilt.cli import main
from exptilt.moments import of_channels
from exptilt.rows import Dropout
from exptilt.sampling.random import BatchStreams
from exptilt.storage import read_json, read_tensors

TESTS = Path(__file__).parent
# Of figures after some updates, in which the rounding of sums has gone on.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves."""
    out = tmp_path_factory.mktemp("one")
    # As each of many has.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    story(out, out)
    torch.set_num_threads(threads)
    return out


def launch(processes: int, *command: object) -> subprocess.Popen[str]:
    """The command in so many processes of one thread each, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-addr", "127.0.0.1"]
    return subprocess.Popen(
        [sys.executable, *launcher, "--master-port", str(port), *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_many_processes_do_what_one_does(processes: int, by_one: Path, tmp_path: Path) -> None:
    """Same loss curves, same weights, same samples, same FID, and exit code 2 on every process for bad inputs."""
    run = launch(processes, TESTS / "distributed_story.py", tmp_path, by_one)
    said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said[-3000:]

    one, many = read_json(by_one / "figures.json"), read_json(tmp_path / "figures.json")
    assert one["exit codes"] == many["exit codes"] == [2, 2]
    for name in one:
        # Adam's first steps have the sign of a gradient, also where that is 0 but for rounding.
        np.testing.assert_allclose(many[name], one[name], rtol=TOLERANCE, atol=5e-3, err_msg=name)

    logs = sorted(path.relative_to(by_one) for path in by_one.glob("*/log.jsonl"))
    assert len(logs) == 8
    for path in logs:
        lines = [[json.loads(line) for line in (out / path).read_text().splitlines()] for out in (by_one, tmp_path)]
        assert len(lines[0]) == len(lines[1]) > 0
        for before, after in zip(*lines, strict=True):
            assert before.keys() == after.keys()
            for name in before.keys() - {"seconds"}:
                # A gradient's norm feels the updates before it several times as strongly as the loss does.
                near = (5 if name == "gradient_norm" else 1) * TOLERANCE
                assert after[name] == pytest.approx(before[name], rel=near, abs=2e-4), (path, name)

    images = [np.load(out / "samples.npz")["images"].astype(int) for out in (by_one, tmp_path)]
    # Rounding to bytes makes 1 of nothing.
    assert np.abs(images[0] - images[1]).max() <= 1
    assert (images[0] != images[1]).mean() < 1e-3
    shards = [read_json(out / "shards" / "manifest.json") for out in (by_one, tmp_path)]
    assert shards[0] == shards[1]
    results = [read_json(out / "result.json") for out in (by_one, tmp_path)]
    assert results[0]["protocol"] == results[1]["protocol"]
    for part in ("base", "tilted", "reconstruction", "floor"):
        for name in ("fid", "kid", "precision", "recall", "density", "coverage", "class_entropy"):
            assert results[1][part][name] == pytest.approx(results[0][part][name], rel=1e-4, abs=1e-4), (part, name)


@pytest.mark.slow
def test_a_lost_process_stops_the_others_and_the_run_goes_on_with_another_number(tmp_path: Path) -> None:
    """kill −9 of one of two, then --resume by one: the weights of a run that nothing has disturbed."""
    run = tmp_path / "run"
    options = ["--data", "gaussians", "--limit", "300", "--recipe", "paper", "--batch-size", "20", "--check-every", "5"]
    options += ["--chains", "persistent", "--walkers", "33", "--chain-steps", "2", "--steps", "1", "--quiet"]
    options += ["--iterations", "150"]
    command = ["tilt", str(_toy_vae(tmp_path)), *options]
    processes = launch(2, "-m", "exptilt.cli", *command, "--out", run)
    checkpoint = run / "checkpoint.safetensors"
    wait_for(lambda: checkpoint.exists() and read_tensors(checkpoint)[1]["iteration"] >= 10)
    workers = subprocess.run(["pgrep", "-P", str(processes.pid)], capture_output=True, text=True, check=True)
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    began = time.monotonic()
    said, _ = processes.communicate(timeout=300)
    assert processes.returncode == 1
    assert time.monotonic() - began < 60  # seconds, if the machine has nothing else to do
    assert "exptilt: process 0 of 2: " in said
    assert "--resume" in said

    assert read_tensors(checkpoint)[1]["iteration"] < 150
    assert call(*command, "--out", run, "--resume") == 0
    assert call(*command, "--out", tmp_path / "whole") == 0
    one, other = (read_tensors(out / "energy" / "model.safetensors")[0] for out in (run, tmp_path / "whole"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def _toy_vae(tmp_path: Path) -> Path:
    vae = tmp_path / "vae"
    assert call("pretrain", "toy-gaussians", "--epochs", "1", "--limit", "500", "--out", vae, "--quiet") == 0
    return vae


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def wait_for(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("n", [1, 7, 512, 2500])
def test_rows_of_a_batch_get_what_they_get_among_all(n: int) -> None:
    def draws(rows: range | None = None) -> list[torch.Tensor]:
        streams = BatchStreams(3, 5, n, (2, 3), rows=rows)
        return [streams.normal(), streams.uniform(), streams.normal()]

    whole = draws()
    for first, last in ((0, 1), (n // 3, n), (n - 1, n), (n // 2, n // 2 + 1)):
        for part, all_rows in zip(draws(range(first, last)), whole, strict=True):
            torch.testing.assert_close(part, all_rows[first:last], rtol=0, atol=0)
    assert len(torch.unique(whole[0], dim=0)) == n


def test_parts_draw_what_the_whole_draws() -> None:
    def draw(shape: tuple[int, ...]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        dropped = Dropout(0.4).train()(torch.ones(shape))
        return [
            rows.normal(shape, generator),
            rows.uniform(shape, generator),
            rows.integers(0, 9, shape[0], generator),
            dropped,
        ]

    torch.manual_seed(2)
    whole = draw((20, 4))
    torch.manual_seed(2)
    assert torch.equal(whole[3], torch.nn.Dropout(0.4).train()(torch.ones(20, 4)))
    torch.manual_seed(2)
    with rows.part([range(2, 5), range(12, 15)], 20):
        parts = draw((6, 4))
    for part, all_rows in zip(parts, whole, strict=True):
        assert torch.equal(part, torch.cat([all_rows[2:5], all_rows[12:15]]))


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("n", [0, 1, 5, 12, 37])
def test_shares_cover_all_rows_once(n: int, multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world", lambda: distributed.World(0, 3, 0, torch.device("cpu")))
    shares = [distributed.share(n, rank, multiple=multiple) for rank in range(3)]
    assert [index for share in shares for index in share] == list(range(n))
    if n >= 3 * multiple:
        assert all(share.start % multiple == 0 for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= multiple


def test_moments_of_a_whole_batch_are_torchs() -> None:
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    mean, variance, count = of_channels(x)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0))
    assert count == 80
