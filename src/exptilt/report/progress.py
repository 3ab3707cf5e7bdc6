"""What a training shows while it runs: a grid of samples and the curve of its loss, in the run's folder."""

from __future__ import annotations

from pathlib import Path

from exptilt.generators.base import Generator
from exptilt.report.figures import image_grid
from exptilt.report.files import png
from exptilt.report.log import read_log
from exptilt.report.numbers import training_curves
from exptilt.storage import GRID, LOG, write_bytes

CURVE = "loss.svg"


def write_progress(folder: Path, generator: Generator, seed: int) -> None:
    """Write ``samples.png``, the first 64 samples of ``seed`` (images only), and ``loss.svg`` from the log so far."""
    generator.eval()
    if len(generator.data_shape) == 3:
        write_bytes(folder / GRID, png(image_grid(generator.sample(64, seed=seed))))
    log, _ = read_log(folder / LOG)
    losses = [{key: line[key] for key in ("iteration", "loss")} for line in log if {"iteration", "loss"} <= line.keys()]
    for curve in training_curves(losses):
        write_bytes(folder / CURVE, curve.svg.encode())
