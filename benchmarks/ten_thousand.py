"""Time for 10,000 samples of 100 steps: the VAE of MNIST and the paper's E(x), at their real sizes.

    python benchmarks/ten_thousand.py --device cuda --json benchmarks/ten_thousand.json

Weights are random, as speed does not depend on them. Each way runs a tenth of the samples to warm up, and then all of
them, random numbers, copies and decoding included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from exptilt.bench.methods import Exptilt
from exptilt.bench.workloads import make
from exptilt.commands.common import find_device
from exptilt.config import override
from exptilt.provenance import commit, device_name
from exptilt.storage import write_json


def main() -> None:
    """Time the chains and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--compile", action="store_true", help="also through torch.compile")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    device = find_device(args.device)
    name = device_name(device)
    workload = make("vae")
    records = []
    for compiled in (False, True) if args.compile else (False,):
        tilted = Exptilt(workload, device, compiled=compiled).tilted
        tilted.sampler = override(tilted.sampler, steps=args.steps)
        tilted.sample(-(-args.samples // 10))
        torch.get_device_module(device).synchronize()
        began = time.perf_counter()
        samples = tilted.sample(args.samples, seed=1)
        torch.get_device_module(device).synchronize()
        record = {
            "device": name,
            "compiled": compiled,
            "samples": len(samples),
            "steps": args.steps,
            "seconds": round(time.perf_counter() - began, 2),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "commit": commit(),
        }
        print(record, flush=True)
        records.append(record)
    if args.json is not None:
        write_json(args.json, records)


if __name__ == "__main__":
    main()
