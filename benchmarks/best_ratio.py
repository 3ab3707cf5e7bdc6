"""What the best possible tilt of a toy generator comes to: its density times the true relative density ratio.

python benchmarks/best_ratio.py --json best_ratio.json

The generator's density is that of a histogram of its samples, the data's is known. With α → 0 the product is the data's
density where the generator has samples, and nothing where it has none: what no energy can mend.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from exptilt import provenance
from exptilt.data import load_dataset, toy
from exptilt.demo import TOYS, train_preset
from exptilt.evaluation.energy_distance import energy_test
from exptilt.evaluation.toy import TRUTHS, point_figures
from exptilt.generators.base import Generator
from exptilt.presets import RECIPES
from exptilt.storage import write_json
from exptilt.tilting import tilt

ALPHAS = (0.1, 0.01, 0.001, 0.0)
# Cells are a quarter of a standard deviation of a mode, or around the curve, wide. Both sets lie within EXTENT.
FINENESS, EXTENT = 4, 2.4
DRAWN, AT_ONCE = 10_000_000, 100_000
# Samples and test points in an energy distance, and how many of them.
COMPARED, DISTANCES = 2000, 4


class Grid:
    """Square cells of the plane."""

    def __init__(self, width: float) -> None:
        self.width, self.side = width, math.ceil(2 * EXTENT / width)

    def counts(self, points: torch.Tensor) -> torch.Tensor:
        """How many of points (N, 2) are in each cell; what lies outside counts for the nearest."""
        i, j = ((points + EXTENT) / self.width).long().clamp(0, self.side - 1).unbind(1)
        return torch.bincount(i * self.side + j, minlength=self.side**2).double()

    def sample(self, weights: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
        """Points (n, 2), uniform within cells that are drawn by weight."""
        cells = torch.multinomial(weights, n, replacement=True, generator=generator)
        corners = torch.stack([cells // self.side, cells % self.side], dim=1)
        return (corners + torch.rand(n, 2, generator=generator)) * self.width - EXTENT


def shares(name: str, generator: Generator, grid: Grid, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares of the data and of the generator's samples in each cell."""
    random = torch.Generator().manual_seed(seed)
    model, data = 0.0, 0.0
    draw = {"gaussians": lambda n, s: toy.sample_gaussians(n, s)[0], "swissroll": toy.sample_swissroll}[name]
    for k in range(DRAWN // AT_ONCE):
        with torch.no_grad():
            model = model + grid.counts(generator(torch.randn(AT_ONCE, *generator.latent_shape, generator=random)))
        data = data + grid.counts(draw(AT_ONCE, seed + k))
    return data / DRAWN, model / DRAWN


def figures(name: str, points: torch.Tensor, test: torch.Tensor) -> dict[str, float | None]:
    """Share within 3σ, divergence of the modes' weights, and the mean energy distance to blocks of test points."""
    blocks = zip(points.split(COMPARED)[:DISTANCES], test.split(COMPARED)[:DISTANCES], strict=True)
    distance = statistics.fmean(energy_test(*pair, permutations=1).distance for pair in blocks)
    kept = point_figures(name, points)
    return {"high_quality": kept["high_quality"], "weight_kl": kept["weight_kl"], "energy_distance": distance}


def measured(name: str, seed: int) -> dict[str, Any]:
    """Figures of data, of a generator, of its tilt by the default recipe, and of the best for each α."""
    train, test = load_dataset(name, "train"), load_dataset(name, "test").stored
    generator = train_preset(f"toy-{name}", train, seed, "cpu", quiet=True)
    grid = Grid(TRUTHS[name].std / FINENESS)
    data, model = shares(name, generator, grid, seed)
    n, random = COMPARED * DISTANCES, torch.Generator().manual_seed(seed)
    tilted = tilt(generator, train, seed=seed)
    told: dict[str, Any] = {
        "data": name,
        "seed": seed,
        "n": n,
        "relative": RECIPES["default-points"].relative,
        "out_of_reach": float(data[model == 0].sum()),
        "floor": figures(name, train.stored[:n], test),
        "base": figures(name, generator.sample(n, seed=seed), test),
        "tilted": figures(name, tilted.sample(n, seed=seed), test),
    }
    for alpha in ALPHAS:
        ratio = torch.where(model > 0, data / (alpha * data + (1 - alpha) * model).clamp(min=1e-300), 0)
        weights = model * ratio
        effective = float(weights.sum() ** 2 / (weights * ratio).sum())
        best = figures(name, grid.sample(weights, n, random).float(), test)
        told[f"best_{alpha:g}"] = best | {"effective_share": effective}
    return told


def main() -> None:
    """Print the figures of each set, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=[*TOYS], default=[*TOYS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows = []
    for name in args.sets:
        rows.append(measured(name, args.seed))
        write_json(args.json, {"rows": rows, **provenance.origin()})
        for part, values in rows[-1].items():
            if isinstance(values, dict):
                known = (f"{key} {value:.4f}" for key, value in values.items() if value is not None)
                print(f"{name}, {part}: {', '.join(known)}", flush=True)


if __name__ == "__main__":
    main()
