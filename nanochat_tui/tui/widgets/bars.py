"""Small drawings out of characters. Pure: no widgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

EIGHTHS = " ▁▂▃▄▅▆▇█"
_LEFT = " ▏▎▍▌▋▊▉█"


def merged(counts: Sequence[float], width: int) -> list[float]:
    """Return counts averaged into at most `width` bins: a sum would make those higher that hold more of them."""
    n = len(counts)
    if n <= width:
        return list(counts)
    borders = [i * n // width for i in range(width + 1)]
    return [sum(counts[a:b]) / (b - a) for a, b in pairwise(borders)]


def bars(counts: Sequence[float], width: int, height: int) -> list[str]:
    """Draw a histogram of `height` lines, at most `width` cells wide; a bin that is not empty is never invisible."""
    values = merged(counts, max(1, width))
    peak = max(values, default=0)
    repeat = max(1, width // max(1, len(values)))
    levels = [0 if peak <= 0 or v <= 0 else max(1, round(v / peak * 8 * height)) for v in values]
    lines = []
    for line in range(height - 1, -1, -1):
        lines.append("".join(EIGHTHS[min(8, max(0, level - 8 * line))] * repeat for level in levels))
    return lines


def meter(share: float, width: int) -> str:
    """Return a bar filled from the left by `share`, in eighths of a cell."""
    if not math.isfinite(share):
        return " " * width
    eighths = round(min(1.0, max(0.0, share)) * 8 * width)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_LEFT[rest] if rest else "")).ljust(width)


def sparkline(values: Sequence[float], cells: int) -> str:
    """Return the last `cells` values as bars of one row, the largest one full; blanks where there are none."""
    shown = list(values)[-cells:]
    top = max(shown, default=0.0)
    levels = (max(1, round(value / top * 7) + 1) if top > 0 and value > 0 else 1 for value in shown)
    return "".join(EIGHTHS[min(8, level)] for level in levels).rjust(cells)
