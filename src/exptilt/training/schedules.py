"""How a learning rate goes on."""

from __future__ import annotations

import math
from collections.abc import Callable

# Share of a triangle in which the learning rate rises, and where it starts (Jordan 2024).
_RISE, _FIRST = 0.23, 0.2
# The share of the updates that the first of two triangles takes, and the height of the second.
_RESTART, _LOWER = 2 / 3, 0.4


def _triangle(progress: float) -> float:
    return min(_FIRST + (1 - _FIRST) * progress / _RISE, (1 - progress) / (1 - _RISE))


def _triangles(progress: float) -> float:
    rest = (progress - _RESTART) / (1 - _RESTART)
    return _triangle(progress / _RESTART) if rest < 0 else _LOWER * _triangle(rest)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "triangles": _triangles,
}
"""The learning rate, as a factor, at a share of the updates in [0, 1)."""
