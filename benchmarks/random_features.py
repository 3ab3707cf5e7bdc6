"""What a calibration by random features would choose, beside that by the features of the data set's own classifier.

python benchmarks/random_features.py checkpoints/*-tilted --json random-features.json

FID of tilted models against 2,000 held-out training images, at several strengths of the tilt (0 is the generator): by
the network that is shipped for the data set, and by the one with random weights. Lines go to the file as soon as they
are known; what is there already is passed over.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from exptilt import hub
from exptilt.bench.rows import Rows
from exptilt.config import SamplerConfig
from exptilt.data import load_dataset
from exptilt.storage import RUN, read_json
from exptilt.tilted import TiltedGenerator
from exptilt.tilting import held_out_quality

SEED = 0


def main() -> None:
    """Print a line for each strength, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 0.6, 1, 1.6, 2.5, 4])
    parser.add_argument("-n", type=int, default=2000, help="samples")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows = Rows(args.json, seed=SEED)
    for run in args.runs:
        tilted = hub.load(run)
        assert isinstance(tilted, TiltedGenerator)
        data: str = read_json(run / RUN)["config"]["data"]
        train = load_dataset(data, "train")
        own, random = (held_out_quality(features, train)[0] for features in (data, "random"))
        assert own is not None
        assert random is not None
        sampler: SamplerConfig = tilted.sampler
        for strength in args.strengths:
            described = {"run": str(run), "strength": strength, "n": args.n}
            if rows.has(described):
                continue
            tilted.strength, tilted.sampler = strength, sampler.change(steps=sampler.steps if strength else 0)
            samples = tilted.sample(args.n, seed=SEED)
            figures = {"own": own(samples)["fid"], "random": random(samples)["fid"]}
            rows.add({**described, "steps": tilted.sampler.steps, **figures})
            told = f"FID by the set's own features {figures['own']:.2f}, by random ones {figures['random']:.4f}"
            print(f"{run}, λ = {strength:g}: {told}", flush=True)


if __name__ == "__main__":
    main()
