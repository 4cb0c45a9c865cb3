"""The microscope's eyepiece: a window on a ternary matrix that pans and zooms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.events import MouseDown, MouseMove, MouseScrollDown, MouseScrollUp, MouseUp, Resize
from textual.geometry import Offset
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from nanochat_tui.inspection.trit_map import fitting_zoom, picture, weight_at
from nanochat_tui.inspection.trits import TritReader
from nanochat_tui.tui.inspect.colours import Colours, colours_of, half_block, levels, on, row_of

AT_ONCE = 1 << 21
"""Weights that are decoded without leaving the event loop; more are left to a thread."""
_SYMBOLS = {-1: "−", 0: "·", 1: "+", 2: "2"}


@dataclass(frozen=True)
class View:
    """What is seen: the first row and column, and the side of a cell in weights (0: each weight as a symbol)."""

    row: int
    column: int
    zoom: int


class TritView(Widget, can_focus=True):
    """Shows a `TritReader`. Asks for a picture by `Wanted`, if it takes long, and takes it by `put`."""

    HELP = """\
### Trit microscope
The matrix as it is: −1, 0 and +1 in three colours, two rows of weights to a line. Zoomed out, a cell shows the mean of
its weights (or, with **{trits.mean_density|m}**, the share that is not zero), its contrast raised so that structure can
be seen.

