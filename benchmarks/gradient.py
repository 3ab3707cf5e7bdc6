"""Where the time of one gradient of U goes: exptilt's, as a CUDA graph on a GPU and without, and the plain loop's.

python benchmarks/gradient.py --device cuda --workload vae --chains 1024
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from exptilt.bench.methods import Exptilt
from exptilt.bench.plain import plain_potential
from exptilt.bench.workloads import WORKLOADS, make
from exptilt.captured import captured
from exptilt.commands.common import find_device
from exptilt.sampling.kernel import value_and_gradient
from exptilt.sampling.random import SampleStreams

_REPETITIONS = 5


def milliseconds(call: Callable[[], object], device: torch.device, repetitions: int = _REPETITIONS) -> float:
    """Mean time of a call, after three that are not counted."""
    wait = torch.get_device_module(device).synchronize
    for _ in range(3):
        call()
    wait()
    began = time.perf_counter()
    for _ in range(repetitions):
        call()
    wait()
    return 1000 * (time.perf_counter() - began) / repetitions


def main() -> None:
    """Print what one gradient takes, and what it is made of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workload", default="vae", choices=list(WORKLOADS))
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--rows", type=int, default=15, help="kernels that are listed")
    args = parser.parse_args()
    device, n = find_device(args.device), args.chains
    workload = make(args.workload)
    shape = workload.generator.latent_shape
    ours = Exptilt(workload, device).tilted.chain_potential()
    plain = plain_potential(*workload.parts(device))
    z = SampleStreams(0, 0, n, shape, device).normal()
    made = milliseconds(lambda: SampleStreams(0, 0, n, shape, device).normal(), device)
    print(f"{n} random streams and their first draw: {made:.1f} ms")
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    as_graph = {"exptilt, as a CUDA graph": captured(ours)} if on_gpu else {}
    for name, potential in {**as_graph, "exptilt": ours, "plain": plain}.items():
        print(f"{name}: {milliseconds(lambda: value_and_gradient(potential, z), device):.2f} ms")  # noqa: B023
        with profile(activities=activities) as seen:
            value_and_gradient(potential, z)
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        print(seen.key_averages().table(sort_by=order, row_limit=args.rows, max_name_column_width=60))


if __name__ == "__main__":
    main()
