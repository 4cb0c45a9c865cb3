"""Numbers in few characters, the same on every screen. Steps of a thousand, as file managers count."""

from __future__ import annotations

import math

UNKNOWN = "–"


def size(count: float | None) -> str:
    """Return bytes in three figures: `448 B`, `17.2 MB`; – when unknown."""
    if count is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 999.5 else f"{count:,.0f} TB"


def amount(count: float | None) -> str:
    """Return a count of parameters or tokens as people say it: `17.98M`, `8.19B`, `50,257`; – when unknown."""
    if count is None or not math.isfinite(count):
        return UNKNOWN
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= factor:
            return f"{count / factor:.4g}{unit}"
    return f"{count:,.0f}"


def short(value: float) -> str:
    """Return a number in at most six characters, its sign included: `12.3k`, `0.0021`, `1.5e-7`.

    Digits are given up for a sign or a unit; what is smaller than 1e-99 is written as 0, what is no number as NaN.
    """
    if not math.isfinite(value):
        return "NaN"
    if abs(value) < 1e-99:
        return "0"
    return next(text for digits in (4, 3, 2, 1) if len(text := _with_digits(value, digits)) <= 6)


def _with_digits(value: float, digits: int) -> str:
    """Return a number with up to so many significant digits; two at most where it has an exponent."""
    magnitude = abs(value)
    if 0.001 <= magnitude < 9_999.5:
        return f"{value:.{digits}g}"
    for unit, factor in (("k", 1e3), ("M", 1e6), ("B", 1e9)):
        if factor <= magnitude < 999.95 * factor:
            return f"{value / factor:.{digits}g}{unit}"
    mantissa, exponent = f"{value:.{min(digits, 2) - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def number(value: float) -> str:
    """Return a number in at most four figures."""
    return f"{value:.4g}"


def percent(share: float | None) -> str:
    """Return a share with a sensible number of digits: `33.1%`, `0.04%`, `<0.01%`, `0%`, `100%`; – when unknown."""
    if share is None:
        return UNKNOWN
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.001:
        return "<0.01%" if share < 0.0001 else f"{share:.2%}"
    return f"{share:.1%}"


def duration(seconds: float | None) -> str:
    """Return a time in two units: `42s`, `3m10s`, `2h05m`, `4d03h`; – when unknown."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return UNKNOWN
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86_400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86_400}d{s % 86_400 // 3600:02d}h"


def age(seconds: float) -> str:
    """Return how long ago something was, in its largest unit: `now`, `5 min`, `3 h`, `2 d`."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "now"
