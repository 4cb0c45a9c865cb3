"""The picture of a ternary matrix: what a microscope shows at a place and a magnification."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.inspection.trits import TritReader

SAMPLED_ROWS = 8
"""Rows that are looked at in each cell of a picture that is zoomed out; a cell's other rows are passed over."""

Picture = NDArray[np.float32]


def picture(
    reader: TritReader, row: int, column: int, height: int, width: int, zoom: int, density: bool = False
) -> Picture:
    """Return the mean of the weights' codes (-1, 0, +1, or +2) in each cell, without the scale.

    Parameters: the first row and column; the picture's size in cells; `zoom`, the side of a cell in weights; `density`
    asks for the share of weights that are not zero instead.
    Returns float32 [height, width], NaN outside the matrix. With `zoom` 1 these are the trits themselves. A cell of
    more than `SAMPLED_ROWS` rows is the mean of that many of them, evenly spaced, over all its columns.
    """
    found = np.full((height, width), np.nan, np.float32)
    left, right = max(0, column), min(reader.columns, column + width * zoom)
    top, bottom = max(0, row), min(reader.rows, row + height * zoom)
    if left >= right or top >= bottom:
        return found
    first, last = left // reader.group, -(-right // reader.group)
    borders = np.arange(column, column + (width + 1) * zoom, zoom).clip(left, right) - first * reader.group
    used = np.flatnonzero(np.diff(borders) > 0)
    starts, widths = borders[used], np.diff(borders)[used]
    for cell in range(height):
        begin, end = max(top, row + cell * zoom), min(bottom, row + (cell + 1) * zoom)
        if begin >= end:
            continue
        chosen = np.unique(np.linspace(begin, end - 1, min(end - begin, SAMPLED_ROWS)).round().astype(np.int64))
        if len(chosen) == end - begin:
            codes = reader.codes(begin, end, first, last)
        else:
            codes = np.concatenate([reader.codes(int(one), int(one) + 1, first, last) for one in chosen])
        sums = (codes != 1 if density else codes).sum(axis=0, dtype=np.int64)
        running = np.concatenate([[0], np.cumsum(sums)])
        totals = running[starts + widths] - running[starts]
        found[cell, used] = totals / (widths * len(codes)) - (0.0 if density else 1.0)
    return found


def weight_at(reader: TritReader, row: int, column: int) -> tuple[int, float] | None:
    """Return the code (-1 to +2) and the scale of one weight, or None outside the matrix."""
    if not (0 <= row < reader.rows and 0 <= column < reader.columns):
        return None
    group = column // reader.group
    code = int(reader.codes(row, row + 1, group, group + 1)[0, column % reader.group])
    return code - 1, float(reader.scales(row, row + 1)[0, group])


def fitting_zoom(reader: TritReader, height: int, width: int) -> int:
    """Return the smallest power of two at which the whole matrix fits a picture of `height` x `width` cells."""
    zoom = 1
    while zoom * height < reader.rows or zoom * width < reader.columns:
        zoom *= 2
    return zoom
