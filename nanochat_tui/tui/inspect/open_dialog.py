"""Asking for a file: a path typed with completion, or one of the models found nearby."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Input, Label, OptionList
from textual.widgets.option_list import Option

from nanochat_tui.model.shipped import shipped_models
from nanochat_tui.text import display_safe
from nanochat_tui.tui import numbers

MOST = 200
"""Files that are listed."""


def nearby(places: Iterable[Path]) -> list[Path]:
    """Return the GGUF files in folders (not below them) and the shipped models, each once, by name."""
    found: dict[Path, None] = {}
    for shipped in shipped_models():
        found[shipped] = None
    for place in places:
        try:
            with os.scandir(place) as entries:
                names = sorted(entry.name for entry in entries if entry.name.lower().endswith(".gguf"))
        except OSError:
            continue
        for name in names[:MOST]:
            found.setdefault((place / name).absolute())
    return list(found)


class PathSuggester(Suggester):
    """Completes a path by what is on the disk."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """Return the first folder or GGUF file that begins so."""
        if not value:
            return None
        typed = Path(value).expanduser()
        folder, start = (typed, "") if value.endswith(("/", os.sep)) else (typed.parent, typed.name)
        try:
            with os.scandir(folder) as entries:
                fits = sorted(
                    entry.name + ("/" if entry.is_dir() else "")
                    for entry in entries
                    if entry.name.startswith(start)
                    and (entry.is_dir() or entry.name.lower().endswith(".gguf"))
                    and (start or not entry.name.startswith("."))
                )
        except OSError:
            return None
        return value + fits[0][len(start) :] if fits else None


class OpenDialog(ModalScreen[Path | None]):
    """Asks for a file; the answer is its path, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel"),
        Binding("down", "list", "List", show=False),
    ]
    DEFAULT_CSS = """
    OpenDialog { align: center middle; }
    OpenDialog > Vertical {
        width: 90%; max-width: 100; height: auto; max-height: 80%;
        border: round $primary; background: $surface; padding: 0 1;
    }
    OpenDialog Input, OpenDialog Input:focus {
        border: none; height: 1; background: $surface-lighten-1; padding: 0 1; margin: 0 0 1 0;
    }
    OpenDialog OptionList { height: auto; max-height: 14; border: none; background: $surface; padding: 0; }
    OpenDialog #problem { color: $text-error; height: auto; }
    """

    def __init__(self, title: str, near: Path | None) -> None:
        super().__init__()
        self._title = title
        places = [Path.cwd()] if near is None else [near.absolute().parent, Path.cwd()]
        self._files = nearby(places)

    def compose(self) -> ComposeResult:
        """Lay out field and list."""
        with Vertical() as box:
            box.border_title = Content(self._title)
            box.border_subtitle = Content("Enter opens, → completes, ↓ list, Esc goes back")
            yield Input(placeholder="path of a GGUF file", suggester=PathSuggester(), id="path")
            yield Label("", id="problem", markup=False)
            yield OptionList(*[Option(self._line(path), id=str(i)) for i, path in enumerate(self._files)], id="near")

    @staticmethod
    def _line(path: Path) -> Content:
        try:
            size = numbers.size(path.stat().st_size)
        except OSError:
            size = "?"
        place = Content.styled(f"  {display_safe(str(path.parent), 120)}", "$text 60%")
        return Content.assemble((f"{size:>8}  ", "$text 60%"), (display_safe(path.name), "bold"), place)

    def on_mount(self) -> None:
        """Type at once."""
        self.query_one("#problem").display = False
        self.query_one(Input).focus()

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        path = Path(text).expanduser()
        if not text:
            self.action_list()
        elif path.is_file():
            self.dismiss(path)
        else:
            problem = self.query_one("#problem", Label)
            what = "is a folder" if path.is_dir() else "does not exist"
            problem.update(f"{display_safe(text)} {what}; give a GGUF file.")
            problem.display = True

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._files[event.option_index])

    def action_list(self) -> None:
        """Go to the list."""
        if self._files:
            self.query_one(OptionList).focus()

    def action_cancel(self) -> None:
        """Go back without a file."""
        self.dismiss(None)
