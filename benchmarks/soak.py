"""Soak: tilt, sample, save, load and evaluate in one process, again and again; its memory, handles and threads.

    python benchmarks/soak.py --minutes 60 --json benchmarks/soak.json --figure docs/soak.svg

Each round tilts a small VAE on scikit-learn's digits twice (the default recipe and maximum likelihood with persistent
chains), samples, saves, loads and evaluates. Every round is given the same seeds, so every round must give the same
samples as the first. What was measured is written each minute, and when the process is stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import platform
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy.stats
import torch

import exptilt
from exptilt.config import SamplerConfig, TiltConfig, override
from exptilt.data import DataSet
from exptilt.evaluation.cache import CACHE_VARIABLE
from exptilt.presets import RECIPES
from exptilt.provenance import commit
from exptilt.report.curves import curves
from exptilt.storage import write_bytes, write_json

_MALA = SamplerConfig(kernel="mala", steps=20, step_size=0.1)
_CONFIGS: dict[str, TiltConfig] = {
    "default": override(RECIPES["default"], iterations=30, batch_size=128, check_every=15, sampler=_MALA),
    "maximum likelihood": override(
        RECIPES["paper"],
        space="z",
        energy="mlp",
        iterations=15,
        chains="persistent",
        walkers=64,
        check_every=5,
        chain=SamplerConfig(kernel="mala", steps=5, step_size=0.1),
        sampler=_MALA,
    ),
}
_SAMPLES = 160
# What fills at the start (caches, the allocator's arenas, lazily imported modules) is left out of the slopes.
_WARM_UP_SHARE = 0.1
_QUANTITIES = {"rss_mib": "MiB", "handles": "", "threads": "", "objects": ""}


def one_round(train: DataSet, test: DataSet, folder: Path) -> str:
    """Everything that a user does with a model, once; returns a digest of the samples."""
    digest = hashlib.sha256()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = exptilt.VAE(1, 8, 8)
    for name, config in _CONFIGS.items():
        tilted = exptilt.tilt(generator, train, seed=0, config=config)
        tilted.save_pretrained(folder / name)
        loaded = exptilt.load(folder / name)
        assert isinstance(loaded, exptilt.TiltedGenerator)
        digest.update(loaded.sample(_SAMPLES, seed=0).numpy().tobytes())
    exptilt.evaluate(loaded, test, n=_SAMPLES, seeds=(0,), train=train, progress=False, bootstrap=10)
    return digest.hexdigest()


def measure(process: psutil.Process, start: float, rounds: int) -> dict[str, float]:
    """Where the process stands: minutes since the start, resident memory, open files, threads, objects of Python."""
    gc.collect()
    return {
        "minutes": (time.monotonic() - start) / 60,
        "round": rounds,
        "rss_mib": process.memory_info().rss / 2**20,
        "handles": process.num_fds(),
        "threads": process.num_threads(),
        "objects": len(gc.get_objects()),
    }


def slopes(records: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Growth of each quantity after the warm-up, an hour (with its 95% interval) and a round: the Theil-Sen slope."""
    last = records[-1]["minutes"]
    kept = [record for record in records if record["minutes"] >= _WARM_UP_SHARE * last]
    if len(kept) < 3:
        return {}
    hours = np.array([record["minutes"] for record in kept]) / 60
    rounds = np.array([record["round"] for record in kept])
    result = {}
    for name in _QUANTITIES:
        values = [record[name] for record in kept]
        fit = scipy.stats.theilslopes(values, hours)
        result[name] = {
            "per_hour": float(fit.slope),
            "low": float(fit.low_slope),
            "high": float(fit.high_slope),
            "per_round": float(scipy.stats.theilslopes(values, rounds).slope),
            "first": values[0],
            "last": values[-1],
            "least": min(values),
            "most": max(values),
        }
    return result


def figure(records: list[dict[str, float]]) -> str:
    """Memory over time, as SVG."""
    minutes = [record["minutes"] for record in records]
    return curves(
        [{"label": "resident memory", "x": minutes, "y": [record["rss_mib"] for record in records]}],
        xlabel="minutes",
        ylabel="MiB",
    )


def soak(minutes: float, json: Path, drawing: Path | None) -> dict[str, Any]:
    """Run rounds until the time is over or the process is told to stop; returns what was written."""
    train, test = exptilt.load_dataset("digits", "train"), exptilt.load_dataset("digits", "test")
    process, start, source = psutil.Process(), time.monotonic(), commit()
    records: list[dict[str, float]] = []
    digests: set[str] = set()
    rounds, written, stopped = 0, 0.0, False
    result: dict[str, Any] = {}

    def write() -> None:
        result.update(
            rounds=rounds,
            minutes=(time.monotonic() - start) / 60,
            minutes_asked=minutes,
            different_samples=len(digests),
            growth=slopes(records),
            stopped_early=stopped,
            threads_of_torch=torch.get_num_threads(),
            python=platform.python_version(),
            torch=torch.__version__,
            commit=source,
            command=f"python benchmarks/soak.py --minutes {minutes:g}",
            records=records,
        )
        write_json(json, result)
        if drawing is not None:
            write_bytes(drawing, figure(records).encode())

    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = str(Path(folder) / "cache")
        try:
            while (time.monotonic() - start) < 60 * minutes:
                digests.add(one_round(train, test, Path(folder)))
                rounds += 1
                records.append(measure(process, start, rounds))
                if time.monotonic() - written > 60:
                    write()
                    written = time.monotonic()
        except KeyboardInterrupt:
            stopped = True
        if records:
            write()
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = soak(args.minutes, args.json, args.figure)
    print(
        f"{result['rounds']} rounds in {result['minutes']:.1f} minutes, {result['different_samples']} different samples"
    )
    for name, growth in result["growth"].items():
        print(
            f"{name}: {growth['first']:.1f} → {growth['last']:.1f}, growth an hour {growth['per_hour']:+.2f} "
            f"[{growth['low']:+.2f}, {growth['high']:+.2f}], a round {growth['per_round']:+.4f} {_QUANTITIES[name]}"
        )


if __name__ == "__main__":
    main()
