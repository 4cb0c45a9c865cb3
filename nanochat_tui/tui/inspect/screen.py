"""The inspect mode: opens a file and hands it to the pane that is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, Static, TabbedContent, TabPane

from nanochat_tui.text import display_safe
from nanochat_tui.tui import numbers
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.inspect.compare import ComparePane
from nanochat_tui.tui.inspect.metadata import MetadataPane
from nanochat_tui.tui.inspect.mhc import MhcPane
from nanochat_tui.tui.inspect.microscope import MicroscopePane
from nanochat_tui.tui.inspect.open_dialog import OpenDialog
from nanochat_tui.tui.inspect.opened import Opened, open_path
from nanochat_tui.tui.inspect.overview import OverviewPane
from nanochat_tui.tui.inspect.pane import Pane
from nanochat_tui.tui.inspect.template import TemplatePane
from nanochat_tui.tui.inspect.tensors import TensorsPane
from nanochat_tui.tui.inspect.tokenizer import TokenizerPane
from nanochat_tui.tui.inspect.weights import OpenTrits, WeightsPane
from nanochat_tui.tui.keys import key_names
from nanochat_tui.tui.messages import ChatWith
from nanochat_tui.tui.widgets.key_line import KeyLine
from nanochat_tui.tui.widgets.palette import key_commands
from nanochat_tui.tui.widgets.tabs import PaneTabs

PANES: tuple[tuple[str, type[Pane]], ...] = (
    ("overview", OverviewPane),
    ("metadata", MetadataPane),
    ("tensors", TensorsPane),
    ("weights", WeightsPane),
    ("trits", MicroscopePane),
    ("mhc", MhcPane),
    ("tokens", TokenizerPane),
    ("template", TemplatePane),
    ("compare", ComparePane),
)
"""Every tab by its id, in order; the number keys follow it."""


class InspectScreen(Screen[None]):
    """Looks into one GGUF file. `path` None asks for one."""

    CSS_PATH = "inspect.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - typed by Textual

    HELP = """\
