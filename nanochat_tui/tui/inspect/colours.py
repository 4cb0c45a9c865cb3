"""Colours of weights, taken from the theme, and their styles made once (making one per cell is ten times slower)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.color import Color

LEVELS = 33
"""Shades from -1 to +1; the middle one is 0."""
TWO, OUTSIDE = LEVELS, LEVELS + 1
"""Indexes of the colour of +2, and of what is not part of the matrix."""


@dataclass(frozen=True)
class Colours:
    """Colours of a theme. `shades` are `LEVELS` from -1 to +1, then those of `TWO` and `OUTSIDE`."""

    shades: tuple[Color, ...]
    text: Color
    muted: Color
    background: Color
    cursor: Color
    bad: Color

    @property
    def minus(self) -> Color:
        """Colour of -1."""
        return self.shades[0]

    @property
    def zero(self) -> Color:
        """Colour of 0."""
        return self.shades[LEVELS // 2]

    @property
    def plus(self) -> Color:
        """Colour of +1."""
        return self.shades[LEVELS - 1]

    def ramp(self, share: float) -> Color:
        """Return the colour of a share from 0 to 1, from that of 0 to that of +1."""
        return self.zero.blend(self.plus, min(1.0, max(0.0, share)))


def colours_of(app: App[object]) -> Colours:
    """Return the colours of the application's present theme."""
    named = app.theme_variables
    background = Color.parse(named["background"])
    zero = Color.parse(named["surface-lighten-1"])
    minus, plus = Color.parse(named["secondary"]), Color.parse(named["primary"])
    half = LEVELS // 2
    shades = [minus.blend(zero, i / half) for i in range(half)] + [zero.blend(plus, i / half) for i in range(half + 1)]
    foreground = Color.parse(named["foreground"])
    return Colours(
        shades=(*shades, Color.parse(named["accent"]), background),
        text=foreground,
        muted=background.blend(foreground, 0.6),
        background=background,
        cursor=Color.parse(named["warning"]),
        bad=Color.parse(named["error"]),
    )


def levels(values: NDArray[np.float32], contrast: float = 1.0) -> NDArray[np.int64]:
    """Return the shade of each value: -1 to +1 times `contrast`; more than 1.5 is `TWO`, NaN is `OUTSIDE`."""
    outside = np.isnan(values)
    safe = np.where(outside, 0.0, values)
    found = np.rint((np.clip(safe * contrast, -1, 1) + 1) * (LEVELS - 1) / 2).astype(np.int64)
    if contrast == 1.0:
        found[safe > 1.5] = TWO
    found[outside] = OUTSIDE
    return found


@lru_cache(maxsize=4096)
def half_block(upper: Color, lower: Color) -> Style:
    """Return the style by which `▀` shows two colours."""
    return Style(color=upper.rich_color, bgcolor=lower.rich_color)


@lru_cache(maxsize=1024)
def solid(text: Color, background: Color, bold: bool = False) -> Style:
    """Return a style of text."""
    return Style(color=text.rich_color, bgcolor=background.rich_color, bold=bold)


@lru_cache(maxsize=1024)
def on(background: Color, bold: bool = False) -> Style:
    """Return a style whose text can be read on any background."""
    return solid(background.get_contrast_text(0.9), background, bold)


def row_of(upper: NDArray[np.int64], lower: NDArray[np.int64], colours: Colours) -> list[Segment]:
    """Return a line of half blocks for two rows of shades; equal neighbours become one segment."""
    shades = colours.shades
    pairs = upper * (OUTSIDE + 1) + lower
    borders = np.flatnonzero(np.diff(pairs)) + 1
    starts = [0, *borders.tolist()]
    ends = [*borders.tolist(), len(pairs)]
    return [
        Segment("▀" * (end - start), half_block(shades[int(upper[start])], shades[int(lower[start])]))
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]
