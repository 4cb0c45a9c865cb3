"""The file's keys: a table that can be filtered, and the whole value of the key under the cursor."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import DataTable, Input, Static

from nanochat_tui.inspection import GGUFValue
from nanochat_tui.text import display_safe, printable
from nanochat_tui.tui.inspect.opened import Opened
from nanochat_tui.tui.inspect.pane import Pane, Scroller

MOST = 2000
"""Keys that are listed; files have about forty."""
LONGEST = 20_000
"""Characters of one value that are shown whole."""
MOST_ENTRIES = 500


def value_type(value: Any) -> str:
    """Return a key's type in words; a value from a summary is described by what it is in Python."""
    if isinstance(value, GGUFValue):
        return value.type_name
    return "array" if isinstance(value, dict) else type(value).__name__


def short(value: Any) -> str:
    """Return a value in one safe line."""
    content = value.value if isinstance(value, GGUFValue) else value
    if isinstance(content, list | np.ndarray):
        first = ", ".join(display_safe(str(item), 24) for item in content[:4])
        return f"[{len(content):,}] {first}{', …' if len(content) > 4 else ''}"
    if isinstance(content, dict):
        return f"[{content['length']:,}] {display_safe(', '.join(map(str, content['first'])), 80)}"
    return display_safe(str(content), 120)


def whole(value: Any) -> str:
    """Return a value as text of several lines, safe to show."""
    content = value.value if isinstance(value, GGUFValue) else value
    if isinstance(content, list | np.ndarray):
        entries = [f"{index:>7}  {display_safe(str(item), 200)}" for index, item in enumerate(content[:MOST_ENTRIES])]
        if len(content) > MOST_ENTRIES:
            entries.append(f"… and {len(content) - MOST_ENTRIES:,} more")
        return "\n".join(entries)
    if isinstance(content, dict):
        return short(content)
    text = str(content)
    return printable(text[:LONGEST]) + (
        f"\n… and {len(text) - LONGEST:,} more characters" if len(text) > LONGEST else ""
    )


class MetadataPane(Pane):
    """Filter, table, value."""

    TITLE = "Metadata"
    HELP = """\
### Metadata
Every key of the file. **{inspect.search|/}** filters by key and value (all words must occur), the key under the cursor
is shown whole below, **Tab** goes there to scroll.
"""

    def compose(self) -> ComposeResult:
        """Lay out the three parts."""
        yield Input(placeholder="/ filter keys and values", id="metadata-filter")
        yield DataTable[Text](id="metadata-table", cursor_type="row", zebra_stripes=True)
        with Scroller(id="metadata-value", can_focus=True):
            yield Static(id="metadata-text", markup=False)

    @property
    def table(self) -> DataTable[Text]:
        """The list of keys."""
        return self.query_one("#metadata-table", DataTable)

    def on_mount(self) -> None:
        """Name the columns."""
        self.table.add_columns("key", "type", "value")

    def focus_first(self) -> None:
        """The table takes the keys."""
        self.table.focus()

    def fill(self, opened: Opened | None) -> None:
        """See `Pane`."""
        self._list()

    def _values(self) -> dict[str, Any]:
        if self.opened is None:
            return {}
        return dict(self.opened.summary.metadata if self.opened.file is None else self.opened.file.metadata)

    @on(Input.Changed, "#metadata-filter")
    def _list(self) -> None:
        words = self.query_one("#metadata-filter", Input).value.lower().split()
        table = self.table
        table.clear()
        found = 0
        for key, value in self._values().items():
            line = short(value)
            if all(word in key.lower() or word in line.lower() for word in words):
                found += 1
                if found <= MOST:
                    table.add_row(
                        Text(display_safe(key, 80), "bold"),
                        Text(value_type(value), "dim"),
                        Text(line),
                        key=key,
                    )
        if not found:
            self.query_one("#metadata-text", Static).update("No key fits." if words else "The file has no keys.")

    @on(Input.Submitted, "#metadata-filter")
    def _done(self) -> None:
        self.focus_first()

    @on(DataTable.RowHighlighted)
    def _highlighted(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        key = event.row_key.value if event.row_key is not None else None
        value = None if key is None else self._values().get(key)
        if key is None or value is None:
            return
        head = Content.styled(display_safe(key), "bold") + Content.styled(f"  {value_type(value)}\n", "$text 60%")
        self.query_one("#metadata-text", Static).update(head + Content(whole(value)))
        self.query_one("#metadata-value", Scroller).scroll_home(animate=False)
