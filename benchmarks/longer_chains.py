"""Whether longer chains of a tilted model are worse: FID against steps, with the floor under its energy and without.

python benchmarks/longer_chains.py RUN --data mnist --json longer.json

RUN is a folder of `exptilt tilt`. Without the floor, λ is what its calibration found best, and ε is adapted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from exptilt import hub, provenance
from exptilt.config import SamplerConfig, override
from exptilt.data import load_dataset
from exptilt.energies.relative import RelativeEnergy
from exptilt.evaluation.evaluate import evaluate
from exptilt.storage import RUN, read_json, write_json
from exptilt.tilted import TiltedGenerator

SEEDS = (0, 1, 2)


class Alone:
    """The samples of a tilted generator, without those of its generator beside them."""

    def __init__(self, tilted: TiltedGenerator) -> None:
        self.tilted, self.data_shape, self.device = tilted, tilted.data_shape, tilted.device

    def sample(self, n: int, *, seed: int, start: int) -> torch.Tensor:
        """Samples ``start … start + n − 1`` of ``seed``."""
        return self.tilted.sample(n, seed=seed, start=start)


def variants(tilted: TiltedGenerator, run: Path, strength: float | None) -> dict[str, TiltedGenerator]:
    """The model as it is, and, if it has a floor, the same without at a strength of its own.

    Args:
        tilted: The model.
        run: Its folder.
        strength: λ without the floor; unless given, what the calibration of the run found best.
    """
    energy = tilted.latent_energy
    if not isinstance(energy, RelativeEnergy):
        return {"no floor": tilted}
    best: float = read_json(run / RUN)["longer"]["strength"] if strength is None else strength
    without = TiltedGenerator(tilted.generator, latent_energy=energy.energy, sampler=tilted.sampler, strength=best)
    without.sampler = without.adapted_sampler(0.6)
    return {"floor": tilted, "no floor": without}


def main() -> None:
    """Print a line for each length, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 5], help="in units of the model's own steps")
    parser.add_argument("-n", type=int, default=2000, help="samples for each of the seeds 0, 1, 2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--strength", type=float, help="λ without the floor, unless that of the calibration")
    args = parser.parse_args()
    tilted = hub.load(args.run)
    assert isinstance(tilted, TiltedGenerator)
    test, rows, protocol = load_dataset(args.data, "test"), [], ""
    for name, model in variants(tilted, args.run, args.strength).items():
        chain: SamplerConfig = model.sampler
        for length in args.lengths:
            model.sampler = override(chain, steps=length * chain.steps)
            result = evaluate(Alone(model), test, n=args.n, seeds=SEEDS, progress=False)  # type: ignore[arg-type]
            figures = {key: result["base"][key] for key in ("fid", "fid_ci", "recall", "coverage", "class_entropy")}
            rows.append({"energy": name, "strength": model.strength, "steps": model.sampler.steps, **figures})
            protocol = result["protocol"]["hash"]
            low, high = figures["fid_ci"]
            told = f"FID {figures['fid']:.2f} [{low:.2f}, {high:.2f}], recall {figures['recall']:.3f}"
            print(f"{name}, λ = {model.strength:g}, {model.sampler.steps} steps: {told}", flush=True)
        model.sampler = chain
    if args.json is not None:
        write_json(
            args.json,
            {"run": str(args.run), "data": args.data, "n": args.n, "seeds": SEEDS, "protocol": protocol, "rows": rows}
            | provenance.origin(),
        )


if __name__ == "__main__":
    main()
