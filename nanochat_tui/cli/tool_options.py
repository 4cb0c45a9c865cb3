"""The options about tools that several commands have, and the tools that `chat` may use."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.chat.tools.toolbox import Toolbox
    from nanochat_tui.cli.narration import Narration

McpOption = Annotated[
    Path | None,
    typer.Option(
        "--mcp",
        metavar="FILE",
        help="Tools: servers that speak MCP, as mcpServers in this file instead of your own mcp.json.",
    ),
]
AllowToolOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-tool",
        metavar="SERVER.TOOL",
        help="Let the model call this tool without a question; SERVER.* is all of a server; may be repeated.",
    ),
]
ToolRoundsOption = Annotated[
    int, typer.Option("--tool-rounds", min=1, max=100, help="Times that the model may call tools in one reply.")
]
ToolTimeoutOption = Annotated[
    float, typer.Option("--tool-timeout", min=0.1, max=3600, help="Seconds that one call of a tool may take.")
]
NONE_ALLOWED = (
    "note: no tool runs here without --allow-tool SERVER.TOOL, so none is offered; nanochat-tui tools lists them"
)


def allowed_tools(mcp: Path | None, allowed: list[str], rounds: int, seconds: float, narrate: Narration) -> Toolbox:
    """Start the servers of the tools that are allowed, and return these tools. Raises UserError if one is missing."""
    from nanochat_tui.chat.tools.approvals import Approvals
    from nanochat_tui.chat.tools.config import FILE, read_servers
    from nanochat_tui.chat.tools.servers import START_SECONDS, missing_package
    from nanochat_tui.chat.tools.toolbox import Limits, Toolbox

    entries = read_servers(mcp)
    if not entries:
        raise UserError(f"No server of tools is configured; give a file with --mcp, or write your own {FILE}.")
    for name in allowed:
        if not any(name.startswith(f"{entry.name}.") for entry in entries):
            known = ", ".join(display_safe(f"{entry.name}.*", 60) for entry in entries)
            raise UserError(f"--allow-tool {display_safe(name)} is of no server that is configured; there are {known}.")
    if (missing := missing_package()) is not None:
        raise UserError(missing)
    toolbox = Toolbox(entries, Approvals(), Limits(rounds=rounds, seconds=seconds), allowed)
    try:
        narrate("starting the servers of tools")
        toolbox.ready(START_SECONDS, threading.Event())
        if problems := toolbox.problems():
            raise UserError(problems[0])
        have = [tool.title for tool in toolbox.servers.tools()]
        for name in allowed:
            if name not in have and not name.endswith(".*"):
                known = ", ".join(display_safe(title, 80) for title in have)
                raise UserError(f"There is no tool {display_safe(name)}; there are {known}.")
    except BaseException:
        toolbox.close()
        raise
    return toolbox
