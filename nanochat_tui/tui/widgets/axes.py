"""Round numbers along an axis."""

from __future__ import annotations

import math

from nanochat_tui.tui.numbers import short


def linear_ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round values within [low, high], at most `most` of them: multiples of 1, 2, 2.5 or 5 times a power of ten.

    `whole` is for what is counted, such as steps: there is nothing between 1 and 2.
    """
    span = high - low
    if most < 1 or not span > 0 or not math.isfinite(span):
        return []
    raw = span / max(1, most)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
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


def labelled(ticks: list[float]) -> list[tuple[float, str]]:
    """Ticks with their labels, each label once: around a single point many ticks would read the same."""
    found: dict[str, float] = {}
    for tick in ticks:
        found.setdefault(short(tick), tick)
    return [(tick, label) for label, tick in found.items()]
