"""The colours of figures and pages: one palette for light pages, the same places in another for dark ones.

Series colours follow Okabe and Ito (told apart under the common colour blindnesses), darkened or lightened until
each has a contrast of at least 3:1 against its background.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import matplotlib
from PIL import ImageFont

ThemeName = Literal["light", "dark"]


@dataclass(frozen=True)
class Theme:
    """Colours as ``#rrggbb``.

    Attributes:
        background: Of the page and of every opaque figure.
        ink: Text and lines of first rank.
        muted: Axes, ticks, captions.
        series: Lines and points, in order of use.
    """

    background: str
    ink: str
    muted: str
    series: tuple[str, ...]


THEMES: dict[ThemeName, Theme] = {
    "light": Theme(
        background="#ffffff",
        ink="#1a1d21",
        muted="#5b626c",
        series=("#0072b2", "#d04f00", "#00795a", "#b0478a", "#8a6400", "#3d4f9f"),
    ),
    "dark": Theme(
        background="#15181d",
        ink="#e9ebee",
        muted="#a3abb6",
        series=("#56b4e9", "#ff8f52", "#35c79b", "#ec9fca", "#ecc04a", "#a3b1ff"),
    ),
}


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: there on every machine, and it has − · ~."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def text_width(text: str) -> float:
    """Width of a text in that font, in units of its size."""
    return font(100).getlength(text) / 100