**Arrows** or **hjkl** move (with Shift by one cell), **{trits.zoom_in|+}** and **{trits.zoom_out|−}** zoom,
**{trits.fit|f}** fits the whole matrix, **{trits.1_1|o}** shows one weight per dot, **{trits.symbols|t}** one per
symbol, **{microscope.next_tensor|n}** and **{microscope.previous|p}** change the tensor. **{trits.crosshair|x}** takes
a crosshair, which the arrows move (with Shift by eight cells) until **{trits.crosshair|x}** or Esc; what it points at
is named below. The mouse points and drags, its wheel zooms.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "pan(0,-1)", "Left", show=False, id="trits.left"),
        Binding("right,l", "pan(0,1)", "Right", show=False, id="trits.right"),
        Binding("up,k", "pan(-1,0)", "Up", show=False, id="trits.up"),
        Binding("down,j", "pan(1,0)", "Down", show=False, id="trits.down"),
        Binding("shift+left,H", "pan(0,-1,1)", "Left by one", show=False, id="trits.left_by_one"),
        Binding("shift+right,L", "pan(0,1,1)", "Right by one", show=False, id="trits.right_by_one"),
        Binding("shift+up,K", "pan(-1,0,1)", "Up by one", show=False, id="trits.up_by_one"),
        Binding("shift+down,J", "pan(1,0,1)", "Down by one", show=False, id="trits.down_by_one"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="trits.page_up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="trits.page_down"),
        Binding("home", "edge(0,-1)", "Left edge", show=False, id="trits.left_edge"),
        Binding("end", "edge(0,1)", "Right edge", show=False, id="trits.right_edge"),
        Binding("g,ctrl+home", "edge(-1,-1)", "Top", show=False, id="trits.top"),
        Binding("G,ctrl+end", "edge(1,1)", "Bottom", show=False, id="trits.bottom"),
        Binding("plus,equals_sign", "zoom(-1)", "Zoom in", key_display="+", id="trits.zoom_in"),
        Binding("minus", "zoom(1)", "Zoom out", key_display="−", id="trits.zoom_out"),
        Binding("f", "fit", "Fit", id="trits.fit"),
        Binding("o", "dots", "1:1", id="trits.1_1"),
        Binding("t", "symbols", "Symbols", id="trits.symbols"),
        Binding("m", "kind", "Mean/density", id="trits.mean_density"),
        Binding("x", "crosshair", "Read", id="trits.crosshair"),
        Binding("escape", "let_go", "No crosshair", show=False, id="trits.let_go"),
    ]

    DEFAULT_CSS = "TritView { height: 1fr; width: 1fr; }"

    @dataclass
    class Wanted(Message):
        """A picture is wanted that takes a while; compute it and `put` it."""

        sender: TritView
        view: View

    @dataclass
    class Moved(Message):
        """What is seen, or pointed at, has changed."""

        sender: TritView

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.reader: TritReader | None = None
        self.view = View(0, 0, 1)
        self.kind = "mean"
        self.contrast = 1.0
        self.pointed: tuple[int, int] | None = None
        """Row and column of the weight (or the first of the cell) under the mouse or the crosshair."""
        self.aiming = False
        """Whether the arrows move the crosshair."""
        self._picture: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._shades: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self._colours: Colours | None = None
        self._grabbed: tuple[Offset, View] | None = None

    def on_mount(self) -> None:
        """Follow the theme."""
        self.app.theme_changed_signal.subscribe(self, lambda _: self._new_theme())

    def _new_theme(self) -> None:
        self._colours = None
        self.refresh()

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of cells that are visible."""
        width, height = self.size
        return (height, width // 2) if self.view.zoom == 0 else (2 * height, width)

    @property
    def weights(self) -> int:
        """Weights to the side of a cell."""
        return max(1, self.view.zoom)

    def show(self, reader: TritReader | None) -> None:
        """Look at another tensor, from its first weight, one to a dot."""
        self.reader = reader
        self.pointed = (0, 0) if self.aiming else None
        self.view = View(0, 0, 1)
        self._look(self.view)

    # Looking

    def _look(self, view: View) -> None:
        """Look at a place, moved so that no more than needed lies outside of the matrix."""
        reader = self.reader
        if reader is not None and self.size.width:
            old, self.view = self.view, view
            height, width = (cells * self.weights for cells in self.cells)
            self.view = old
            view = View(
                max(0, min(view.row, reader.rows - height)), max(0, min(view.column, reader.columns - width)), view.zoom
            )
        self.view = view
        if self.aiming and self.pointed is not None:
            self.pointed = self._inside(*self.pointed)
        self.update_picture()
        self.post_message(self.Moved(self))

    def update_picture(self) -> None:
        """Compute what is seen, or ask for it."""
        if self.reader is None or not self.size.width:
            self._picture = np.zeros((0, 0), np.float32)
            self._shades = levels(self._picture)
            self.refresh()
            return
        height, width = self.cells
        touched = min(height * min(self.weights, 8), self.reader.rows) * min(width * self.weights, self.reader.columns)
        if touched <= AT_ONCE:
            self.put(self.view, self.compute(self.view))
        else:
            self.post_message(self.Wanted(self, self.view))

    def compute(self, view: View) -> NDArray[np.float32]:
        """Return the picture of a view; may be called in a thread."""
        reader = self.reader
        if reader is None:
            return np.zeros((0, 0), np.float32)
        height, width = self.cells
        return picture(reader, view.row, view.column, height, width, max(1, view.zoom), self.kind == "density")

    def put(self, view: View, found: NDArray[np.float32]) -> None:
        """Show a picture, if it is still the one that is wanted."""
        if view != self.view:
            return
        self._picture = found
        self.contrast = 1.0
        if view.zoom > 1:
            seen = np.abs(found[~np.isnan(found)])
            strong = float(np.quantile(seen, 0.98)) if seen.size else 0.0
            # means of many weights are small; raised until the strongest are full, but noise is not made to shout
            self.contrast = float(np.clip(1 / strong, 1.0, 16.0)) if strong else 1.0
        if self.kind == "density" and view.zoom > 1:
            self.contrast = 1.0
            known = found[~np.isnan(found)]
            low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
            found = (found - low) / (high - low) if high > low else found
        self._shades = levels(found, self.contrast)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw one line of cells."""
        if self._colours is None:
            self._colours = colours_of(self.app)
        colours, width = self._colours, self.size.width
        blank = Segment(" " * width, on(colours.background))
        if self.view.zoom == 0:
            if y >= len(self._picture):
                return Strip([blank], width)
            return self._aimed(y, Strip(self._symbols(y, colours), width), colours)
        if 2 * y + 1 >= len(self._shades):
            return Strip([blank], width)
        strip = Strip(row_of(self._shades[2 * y], self._shades[2 * y + 1], colours), self._shades.shape[1])
        return self._aimed(y, strip, colours)

    def _aimed(self, y: int, strip: Strip, colours: Colours) -> Strip:
        """Return a line with the crosshair, if it is in it."""
        if not self.aiming or self.pointed is None:
            return strip
        down, right = (
            (at - start) // self.weights
            for at, start in zip(self.pointed, (self.view.row, self.view.column), strict=True)
        )
        if self.view.zoom == 0:
            if down != y:
                return strip
            start, cells = 2 * right, 2
            symbol = strip.crop(start, start + 1).text
            mark = Segment(f"{symbol} ", on(colours.pointer, bold=True))
        else:
            if down // 2 != y or right >= self._shades.shape[1]:
                return strip
            start, cells = right, 1
            other = colours.shades[int(self._shades[2 * y + (down % 2 == 0), right])]
            mark = Segment("▄" if down % 2 else "▀", half_block(colours.pointer, other))
        return Strip.join([strip.crop(0, start), Strip([mark], cells), strip.crop(start + cells)])

    def _symbols(self, y: int, colours: Colours) -> list[Segment]:
        segments = []
        for value, shade in zip(self._picture[y].tolist(), self._shades[y].tolist(), strict=True):
            symbol = " " if math.isnan(value) else _SYMBOLS[int(value)]
            segments.append(Segment(f"{symbol} ", on(colours.shades[shade])))
        if self.size.width % 2:
            segments.append(Segment(" ", on(colours.background)))
        return segments

    # Moving

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave Esc to the pane while there is no crosshair."""
        return self.aiming if action == "let_go" else True

    def _inside(self, row: int, column: int) -> tuple[int, int]:
        """Return the weight nearest to this one that is on show."""
        v, reader = self.view, self.reader
        height, width = (cells * self.weights for cells in self.cells)
        last_row, last_column = v.row + height - 1, v.column + width - 1
        if reader is not None:
            last_row, last_column = min(last_row, reader.rows - 1), min(last_column, reader.columns - 1)
        return max(v.row, min(row, last_row)), max(v.column, min(column, last_column))

    def action_crosshair(self) -> None:
        """Take the crosshair, in the middle or where the mouse pointed, or let it go."""
        if self.aiming or self.reader is None:
            self.action_let_go()
            return
        self.aiming = True
        height, width = (cells * self.weights // 2 for cells in self.cells)
        self.pointed = self._inside(*(self.pointed or (self.view.row + height, self.view.column + width)))
        self.refresh()
        self.refresh_bindings()
        self.post_message(self.Moved(self))

    def action_let_go(self) -> None:
        """Put the crosshair away."""
        self.aiming, self.pointed = False, None
        self.refresh()
        self.refresh_bindings()
        self.post_message(self.Moved(self))

    def _aim(self, down: int, right: int) -> None:
        """Move the crosshair by cells; the window follows it."""
        reader = self.reader
        if reader is None or self.pointed is None:
            return
        row = max(0, min(self.pointed[0] + down * self.weights, reader.rows - 1))
        column = max(0, min(self.pointed[1] + right * self.weights, reader.columns - 1))
        height, width = (cells * self.weights for cells in self.cells)
        v = self.view
        top = row if row < v.row else max(v.row, row - height + self.weights)
        left = column if column < v.column else max(v.column, column - width + self.weights)
        self.pointed = row, column
        self._look(View(top, left, v.zoom))

    def action_pan(self, down: int, right: int, cells: int = 0) -> None:
        """Move by an eighth of what is seen, or by a number of cells; the crosshair by one, or by eight."""
        if self.aiming:
            self._aim(*((8 * down, 8 * right) if cells else (down, right)))
            return
        height, width = self.cells
        steps = (cells, cells) if cells else (max(1, height // 8), max(1, width // 8))
        v = self.view
        self._look(View(v.row + down * steps[0] * self.weights, v.column + right * steps[1] * self.weights, v.zoom))

    def action_page(self, down: int) -> None:
        """Move by the height of what is seen."""
        v = self.view
        self._look(View(v.row + down * self.cells[0] * self.weights, v.column, v.zoom))

    def action_edge(self, down: int, right: int) -> None:
        """Go to an edge or a corner."""
        if self.reader is not None:
            v = self.view
            row = {-1: 0, 0: v.row, 1: self.reader.rows}[down]
            self._look(View(row, {-1: 0, 0: v.column, 1: self.reader.columns}[right], v.zoom))

    def action_zoom(self, out: int) -> None:
        """Zoom in or out around the middle."""
        height, width = self.cells
        self._zoom_at(out, height / 2, width / 2)

    def _zoom_at(self, out: int, y: float, x: float) -> None:
        """Zoom so that the weight at cell (y, x) stays where it is."""
        if self.reader is None:
            return
        v = self.view
        largest = max(1, fitting_zoom(self.reader, 2 * self.size.height, self.size.width))
        zoom = (v.zoom // 2 if out < 0 else 2 * v.zoom) if v.zoom else int(out > 0)
        zoom = min(zoom, largest)
        if zoom == v.zoom:
            return
        row, column = v.row + y * self.weights, v.column + x * self.weights
        before = self.cells
        self.view = View(v.row, v.column, zoom)
        after = self.cells  # symbols are larger than dots, so that fewer fit
        y, x = y * after[0] / max(1, before[0]), x * after[1] / max(1, before[1])
        self._look(View(round(row - y * self.weights), round(column - x * self.weights), zoom))

    def action_fit(self) -> None:
        """Show the whole matrix."""
        if self.reader is not None and self.size.width:
            self._look(View(0, 0, fitting_zoom(self.reader, 2 * self.size.height, self.size.width)))

    def action_dots(self) -> None:
        """Show one weight to a dot."""
        self._look(View(self.view.row, self.view.column, 1))

    def action_symbols(self) -> None:
        """Show one weight to a symbol."""
        self._look(View(self.view.row, self.view.column, 0))

    def action_kind(self) -> None:
        """Change between the mean of the weights and the share that is not zero."""
        self.kind = "density" if self.kind == "mean" else "mean"
        self._look(self.view)

    def on_resize(self, _event: Resize) -> None:
        """Fill the new size."""
        self._look(self.view)

    # The mouse

    def _weight(self, offset: Offset, lower: bool = False) -> tuple[int, int]:
        v = self.view
        if v.zoom == 0:
            return v.row + offset.y, v.column + offset.x // 2
        return v.row + (2 * offset.y + lower) * v.zoom, v.column + offset.x * v.zoom

    def on_mouse_down(self, event: MouseDown) -> None:
        """Take hold of the matrix."""
        self._grabbed = (Offset(event.x, event.y), self.view)
        self.capture_mouse()

    def on_mouse_up(self, _event: MouseUp) -> None:
        """Let go."""
        self._grabbed = None
        self.release_mouse()

    def on_mouse_move(self, event: MouseMove) -> None:
        """Drag, or name what is pointed at."""
        here = Offset(event.x, event.y)
        if self._grabbed is not None:
            start, view = self._grabbed
            moved = start - here
            down, right = (moved.y, moved.x // 2) if view.zoom == 0 else (2 * moved.y, moved.x)
            self._look(View(view.row + down * self.weights, view.column + right * self.weights, view.zoom))
        else:
            self.pointed = self._inside(*self._weight(here)) if self.aiming else self._weight(here)
            self.refresh()
            self.post_message(self.Moved(self))

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        """Zoom in at the pointer."""
        event.stop()
        self._zoom_at(-1, *self._cell(event.x, event.y))

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        """Zoom out at the pointer."""
        event.stop()
        self._zoom_at(1, *self._cell(event.x, event.y))

    def _cell(self, x: int, y: int) -> tuple[float, float]:
        return (float(y), x / 2) if self.view.zoom == 0 else (2.0 * y, float(x))

    def value_at(self, row: int, column: int) -> tuple[int, float] | None:
        """Return trit and scale of one weight."""
        return None if self.reader is None else weight_at(self.reader, row, column)

    def mean_at(self, row: int, column: int) -> float | None:
        """Return what the cell that holds a weight shows, or None outside."""
        y, x = (row - self.view.row) // self.weights, (column - self.view.column) // self.weights
        if 0 <= y < self._picture.shape[0] and 0 <= x < self._picture.shape[1]:
            value = float(self._picture[y, x])
            return None if math.isnan(value) else value
        return None
