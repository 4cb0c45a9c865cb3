"""Small drawings out of characters, and numbers in few of them. Pure: no widgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

EIGHTHS = " ▁▂▃▄▅▆▇█"
_LEFT = " ▏▎▍▌▋▊▉█"
_UNITS = ("B", "KB", "MB", "GB", "TB")


def human_bytes(count: float) -> str:
    """Return a size in three figures: `16.9 MB`, `950 B`; steps of 1000, as file managers count."""
    for unit in _UNITS:
        if count < 999.5 or unit == _UNITS[-1]:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return ""


def human_count(count: int) -> str:
    """Return a count of parameters as people say it: `17.98M`, `8.19B`, `50,257`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count:,}"


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


def percent(share: float) -> str:
    """Return a share with a sensible number of digits: `33.1%`, `0.04%`, `0%`, `100%`."""
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.001:
        return "<0.01%" if share < 0.0001 else f"{share:.2%}"
    return f"{share:.1%}"


def number(value: float) -> str:
    """Return a number in at most four figures."""
    return f"{value:.4g}"
