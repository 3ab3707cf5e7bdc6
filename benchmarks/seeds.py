"""Whether the default recipe is ever worse than the generator: digits and toy sets, each seed a generator of its own.

python benchmarks/seeds.py --json seeds.json

A line for each seed goes to the file as soon as it is known; what is there already is passed over.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exptilt.bench.rows import Rows
from exptilt.data import load_dataset
from exptilt.demo import TOYS, train_preset
from exptilt.evaluation.evaluate import evaluate
from exptilt.evaluation.toy import evaluate_points
from exptilt.tilting import tilt

SETS = {"digits": "vae-digits", **{name: f"toy-{name}" for name in TOYS}}
# The figures that are kept, the one that is printed first.
IMAGES = ("fid", "fid_ci", "recall", "coverage", "class_entropy")
POINTS = ("high_quality", "modes", "weight_kl", "energy_distance")


def measured(name: str, seed: int, n: int) -> dict[str, Any]:
    """Figures of a generator that is trained with a seed, and of its tilt by the untouched default recipe."""
    train, test = load_dataset(name, "train"), load_dataset(name, "test")
    generator = train_preset(SETS[name], train, seed, "cpu", quiet=True)
    tilted = tilt(generator, train, seed=seed)
    told: dict[str, Any] = {"strength": tilted.strength}
    if name in TOYS:
        result, kept = evaluate_points(tilted, test, n=n, seeds=(seed,)), POINTS
    else:
        result, kept = evaluate(tilted, test, n=n, seeds=(seed,), train=train, progress=False), IMAGES
    told["protocol"] = result["protocol"]["hash"]
    for model in ("base", "tilted"):
        told[model] = {key: result[model][key] for key in kept if result[model].get(key) is not None}
    return told


def main() -> None:
    """Print a line for each seed, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=[*SETS], default=[*SETS])
    parser.add_argument("--seeds", type=int, default=20, help="how many, from 0")
    parser.add_argument("-n", type=int, default=2000, help="samples of each model")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows = Rows(args.json)
    for name in args.sets:
        for seed in range(args.seeds):
            described = {"data": name, "seed": seed, "n": args.n}
            if rows.has(described):
                continue
            row = {**described, **measured(name, seed, args.n)}
            rows.add(row)
            main_figure = next(iter(row["base"]))
            change = f"{row['base'][main_figure]:.3f} → {row['tilted'][main_figure]:.3f}"
            print(f"{name}, seed {seed}: {main_figure} {change}, λ = {row['strength']:g}", flush=True)


if __name__ == "__main__":
    main()
