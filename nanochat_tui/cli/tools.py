"""`nanochat-tui tools`: the servers of tools that are configured, and what they offer."""

from __future__ import annotations

import sys
import threading
from typing import Any

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import JsonOption
from nanochat_tui.cli.tool_options import McpOption
from nanochat_tui.errors import UserError
from nanochat_tui.text import counted, display_safe


def tools(mcp: McpOption = None, json: JsonOption = False) -> int:
    """List the tools that a chat can use: of the servers in your own mcp.json, or in the file of --mcp."""
    from nanochat_tui.chat.tools.approvals import Approvals, approvals_file
    from nanochat_tui.chat.tools.config import config_file, read_servers
    from nanochat_tui.chat.tools.servers import START_SECONDS, missing_package
    from nanochat_tui.chat.tools.toolbox import Toolbox
    from nanochat_tui.cli.narration import Narration

    entries = read_servers(mcp)
    if not entries and not json:
        print(f"No servers are configured; write mcpServers into {display_safe(str(config_file()))}, or give --mcp.")
        return 0
    if entries and (missing := missing_package()) is not None:
        raise UserError(missing)
    approvals = Approvals(approvals_file())
    toolbox = Toolbox(entries, approvals)
    try:
        with Narration() as narrate:
            narrate("starting the servers of tools")
            for server in toolbox.servers.all:
                toolbox.servers.start(server)
            toolbox.servers.wait(START_SECONDS, threading.Event())
        rows: list[dict[str, Any]] = []
        for server in toolbox.servers.all:
            own = [tool for tool in toolbox.servers.tools() if tool.server == server.name]
            rows.append(
                {
                    "server": server.name,
                    "state": server.state,
                    "problem": server.problem or None,
                    "off": approvals.is_off(server.name),
                    "tools": [
                        {
                            "name": tool.title,
                            "function": tool.function,
                            "description": tool.description,
                            "schema": tool.schema,
                            "definition": tool.digest,
                            "decision": approvals.decision(tool),
                            "off": approvals.is_off(tool.server, tool.name),
                        }
                        for tool in own
                    ],
                }
            )
    finally:
        toolbox.close()
    if json:
        print(json_text({"file": str(mcp or config_file()), "servers": rows}))
    else:
        for row in rows:
            _show(row)
    return 1 if any(row["state"] != "ready" for row in rows) else 0


def _show(row: dict[str, Any]) -> None:
    off = ", turned off" if row["off"] else ""
    print(f"{display_safe(row['server'], 60)}: {counted(len(row['tools']), 'tool')}{off}")
    if row["problem"]:
        print(f"error: {row['problem']}", file=sys.stderr)
    for tool in row["tools"]:
        lines = tool["description"].strip().splitlines() or [""]
        marks = [*([tool["decision"]] if tool["decision"] else []), *(["off"] if tool["off"] else [])]
        said = f" ({', '.join(marks)})" if marks else ""
        print(f"  {display_safe(tool['name'], 100)}{said}  {display_safe(lines[0], 100)}")
