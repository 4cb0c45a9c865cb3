"""The tools of the chat, or the reason why there are none."""

from __future__ import annotations

from nanochat_tui.chat.tools.approvals import Approvals, approvals_file
from nanochat_tui.chat.tools.config import ServerEntry, config_file
from nanochat_tui.chat.tools.definitions import Tool
from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.chat.tools.toolbox import Answer, Limits, Toolbox
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe, printable
from nanochat_tui.tui.widgets.dialogs import Decide

ANSWERS = (("o", "once", "Once"), ("a", "always", "Always"), ("n", "never", "Never"))


class ToolSlot:
    """Holds the toolbox; `reason` says why there is none, as a sentence. Nothing is started before the first reply."""

    def __init__(self, toolbox: Toolbox | None = None, reason: str = "") -> None:
        self.toolbox = toolbox
        self.reason = reason or "No servers of tools are configured."

    def close(self) -> None:
        """End all servers."""
        if self.toolbox is not None:
            self.toolbox.close()


def tool_slot(entries: list[ServerEntry], limits: Limits) -> ToolSlot:
    """Return the tools of some servers, and the reason why there are none where the list is empty."""
    if not entries:
        try:
            file = display_safe(str(config_file()))
        except UserError as error:
            return ToolSlot(None, str(error))
        return ToolSlot(None, f"No servers of tools are configured; write mcpServers into {file} and start again.")
    return ToolSlot(Toolbox(entries, Approvals(approvals_file()), limits))


def question(record: CallRecord, tool: Tool, place: str) -> Decide:
    """Return the question whether a call may be made. Its result is an `Answer`; None: not now."""
    description = printable(tool.description.strip()[:2000])
    return Decide(
        f"The model wants to call {display_safe(tool.title, 100)}.",
        ANSWERS,
        explanation=f"Server: {display_safe(place, 200)}",
        details=f"Arguments:\n{printable(record.arguments)}\n\nWhat the server says of the tool:\n{description}",
    )


def answer_from(value: str | None) -> Answer:
    """Return what the result of `question` means."""
    return next((one for one in ("once", "always", "never") if one == value), "no")
