"""Numbers in few characters, the same on every screen."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanochat_tui.tui import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.14159, "3.142"), (0.02, "0.02"), (2.381e-5, "2.4e-5"), (14_450_688, "14.45M"), (9999, "9999"),
     (63_100, "63.1k"), (math.inf, "NaN"), (-2.5, "-2.5")],
)  # fmt: skip
def test_short_numbers(value: float, text: str) -> None:
    assert numbers.short(value) == text


@example(0.03125)  # exact in five digits
@example(-1.5e12)
@example(9_999.49)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_short_numbers_are_short_and_near(value: float) -> None:
    text = numbers.short(value)
    assert len(text) <= 6
    unit = {"k": 1e3, "M": 1e6, "B": 1e9}.get(text[-1], 1.0)
    read = float(text.rstrip("kMB")) * unit
    if 1e-9 <= value <= 1e99:
        assert math.isclose(read, value, rel_tol=0.05)
    assert math.copysign(1, read) == math.copysign(1, value) or read == 0


def test_durations() -> None:
    texts = [numbers.duration(s) for s in (0, 59.4, 190, 7500, 270_000, None, math.nan)]
    assert texts == ["0s", "59s", "3m10s", "2h05m", "3d03h", "–", "–"]
    assert [numbers.size(n) for n in (448, 17_200_000, None)] == ["448 B", "17.2 MB", "–"]
    assert [numbers.amount(n) for n in (950, 17_981_036, 130_000, None)] == ["950", "17.98M", "130,000", "–"]


def test_sizes_have_three_figures_and_steps_of_a_thousand() -> None:
    sizes = [0, 999, 1000, 82_944, 999_499, 999_500, 16_892_736, 8.19e9, 1.5e12, 2e15]
    texts = ["0 B", "999 B", "1 kB", "82.9 kB", "999 kB", "1 MB", "16.9 MB", "8.19 GB", "1.5 TB", "2,000 TB"]
    assert [numbers.size(count) for count in sizes] == texts


def test_counts_are_said_as_people_say_them() -> None:
    counts = [0, 50_257, 999_999, 8_190_000_000, 1.2e12, math.nan]
    assert [numbers.amount(count) for count in counts] == ["0", "50,257", "999,999", "8.19B", "1.2T", "–"]


def test_shares() -> None:
    shares = [0, 1, 0.331, 0.0004, 0.00001, 0.9999, None]
    assert [numbers.percent(share) for share in shares] == ["0%", "100%", "33.1%", "0.04%", "<0.01%", "100.0%", "–"]


def test_ages() -> None:
    assert [numbers.age(s) for s in (0, 59, 60, 7_199, 90_000)] == ["now", "now", "1 min", "1 h", "1 d"]
