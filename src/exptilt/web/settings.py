"""What the page's controls set, within bounds that hold whatever a client sends."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import NamedTuple

from exptilt.errors import InputError

NO_REWARD = "none"


class Range(NamedTuple):
    """Smallest and largest value, and the distance of two neighbours on the slider."""

    low: float
    high: float
    step: float


LIMITS = {
    "steps": Range(0, 500, 1),
    "step_size": Range(0.0001, 1, 0.0001),
    "strength": Range(0, 8, 0.05),
    "seed": Range(0, 9999, 1),
    "weight": Range(-5, 5, 0.1),
}
# Square grids of images. Points need more to show a shape.
SIZES = (4, 16, 36, 64)
POINTS = 1000


@dataclass(frozen=True)
class Settings:
    """One run of the chains.

    Attributes:
        steps: Transitions, a whole number in 0 … 500.
        step_size: ε in [0.0001, 1].
        strength: λ in [0, 8].
        seed: Whole number in 0 … 9,999.
        n: Images, 4, 16, 36 or 64.
        reward: Name of a reward, see :func:`exptilt.web.rewards.rewards_for`.
        weight: Factor of the reward, in [−5, 5].

    Raises:
        InputError: A value is no number, or out of range.
    """

    steps: int
    step_size: float
    strength: float
    seed: int
    n: int = 16
    reward: str = NO_REWARD
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            object.__setattr__(self, name, _within(name, getattr(self, name), limit))
        if self.n not in SIZES or not isinstance(self.n, int):
            right = f"give one of {', '.join(map(str, SIZES))}"
            raise InputError("n", f"{reprlib.repr(self.n)} is out of range", right)
        if not isinstance(self.reward, str):
            fault = f"{reprlib.repr(self.reward)} is no name"
            raise InputError("reward", fault, f"give {NO_REWARD}, or one of the model's")


def _within(name: str, value: object, limit: Range) -> int | float:
    right = f"give a number from {limit.low:g} to {limit.high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(name, f"{reprlib.repr(value)} is no number", right)
    if not limit.low <= value <= limit.high:
        raise InputError(name, f"{reprlib.repr(value)} is out of range", right)
    if limit.step != 1:
        return float(value)
    if value != int(value):
        raise InputError(name, f"{reprlib.repr(value)} is no whole number", right)
    return int(value)
