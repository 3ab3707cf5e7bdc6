"""What commands print: results as tables, 80 columns wide, on standard output."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from exptilt.evaluation import toy
from exptilt.evaluation.evaluate import fid_decimals, summary_rows
from exptilt.report.likelihood import likelihood_rows, likelihood_title

_SHORT = {
    "precision": "prec.",
    "density": "dens.",
    "coverage": "cover.",
    "high quality": "within 3σ",
    "weight KL": "KL",
    "log density": "log p",
    "energy distance": "distance",
}
_STYLE: dict[str, Any] = {
    "box": box.HORIZONTALS,
    "padding": (0, 1, 0, 0),
    "title_justify": "left",
    "caption_justify": "left",
}


def print_table(result: dict[str, Any]) -> None:
    """The rows of what ``evaluate`` or ``evaluate_points`` returned."""
    of_points = "p_value" in (result["base"] or {})
    header, *rows = (toy.summary_rows if of_points else summary_rows)(result)
    seeds = f", seeds {' '.join(map(str, result['seeds']))}" if result["seeds"] else ""
    title = f"N = {result['n']:,}{seeds}, protocol {result['protocol']['hash']}"
    if of_points:
        caption = "± half the 95% interval over the seeds; floor: training points against test points"
    else:
        # The last column's name also tells the entropy of the data; names are shortened to fit.
        title += f"; {header[-1].removeprefix('class ')}"
        header[-1] = "entropy"
        caption = "ceiling: G(encode(test images)); floor: training images against test images"
    table = Table(title=title, caption=caption, **_STYLE)
    for index, name in enumerate(header):
        table.add_column(_SHORT.get(name, name), justify="right" if index else "left", no_wrap=True)
    for name, *figures in rows:
        table.add_row({"reconstruction": "ceiling"}.get(name, name), *figures)
    Console(highlight=False).print(table)


def print_comparison(names: tuple[str, str], a: dict[str, Any], b: dict[str, Any], told: dict[str, Any]) -> None:
    """Two results side by side.

    Args:
        names: What the user calls them.
        a: The first result.
        b: The second.
        told: What :func:`exptilt.evaluation.comparison.compare_results` says of them.
    """
    first, second, difference = a[told["a"]], b[told["b"]], told["difference"]
    decimals = fid_decimals([first["fid"], second["fid"]])
    legend = "\n".join(f"{side}: {escape(name)} ({told[side.lower()]})" for side, name in zip("AB", names, strict=True))
    table = Table(title=legend, caption=f"± half the 95% interval; protocol {told['protocol']}", **_STYLE)
    for index, column in enumerate(("", "A", "B", "B − A")):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for name in (key for key in difference if key != "fid_ci"):
        digits = {"fid": f".{decimals}f", "kid": ".3g", "class_entropy": ".2f"}.get(name, ".3f")
        cells = [f"{part[name]:{digits}}" for part in (first, second)] + [f"{difference[name]:+{digits}}"]
        if name == "fid":
            halves = [part["fid_ci"][1] - part["fid"] for part in (first, second, difference)]
            cells = [f"{cell} ± {half:{digits}}" for cell, half in zip(cells, halves, strict=True)]
        label = {"fid": "FID", "kid": "KID"}.get(name, name.replace("_", " "))
        table.add_row(label, *(cell.replace("-", "−") for cell in cells))
    Console(highlight=False).print(table)


def print_likelihood(result: dict[str, Any]) -> None:
    """log Z and, of flows, bits per dimension: what ``exptilt likelihood`` writes to its file."""
    table = Table(title=likelihood_title(result), caption="± is one standard error", show_header=False, **_STYLE)
    for name, text in likelihood_rows(result):
        table.add_row(name, text)
    Console(highlight=False).print(table)
