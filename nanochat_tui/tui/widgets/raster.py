"""Curves as braille dots: decimated to the pixels there are, so that a long run costs no more than a short one.

Two dots stand side by side in a cell and four above each other. In every dot column the values that fall into it become
one upright stroke from their least to their greatest, joined to the column before: no spike is lost by decimation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LARGEST = float(np.finfo(np.float64).max)
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], np.uint8)


@dataclass(frozen=True, slots=True)
class Curve:
    """One line, or a row of points, of a chart. x ascends; values that are not finite are not drawn."""

    label: str
    x: Floats
    y: Floats
    colour: str = "primary"
    """Name of a theme variable, or a colour."""
    points: bool = False
    """Draw each value as a mark instead of a line."""
    faint: bool = False
    """Draw under the others and leave it out of the readout."""


@dataclass(frozen=True, slots=True)
class View:
    """What part of the plane the chart shows."""

    x0: float
    x1: float
    y0: float
    y1: float
    log: bool = False

    def across(self, x: Floats) -> Floats:
        """Horizontal place of values, 0 at the left edge and 1 at the right."""
        return (x - self.x0) / (self.x1 - self.x0)

    def up(self, y: Floats) -> Floats:
        """Vertical place of values, 0 at the bottom and 1 at the top."""
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                return (np.log(y) - math.log(self.y0)) / (math.log(self.y1) - math.log(self.y0))
        return (y - self.y0) / (self.y1 - self.y0)


def fit(
    curves: Sequence[Curve], x_range: tuple[float, float] | None = None, *, log: bool = False, robust: bool = True
) -> View | None:
    """The view that shows all curves over `x_range` (default: everything); None when there is nothing to show.

    With `robust` the few highest values do not squeeze all others flat: where the top percent stands more than three
    times higher than the rest reaches, it is cut off. A logarithmic axis shows positive values only.
    """
    parts = [(c.x[np.isfinite(c.y)], c.y[np.isfinite(c.y)]) for c in curves]
    parts = [(x, y) for x, y in parts if len(x)]
    if not parts:
        return None
    x0, x1 = x_range or (min(float(x[0]) for x, _ in parts), max(float(x[-1]) for x, _ in parts))
    seen = np.concatenate([y[(x >= x0) & (x <= x1)] for x, y in parts])
    if log:
        seen = seen[seen > 0]
    if not len(seen):
        seen = np.concatenate([y for _, y in parts])
        seen = seen[seen > 0] if log else seen
        if not len(seen):
            return None
    y0, y1 = float(seen.min()), float(seen.max())
    if robust and not log and len(seen) > 50:
        cut = float(np.quantile(seen, 0.99))
        if y1 - y0 > 3 * (cut - y0) > 0:
            y1 = cut
    if x1 <= x0:
        x1 = x0 + 1.0
    if log:
        # logarithms one by one, and no zero: numbers next to a float's ends must not leave its range
        # (and one value alone has room around it, as on the linear axis)
        spread = (math.log(y1) - math.log(y0)) * 0.04 or 0.05
        return View(x0, x1, y0 * math.exp(-spread) or y0, min(y1 * math.exp(spread), LARGEST), log=True)
    margin = (y1 - y0) * 0.04 or max(abs(y0) * 0.05, 1e-9)
    return View(x0, x1, y0 - margin, y1 + margin)


def rasterise(
    curves: Sequence[Curve], view: View, width: int, height: int
) -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.bool_]]:
    """Draw curves into cells.

    Returns the braille pattern of each cell, uint8 [height, width]; the index of the curve that owns it, int16, -1 for
    none (a later curve wins); and which cells hold a point's mark, bool.
    """
    pattern = np.zeros((height, width), np.uint8)
    owner = np.full((height, width), -1, np.int16)
    marks = np.zeros((height, width), np.bool_)
    for index, curve in enumerate(curves):
        x, y = _visible(curve, view)
        if not len(x):
            continue
        if curve.points:
            columns = np.clip((view.across(x) * width).astype(np.int64), 0, width - 1)
            rows = np.clip(((1 - view.up(y)) * height).astype(np.int64), 0, height - 1)
            marks[rows, columns] = True
            owner[rows, columns] = index
            continue
        dots = _strokes(view.across(x), view.up(y), width * 2, height * 4)
        cells = (dots.reshape(height, 4, width, 2) * _DOTS[None, :, None, :]).sum(axis=(1, 3)).astype(np.uint8)
        touched = cells > 0
        # a cell has one colour: what another curve left there would take this one's
        pattern[touched] = cells[touched]
        owner[touched] = index
        marks[touched] = False
    return pattern, owner, marks


def _visible(curve: Curve, view: View) -> tuple[Floats, Floats]:
    good = np.isfinite(curve.y)
    if view.log:
        good &= curve.y > 0
    x, y = curve.x[good], curve.y[good]
    first = max(0, int(np.searchsorted(x, view.x0)) - (0 if curve.points else 1))
    last = int(np.searchsorted(x, view.x1, side="right")) + (0 if curve.points else 1)
    return x[first:last], y[first:last]


def _strokes(across: Floats, up: Floats, columns: int, rows: int) -> NDArray[np.bool_]:
    """Dots [rows, columns] of a line through points given by their places from 0 to 1."""
    dots = np.zeros((rows, columns), np.bool_)
    column = np.floor(across * (columns - 1) + 0.5).astype(np.int64)
    value = (1 - up) * (rows - 1)
    starts = np.flatnonzero(np.diff(column, prepend=column[0] - 1))
    low = np.minimum.reduceat(value, starts)
    high = np.maximum.reduceat(value, starts)
    first = value[starts]
    last = value[np.append(starts[1:], len(value)) - 1]
    at = column[starts]
    for i in range(len(at)):
        _stroke(dots, int(at[i]), float(low[i]), float(high[i]))
        if i + 1 < len(at):
            _join(dots, int(at[i]), float(last[i]), int(at[i + 1]), float(first[i + 1]))
    return dots


def _stroke(dots: NDArray[np.bool_], column: int, low: float, high: float) -> None:
    rows, columns = dots.shape
    top, bottom = round(low), round(high)
    if 0 <= column < columns and bottom >= 0 and top < rows:
        dots[max(0, top) : min(rows, bottom + 1), column] = True


def _join(dots: NDArray[np.bool_], a: int, from_row: float, b: int, to_row: float) -> None:
    """Fill the columns between two strokes by a straight line, and the step to the next column."""
    slope = (to_row - from_row) / (b - a)
    for column in range(max(a, -1), min(b, dots.shape[1])):
        # from the middle of one column to the middle of the next, without repeating the last dot
        start, end = from_row + slope * (column - a), from_row + slope * (column + 1 - a)
        middle = (start + end) / 2
        _stroke(dots, column, min(start, middle), max(start, middle))
        _stroke(dots, column + 1, min(middle, end), max(middle, end))


def nearest(curve: Curve, x: float) -> tuple[float, float] | None:
    """The curve's value nearest to `x`, as (x, y); None for an empty curve."""
    if not len(curve.x):
        return None
    at = int(np.searchsorted(curve.x, x))
    candidates = [i for i in (at - 1, at) if 0 <= i < len(curve.x)]
    best = min(candidates, key=lambda i: abs(float(curve.x[i]) - x))
    return float(curve.x[best]), float(curve.y[best])
