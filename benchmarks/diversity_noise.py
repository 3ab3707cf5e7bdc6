"""How much recall, coverage and class entropy of samples differ from set to set, as calibration sees them.

EXPTILT_DATA=… python benchmarks/diversity_noise.py checkpoints/*-mnist --data mnist --json noise.json

Figures of sets of 1,000 samples against held-out training images, with their standard deviation.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import exptilt
from exptilt.bench.rows import Rows
from exptilt.data import load_dataset
from exptilt.tilting import held_out_quality
from exptilt.training.calibrate import GENERATOR_SETS, SAMPLES

FIGURES = ("recall", "coverage", "entropy", "fid")


def main() -> None:
    """Print a line for each generator, and add it to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="folders of generators that are not tilted")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    monitor, _, _ = held_out_quality("auto", load_dataset(args.data, "train"))
    if monitor is None:
        parser.error(f"--data {args.data} has no feature network")
    rows = Rows(args.json)
    for model in args.models:
        generator = exptilt.load(model)
        sets = [monitor(generator.sample(SAMPLES, seed=args.seed, start=SAMPLES * k)) for k in range(GENERATOR_SETS)]
        row = {name: [figures[name] for figures in sets] for name in FIGURES}
        rows.add({"model": str(model), "data": args.data, "n": SAMPLES, "seed": args.seed, **row})
        spread = (f"{name} {statistics.fmean(row[name]):.3g} ± {statistics.stdev(row[name]):.2g}" for name in FIGURES)
        print(f"{model.name}: {', '.join(spread)}", flush=True)


if __name__ == "__main__":
    main()
