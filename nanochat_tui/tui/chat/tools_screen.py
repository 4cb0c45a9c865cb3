"""The servers of tools, their state, their tools and what was decided about each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from nanochat_tui.chat.tools.definitions import Tool
from nanochat_tui.chat.tools.servers import Server
from nanochat_tui.chat.tools.toolbox import Toolbox
from nanochat_tui.errors import UserError
from nanochat_tui.text import counted, display_safe, printable

LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class _Line:
    server: Server
    tool: Tool | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.server.name, "" if self.tool is None else self.tool.name


class ToolsScreen(ModalScreen[None]):
    """Lists servers with their tools under them; below, all about the one with the cursor."""

    DEFAULT_CSS = """
    ToolsScreen { align: center middle; background: $background 60%; }
    ToolsScreen > Vertical {
        width: 110; max-width: 96%; height: 80%;
        border: round $primary; border-title-color: $text-primary; background: $surface; padding: 0 1;
    }
    ToolsScreen OptionList {
        height: 1fr; border: none; background: $surface; padding: 0; text-wrap: nowrap; text-overflow: ellipsis;
    }
    ToolsScreen VerticalScroll { height: 40%; border-top: solid $surface-lighten-2; }
    ToolsScreen #about { height: auto; }
    """
    HELP = """\
### Tools
The servers in your own `mcp.json`, or in the file of `--mcp`, and what they offer. **Space** turns a server or a tool
on and off, **f** forgets what was decided about a tool, so that it is asked again, **r** starts a server again.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "Back", priority=True),
        Binding("space", "turn", "On or off"),
        Binding("f", "forget", "Forget"),
        Binding("r", "restart", "Start again"),
        Binding("j", "move(1)", "Down", show=False),
        Binding("k", "move(-1)", "Up", show=False),
    ]

    def __init__(self, toolbox: Toolbox) -> None:
        super().__init__()
        self._toolbox = toolbox
        self._lines: list[_Line] = []
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        """Lay out the list and the details."""
        with Vertical() as box:
            box.border_title = "Tools"
            box.border_subtitle = "Space on/off · f forget · r start again · Esc leaves"
            yield OptionList(compact=True)
            with VerticalScroll(can_focus=False):
                yield Static(id="about", markup=False)

    def on_mount(self) -> None:
        """Start what is on, and follow it."""
        self._toolbox.start()
        self._look()
        self.set_interval(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Draw the list again if anything changed."""
        approvals = self._toolbox.approvals
        lines: list[_Line] = []
        known = self._toolbox.servers.tools()
        for server in self._toolbox.servers.all:
            lines.append(_Line(server))
            lines += [_Line(server, tool) for tool in known if tool.server == server.name]
        drawn = [
            (line.key, line.server.state, line.server.problem, approvals.is_off(*line.key), self._decision(line))
            for line in lines
        ]
        if drawn == self._drawn:
            return
        self._drawn = drawn
        options = self.query_one(OptionList)
        chosen = self._chosen
        key = chosen.key if chosen is not None else None
        self._lines = lines
        options.clear_options()
        options.add_options([Option(self._row(line)) for line in lines])
        options.highlighted = next((at for at, line in enumerate(lines) if line.key == key), 0) if lines else None
        self._tell()

    def _decision(self, line: _Line) -> str:
        return "" if line.tool is None else self._toolbox.approvals.decision(line.tool) or ""

    def _row(self, line: _Line) -> Content:
        off = self._toolbox.approvals.is_off(*line.key)
        if line.tool is None:
            state = "off" if off else line.server.state
            many = f" · {counted(len(line.server.tools), 'tool')}" if state == "ready" else ""
            colour = {"ready": "$text-success", "failed": "$text-error"}.get(state, "$text 60%")
            return Content.assemble((display_safe(line.server.name, 60), "bold"), (f"  {state}{many}", colour))
        said = (
            "off" if off else {"always": "always allowed", "never": "never allowed"}.get(self._decision(line), "asks")
        )
        first = (line.tool.description.strip().splitlines() or [""])[0]
        return Content.assemble(
            f"  {display_safe(line.tool.name, 60)}  ",
            (said, "$text-accent"),
            (f"  {display_safe(first, 90)}", "$text 60%"),
        )

    @property
    def _chosen(self) -> _Line | None:
        at = self.query_one(OptionList).highlighted
        return self._lines[at] if at is not None and at < len(self._lines) else None

    @on(OptionList.OptionHighlighted)
    def _tell(self) -> None:
        """Show all about the line with the cursor."""
        line = self._chosen
        if line is None:
            text = "No server is on."
        elif line.tool is None:
            entry = line.server.entry
            names = ", ".join(display_safe(name, 60) for name in entry.env) or "none"
            told = f"\nVariables of its entry: {names}" if entry.transport == "stdio" else ""
            text = f"{entry.transport}: {printable(entry.place)}\nFolder: {printable(str(entry.folder))}{told}"
            text += f"\n\n{printable(line.server.problem)}" if line.server.problem else ""
        else:
            schema = json.dumps(line.tool.schema, ensure_ascii=False, indent=2)
            text = f"{printable(line.tool.description.strip())}\n\n{printable(schema)}"
        self.query_one("#about", Static).update(Content(text))

    def action_move(self, step: int) -> None:
        """Move the cursor."""
        options = self.query_one(OptionList)
        (options.action_cursor_down if step > 0 else options.action_cursor_up)()

    @on(OptionList.OptionSelected)
    def action_turn(self) -> None:
        """Turn a server or a tool on or off."""
        line = self._chosen
        if line is None:
            return
        approvals = self._toolbox.approvals
        on = approvals.is_off(*line.key)
        self._keep(lambda: approvals.turn(*line.key, on=on))
        if line.tool is None and on:
            self._toolbox.servers.start(line.server)
        elif line.tool is None:
            self._toolbox.servers.stop(line.server)
        self._look()

    def action_forget(self) -> None:
        """Forget what was decided about a tool."""
        line = self._chosen
        if line is None or line.tool is None or not self._decision(line):
            self.app.bell()
            return
        tool = line.tool
        self._keep(lambda: self._toolbox.approvals.decide(tool, None))
        self._look()

    def action_restart(self) -> None:
        """Start a server again."""
        line = self._chosen
        if line is not None and not self._toolbox.approvals.is_off(line.server.name):
            self._toolbox.servers.stop(line.server)
            self._toolbox.servers.start(line.server)
            self._look()

    def _keep(self, change: Callable[[], object]) -> None:
        try:
            change()
        except UserError as error:
            self.notify(str(error), severity="error", timeout=8, markup=False)
