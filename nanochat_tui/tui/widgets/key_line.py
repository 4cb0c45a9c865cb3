"""The keys that mean something now, in one row.

Textual's footer is a widget for every key, made again whenever other keys make sense, and cuts what does not fit. This
one is drawn as a whole, and on a narrow terminal the keys of the application stay while those of the screen end in "…".
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.app import App
from textual.content import Content
from textual.events import MouseDown
from textual.screen import Screen
from textual.widget import Widget


@dataclass(frozen=True, slots=True)
class Item:
    """One key: how it is written, what it does, what is pressed by a click, whether that makes sense now."""

    label: str
    title: str
    key: str
    enabled: bool

    @property
    def cells(self) -> int:
        """Cells it takes."""
        return Content(f"{self.label} {self.title}").cell_length


def fitting(own: list[Item], general: list[Item], width: int) -> tuple[list[Item], list[Item], bool]:
    """Choose what fits into `width` cells, with a blank between two items: those of the screen that stand left, the
    general ones that stand right, and whether any of the screen's were left out. The general ones come in the order
    of how soon they are missed, and leave the screen half of the row at least where it needs so much.
    """
    wanted = sum(item.cells + 1 for item in own)
    right: list[Item] = []
    room = max(width - wanted, width // 2)
    for item in general:
        if item.cells + 1 > room:
            break
        right.append(item)
        room -= item.cells + 1
    room = width - sum(item.cells + 1 for item in right)
    if wanted <= room + 1:
        return own, right, False
    left: list[Item] = []
    room -= 1  # for the sign that there is more
    for item in (item for item in own if item.enabled):
        if item.cells + 1 > room:
            break
        left.append(item)
        room -= item.cells + 1
    return left, right, True


class KeyLine(Widget):
    """Shows keys; a click presses one."""

    DEFAULT_CSS = "KeyLine { dock: bottom; height: 1; background: $surface; }"
    ALLOW_SELECT = False
    FIRST = ("scroll_help", "command_palette", "toggle_help", "show_mode", "quit")
    """Actions of the application, the most needed first."""

    def __init__(self) -> None:
        super().__init__()
        self._places: list[tuple[int, Item]] = []
        self._drawn: tuple[list[Item], list[Item]] = ([], [])

    def on_mount(self) -> None:
        """Hear when other keys make sense."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen[object]) -> None:
        if self.is_attached and screen is self.screen and self._items() != self._drawn:
            self.refresh()

    def _items(self) -> tuple[list[Item], list[Item]]:
        own: list[Item] = []
        general: list[tuple[int, Item]] = []
        seen: set[str] = set()
        mode = f"show_mode('{self.app.current_mode}')"
        badges: dict[str, str] = getattr(self.app, "key_badges", {})
        for node, binding, enabled, _ in self.screen.active_bindings.values():
            if not binding.show or binding.action in seen or binding.action == mode:
                continue
            seen.add(binding.action)
            title = binding.description
            if isinstance(node, App):
                title = f"{title} {badges[binding.action]}" if binding.action in badges else title
            item = Item(self.app.get_key_display(binding), title, binding.key, enabled)
            if isinstance(node, App):
                name = binding.action.partition("(")[0]
                general.append((self.FIRST.index(name) if name in self.FIRST else len(self.FIRST), item))
            else:
                own.append(item)
        return own, [item for _, item in sorted(general, key=lambda pair: (pair[0], pair[1].key))]

    def render(self) -> Content:
        """Draw the row."""
        self._drawn = own, general = self._items()
        left, right, more = fitting(own, general, self.size.width)
        content = Content("")
        self._places = []

        def put(item: Item) -> None:
            nonlocal content
            self._places.append((content.cell_length, item))
            content += Content.assemble(
                (item.label, "bold $text-accent" if item.enabled else "$text-accent 50%"),
                (f" {item.title} ", "$text" if item.enabled else "$text 40%"),
            )

        for item in left:
            put(item)
        if more:
            content += Content.styled("…", "$text 60%")
        rest = self.size.width - content.cell_length - sum(item.cells + 1 for item in right) + 1
        content += Content(" " * max(1 if left and right else 0, rest))
        for item in right:
            put(item)
        return content

    def on_mouse_down(self, event: MouseDown) -> None:
        """Press the key that was pointed at."""
        for start, item in self._places:
            if start <= event.x < start + item.cells:
                if item.enabled:
                    self.app.simulate_key(item.key)
                else:
                    self.app.bell()
