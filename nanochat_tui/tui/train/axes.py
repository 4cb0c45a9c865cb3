"""Round numbers along an axis, and numbers in few characters."""

from __future__ import annotations

import math


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values within [low, high], at most `most` of them: multiples of 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low
    if most < 1 or not span > 0 or not math.isfinite(span):
        return []
    raw = span / max(1, most)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks: list[float] = []
    while first * step <= high + 1e-9 * span and len(ticks) <= most:
        ticks.append(first * step)
        first += 1
    return ticks[:most] if len(ticks) > most else ticks


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values of a logarithmic axis: powers of ten, with 2 and 5 between where there is room."""
    if most < 1 or not 0 < low < high or not math.isfinite(high):
        return []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**p for p in powers for m in multiples if low <= m * 10.0**p <= high]
        if 2 <= len(ticks) <= most:
            return ticks
    if len(ticks) > most:
        stride = math.ceil(len(ticks) / most)
        return ticks[::stride]
    return linear_ticks(low, high, most)


def short(value: float) -> str:
    """A number in at most six characters: 12.3k, 0.0021, 1.5e-7."""
    if not math.isfinite(value):
        return "NaN"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 999_950_000:
        text = f"{value / 1e9:.1f}G"
    elif size >= 999_950:
        text = f"{value / 1e6:.4g}M" if size < 99_995_000 else f"{value / 1e6:.0f}M"
    elif size >= 9_999.5:
        text = f"{value / 1e3:.4g}k"
    elif size >= 0.001:
        text = f"{value:.4g}"
    else:
        text = f"{value:.1e}".replace("e-0", "e-")
    return text


def duration(seconds: float | None) -> str:
    """Time in two units: 42s, 3m10s, 2h05m, 4d03h; – when unknown."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86_400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86_400}d{s % 86_400 // 3600:02d}h"


def size(count: float | None) -> str:
    """Bytes for people: 448 B, 17.2 MB; – when unknown."""
    if count is None:
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def amount(count: float | None) -> str:
    """A count for people: 950, 17.98M; – when unknown."""
    if count is None or not math.isfinite(count):
        return "–"
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 10 * factor or (count >= factor and unit != "k"):
            return f"{count / factor:.2f}{unit}" if count < 100 * factor else f"{count / factor:.0f}{unit}"
    return f"{count:.0f}"
