"""The command about tools: what there is, turned on and off, decided and forgotten."""

from __future__ import annotations

from nanochat_tui.tui.chat.act import Act, plain
from nanochat_tui.tui.chat.actions import Actions, ChatParts
from nanochat_tui.tui.chat.tool_slot import ToolSlot


class ToolActions(Actions):
    """Opens the list of tools."""

    def __init__(self, parts: ChatParts, tools: ToolSlot) -> None:
        super().__init__(parts)
        self._tools = tools

    def acts(self) -> dict[str, Act]:
        """Commands by their names."""
        return {"tools": Act(plain(self.show))}

    def show(self) -> None:
        """Show the servers and their tools, and start those that are on."""
        toolbox = self._tools.toolbox
        if toolbox is None:
            self._desk.notify(self._tools.reason, timeout=10)
            return
        from nanochat_tui.tui.chat.tools_screen import ToolsScreen

        def closed(_: None) -> None:
            self._view.prompt.focus()

        self._desk.ask(ToolsScreen(toolbox), closed)
