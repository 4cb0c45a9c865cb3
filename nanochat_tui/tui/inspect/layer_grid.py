"""A table of layers by matrices whose cells are small pictures: trit balance as a bar, or a number on a heat colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.events import Click
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from nanochat_tui.inspection.search import layer_of
from nanochat_tui.text import display_safe
from nanochat_tui.tui.inspect.colours import Colours, colours_of, on, solid

LABEL = 6
NARROWEST, WIDEST = 8, 16
_LEFT = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Cell:
    """What a cell shows: a text, over `heat` (0 to 1, or None), or as parts of −, 0 and + that make a bar."""

    text: str
    heat: float | None = None
    parts: tuple[float, float, float] | None = None
    bad: bool = False


class LayerGrid(ScrollView, can_focus=True):
    """Posts `Moved` when the cursor is on another tensor, and `Opened` at Enter or a second click."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1,0)", "Up", show=False, id="layers.up"),
        Binding("down,j", "move(1,0)", "Down", show=False, id="layers.down"),
        Binding("left,h", "move(0,-1)", "Left", show=False, id="layers.left"),
        Binding("right,l", "move(0,1)", "Right", show=False, id="layers.right"),
        Binding("pageup,ctrl+u", "page(-1)", "Page up", show=False, id="layers.page_up"),
        Binding("pagedown,ctrl+d", "page(1)", "Page down", show=False, id="layers.page_down"),
        Binding("home,g", "edge(-1)", "First layer", show=False, id="layers.first_layer"),
        Binding("end,G", "edge(1)", "Last layer", show=False, id="layers.last_layer"),
        Binding("enter", "open", "Trits", id="layers.trits"),
    ]
    DEFAULT_CSS = "LayerGrid { height: 1fr; scrollbar-size: 1 1; }"

    @dataclass
    class Moved(Message):
        """The cursor is on another tensor; `name` None where the table has none."""

        grid: LayerGrid
        name: str | None

    @dataclass
    class Opened(Message):
        """A tensor was chosen."""

        grid: LayerGrid
        name: str

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.rows: list[int | None] = []
        self.columns: list[str] = []
        self.cursor = (0, 0)
        self._names: dict[tuple[int, int], str] = {}
        self._cells: dict[str, Cell] = {}
        self._colours: Colours | None = None

    def on_mount(self) -> None:
        """Follow the theme."""
        self.app.theme_changed_signal.subscribe(self, lambda _: self._new_theme())

    def _new_theme(self) -> None:
        self._colours = None
        self.refresh()

    def set_tensors(self, names: Sequence[str]) -> None:
        """Lay out tensors by layer and kind; cells are empty until `set_cells`."""
        places = [(name, *layer_of(name)) for name in names]
        layers = {layer for _, layer, _ in places}
        self.rows = sorted(layers, key=lambda layer: -1 if layer is None else layer)
        # kinds of the layers come before those that occur once, such as the embedding
        self.columns = list(dict.fromkeys(kind for _, layer, kind in places if layer is not None))
        self.columns += [kind for _, layer, kind in places if layer is None and kind not in self.columns]
        rows = {layer: index for index, layer in enumerate(self.rows)}
        columns = {kind: index for index, kind in enumerate(self.columns)}
        self._names = {(rows[layer], columns[kind]): name for name, layer, kind in places}
        self._cells = {}
        self.cursor = min(self._names, default=(0, 0))
        self._measure()
        self.scroll_to(0, 0, animate=False)
        self.post_message(self.Moved(self, self.name_at_cursor))

    def set_cells(self, cells: dict[str, Cell]) -> None:
        """Show cells by tensor name."""
        self._cells = cells
        self.refresh()

    @property
    def name_at_cursor(self) -> str | None:
        """The tensor under the cursor."""
        return self._names.get(self.cursor)

    @property
    def cell_width(self) -> int:
        """Width of a cell with its gap."""
        room = (self.size.width - LABEL - 1) // max(1, len(self.columns))
        return max(NARROWEST, min(WIDEST, room))

    def _measure(self) -> None:
        self.virtual_size = Size(LABEL + self.cell_width * len(self.columns), len(self.rows) + 1)
        self.refresh()

    def on_resize(self) -> None:
        """Lay out for the new width."""
        self._measure()

    def render_line(self, y: int) -> Strip:
        """Draw the heading, which stays, or a layer."""
        if self._colours is None:
            self._colours = colours_of(self.app)
        colours, width = self._colours, self.cell_width
        left, top = self.scroll_offset
        plain = solid(colours.text, colours.background)
        quiet = solid(colours.muted, colours.background)
        row = y - 1 + top
        if y == 0:
            label = Segment(" " * LABEL, quiet)
            parts = [
                Segment(_fit(display_safe(name, 40), width - 1) + " ", plain if i == self.cursor[1] else quiet)
                for i, name in enumerate(self.columns)
            ]
        elif row < len(self.rows):
            layer = self.rows[row]
            label = Segment(
                f"{'–' if layer is None else layer:>{LABEL - 2}}  ", plain if row == self.cursor[0] else quiet
            )
            parts = [part for column in range(len(self.columns)) for part in self._cell(row, column, width, colours)]
        else:
            return Strip.blank(self.size.width, plain)
        body = Strip(parts).crop(left, left + self.size.width - LABEL)
        return Strip([label, *body]).adjust_cell_length(self.size.width, plain)

    def _cell(self, row: int, column: int, width: int, colours: Colours) -> list[Segment]:
        name = self._names.get((row, column))
        gap = Segment(" ", solid(colours.text, colours.background))
        inner = width - 1
        if name is None:
            return [Segment(" " * width, gap.style)]
        cell = self._cells.get(name)
        if (row, column) == self.cursor and self.has_focus:
            text = "…" if cell is None else cell.text
            return [Segment(text.center(inner)[:inner], on(colours.cursor, True)), gap]
        if cell is None:
            return [Segment("·".center(inner), solid(colours.muted, colours.background)), gap]
        if cell.bad:
            return [Segment(cell.text.center(inner)[:inner], on(colours.bad, True)), gap]
        if cell.parts is not None:
            return [*_bar(cell.parts, inner, colours), gap]
        ground = colours.background if cell.heat is None else colours.ramp(cell.heat)
        return [Segment(cell.text.center(inner)[:inner], on(ground)), gap]

    # The cursor

    def _go(self, row: int, column: int) -> None:
        row = max(0, min(row, len(self.rows) - 1))
        column = max(0, min(column, len(self.columns) - 1))
        if (row, column) == self.cursor or not self.rows:
            return
        self.cursor = (row, column)
        left, top = self.scroll_offset
        height, width = self.size.height - 1, self.size.width - LABEL
        x = column * self.cell_width
        self.scroll_to(
            x=min(left, x) if x < left else max(left, x + self.cell_width - width),
            y=min(top, row) if row < top else max(top, row - height + 1),
            animate=False,
        )
        self.refresh()
        self.post_message(self.Moved(self, self.name_at_cursor))

    def action_move(self, down: int, right: int) -> None:
        """Move the cursor, over empty places to the next tensor."""
        row, column = self.cursor
        while True:
            row, column = row + down, column + right
            if not (0 <= row < len(self.rows) and 0 <= column < len(self.columns)):
                return
            if (row, column) in self._names:
                self._go(row, column)
                return

    def action_page(self, down: int) -> None:
        """Move by the visible layers."""
        self._go(self.cursor[0] + down * max(1, self.size.height - 2), self.cursor[1])

    def action_edge(self, down: int) -> None:
        """Go to the first or last layer."""
        self._go(0 if down < 0 else len(self.rows) - 1, self.cursor[1])

    def action_open(self) -> None:
        """Choose the tensor under the cursor."""
        name = self.name_at_cursor
        if name is not None:
            self.post_message(self.Opened(self, name))

    def on_click(self, event: Click) -> None:
        """Go to what was clicked; a second click chooses it."""
        left, top = self.scroll_offset
        row, column = event.y - 1 + top, (event.x - LABEL + left) // self.cell_width
        if event.y > 0 and event.x >= LABEL and (row, column) in self._names:
            if (row, column) == self.cursor and event.chain > 1:
                self.action_open()
            self._go(row, column)


def _fit(text: str, width: int) -> str:
    return (text if len(text) <= width else text[: width - 1] + "…").center(width)


def _bar(parts: tuple[float, float, float], width: int, colours: Colours) -> list[Segment]:
    """Draw shares as one bar of three colours, with borders in eighths of a cell."""
    total = sum(parts) or 1.0
    first = parts[0] / total * width
    second = first + parts[1] / total * width
    bands = ((0.0, first, colours.minus), (first, second, colours.zero), (second, float(width), colours.plus))
    segments = []
    for x in range(width):
        # the two bands that share most of this cell, from left to right
        shares = [(max(0.0, min(x + 1, end) - max(x, start)), colour) for start, end, colour in bands]
        kept = [item for item in shares if item[0] > 0.06] or [max(shares, key=lambda item: item[0])]
        left, right = kept[0], kept[-1]
        segments.append(_split(left[0], left[1], right[1]))
    return segments


def _split(share: float, left: Color, right: Color) -> Segment:
    if left == right:
        return Segment(" ", on(left))
    return Segment(_LEFT[max(1, min(7, round(share * 8)))], solid(left, right))
