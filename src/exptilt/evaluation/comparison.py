"""Two results side by side: whether they compare at all, and by how much they differ."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from exptilt.errors import InputError
from exptilt.evaluation import protocol
from exptilt.storage import RESULT, read_json

FIGURES = ("fid", "kid", "precision", "recall", "density", "coverage", "class_entropy")
_HEADLINES = ("tilted", "images", "base")


def read_result(path: str | Path) -> dict[str, Any]:
    """A result of an evaluation, from its file or from the folder of a run.

    Raises:
        InputError: There is no such file, or it holds no result with an FID.
    """
    path = Path(path)
    path = path / RESULT if path.is_dir() else path
    result = read_json(path)
    mend = "give what exptilt evaluate wrote"
    if not isinstance(result, dict) or not isinstance(result.get("protocol"), dict):
        raise InputError(path, "is no result of an evaluation", mend)
    figures = [part for name in _HEADLINES if isinstance(part := result.get(name), dict)]
    if not figures or not all(_is_whole(part) for part in figures):
        raise InputError(path, "has no FID with an interval", mend)
    return result


def compare_results(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """How far b is from a, of the same protocol.

    What is compared is the tilted generator of a result, else its images, else its base. Images that were evaluated
    by themselves have no seeds, so seeds may differ where one side is such images. The interval of FID's difference
    is the difference ± √(half² + half²) of the two intervals: right for independent samples, and too wide rather than
    too narrow where both share seeds, so that their samples resemble each other.

    Args:
        a: A result, see :func:`read_result`.
        b: Another.

    Returns:
        ``{"protocol", "a", "b", "difference"}``: the hash of a's protocol; for each side the name of what is compared;
        b − a of each of :data:`FIGURES` that both have, and ``"fid_ci"``.

    Raises:
        InputError: The protocols differ; the error names the fields.
    """
    sides = [dict(result["protocol"]) for result in (a, b)]
    if not all(side.get("seeds") for side in sides):
        for side in sides:
            side.pop("seeds", None)
    protocol.compare(*sides)
    names = [headline(result) for result in (a, b)]
    first, second = a[names[0]], b[names[1]]
    known = [name for name in FIGURES if all(_is_number(part.get(name)) for part in (first, second))]
    difference: dict[str, Any] = {name: second[name] - first[name] for name in known}
    half = math.hypot(*(part["fid_ci"][1] - part["fid"] for part in (first, second)))
    difference["fid_ci"] = [difference["fid"] - half, difference["fid"] + half]
    return {"protocol": a["protocol"].get("hash"), "a": names[0], "b": names[1], "difference": difference}


def headline(result: dict[str, Any]) -> str:
    """Name of what a result is about: ``"tilted"``, ``"images"`` or ``"base"``."""
    return next(name for name in _HEADLINES if isinstance(result.get(name), dict))


def _is_whole(figures: dict[str, Any]) -> bool:
    interval = figures.get("fid_ci")
    if not isinstance(interval, list) or len(interval) != 2:
        return False
    return all(map(_is_number, (figures.get("fid"), *interval)))


def _is_number(value: Any) -> bool:
    # A whole number of JSON may be beyond all floats; NaN is below nothing.
    return isinstance(value, (int, float)) and abs(value) < 1e300
