"""Whether longer chains of a tilted model are worse: FID by its own chain, and by one five times as long.

python benchmarks/longer_chains.py checkpoints/*-tilted --json longer-chains.json

Each is a folder of `exptilt tilt` or `exptilt export`. With --without-floor, one that has a floor under its energy is
measured without it, too: λ is then what the calibration found best, and ε is adapted. Lines go to the file as soon as
they are known; what is there already is passed over.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from exptilt import hub
from exptilt.bench.rows import Rows
from exptilt.config import SamplerConfig, override
from exptilt.data import load_dataset
from exptilt.energies.relative import RelativeEnergy
from exptilt.evaluation.evaluate import evaluate
from exptilt.storage import RUN, read_json
from exptilt.tilted import TiltedGenerator

SEEDS = (0, 1, 2)
FIGURES = ("fid", "fid_ci", "recall", "coverage", "class_entropy")


class Alone:
    """The samples of a tilted generator, without those of its generator beside them."""

    def __init__(self, tilted: TiltedGenerator) -> None:
        self.tilted, self.data_shape, self.device = tilted, tilted.data_shape, tilted.device
        self.side_by_side = tilted.side_by_side

    def sample(self, n: int, *, seed: int, start: int) -> torch.Tensor:
        """Samples ``start … start + n − 1`` of ``seed``."""
        return self.tilted.sample(n, seed=seed, start=start)


def without_floor(tilted: TiltedGenerator, run: Path, strength: float | None = None) -> TiltedGenerator | None:
    """The model without the floor under its energy, at a strength of its own; None if it has no floor.

    Args:
        tilted: The model.
        run: Its folder.
        strength: λ without the floor; unless given, what the calibration of the run found best.
    """
    energy = tilted.latent_energy
    if not isinstance(energy, RelativeEnergy):
        return None
    best: float = read_json(run / RUN)["longer"]["strength"] if strength is None else strength
    without = TiltedGenerator(tilted.generator, latent_energy=energy.energy, sampler=tilted.sampler, strength=best)
    without.sampler = without.adapted_sampler(0.6)
    return without


def main() -> None:
    """Print a line for each length, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 5], help="in units of the model's own steps")
    parser.add_argument("-n", type=int, default=2000, help="samples for each of the seeds 0, 1, 2")
    parser.add_argument("--without-floor", action="store_true", help="also without the floor under the energy")
    parser.add_argument("--strength", type=float, help="λ without the floor, unless that of the calibration")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows = Rows(args.json, seeds=SEEDS)
    for run in args.runs:
        tilted = hub.load(run)
        assert isinstance(tilted, TiltedGenerator)
        models = {"own": tilted}
        if args.without_floor and (without := without_floor(tilted, run, args.strength)) is not None:
            models["no floor"] = without
        data: str = read_json(run / RUN)["config"]["data"]
        test = load_dataset(data, "test")
        for name, model in models.items():
            chain: SamplerConfig = model.sampler
            for length in args.lengths:
                described = {"run": str(run), "energy": name, "strength": model.strength, "n": args.n}
                described["steps"] = length * chain.steps
                if rows.has(described):
                    continue
                model.sampler = override(chain, steps=described["steps"])
                result = evaluate(Alone(model), test, n=args.n, seeds=SEEDS, progress=False)  # type: ignore[arg-type]
                figures = {key: result["base"][key] for key in FIGURES}
                rows.add({**described, "data": data, "protocol": result["protocol"]["hash"], **figures})
                low, high = figures["fid_ci"]
                told = f"FID {figures['fid']:.2f} [{low:.2f}, {high:.2f}], recall {figures['recall']:.3f}"
                print(f"{run}, {name}, λ = {model.strength:g}, {described['steps']} steps: {told}", flush=True)


if __name__ == "__main__":
    main()