## Inspect
What is in a model file, without running it. **{inspect.open|Ctrl+O}** opens another one, the **number keys**,
**{inspect.left|[}** and **{inspect.right|]}** or **{inspect.previous|Alt+←}/{inspect.next|Alt+→}** (in a field, too)
change the tab, **{inspect.search|/}** searches, **{inspect.back|Esc}** leaves a search or ends what is being computed.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+o", "open", "Open", id="inspect.open"),
        Binding("left_square_bracket", "tab(-1)", "Tab left", show=False, id="inspect.left"),
        Binding("right_square_bracket", "tab(1)", "Next tab", id="inspect.right"),
        Binding("alt+right,ctrl+pagedown", "tab(1, True)", "Next tab", show=False, priority=True, id="inspect.next"),
        Binding("alt+left,ctrl+pageup", "tab(-1, True)", "Tab left", show=False, priority=True, id="inspect.previous"),
        *(Binding(str(n), f"show({n})", f"Tab {n}", show=False, id=f"inspect.tab{n}") for n in range(1, 10)),
    ]

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.path = path
        self.opened: Opened | None = None
        self.error: str | None = None
        """Why the file could not be opened."""
        self._job: Job[Opened] | None = None

    def compose(self) -> ComposeResult:
        """A line that names the file, the tabs, the keys."""
        yield Static(id="inspect-title", markup=False)
        yield Static(id="inspect-message", markup=False)
        with PaneTabs(id="inspect-tabs"):
            for name, pane in PANES:
                with TabPane(pane.TITLE, id=name):
                    yield pane(id=f"pane-{name}")
        yield KeyLine()

    def on_mount(self) -> None:
        """Open the file, or ask for one."""
        if self.path is None:
            self._message(key_names(self)("No file is open. {inspect.open|Ctrl+O} opens one."))
        else:
            self.open_file(self.path)

    # Opening

    def open_file(self, path: Path) -> None:
        """Look at another file; what is computed of the present one ends."""
        if self._job is not None:
            self._job.stop()
        self.path = path
        self._message(f"Opening {display_safe(str(path))} …")
        self._job = Job(
            self, lambda _job: open_path(path), self._show, self._failed, unwanted=Opened.close, name="inspect-open"
        ).start()

    def _show(self, opened: Opened) -> None:
        self._job = None
        self._replace(opened)
        self.error = None
        self._message(None)
        s = opened.summary
        mark = Content.styled(" ● ", "$text-success" if s.runs else "$text-warning")
        facts = f"  {display_safe(s.architecture or 'no architecture', 40)} · {numbers.amount(s.parameters)}"
        facts += f" · {numbers.size(s.bytes)} · {s.bits_per_weight:.2f} bits"
        name = Content.styled(display_safe(opened.path.name), "bold $text")
        self.query_one("#inspect-title", Static).update(mark + name + Content.styled(facts, "$text 70%"))
        self._activate()

    def _failed(self, text: str) -> None:
        self._job = None
        self._replace(None)
        self.error = text
        name = Content.styled(display_safe(self.path.name if self.path else ""), "bold $text")
        self.query_one("#inspect-title", Static).update(Content.styled(" ✗ ", "$text-error") + name)
        other = key_names(self)("{inspect.open|Ctrl+O} opens another file.")
        self._message(f"{display_safe(text, 1000)}\n\n{other}", error=True)

    def _replace(self, opened: Opened | None) -> None:
        old, self.opened = self.opened, opened
        for pane in self.query(Pane):
            pane.stop_jobs()
        if old is not None:
            old.close()

    def _message(self, text: str | None, error: bool = False) -> None:
        box = self.query_one("#inspect-message", Static)
        box.display = text is not None
        self.query_one("#inspect-tabs").display = text is None
        box.set_class(error, "error")
        box.update(Content(text or ""))

    # Tabs

    @property
    def pane(self) -> Pane:
        """The pane that is looked at."""
        active = self.query_one("#inspect-tabs", TabbedContent).active
        return self.query_one(f"#pane-{active}", Pane)

    @on(TabbedContent.TabActivated, "#inspect-tabs")
    def _tab_activated(self) -> None:
        self._activate()

    def _activate(self) -> None:
        if self.opened is not None:
            self.pane.activate(self.opened)
            self.pane.focus_first()

    @on(OpenTrits)
    def _open_trits(self, event: OpenTrits) -> None:
        self.go_to("trits")
        microscope = self.query_one(MicroscopePane)
        microscope.activate(self.opened)
        microscope.look_at(event.name)

    def action_show(self, number: int) -> None:
        """Go to a tab by its number."""
        if number <= len(PANES):
            self.go_to(PANES[number - 1][0])

    def action_tab(self, step: int, always: bool = False) -> None:
        """Go to a neighbouring tab; `always`: by a key that no field takes for itself."""
        names = [name for name, _ in PANES]
        active = self.query_one("#inspect-tabs", TabbedContent).active
        self.go_to(names[(names.index(active) + step) % len(names)])

    def go_to(self, name: str) -> None:
        """Go to a tab."""
        self.query_one("#inspect-tabs", TabbedContent).active = name
        self._activate()  # not left to the message, which does not come while the tabs are hidden

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keep digits and brackets for a field that is being typed into."""
        return not (action in ("show", "tab") and len(parameters) < 2 and isinstance(self.focused, Input))

    def action_open(self) -> None:
        """Ask for a file."""

        def chosen(path: Path | None) -> None:
            if path is not None:
                self.open_file(path)

        self.app.push_screen(OpenDialog("Open a model file", self.path), chosen)

    def _chat(self) -> None:
        if self.opened is not None:
            self.app.post_message(ChatWith(self.opened.path))

    def palette_commands(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        """Every action that makes sense now, for the palette."""
        keys = key_names(self)
        yield "Open a model file", keys("Look into another file ({inspect.open|Ctrl+O})"), self.action_open
        if self.opened is None:
            return
        for number, (name, pane) in enumerate(PANES, 1):
            yield (
                f"Inspect: {pane.TITLE}",
                keys(f"Go to this tab ({{inspect.tab{number}|{number}}})"),
                partial(self.go_to, name),
            )
        yield from self._pane_commands()
        if self.opened.summary.runs:
            yield "Chat with this model", "Load the inspected file in the chat", self._chat

    def _pane_commands(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        """The keys of the pane that is looked at."""
        pane = self.pane
        for owner in (pane, *pane.query("TritView, LayerGrid")):
            yield from key_commands(owner, pane.TITLE)

    def on_unmount(self) -> None:
        """Let go of the file with the application."""
        if self._job is not None:
            self._job.stop()
        if self.opened is not None:
            self.opened.close()
