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

LEAST_GREY = 0.25
"""By how much -1, 0 and +1 differ in brightness, from 0 to 1."""


@dataclass(frozen=True)
class Colours:
    """Colours of a theme. `shades` are `LEVELS` from -1 to +1, then those of `TWO` and `OUTSIDE`."""

    shades: tuple[Color, ...]
    text: Color
    muted: Color
    background: Color
    cursor: Color
    bad: Color
    pointer: Color
    """Colour of what points at one weight: lighter, or on light themes darker, than any weight."""

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
    minus, plus = told_apart(Color.parse(named["secondary"]), Color.parse(named["primary"]), zero)
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
        pointer=Color(0, 0, 0) if grey(zero) > 0.5 else Color(255, 255, 255),
    )


def grey(colour: Color) -> float:
    """Return what is left of a colour where there are none (`NO_COLOR`), from 0 (black) to 1."""
    return colour.monochrome.r / 255


def told_apart(first: Color, second: Color, zero: Color) -> tuple[Color, Color]:
    """Return two colours of a theme, made lighter and darker until they and that of 0 differ without colour, too."""
    if any(colour.ansi is not None for colour in (first, second, zero)):
        return first, second  # the terminal's own colours, whose brightness is not known
    ground = grey(zero)
    away, room = (1.0, 1.0 - ground) if ground <= 0.5 else (-1.0, ground)
    distances = [away * (grey(colour) - ground) for colour in (first, second)]
    near, far = sorted(distances)
    if near >= LEAST_GREY and far - near >= LEAST_GREY:
        return first, second
    half = LEAST_GREY / 2
    middle = min(max((near + far) / 2, LEAST_GREY + half), room - half)
    low, high = ground + away * (middle - half), ground + away * (middle + half)
    if distances[0] <= distances[1]:
        return with_grey(first, low), with_grey(second, high)
    return with_grey(first, high), with_grey(second, low)


def with_grey(colour: Color, wanted: float) -> Color:
    """Return a colour blended with white or black until it is as light as `wanted`."""
    end = Color(255, 255, 255) if wanted > grey(colour) else Color(0, 0, 0)
    least, most = 0.0, 1.0
    for _ in range(12):
        share = (least + most) / 2
        if abs(grey(colour.blend(end, share)) - grey(colour)) < abs(wanted - grey(colour)):
            least = share
        else:
            most = share
    return colour.blend(end, most)


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
