"""Line plots as SVG that is readable on light and on dark pages, inline or as a file of its own.

matplotlib draws in the light palette on nothing; a style sheet inside the SVG exchanges every colour when the
reader prefers dark. Text stays text (selectable, and in the reader's own font).
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from exptilt.report.theme import THEMES, text_width

WIDTH, PLOT_HEIGHT = 420, 252
_TEXT, _SMALL = 12, 10.5
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.8)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)))


class Series(TypedDict):
    """One line of a plot."""

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    lo: NotRequired[Sequence[float] | np.ndarray]
    """Lower edge of a band about the line."""
    hi: NotRequired[Sequence[float] | np.ndarray]
    """Upper edge of that band."""
    style: NotRequired[Literal["solid", "dashed", "dotted", "dashdot", "points"]]
    """Without it, lines of one plot differ in dashes as well as in colour. "points": the line with its points."""


def curves(
    series: Sequence[Series],
    *,
    xlabel: str = "",
    ylabel: str = "",
    vertical: tuple[float, str] | None = None,
    xlim: tuple[float, float] | None = None,
) -> str:
    """Draw lines over a common axis.

    Args:
        series: The lines. Points that are not finite are left out, and a note in the plot says how many.
        xlabel: Name of the horizontal axis.
        ylabel: Name of the vertical axis.
        vertical: A place on the horizontal axis that is marked, and its name.
        xlim: Range of the horizontal axis, where several plots are to share it.

    Returns:
        An ``<svg>`` element, 420 units wide, transparent, without references to anything outside it.
    """
    light = THEMES["light"]
    figure = Figure(facecolor="none")
    FigureCanvasSVG(figure)
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "exptilt", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        axes = figure.add_subplot(facecolor="none")
        handles, names, left_out = [], [], 0
        for index, line in enumerate(series):
            handle, dropped = _draw(axes, line, index)
            left_out += dropped
            if handle is not None:
                handles.append(handle)
                names.append(line["label"])
        if not handles:
            axes.text(0.5, 0.5, "no finite value to draw", ha="center", color=light.muted, transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
        if vertical is not None and handles and math.isfinite(vertical[0]):
            handles.append(axes.axvline(vertical[0], color=light.ink, linewidth=1))
            names.append(vertical[1])
        if xlim is not None:
            axes.set_xlim(*xlim)
        _dress(axes, xlabel, ylabel, numbered=bool(handles))
        if ylabel and len(names) == 1:  # a lone line that the vertical axis names needs no legend
            handles, names = [], []
        note = f"{left_out} non-finite value{'s' * (left_out > 1)} left out" if left_out else ""
        height = _frame(figure, handles, names, note)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(file.getvalue(), height)


def _draw(axes: Any, line: Series, index: int) -> tuple[Line2D | None, int]:
    """One line and its band; the handle for the legend (None if nothing is finite), and how many points fell out."""
    palette = THEMES["light"].series
    colour = palette[index % len(palette)]
    x, y = (np.asarray(line[key], dtype=float).ravel() for key in ("x", "y"))
    if len(x) != len(y):
        raise ValueError(f"series {line['label']!r}: {len(x)} places on x and {len(y)} values")
    keep = np.isfinite(x) & np.isfinite(y)
    dropped = int((~keep).sum())
    if "lo" in line and "hi" in line:
        lo, hi = (np.asarray(line[key], dtype=float).ravel() for key in ("lo", "hi"))
        banded = keep & np.isfinite(lo) & np.isfinite(hi)
        axes.fill_between(x[banded], lo[banded], hi[banded], color=colour, alpha=0.18, linewidth=0)
    if not keep.any():
        return None, dropped
    style = line.get("style")
    points = style == "points" or keep.sum() == 1
    dashes = _DASHES[index % len(_DASHES)] if style in (None, "points") else style
    marker = {"marker": "o", "markersize": 4.5, "markeredgewidth": 0} if points else {}
    (handle,) = axes.plot(x[keep], y[keep], color=colour, linewidth=1.8, linestyle=dashes, **marker)
    return handle, dropped


def _dress(axes: Any, xlabel: str, ylabel: str, *, numbered: bool) -> None:
    light = THEMES["light"]
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=light.muted, linewidth=0.8)
    axes.tick_params(colors=light.muted, labelsize=_TEXT - 0.5, length=3, width=0.8)
    axes.set_xlabel(_clean(xlabel), fontsize=_TEXT, color=light.ink, parse_math=False)
    axes.set_ylabel(_clean(ylabel), fontsize=_TEXT, color=light.ink, parse_math=False)
    axes.margins(x=0.02)
    if numbered:
        axes.grid(axis="y", color=light.muted, alpha=0.22, linewidth=0.8)
        axes.set_axisbelow(True)
        for axis, most in ((axes.xaxis, 6), (axes.yaxis, 5)):
            axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
            formatter = ScalarFormatter(useOffset=False, useMathText=False)
            formatter.set_powerlimits((-5, 6))
            axis.set_major_formatter(formatter)
            axis.get_offset_text().set(color=light.muted, fontsize=_SMALL)


def _frame(figure: Figure, handles: list[Any], names: list[str], note: str) -> float:
    """The legend above the axes and the note below them: the figure grows by them. Returns its height."""
    light = THEMES["light"]
    widest = _TEXT * max(map(text_width, names), default=0) + 48
    columns = max(1, min(len(names), int(WIDTH / widest)))
    rows = math.ceil(len(names) / columns)
    head, foot = 4 + (17.5 * rows + 6 if rows else 0), (16 if note else 0)
    height = PLOT_HEIGHT + head + foot
    figure.set_size_inches(WIDTH / 72, height / 72)
    figure.text(1, 2 / height, note, fontsize=_SMALL, color=light.muted, ha="right", va="bottom")
    if handles:
        legend = figure.legend(
            handles,
            [_clean(name) for name in names],
            loc="upper left",
            bbox_to_anchor=(0, 1 - 2 / height),
            ncols=columns,
            frameon=False,
            fontsize=_TEXT,
            labelcolor=light.ink,
            handlelength=2.2,
            borderaxespad=0,
            borderpad=0.2,
            labelspacing=0.35,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    rect = (0, foot / height, 1, 1 - (head + foot) / height)
    figure.set_layout_engine("constrained", rect=rect, w_pad=2 / 72, h_pad=2 / 72)
    return height


def _clean(text: str) -> str:
    """Without line breaks and without the control characters that XML forbids."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+", " ", text)


def _inline(svg: str, height: float) -> str:
    """matplotlib's file as an element for a page: own ids, no prolog, no metadata, colours for dark pages."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", " ", re.sub(r' transform="rotate\(-0 [^"]*"', "", svg))
    mark = f"c{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'(?<=\sid=")|(?<=xlink:href="#)|(?<=url\(#)', mark, svg)
    opening = (
        f'<svg class="exptilt-curves" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}"><style>{_STYLE}</style>'
    )
    return re.sub(r"^<svg[^>]*>", lambda _: opening, svg, count=1)


def _style() -> str:
    light, dark = THEMES["light"], THEMES["dark"]
    pairs = zip((light.ink, light.muted, *light.series), (dark.ink, dark.muted, *dark.series), strict=True)
    exchange = "".join(
        f'.exptilt-curves [style*="{part}: {before}"]{{{part}:{after}!important}}'
        for before, after in pairs
        for part in ("stroke", "fill")
    )
    return (
        ".exptilt-curves *{stroke-linejoin:round;stroke-linecap:butt}"
        ".exptilt-curves text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,"
        "'DejaVu Sans',sans-serif!important}"
        f"@media screen and (prefers-color-scheme:dark){{{exchange}}}"
    )


_STYLE = _style()
