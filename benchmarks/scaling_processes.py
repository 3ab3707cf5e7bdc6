"""How chains and updates scale with processes, and how cost grows with batch, latent and image size.

    python benchmarks/scaling_processes.py --json benchmarks/scaling_processes.json [--processes 1 2 4] [--rounds 3]

Every process has one thread. For each number of processes the script starts itself under torchrun on this machine; the
least of the rounds counts, as other work on a machine only adds. The axes are measured by one process. Beside times
stand floating-point operations, counted by torch, and bytes that a process gives to collective operations.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed as torch_distributed
from torch.utils.flop_counter import FlopCounterMode

import exptilt
from exptilt import distributed, provenance
from exptilt.config import PretrainConfig, SamplerConfig, TiltConfig
from exptilt.data import DataSet, to_uint8
from exptilt.energies import GatedEnergy, ResNetEnergy, SmallEnergy
from exptilt.generators import VAE
from exptilt.report.files import image_png
from exptilt.sampling.random import SampleStreams
from exptilt.storage import write_json
from exptilt.tilted import TiltedGenerator
from exptilt.training.fit import tilt
from exptilt.training.pretrain import pretrain

# Chains together, steps of each, and chains side by side; updates that are timed.
CHAINS_X, STEPS_X, SIDE_X = 128, 10, 32
CHAINS_Z, STEPS_Z, SIDE_Z = 2000, 20, 500
UPDATES = 4
# Of the ratio, whose updates are far shorter than what surrounds them.
RATIO_UPDATES = 100
BESIDE = ", beside a stranger"
CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "vae-mnist"


def main() -> None:
    """Start the measurements, each in processes of its own, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the records")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-axes", action="store_true", help="leave out batch, latent and image size")
    parser.add_argument("--chains", action="store_true", help="leave out updates too: chains alone")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part is not None:
        records = of_processes(arguments.rounds, arguments.chains)
        if distributed.is_main():
            write_json(arguments.part, records)
        return
    records = (
        [] if arguments.no_axes or arguments.chains else [*axes(arguments.rounds), *by_the_processor(arguments.rounds)]
    )
    for processes in arguments.processes:
        records += launched(processes, arguments.rounds, arguments.json.with_suffix(".part"), arguments.chains)
    records += strangers(arguments.rounds, arguments.json)
    add_efficiency(records)
    command = f"python benchmarks/scaling_processes.py {shlex.join(sys.argv[1:])}"
    origin = provenance.origin() | {"command": command, "torch": torch.__version__}
    write_json(arguments.json, [record | origin for record in records])
    for record in records:
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}))


def launched(processes: int, rounds: int, part: Path, chains: bool) -> list[dict[str, Any]]:
    """The records of so many processes."""
    with started(processes, rounds, part, chains) as running:
        if running.wait():
            raise SystemExit(f"{processes} processes ended with code {running.returncode}")
    records = json.loads(part.read_text())
    part.unlink()
    return records


def strangers(rounds: int, beside: Path) -> list[dict[str, Any]]:
    """Two processes at a time that know nothing of each other, each with all chains: what the machine itself loses."""
    parts = [beside.with_suffix(f".part{number}") for number in range(2)]
    running = [started(1, rounds, part, chains=True) for part in parts]
    if any(process.wait() for process in running):
        raise SystemExit("two processes side by side failed")
    each = [json.loads(part.read_text()) for part in parts]
    for part in parts:
        part.unlink()
    return [
        max(pair, key=lambda record: record["seconds"]) | {"what": pair[0]["what"] + BESIDE}
        for pair in zip(*each, strict=True)
    ]


