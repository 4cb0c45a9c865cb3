"""A line chart on the line API: braille curves, a linear or logarithmic axis, zoom and a cursor that reads values.

The chart libraries for Textual were looked at and not taken: one draws 5,000 points in 67 ms, the other in 54 ms; a
dashboard has six charts and shares two cores with a trainer. This one needs about 2 ms because it decimates first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.color import Color, ColorParseError
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from nanochat_tui.text import display_safe
from nanochat_tui.tui import numbers
from nanochat_tui.tui.widgets import axes
from nanochat_tui.tui.widgets.raster import Curve, View, fit, nearest, rasterise

GUTTER = 7
"""Cells left of the plot for the numbers of the vertical axis."""
SMALLEST_ZOOM = 1e-4


class Chart(Widget, can_focus=True):
    """Shows curves; call `show` with new ones. Nothing runs while nothing changes."""

    DEFAULT_CSS = """
    Chart { height: 1fr; width: 1fr; min-height: 4; background: $surface; color: $foreground; }
    Chart:focus { background: $surface-lighten-1; }
    """
    ALLOW_MAXIMIZE = True

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "Cursor", show=False, id="chart.left"),
        Binding("right,l", "move(1)", "Cursor", show=False, id="chart.right"),
        Binding("shift+left,H", "move(-10)", "Cursor", show=False, id="chart.far_left"),
        Binding("shift+right,L", "move(10)", "Cursor", show=False, id="chart.far_right"),
        Binding("plus,equals_sign,up,k", "zoom(0.5)", "Zoom in", show=False, id="chart.in"),
        Binding("minus,down,j", "zoom(2.0)", "Zoom out", show=False, id="chart.out"),
        Binding("0,home", "reset", "Whole range", show=False, id="chart.reset"),
        Binding("y", "toggle_log", "Log axis", id="chart.log"),
        Binding("v", "step(1)", "Next curve", show=False, id="chart.next_curve"),
        Binding("V", "step(-1)", "Previous curve", show=False, id="chart.previous_curve"),
    ]

    HELP = """\
