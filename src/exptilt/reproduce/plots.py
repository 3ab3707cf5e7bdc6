"""Line plots as PNG pictures, in the colours of the reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullLocator, ScalarFormatter, SymmetricalLogLocator
from PIL import Image

from exptilt.report.curves import Series
from exptilt.report.theme import THEMES

# A logarithmic axis over less than this factor has labels between the powers of ten too.
_FEW_DECADES = 100


def line_picture(
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    logarithmic: bool = False,
    logarithmic_y: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> Image.Image:
    """Lines with their points over a common axis.

    Args:
        series: The lines; of each its label, x and y.
        xlabel: Name of the horizontal axis.
        ylabel: Name of the vertical axis.
        logarithmic: A horizontal axis in powers of ten, linear below 1 so that 0 is on it.
        logarithmic_y: A vertical axis in powers of ten, of values above 0.
        marks: Places on the horizontal axis that are marked, and their names.

    Returns:
        RGB image of 1,008 by 648 pixels.
    """
    colours = THEMES["light"]
    figure = Figure(figsize=(7, 4.5), dpi=144, facecolor=colours.background, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=colours.background)
    for index, line in enumerate(series):
        colour = colours.series[index % len(colours.series)]
        # More lines than colours differ in dashes.
        dashes = ("-", "--", ":")[index // len(colours.series) % 3]
        axes.plot(line["x"], line["y"], color=colour, linestyle=dashes, marker="o", markersize=4, label=line["label"])
    for place, name in marks:
        axes.axvline(place, color=colours.ink, linewidth=1, linestyle="--", label=name)
    if logarithmic:
        axes.set_xscale("symlog", linthresh=1)
        values = np.concatenate([np.asarray(line["x"], dtype=float) for line in series] or [np.zeros(1)])
        positive = values[values > 0]
        if len(positive) and positive.max() < _FEW_DECADES * positive.min():
            axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(9, 9)))
    if logarithmic_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(colours.muted)
    axes.tick_params(colors=colours.muted)
    axes.grid(axis="y", color=colours.muted, alpha=0.22)
    axes.set_xlabel(xlabel, color=colours.ink, parse_math=False)
    axes.set_ylabel(ylabel, color=colours.ink, parse_math=False)
    if series or marks:
        axes.legend(frameon=False, labelcolor=colours.ink, fontsize=9)
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")  # type: ignore[attr-defined]