def started(processes: int, rounds: int, part: Path, chains: bool) -> subprocess.Popen[bytes]:
    """This script under torchrun, as so many processes that write their records to ``part``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port), __file__]
    command += ["--json", str(part), "--part", str(part), "--rounds", str(rounds), *(["--chains"] if chains else [])]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


def of_processes(rounds: int, chains_only: bool) -> list[dict[str, Any]]:
    """Chains by E(x) and by E(z), and the updates of four trainings, shared by the processes that are there."""
    torch.manual_seed(0)
    vae = VAE(1, 100, 64).freeze()
    on_x = TiltedGenerator(vae, SmallEnergy(), sampler=SamplerConfig(steps=STEPS_X), precision="float32")
    mala = SamplerConfig(kernel="mala", steps=STEPS_Z, step_size=0.05)
    on_z = TiltedGenerator(vae, latent_energy=GatedEnergy(100), sampler=mala, precision="float32")
    images = DataSet("noise", "train", torch.randint(0, 256, (2000, 1, 32, 32), dtype=torch.uint8), None, "random")
    records = []
    for name, tilted, n, side in (("chains, E(x)", on_x, CHAINS_X, SIDE_X), ("chains, E(z)", on_z, CHAINS_Z, SIDE_Z)):
        mine = distributed.share(n)

        def draw(tilted: TiltedGenerator = tilted, side: int = side, mine: range = mine) -> None:
            tilted.sample(len(mine), start=mine.start, batch_size=side, return_latents=True)

        records.append(record(name, timed(draw, rounds), n * tilted.sampler.gradients))
    if chains_only:
        return records
    ratio = TiltConfig(objective="logistic_ratio", space="z", energy="gated", energy_width=256, batch_size=512)
    likelihood = TiltConfig(energy="small", energy_width=32, batch_size=64, chain=SamplerConfig(steps=STEPS_X))
    replay = TiltConfig(
        **vars(likelihood) | {"chains": "replay", "walkers": 1000, "chain": SamplerConfig(steps=STEPS_X)}
    )
    few = images.select(slice(0, 512))
    for name, config in (("ratio, E(z)", ratio), ("likelihood, E(x)", likelihood), ("replay, E(x)", replay)):
        updates = RATIO_UPDATES if config is ratio else UPDATES
        records.append(update(name, lambda n, config=config: tilted_by(vae, few, config, n), rounds, updates))
    pretraining = PretrainConfig("vae", "VAE", {}, "noise", 1, batch_size=128, precision="float32")

    def train(n: int) -> torch.nn.Module:
        module = VAE(1, 100, 64)
        pretrain(module, images.select(slice(0, 128 * n)), pretraining)
        return module

    records.append(update("pretraining, VAE", train, rounds))
    for megabytes in (0, 16):
        message = torch.zeros(max(1, megabytes << 18))
        cost = timed(lambda message=message: distributed.add_up([message]), rounds)
        records.append(record(f"all-reduce of {megabytes} MiB", cost, 1))
    return records


def tilted_by(vae: VAE, images: DataSet, config: TiltConfig, iterations: int) -> torch.nn.Module:
    """Train an energy."""
    settings = vars(config) | {"iterations": iterations, "check_every": 1000, "precision": "float32"}
    tilted = tilt(copy.deepcopy(vae), images, config=TiltConfig(**settings), held_out=images.select(slice(0, 10)))
    energy = tilted.energy if tilted.energy is not None else tilted.latent_energy
    assert energy is not None
    return energy


def update(name: str, train: Callable[[int], torch.nn.Module], rounds: int, updates: int = UPDATES) -> dict[str, Any]:
    """A record of one update: the difference of long and short trainings, which also pay for what surrounds them."""
    module = train(1)
    short, long = (timed(lambda n=n: train(n), rounds) for n in (1, 1 + updates))
    cost = Cost(*((after - before) / updates for before, after in zip(short, long, strict=True)))
    return record(name, cost, 1) | {"parameters": sum(p.numel() for p in module.parameters())}


def record(name: str, cost: Cost, count: int) -> dict[str, Any]:
    """What is known of a measurement, which made ``count`` gradients of U, or updates."""
    return {
        "what": name,
        "processes": distributed.world().size,
        "threads": torch.get_num_threads(),
        "count": count,
        **cost._asdict(),
        "per_second": count / cost.seconds,
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class Cost(NamedTuple):
    """Seconds by the clock and of the processor, of the slowest process; bytes that each gives to the others."""

    seconds: float
    cpu_seconds: float
    bytes_given: float


def timed(function: Callable[[], object], rounds: int) -> Cost:
    """What a function costs: the least of the rounds, after one to warm up."""
    function()
    costs = []
    for _ in range(rounds):
        distributed.wait()
        with counting() as bytes_given:
            began, began_cpu = time.perf_counter(), time.process_time()
            function()
            spent = torch.tensor([[time.perf_counter() - began, time.process_time() - began_cpu]])
        slowest = distributed.gather(spent, distributed.world().size).max(0).values
        costs.append((*slowest.tolist(), float(sum(bytes_given))))
    return Cost(*(min(column) for column in zip(*costs, strict=True)))


class counting:  # noqa: N801 - a context manager
    """Counts the bytes of the tensors that are given to collective operations."""

    def __enter__(self) -> list[int]:
        """A list that gets the bytes of each operation."""
        given: list[int] = []
        # Where each has the tensor that a process gives.
        places = {"all_reduce": 0, "all_gather": 1}
        self.originals = {name: getattr(torch_distributed, name) for name in places}
        for name, place in places.items():

            def counted(*arguments: Any, name: str = name, place: int = place, **options: Any) -> Any:
                given.append(arguments[place].numel() * arguments[place].element_size())
                return self.originals[name](*arguments, **options)

            setattr(torch_distributed, name, counted)
        return given

    def __exit__(self, *_: object) -> None:
        for name, original in self.originals.items():
            setattr(torch_distributed, name, original)


def axes(rounds: int) -> list[dict[str, Any]]:
    """One gradient of U in its latents, by the number of chains, the latent's size and the image's size."""
    torch.manual_seed(0)
    cases: list[tuple[str, int, torch.nn.Module, tuple[int, ...]]] = []
    decoder = VAE(1, 100, 64).freeze()
    whole = torch.nn.Sequential(decoder, SmallEnergy())
    cases += [("chains, E(x)", n, whole, (n, 100)) for n in (16, 32, 64, 128, 256)]
    cases += [("latent size, E(z)", d, GatedEnergy(d), (500, d)) for d in (16, 64, 256, 1024)]
    cases += [("image size, E(x)", s, ResNetEnergy(1, width=16), (16, 1, s, s)) for s in (16, 32, 64)]
    records = []
    for axis, value, module, shape in cases:
        module.eval().requires_grad_(False)
        z = torch.randn(shape).requires_grad_(True)

        def gradient(module: torch.nn.Module = module, z: torch.Tensor = z) -> None:
            z.grad = None
            module(z).sum().backward()

        with FlopCounterMode(display=False) as counter:
            gradient()
        flops = counter.get_total_flops() / len(z)
        records.append(
            record("gradient", timed(gradient, rounds), len(z)) | {"axis": axis, "value": value, "flops_each": flops}
        )
    return records


def by_the_processor(rounds: int) -> list[dict[str, Any]]:
    """What a sample costs beside its arithmetic: streams, noise, and its PNG."""
    n, numbers = 1000, 100
    streams = SampleStreams(0, 0, n, (numbers,))
    streams.normal()
    images = to_uint8(exptilt.load(CHECKPOINT).sample(n))
    work: list[tuple[str, Callable[[], object], int]] = [
        ("streams of a sample", lambda: SampleStreams(0, 0, n, (1,)).normal(), n),
        # As many draws as are made ahead at once.
        ("normal number", lambda: [streams.normal() for _ in range(64)], 64 * n * numbers),
        ("PNG of a digit", lambda: [image_png(image) for image in images], n),
    ]
    return [record(name, timed(function, rounds), count) for name, function, count in work]


def add_efficiency(records: list[dict[str, Any]]) -> None:
    """To each record: its speed over that of one process alone times its processes, by both clocks."""
    for each in records:
        name = each["what"].removesuffix(BESIDE)
        one = [r for r in records if r["what"] == name and r["processes"] == 1 and "axis" not in each]
        if one:
            for clock in ("seconds", "cpu_seconds"):
                each[f"efficiency_by_{clock}"] = one[0][clock] / each[clock] / each["processes"]


if __name__ == "__main__":
    main()
