"""What a page says in figures: evaluation results as tables, training logs as curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exptilt.report.curves import Series, curves
from exptilt.report.page import Code, KeyValues, Section, Svg, Table

ROWS = {
    "base": "base",
    "tilted": "tilted",
    "images": "images",
    "reconstruction": "reconstruction (ceiling)",
    "floor": "real against real (floor)",
}
COLUMNS = {
    "fid": "FID\N{NO-BREAK SPACE}↓",
    "kid": "KID\N{NO-BREAK SPACE}↓",
    "precision": "precision\N{NO-BREAK SPACE}↑",
    "recall": "recall\N{NO-BREAK SPACE}↑",
    "density": "density\N{NO-BREAK SPACE}↑",
    "coverage": "coverage\N{NO-BREAK SPACE}↑",
    "class_entropy": "class entropy",
    # Of points.
    "high_quality": "within 3σ\N{NO-BREAK SPACE}↑",
    "modes": "modes\N{NO-BREAK SPACE}↑",
    "weight_kl": "KL of mode weights\N{NO-BREAK SPACE}↓",
    "log_density": "log-density\N{NO-BREAK SPACE}↑",
    "energy_distance": "energy distance\N{NO-BREAK SPACE}↓",
}
LABELS = {
    "fid": "FID",
    "kid": "KID",
    "energy_data": "E of data",
    "energy_model": "E of samples",
    "energy_tilted": "E of tilted samples",
    "class_entropy": "class entropy",
}
_QUALITY = (*COLUMNS, "fid_train", "fid_test", "auc")
_OF_ROLLBACKS = {"rollback_from", "rollbacks", "learning_rate_factor", "step_size_factor"}
_NO_SERIES = {"iteration", "epoch", "step", "stage", "seconds", "chosen_iteration"} | _OF_ROLLBACKS
_MISSING = "–"
_MOST_POINTS = 150  # more than these are drawn as means over intervals


def number(value: object) -> float:
    """A JSON value as a float; NaN for what is no number, or a whole number beyond all floats."""
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def metric_table(result: Mapping[str, Any]) -> Table:
    """Base, tilted, ceiling and floor under one protocol.

    Args:
        result: What ``exptilt evaluate --json`` writes. Rows and figures that it lacks are left out.
    """
    rows = {key: result[key] for key in ROWS if isinstance(result.get(key), Mapping)}
    columns = [key for key in COLUMNS if any(math.isfinite(number(m.get(key))) for m in rows.values())]
    digits = {key: _digits([number(m.get(key)) for m in rows.values()]) for key in columns}
    body = []
    for name, metrics in rows.items():
        cells = [_format(number(metrics.get(key)), digits[key]) for key in columns]
        if "fid" in columns:
            interval = _interval(metrics.get("fid_ci"), digits["fid"])
            cells[columns.index("fid")] += f" {interval}" if interval else ""
        body.append([ROWS[name], *cells])
    seeds = [str(seed) for seed in _sequence(result.get("seeds"))]
    entropy = number((result.get("data") or {}).get("class_entropy"))
    parts = [
        _sizes(result.get("n"), rows),
        f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds else "",
        "brackets: 95% interval of the FID" if any(_interval(m.get("fid_ci"), 1) for m in rows.values()) else "",
        f"class entropy of the test images: {entropy:.2f} nats" if math.isfinite(entropy) else "",
        "↓ smaller is better, ↑ larger is better" if columns else "",
    ]
    return Table(
        "Distance to the test images, before and after" if "fid" in columns else "Figures, before and after",
        ["", *(COLUMNS[key] for key in columns)],
        body,
        note="; ".join(part for part in parts if part),
        protocol=protocol_hash(result),
        command=_command(result),
        strong=[list(rows).index("tilted")] if "tilted" in rows else [],
    )


def seed_table(result: Mapping[str, Any]) -> Table:
    """FID of each seed of a result, and the mean ± standard deviation over them."""
    rows = _by_seed(result)
    digits = _digits([value for _, *pair in rows for value in pair])
    body = [[name, _format(base, digits), _format(tilted, digits), change(base, tilted)] for name, base, tilted in rows]
    changes = [after / before - 1 for _, before, after in rows if before > 0 and math.isfinite(after)]
    if len(changes) > 1:
        means = [_mean_and_spread(values, digits) for values in ([row[1] for row in rows], [row[2] for row in rows])]
        spread = f"{_percent(statistics.fmean(changes))} ± {100 * statistics.stdev(changes):.1f}"
        body.append(["mean ± standard deviation", *means, spread])
    return Table(
        "FID of each seed",
        ["", "FID, base", "FID, tilted", "change"],
        body,
        protocol=protocol_hash(result),
        command=_command(result),
        strong=[len(rows)] if len(changes) > 1 else [],
    )


def result_section(result: Mapping[str, Any]) -> Section:
    """The comparison in large type, the table, and the protocol folded away."""
    base, tilted = (result.get(key) or {} for key in ("base", "tilted"))
    before, after = number(base.get("fid")), number(tilted.get("fid"))
    stressed = []
    if math.isfinite(before) and math.isfinite(after):
        stressed.append(("FID, base → tilted", f"{_format(before, 2)} → {_format(after, 2)}"))
        stressed.append(("change", change(before, after)))
    for key in ("recall", "coverage", "class_entropy"):
        pair = [number(metrics.get(key)) for metrics in (base, tilted)]
        if all(map(math.isfinite, pair)):
            stressed.append((label(key), f"{pair[0]:.2f} → {pair[1]:.2f}"))
    text = ""
    if stressed:
        text = (
            "FID can be lowered by losing modes; recall, coverage and class entropy would fall then. "
            "Compare the relative change: an absolute FID depends on the feature network."
        )
    protocol = result.get("protocol")
    lines = [f"{key}: {value}" for key, value in protocol.items()] if isinstance(protocol, Mapping) else []
    details = [Code("\n".join(lines), summary="Protocol in full")] if lines else []
    figures = [KeyValues(stressed, prominent=True)] if stressed else []
    seeds = [seed_table(result)] if stressed and len(_by_seed(result)) > 1 else []
    return Section("Result", text, [*figures, metric_table(result), *seeds, *details])


def training_curves(log: Sequence[Mapping[str, Any]], chosen: float | None = None) -> list[Svg]:
    """Every numeric series of a log: quality first, the energies together, then the loss and the rest.

    Args:
        log: Lines with ``"iteration"`` (or ``"epoch"``) and figures. Where an iteration was logged twice (the run
            was rolled back), the later line counts.
        chosen: The iteration whose weights were kept; marked in each plot.
    """
    axis = next((name for name in ("iteration", "epoch") if any(name in line for line in log)), "")
    merged: dict[float, dict[str, float]] = {}
    for index, line in enumerate(log):
        place = number(line.get(axis)) if axis else float(index)
        values = {key: number(v) for key, v in line.items() if key not in _NO_SERIES and _is_number(v)}
        if values and math.isfinite(place):
            merged.setdefault(place, {}).update(values)
    names = list(dict.fromkeys(key for values in merged.values() for key in values))
    energies = [name for name in names if name.startswith("energy")]
    groups = [[name] for name in names if name in _QUALITY] + ([energies] if energies else [])
    groups += [["loss"]] if "loss" in names else []
    groups += [[name] for name in names if [name] not in groups and name not in energies]
    low, high = min(merged, default=0), max(merged, default=0)
    xlim = (low - 0.02 * (high - low), high + 0.02 * (high - low)) if low < high else None
    drawings = []
    for group in groups:
        series, binned = [], False
        for name in group:
            places = sorted(place for place, values in merged.items() if name in values)
            line, thinned = _thinned(label(name), places, [merged[place][name] for place in places])
            series.append(line)
            binned |= thinned
        together = "energy" if len(group) > 1 else label(group[0])
        marked = (chosen, f"chosen: {chosen:g}") if chosen is not None else None
        svg = curves(series, xlabel=axis or "line of the log", ylabel=together, vertical=marked, xlim=xlim)
        caption = f"{together[0].upper()}{together[1:]} in training."
        caption += " Line: mean over an interval; band: 10% to 90% of its values." if binned else ""
        drawings.append(Svg(svg, f"{together} against {axis or 'line'}: {_summary(series)}", caption))
    return drawings


def label(name: str) -> str:
    """How a key of the log or of a result is written on the page."""
    return LABELS.get(name, name.replace("_", " "))


def protocol_hash(result: Mapping[str, Any]) -> str:
    """The hash of a result's protocol, or nothing."""
    protocol = result.get("protocol")
    return str(protocol.get("hash") or "") if isinstance(protocol, Mapping) else ""