## Chart
**{chart.left|←}/{chart.right|→}** ({chart.left|h}, {chart.right|l}) move the cursor, which reads the values; with Shift
ten times as far. **{chart.in|+}/{chart.out|−}** (↑/↓, k, j) zoom around it, **{chart.reset|0}** shows the whole range
again, **{chart.log|y}** switches the vertical axis between linear and logarithmic, **{dashboard.fill|z}** fills the
screen with this chart and Esc gives it back. Of several curves **{chart.next_curve|v}** (back:
{chart.previous_curve|V}) takes one after the other before the others and names it; after the last all are alike again.
The mouse moves the cursor, its wheel zooms.
"""

    class ZoomChanged(Message):
        """The visible range was changed by hand."""

    def __init__(self, title: str, *, log: bool = False, x_name: str = "step", id: str | None = None) -> None:
        super().__init__(id=id)
        self.chart_title = title
        self.x_name = x_name
        self.log_axis = log
        self.curves: tuple[Curve, ...] = ()
        self.empty_text = "nothing yet"
        self.default_range: tuple[float, float] | None = None
        self.zoom: tuple[float, float] | None = None
        self.cursor: float | None = None
        self.chosen: str | None = None
        """Label of the curve that stands before the others."""
        self._lines: list[Strip] | None = None
        self._view: View | None = None
        self._styles: dict[tuple[str, bool], Style] = {}
        self._base = Style.null()

    # what it shows

    def show(self, curves: Sequence[Curve], *, window: tuple[float, float] | None = None) -> None:
        """Show other curves; `window` is the range of x before anybody zooms."""
        before = [_essence(curve) for curve in self.curves], self.default_range
        self.curves = tuple(curves)
        self.default_range = window
        if ([_essence(curve) for curve in self.curves], window) != before:
            self._redraw()

    def _redraw(self) -> None:
        self._lines = None
        self.refresh()

    @property
    def view(self) -> View | None:
        """The part of the plane on show; None while there is nothing to see."""
        return fit(self.curves, self.zoom or self.default_range, log=self.log_axis)

    @property
    def plot_width(self) -> int:
        """Cells the curves have side by side."""
        return max(1, self.size.width - GUTTER - 1)

    # drawing

    def notify_style_update(self) -> None:
        """Take the colours of the theme again."""
        self._styles.clear()
        self._lines = None
        super().notify_style_update()

    def on_resize(self) -> None:
        """Draw for the new size."""
        self._redraw()

    def on_focus(self) -> None:
        """Show that the keys go here."""
        self._redraw()

    def on_blur(self) -> None:
        """Show that they go elsewhere."""
        self._redraw()

    def render_line(self, y: int) -> Strip:
        """Return one row; all rows are drawn together when something changed."""
        if self._lines is None:
            self._styles.clear()
            self._lines = self._draw(self.size.width, self.size.height)
        if y < len(self._lines):
            return self._lines[y]
        return Strip.blank(self.size.width, self._base)

    def _draw(self, width: int, height: int) -> list[Strip]:
        self._base = self.rich_style  # Textual computes it at every access
        if width < GUTTER + 6 or height < 4:
            return [Strip([Segment(self.chart_title[:width].ljust(width), self._base)])]
        plot_height = height - 2
        self._view = view = self.view
        if view is None:
            blank = [Strip.blank(width, self._base)] * (plot_height + 1)
            text = self.empty_text.center(width)[:width]
            blank[plot_height // 2] = Strip([Segment(text, self._style("foreground", faint=True))])
            return [self._title(width), *blank]
        curves = self._in_order()
        pattern, owner, marks = rasterise(curves, view, self.plot_width, plot_height)
        ticks = axes.log_ticks if view.log else axes.linear_ticks
        labels: dict[int, str] = {}
        for tick, label in axes.labelled(ticks(view.y0, view.y1, max(2, plot_height // 3))):
            row = int((1 - float(view.up(np.array([tick]))[0])) * plot_height)
            labels.setdefault(min(max(row, 0), plot_height - 1), label)
        cursor = self._cursor_column(view)
        rows = [
            self._plot_row(labels.get(row, ""), curves, pattern[row], owner[row], marks[row], cursor)
            for row in range(plot_height)
        ]
        return [self._title(width), *rows, self._x_axis(view, width)]

    def _named(self) -> list[Curve]:
        """The curves that have a name in the title."""
        return [c for c in self.curves if not c.faint and len(c.x)]

    def _in_order(self) -> tuple[Curve, ...]:
        """The curves as they are drawn: the chosen one last, so that it is on top, and the others pale."""
        chosen = next((c for c in self._named() if c.label == self.chosen), None)
        if chosen is None:
            return self.curves
        return (*(replace(c, faint=True) for c in self.curves if c is not chosen), chosen)

    def _plot_row(
        self,
        label: str,
        curves: tuple[Curve, ...],
        pattern: np.ndarray,
        owner: np.ndarray,
        marks: np.ndarray,
        cursor: int,
    ) -> Strip:
        faint = self._style("foreground", faint=True)
        segments = [Segment(f"{label:>{GUTTER - 1}}{'┤' if label else '│'}", faint)]
        text: list[str] = []
        current: Style | None = None
        for column in range(len(pattern)):
            index = int(owner[column])
            if index >= 0:
                curve = curves[index]
                style = self._style(curve.colour, faint=curve.faint)
                character = "●" if marks[column] else chr(0x2800 + int(pattern[column]))
            else:
                style = faint
                character = "┊" if column == cursor else " "
            if style is not current:
                if text and current is not None:
                    segments.append(Segment("".join(text), current))
                text, current = [], style
            text.append(character)
        if text and current is not None:
            segments.append(Segment("".join(text), current))
        segments.append(Segment(" ", self._base))
        return Strip(segments, GUTTER + len(pattern) + 1)

    def _title(self, width: int) -> Strip:
        bold = self._base + Style(bold=True, reverse=self.has_focus)
        log = " log" if self.log_axis else ""
        segments = [Segment(f" {self.chart_title}{log} ", bold)]
        room = width - len(self.chart_title) - len(log) - 2
        named = self._named()
        shown = [c for c in named if c.label == self.chosen] or named
        pieces: list[tuple[str, str]] = []
        if self.cursor is not None and shown:
            readings = [(c, nearest(c, self.cursor)) for c in shown]
            at = next(r for _, r in readings if r is not None)
            pieces.append(("foreground", f" {self.x_name} {numbers.short(at[0])}"))
            pieces += [(c.colour, f" {display_safe(c.label, 24)} {numbers.short(r[1])}") for c, r in readings if r]
        elif len(named) == 1:
            pieces.append((shown[0].colour, f" {numbers.short(float(shown[0].y[-1]))}"))
        else:
            pieces += [(c.colour, f" {display_safe(c.label, 24)} {numbers.short(float(c.y[-1]))}") for c in shown]
        if len(shown) < len(named):
            pieces.append(("foreground", f" ({named.index(shown[0]) + 1} of {len(named)}; v: next)"))
        more = " … v: each"
        fits = sum(len(text) for _, text in pieces) <= room
        for number, (colour, text) in enumerate(pieces):
            if not fits and len(text) + len(more) > room:
                if number:
                    segments.append(Segment(more[:room], self._style("foreground", faint=False)))
                    room -= len(more[:room])
                break
            segments.append(Segment(text, self._style(colour, faint=False)))
            room -= len(text)
        segments.append(Segment(" " * max(0, room), self._base))
        return Strip(segments).adjust_cell_length(width, self._base)

    def _x_axis(self, view: View, width: int) -> Strip:
        plot = self.plot_width
        line = [" "] * plot
        free = 0
        counted = self.x_name == "step"
        for tick, label in axes.labelled(axes.linear_ticks(view.x0, view.x1, max(2, plot // 12), whole=counted)):
            middle = int((tick - view.x0) / (view.x1 - view.x0) * plot)
            start = min(max(0, middle - len(label) // 2), plot - len(label))
            if start >= free and start >= 0:
                line[start : start + len(label)] = label
                free = start + len(label) + 1
        text = " " * (GUTTER - 1) + "└" + "".join(line)
        return Strip([Segment(text[:width].ljust(width), self._style("foreground", faint=True))])

    def _style(self, colour: str, *, faint: bool) -> Style:
        key = (colour, faint)
        if key not in self._styles:
            value = self.app.theme_variables.get(colour, colour)
            try:
                parsed = Color.parse(value)
            except ColorParseError:
                parsed = self.styles.color
            background = self.background_colors[1]
            if faint:
                parsed = background.blend(parsed, 0.45)
            self._styles[key] = Style(color=parsed.rich_color, bgcolor=background.rich_color)
        return self._styles[key]

    # cursor and zoom

    def _cursor_column(self, view: View) -> int:
        if self.cursor is None:
            return -1
        return int((self.cursor - view.x0) / (view.x1 - view.x0) * self.plot_width)

    def _main_curve(self) -> Curve | None:
        return max((c for c in self.curves if not c.faint), key=lambda c: len(c.x), default=None)

    def action_move(self, columns: int) -> None:
        """Move the cursor by cells, beginning at the newest value; the view follows it."""
        view, curve = self.view, self._main_curve()
        if view is None or curve is None:
            return
        if self.cursor is None:
            self.cursor = min(view.x1, float(curve.x[-1]))
        else:
            cell = (view.x1 - view.x0) / self.plot_width
            everything = fit(self.curves)
            low, high = (everything.x0, everything.x1) if everything else (view.x0, view.x1)
            self.cursor = min(max(self.cursor + columns * cell, low), high)
            self._follow_cursor(view)
        self._redraw()

    def _follow_cursor(self, view: View) -> None:
        if self.cursor is None or view.x0 <= self.cursor <= view.x1:
            return
        shift = self.cursor - (view.x0 if self.cursor < view.x0 else view.x1)
        self.zoom = (view.x0 + shift, view.x1 + shift)

    def action_zoom(self, factor: float) -> None:
        """Show a smaller (factor below 1) or larger range around the cursor, or at the newest end without one."""
        view, everything = self.view, fit(self.curves)
        if view is None or everything is None:
            return
        whole = everything.x1 - everything.x0
        span = (view.x1 - view.x0) * factor
        if span < whole * SMALLEST_ZOOM:
            return
        if span >= whole:
            self.zoom = None if self.default_range is None else (everything.x0, everything.x1)
        else:
            centre = self.cursor if self.cursor is not None else view.x1
            share = (centre - view.x0) / (view.x1 - view.x0)
            start = min(max(centre - share * span, everything.x0), everything.x1 - span)
            self.zoom = (start, start + span)
        self._redraw()
        self.post_message(self.ZoomChanged())

    def action_reset(self) -> None:
        """Show the whole range, without a cursor."""
        self.zoom = self.cursor = None
        self._redraw()
        self.post_message(self.ZoomChanged())

    def action_toggle_log(self) -> None:
        """Switch between a linear and a logarithmic vertical axis."""
        self.log_axis = not self.log_axis
        self._redraw()

    def action_step(self, by: int) -> None:
        """Take the next or previous curve before the others; past the last one, none."""
        labels: list[str | None] = [None, *(c.label for c in self._named())]
        at = labels.index(self.chosen) if self.chosen in labels else 0
        self.chosen = labels[(at + by) % len(labels)]
        self._redraw()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Put the cursor where the mouse is."""
        view = self.view
        column = event.x - GUTTER
        if view is None or not 0 <= column < self.plot_width:
            return
        self.cursor = view.x0 + (column + 0.5) / self.plot_width * (view.x1 - view.x0)
        self._redraw()

    def on_leave(self) -> None:
        """Take the mouse's cursor away, unless the keys hold it."""
        if not self.has_focus and self.cursor is not None:
            self.cursor = None
            self._redraw()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Zoom in."""
        event.stop()
        self.action_zoom(0.8)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Zoom out."""
        event.stop()
        self.action_zoom(1.25)


def _essence(curve: Curve) -> tuple[object, ...]:
    """What changes when a growing curve does: most looks at a run bring nothing new for most charts."""
    ends = (float(curve.x[-1]), repr(float(curve.y[0])), repr(float(curve.y[-1]))) if len(curve.x) else ()
    return (curve.label, curve.colour, curve.points, curve.faint, len(curve.x), *ends)
