"""How the cost of a chain grows: with the batch, the chain's length, the size of the latent, the generator's depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from rich import box
from rich.table import Table

from exptilt.bench.run import Record, Say, figures_of, make_records, table, time_methods
from exptilt.bench.workloads import Workload, make, on_images
from exptilt.config import override
from exptilt.generators import VAE, Glow

_METHODS = ("exptilt", "plain")


def scaling(
    *,
    device: torch.device,
    rounds: int = 3,
    quick: bool = False,
    seed: int = 0,
    say: Say = lambda text: None,
    warn: Say,
) -> list[Record]:
    """Records like those of :func:`exptilt.bench.run.bench` of exptilt and the plain loop, along each axis.

    Each has ``scaling``: ``{"axis": …, "value": …}``.
    """
    records: list[Record] = []
    for axis, (values, vary) in _AXES.items():
        for value in values[:2] if quick else values:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                workload = vary(value, quick)
            say(f"{axis} {value}: {workload.gradient_evaluations:,} gradients a method and round")
            timing = time_methods(workload, _METHODS, device, rounds, seed, warn)
            records += make_records(workload, timing, device, {"scaling": {"axis": axis, "value": value}})
    return records


def tables(records: list[Record]) -> Iterator[Table]:
    """One table an axis, and one of the records without."""
    plain = [record for record in records if "scaling" not in record]
    if plain:
        yield table(plain)
    for axis in _AXES:
        rows = [record for record in records if record.get("scaling", {}).get("axis") == axis]
        if not rows:
            continue
        result = Table(title=f"cost by {axis}", title_justify="left", box=box.HORIZONTALS, padding=(0, 1, 0, 0))
        for name in (axis, "method", "s", "ms/∇U", "× plain", "ceiling"):
            result.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
        for record in rows:
            result.add_row(str(record["scaling"]["value"]), record["method"], *figures_of(record))
        yield result


def _with_chains(chains: int, quick: bool) -> Workload:
    workload = make("vae", quick)
    return dataclasses.replace(workload, chains=chains, sampler=override(workload.sampler, steps=4))


def _with_steps(steps: int, quick: bool) -> Workload:
    workload = make("vae", quick)
    return dataclasses.replace(workload, chains=32, sampler=override(workload.sampler, steps=steps))


def _with_latent(size: int, quick: bool) -> Workload:
    return on_images("vae", VAE(1, size, 8), 8, 4, 2) if quick else on_images("vae", VAE(1, size, 64), 64, 64, 4)


def _with_depth(steps: int, quick: bool) -> Workload:
    return on_images("glow", Glow(steps=steps, hidden=8 if quick else 64), 8 if quick else 64, 4 if quick else 32, 2)


_AXES: dict[str, tuple[tuple[int, ...], Callable[[int, bool], Workload]]] = {
    "chains": ((16, 32, 64, 128, 256), _with_chains),
    "steps": ((4, 8, 16, 32), _with_steps),
    "latent size": ((10, 100, 1000), _with_latent),
    "couplings a level": ((4, 8, 16, 32), _with_depth),
}