def change(before: float, after: float) -> str:
    """Relative change in per cent, with its sign."""
    return _percent(after / before - 1) if before > 0 and math.isfinite(after) else _MISSING


def _command(result: Mapping[str, Any]) -> str:
    """The command that made a result, or nothing."""
    return str(result.get("command") or "")


def _by_seed(result: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Name, base and tilted FID of each seed of a result; of all together where they are not told apart."""
    seeds = _sequence(result.get("seeds"))
    base, tilted = (result.get(key) or {} for key in ("base", "tilted"))
    apart = [[number(value) for value in _sequence(metrics.get("fid_per_seed"))] for metrics in (base, tilted)]
    if seeds and len(seeds) == len(apart[0]) == len(apart[1]):
        return [(f"seed {seed}", before, after) for seed, before, after in zip(seeds, *apart, strict=True)]
    name = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if seeds else "all"
    return [(name, number(base.get("fid")), number(tilted.get("fid")))]


def _percent(share: float) -> str:
    return f"{100 * share:+.{0 if abs(share) >= 0.1 else 1}f}%".replace("-", "−")


def _format(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else _MISSING


def _digits(values: Sequence[float]) -> int:
    """Decimals that show three digits of the largest value, and at least one of the smallest: never more than five.

    What is below a thousandth of the largest is shown as 0.
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    sizes = [size for size in sizes if 1000 * size >= max(sizes)]
    if not sizes:
        return 2
    largest, smallest = (math.floor(math.log10(pick(sizes))) for pick in (max, min))
    return min(5, max(2 - largest, -smallest, 0 if largest > 3 else 2))


def _sizes(n: object, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How many images were compared, with the rows that had another number."""
    if not isinstance(n, int):
        return ""
    others = [f"{name} {m['n']:,}" for name, m in rows.items() if isinstance(m.get("n"), int) and m["n"] != n]
    return f"N = {n:,} samples" + (f" ({', '.join(others)})" if others else "")


def _interval(value: object, digits: int) -> str:
    ends = [number(end) for end in _sequence(value)]
    if len(ends) != 2 or not all(map(math.isfinite, ends)):
        return ""
    return f"[{_format(ends[0], digits)}, {_format(ends[1], digits)}]"


def _mean_and_spread(values: Sequence[float], digits: int) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return _MISSING
    return f"{_format(statistics.fmean(finite), digits)} ± {_format(statistics.stdev(finite), digits)}"


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else []


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _thinned(name: str, x: Sequence[float], y: Sequence[float]) -> tuple[Series, bool]:
    """A line as it is, or, where it has very many points, their means over intervals with a band."""
    if len(x) <= _MOST_POINTS:
        style = "points" if len(x) <= 25 else None
        return (Series(label=name, x=x, y=y, style=style) if style else Series(label=name, x=x, y=y)), False
    parts = np.array_split(np.arange(len(x)), 75)
    places, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    centre, low, high = (np.full(len(parts), np.nan) for _ in range(3))
    for index, part in enumerate(parts):
        finite = values[part][np.isfinite(values[part])]
        if len(finite):
            centre[index] = finite.mean()
            low[index], high[index] = np.quantile(finite, (0.1, 0.9))
    return Series(label=name, x=[float(places[p].mean()) for p in parts], y=centre, lo=low, hi=high), True


def _summary(series: Sequence[Series]) -> str:
    """First and last value of each line, for a reader who cannot see it."""
    parts = []
    for line in series:
        finite = [value for value in np.asarray(line["y"], dtype=float) if math.isfinite(value)]
        parts.append(f"{line['label']} from {finite[0]:.3g} to {finite[-1]:.3g}" if finite else "no finite value")
    return "; ".join(parts)
