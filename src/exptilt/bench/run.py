"""Times methods on workloads in turns, and gives the result as records and as a table."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table

from exptilt import provenance
from exptilt.bench.agreement import agreement
from exptilt.bench.ceiling import Ceiling, OperationsAlone, dominating_operation, flops_of_gradient
from exptilt.bench.methods import METHODS, Exptilt, LeftOut, Method
from exptilt.bench.workloads import Workload, make
from exptilt.tilted import TiltedGenerator

# Chains that operations are counted on.
_COUNTED = 2
# Time that one measurement of the ceiling takes, and one of each operation alone, s.
_CEILING_SECONDS, _OPERATION_SECONDS = 0.2, 0.05
Say = Callable[[str], None]
Record = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """What was measured of one workload.

    Attributes:
        methods: The methods that ran.
        seconds: Of each method, one figure a round.
        cpu_seconds: The same in processor time, over all threads.
        flops: Floating-point operations of one gradient, as each method runs it.
        operations: Seconds that the convolutions and matrix products of one gradient of exptilt take alone, median over
            the rounds, of each method that is exptilt.
        ceilings: Operations a second of ``operation`` in each dtype, median over the rounds.
        operation: What the ceiling is measured on.
    """

    methods: dict[str, Method]
    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]
    flops: dict[str, int]
    operations: dict[str, float]
    ceilings: dict[str, float]
    operation: str


def bench(
    workloads: Sequence[str],
    methods: Sequence[str],
    *,
    device: torch.device,
    rounds: int = 3,
    quick: bool = False,
    seed: int = 0,
    say: Say = lambda text: None,
    warn: Say,
) -> list[Record]:
    """Time ``methods`` on ``workloads``.

    Args:
        workloads: Keys of :data:`exptilt.bench.workloads.WORKLOADS`.
        methods: Keys of :data:`exptilt.bench.methods.METHODS`.
        device: Where.
        rounds: Times that each method runs each workload, in turns, after a warm-up.
        quick: Tiny sizes: everything is run, nothing is measured that means anything.
        seed: Fixes weights and chains.
        say: Told what goes on.
        warn: Told which methods are left out and why.

    Returns:
        A record for each workload and method, see benchmarks/README.md.
    """
    records: list[Record] = []
    warn_once = functools.cache(warn)
    for name in workloads:
        workload = make(name, quick, seed, device)
        say(f"{name}: {workload.chains} chains, {workload.gradient_evaluations:,} gradients a method and round")
        timing = time_methods(workload, methods, device, rounds, seed, warn_once)
        agreed = agreement(workload, device, seed)
        records += make_records(workload, timing, device, {"agreement": agreed})
        say(f"{name}: {describe_agreement(agreed)}")
    return records


def time_methods(
    workload: Workload, methods: Sequence[str], device: torch.device, rounds: int, seed: int, warn: Say
) -> Timing:
    """Run every method once to warm up, then ``rounds`` times in turns, the ceiling among them.

    A method that cannot run is left out, and ``warn`` is told why.
    """
    ready: dict[str, Method] = {}
    for name in methods:
        try:
            ready[name] = METHODS[name](workload, device)
        except LeftOut as reason:
            warn(f"left out: {reason}")
    for method in ready.values():
        _timed(method, seed, device)
    ours = {name: method for name, method in ready.items() if isinstance(method, Exptilt)}
    chunk = max((method.chunk for method in ours.values()), default=workload.chains)
    flops, ceilings = _arithmetic(workload, device, chunk)
    prior = workload.generator
    alone = {
        name: OperationsAlone(method.tilted.chain_potential(), prior.sample_prior(method.chunk).to(device))
        for name, method in ours.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ready}
    speeds: dict[str, list[float]] = {name: [] for name in ceilings}
    operations: dict[str, list[float]] = {name: [] for name in ours}
    for turn in range(1, rounds + 1):
        for name, method in ready.items():
            passed, worked = _timed(method, seed + turn, device)
            seconds[name].append(passed)
            cpu_seconds[name].append(worked)
        for name, ceiling in ceilings.items():
            speeds[name].append(ceiling.measure(_CEILING_SECONDS))
        for name, each in alone.items():
            operations[name].append(each.measure(_OPERATION_SECONDS))
    return Timing(
        ready,
        seconds,
        cpu_seconds,
        {name: _flops_as_run(method, flops, workload) for name, method in ready.items()},
        {name: statistics.median(values) for name, values in operations.items()},
        {name: statistics.median(values) for name, values in speeds.items()},
        str(ceilings["bfloat16"].operation),
    )


def make_records(workload: Workload, timing: Timing, device: torch.device, extra: Record) -> list[Record]:
    """One record a method. A ratio is (time of plain) / (time of the method) in one round: above 1 is faster."""
    records, origin = [], provenance.origin()
    for name, seconds in timing.seconds.items():
        method, typical = timing.methods[name], statistics.median(seconds)
        ratios = [plain / own for plain, own in zip(timing.seconds.get("plain", []), seconds, strict=False)]
        speed = timing.flops[name] * workload.gradient_evaluations / typical
        alone = timing.operations.get(name)
        records.append(
            {
                "workload": workload.name,
                "method": name,
                "device": provenance.device_name(device),
                "gradient_evaluations": workload.gradient_evaluations,
                "seconds": typical,
                "ratio_to_plain": statistics.median(ratios) if ratios else None,
                "ceiling_fraction": speed / timing.ceilings["bfloat16"],
                "operations_fraction": None if alone is None else alone * workload.gradient_evaluations / typical,
                "seconds_spread": [min(seconds), max(seconds)],
                "ratio_spread": [min(ratios), max(ratios)] if ratios else None,
                "cpu_seconds": statistics.median(timing.cpu_seconds[name]),
                "rounds": len(seconds),
                "chains": workload.chains,
                "steps": workload.sampler.steps,
                "kernel": method.kernel,
                "dtype": method.dtype,
                "chunk": method.chunk if isinstance(method, Exptilt) else workload.chains,
                "flops": timing.flops[name],
                "flops_per_second": speed,
                "ceiling": {"operation": timing.operation, **timing.ceilings},
                "threads": torch.get_num_threads(),
                **origin,
                "version": method.version,
                "torch": torch.__version__,
                **extra,
            }
        )
    return records


def describe_agreement(figures: dict[str, float]) -> str:
    """The agreement in a sentence."""
    return (
        f"after {figures['steps']:.0f} steps with the same noise, z differs from the plain loop's by at most "
        f"{figures['float32_max']:.1e} in float32, and from float64 by {figures['bfloat16_max']:.1e} (RMS "
        f"{figures['bfloat16_rms']:.1e}) in bfloat16, where U is off by at most {figures['bfloat16_potential']:.1e} of "
        "its value"
    )


def table(records: list[Record]) -> Table:
    """The records as a table 80 columns wide."""
    result = Table(
        title="× plain: times as fast as the plain loop, median (least–most)",
        title_justify="left",
        caption="ceiling: operations a second, against those of the network's largest\n"
        "operation alone in bfloat16, forward and gradient",
        caption_justify="left",
        box=box.HORIZONTALS,
        padding=(0, 1, 0, 0),
    )
    for name in ("workload", "method", "kernel"):
        result.add_column(name, no_wrap=True)
    for name in ("s", "ms/∇U", "× plain", "ceiling"):
        result.add_column(name, justify="right", no_wrap=True)
    previous = None
    for record in records:
        if previous not in (None, record["workload"]):
            result.add_section()
        first = record["workload"] if record["workload"] != previous else ""
        previous = record["workload"]
        result.add_row(first, record["method"], record["kernel"], *figures_of(record))
    return result


def figures_of(record: Record) -> list[str]:
    """Seconds, milliseconds a gradient, ratio with spread and share of the ceiling, as they are printed."""
    ratio = "–"
    if record["ratio_to_plain"] is not None:
        low, high = record["ratio_spread"]
        ratio = f"{record['ratio_to_plain']:.2f} ({low:.2f}–{high:.2f})"
    each = 1000 * record["seconds"] / record["gradient_evaluations"]
    return [f"{record['seconds']:.2f}", f"{each:.3g}", ratio, f"{100 * record['ceiling_fraction']:.0f}%"]


def _arithmetic(workload: Workload, device: torch.device, chunk: int) -> tuple[int, dict[str, Ceiling]]:
    """Operations of a gradient, and the ceilings in bfloat16 and float32 at ``chunk`` chains."""
    generator, energy, latent_energy = workload.parts(device)
    tilted = TiltedGenerator(generator, energy, latent_energy=latent_energy)
    flops = flops_of_gradient(tilted.potential, generator.sample_prior(_COUNTED))
    operation = dominating_operation(tilted.potential, generator.sample_prior(chunk))
    types = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    return flops, {name: Ceiling(operation, device, dtype) for name, dtype in types.items()}


def _flops_as_run(method: Method, flops: int, workload: Workload) -> int:
    """Operations of a gradient; exptilt saves some of those that the network has as it is written."""
    if not isinstance(method, Exptilt):
        return flops
    z = workload.generator.sample_prior(_COUNTED).to(method.tilted.device)
    return flops_of_gradient(method.tilted.chain_potential(), z)


def _timed(method: Method, seed: int, device: torch.device) -> tuple[float, float]:
    """Seconds on the clock and of the processor that one call takes."""
    torch.get_device_module(device).synchronize()
    began, worked = time.perf_counter(), time.process_time()
    method(seed)
    torch.get_device_module(device).synchronize()
    return time.perf_counter() - began, time.process_time() - worked
