"""The chart: what is drawn where, and that a long run costs no more than a short one."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from nanochat_tui.tui import numbers
from nanochat_tui.tui.widgets import axes
from nanochat_tui.tui.widgets.chart import GUTTER, Chart
from nanochat_tui.tui.widgets.raster import Curve, View, fit, nearest, rasterise

FINITE = st.floats(-1e6, 1e6)


def curve(y: list[float] | np.ndarray, label: str = "loss", **options: bool) -> Curve:
    values = np.asarray(y, np.float64)
    return Curve(label, np.arange(len(values), dtype=np.float64), values, **options)  # type: ignore[arg-type]


def dots(curves: list[Curve], view: View, width: int, height: int) -> np.ndarray:
    """The picture as dots [4 height, 2 width], decoded from Unicode's own numbering of braille dots."""
    pattern, _, _ = rasterise(curves, view, width, height)
    out = np.zeros((height * 4, width * 2), bool)
    places = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]
    for bit, (row, column) in enumerate(places):
        out[row::4, column::2] = pattern >> bit & 1
    return out


def test_a_rising_line_is_a_diagonal() -> None:
    picture = dots([curve([0.0, 1.0])], View(0, 1, 0, 1), 4, 2)
    assert all(picture[7 - column, column] for column in range(8))
    assert picture.sum() <= 8 + 7  # the diagonal, and at most one dot more where a step falls between two rows
    assert not picture[0, :5].any() and not picture[7, 3:].any()


def test_no_spike_is_lost_by_decimation() -> None:
    values = np.ones(100_000)
    values[61_803] = 9.0
    view = fit([curve(values)], robust=False)
    assert view is not None
    picture = dots([curve(values)], view, 50, 10)
    column = round(61_803 / 99_999 * 99)
    assert picture[2:36, column].all()
    assert picture[:20].any(axis=0).sum() <= 2  # and it stays as thin as it is


@example([(2.0, 1.0), (1.11253693e-308, 1.0)], True)
@example([(5e-324, 1.0), (1e308, 1.0)], True)
@given(st.lists(st.tuples(FINITE, st.sampled_from([1.0, math.inf, math.nan])), min_size=1, max_size=200), st.booleans())
def test_every_column_between_two_values_is_touched(values: list[tuple[float, float]], log: bool) -> None:
    y = np.array([a * b if b == 1.0 else b for a, b in values])
    line = curve(y)
    view = fit([line], log=log, robust=False)
    good = np.isfinite(y) & ((y > 0) | (not log))
    if view is None:
        assert not good.any()
        return
    picture = dots([line], view, 20, 6)
    places = np.flatnonzero(good)
    if len(places) > 1 and places[-1] > places[0]:
        across = view.across(places.astype(float)) * 39
        first, last = math.ceil(across[0] - 1e-9), math.floor(across[-1] + 1e-9)
        assert picture[:, max(first, 0) : min(last, 39) + 1].any(axis=0).all()


def test_points_are_marks_and_later_curves_win() -> None:
    line, points = curve([1.0, 1.0, 1.0]), curve([1.0, 2.0, 1.0], points=True)
    _, owner, marks = rasterise([line, points], View(0, 2, 0, 2), 10, 4)
    assert marks.sum() == 3
    assert (owner[marks] == 1).all()
    assert (owner == 0).any()


def test_few_high_values_do_not_squeeze_the_rest() -> None:
    values = np.linspace(3, 2, 1000)
    values[:5] = 180.0
    cut = fit([curve(values)])
    whole = fit([curve(values)], robust=False)
    assert cut is not None and whole is not None
    assert cut.y1 < 4
    assert whole.y1 > 180
    assert fit([]) is None
    assert fit([curve([-1.0, 0.0])], log=True) is None
    flat = fit([curve([2.0, 2.0])])
    assert flat is not None and flat.y0 < 2 < flat.y1


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e3), st.integers(1, 12))
def test_ticks_are_round_few_and_inside(low: float, share: float, most: int) -> None:
    span = share * max(1.0, abs(low))
    ticks = axes.linear_ticks(low, low + span, most)
    assert len(ticks) <= most
    slack = 1e-6 * span + 1e-6 * abs(low)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5, 10)) < 1e-2


@given(st.floats(1e-9, 1e6), st.floats(1.001, 1e9), st.integers(2, 12))
def test_log_ticks(low: float, factor: float, most: int) -> None:
    ticks = axes.log_ticks(low, low * factor, most)
    assert len(ticks) <= most + 1
    assert ticks == sorted(ticks)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[10.8251], [10.8251] * 3, [10.8251, 10.8252], [1e-5], [4e7, 4e7 + 3]])
def test_no_two_ticks_of_an_axis_read_alike(values: list[float], log: bool) -> None:
    view = fit([curve(values)], log=log)
    assert view is not None
    for most in range(2, 13):
        ticks = axes.log_ticks(view.y0, view.y1, most) if log else axes.linear_ticks(view.y0, view.y1, most)
        texts = [text for _, text in axes.labelled(ticks)]
        assert len(texts) == len(set(texts))
    steps = axes.linear_ticks(1.0, 2.0, 10, whole=True)  # what one point at step 1 spans
    assert steps == [1.0, 2.0]


@given(st.integers(0, 10**7), st.integers(1, 10**7), st.integers(2, 14))
def test_steps_are_whole(low: int, span: int, most: int) -> None:
    ticks = axes.linear_ticks(low, low + span, most, whole=True)
    assert all(tick == round(tick) for tick in ticks) and len(ticks) <= most


class ChartApp(App[None]):
    def __init__(self, *curves: Curve) -> None:
        super().__init__()
        self.curves = curves

    def compose(self) -> ComposeResult:
        yield Chart("loss")

    def on_mount(self) -> None:
        self.query_one(Chart).show(self.curves)


def rows(chart: Chart) -> list[str]:
    return ["".join(segment.text for segment in chart.render_line(y)) for y in range(chart.size.height)]


async def test_cursor_reads_values_and_zoom_keeps_it() -> None:
    values = np.linspace(4.0, 2.0, 1001)
    app = ChartApp(curve(values))
    async with app.run_test(size=(80, 20)) as pilot:
        chart = app.query_one(Chart)
        chart.focus()
        await pilot.press("left")  # the cursor begins at the newest value
        assert "step 1000 loss 2" in rows(chart)[0]
        await pilot.press("shift+left", "shift+left", "shift+left")
        at = chart.cursor
        assert at is not None
        point = nearest(chart.curves[0], at)
        assert point is not None
        assert f"step {numbers.short(point[0])} loss {numbers.short(point[1])}" in rows(chart)[0]
        await pilot.press("plus", "plus")
        view = chart.view
        assert view is not None
        assert view.x1 - view.x0 == pytest.approx(250)
        assert view.x0 <= at <= view.x1
        for _ in range(40):
            await pilot.press("L")  # past the edge of the view, which follows
        assert chart.cursor == 1000
        await pilot.press("0")
        assert (chart.zoom, chart.cursor) == (None, None)


async def test_log_axis_mouse_and_every_size() -> None:
    app = ChartApp(curve([100.0, 10.0, 1.0]))
    async with app.run_test(size=(60, 16)) as pilot:
        chart = app.query_one(Chart)
        chart.focus()
        await pilot.press("y")
        assert "loss log" in rows(chart)[0]
        assert {"1", "10", "100"} <= {row[: GUTTER - 1].strip() for row in rows(chart)}
        await pilot.hover(Chart, offset=(GUTTER, 5))
        assert "step 0 loss 100" in rows(chart)[0]
        for size in ((8, 4), (13, 4), (14, 5), (200, 60)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert all(len(row) == size[0] for row in rows(chart))
        chart.show([])
        assert any("nothing yet" in row for row in rows(chart))
        chart.show([curve([math.nan, math.inf])])
        assert any("nothing yet" in row for row in rows(chart))


async def test_drawing_costs_the_width_not_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long curve is thinned out before it is drawn, and drawn once for all rows."""
    drawn: list[int] = []

    def counting(curves: object, *rest: int) -> object:
        drawn.append(rest[-2])
        return rasterise(curves, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("nanochat_tui.tui.widgets.chart.rasterise", counting)
    app = ChartApp()
    async with app.run_test(size=(100, 20)) as pilot:
        chart = app.query_one(Chart)
        for count in (1000, 200_000):
            drawn.clear()
            chart.show([curve(np.random.default_rng(0).normal(size=count))])
            await pilot.pause()
            rows(chart)
            assert drawn == [chart.plot_width]
