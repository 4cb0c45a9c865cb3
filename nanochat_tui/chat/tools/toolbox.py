"""The tools of a conversation: which of them the model is told of, and what happens when it calls one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event as CancelEvent
from typing import Any, Literal

from nanochat_tui.chat.backend import ToolCall, ToolSpec
from nanochat_tui.chat.tools.approvals import Approvals
from nanochat_tui.chat.tools.config import ServerEntry
from nanochat_tui.chat.tools.definitions import Tool
from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.chat.tools.results import MAX_BYTES, MAX_TOKENS, capped, cleaned
from nanochat_tui.chat.tools.servers import Server, Servers
from nanochat_tui.errors import UserError

Answer = Literal["once", "always", "never", "no"]
"""What the user says to a call: this one, all of this tool, none of this tool, not this one."""
Asker = Callable[[CallRecord, Tool], Answer]
"""Asks about one call, waiting for the answer; called in the thread of the reply."""
MAX_ARGUMENTS = 1 << 16
"""Characters of the arguments of one call."""
MAX_OFFERED = 128
"""Tools that a model is told of: as many as servers of models take."""
DENIED = "The user did not allow this call."
STOPPED = "The user stopped the reply."


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a reply may do with tools."""

    rounds: int = 8
    """Times that the model may call tools before it has to answer."""
    seconds: float = 60.0
    """What one call may take."""
    max_bytes: int = MAX_BYTES
    max_tokens: int = MAX_TOKENS


class Toolbox:
    """Servers, decisions and limits. `allowed` names the tools that exist here at all; None: all that are on."""

    def __init__(
        self,
        entries: Sequence[ServerEntry],
        approvals: Approvals,
        limits: Limits | None = None,
        allowed: Sequence[str] | None = None,
    ) -> None:
        self.servers = Servers([entry for entry in entries if not entry.disabled])
        self.approvals = approvals
        self.limits = limits or Limits()
        self._allowed = allowed
        self._said: set[str] = set()
        self._unkept = ""
        """Why a decision could not be written."""

    # What there is

    def start(self) -> None:
        """Begin to start the servers that are on, unless they failed to start before; returns at once."""
        for server in self.servers.all:
            if (
                (server.state == "off" or server.was_ready)
                and not self.approvals.is_off(server.name)
                and self._wanted(server)
            ):
                self.servers.start(server)

    def _wanted(self, server: Server) -> bool:
        return self._allowed is None or any(name.startswith(f"{server.name}.") for name in self._allowed)

    def ready(self, seconds: float, cancel: CancelEvent) -> None:
        """Start what is to be started, wait for it, and ask for the definitions as they are now."""
        self.servers.refresh(cancel)  # first, so that one that has exited is started again
        self.start()
        self.servers.wait(seconds, cancel)

    def tools(self) -> list[Tool]:
        """Return the tools that a model may be told of."""
        return [tool for tool in self.servers.tools() if self._is_on(tool)]

    def _is_on(self, tool: Tool) -> bool:
        if self._allowed is not None:
            return is_allowed(tool, self._allowed)
        return not self.approvals.is_off(tool.server, tool.name) and self.approvals.decision(tool) != "never"

    def specs(self) -> tuple[ToolSpec, ...]:
        """Return the tools as a model is told of them."""
        return tuple(tool.spec for tool in self.tools()[:MAX_OFFERED])

    def problems(self) -> list[str]:
        """Return why servers failed, each sentence once."""
        all_of_them = [*(server.problem for server in self.servers.all), self._unkept]
        found = list(dict.fromkeys(text for text in all_of_them if text and text not in self._said))
        self._said.update(found)
        return found

    def close(self) -> None:
        """End all servers."""
        self.servers.close()

    # Calls

    def run(self, record: CallRecord, ask: Asker, cancel: CancelEvent, count: Callable[[str], int], most: int,
            ) -> Iterator[CallRecord]:  # fmt: skip
        """Ask about a call and make it; yields the record with each change, the last one with its result.

        count: how many tokens a text has; most: tokens of a result.
        """
        tool = next((one for one in self.tools() if one.function == record.function), None)
        if tool is None:
            yield replace(record, state="failed", result=f"There is no tool {record.function} here.")
            return
        record = replace(record, server=tool.server, tool=tool.name)
        arguments = _arguments(record.arguments)
        if arguments is None:
            yield replace(record, state="failed", result="The arguments are no JSON object; write one.")
            return
        yield record
        allowed = self._may(record, tool, ask)
        if cancel.is_set():
            yield replace(record, state="cancelled", result=STOPPED)
            return
        if not allowed:
            yield replace(record, state="denied", result=DENIED)
            return
        record = replace(record, state="running")
        yield record
        began = time.monotonic()
        outcome = self.servers.call(tool, arguments, self.limits.seconds, cancel)
        text = capped(outcome.text, count, max_bytes=self.limits.max_bytes, max_tokens=most)
        state: Literal["done", "failed", "cancelled"] = "failed" if outcome.failed else "done"
        if outcome.cancelled:
            state = "cancelled"
        yield replace(record, state=state, result=text, seconds=round(time.monotonic() - began, 3))

    def _may(self, record: CallRecord, tool: Tool, ask: Asker) -> bool:
        if self._allowed is not None:  # what is named there needs no question, and nothing else is here
            return True
        known = self.approvals.decision(tool)
        if known is not None:
            return known == "always"
        answer = ask(record, tool)
        if answer in ("always", "never"):
            self.decide(tool, "always" if answer == "always" else "never")
        return answer in ("once", "always")

    def decide(self, tool: Tool, decision: Literal["always", "never"] | None) -> None:
        """Keep a decision; one that cannot be written holds until the end, and is told with the problems."""
        try:
            self.approvals.decide(tool, decision)
        except UserError as error:
            self._unkept = str(error)


def is_allowed(tool: Tool, names: Sequence[str]) -> bool:
    """Whether `SERVER.TOOL` or `SERVER.*` is among the names."""
    return tool.title in names or f"{tool.server}.*" in names


def _arguments(text: str) -> dict[str, Any] | None:
    if len(text) > MAX_ARGUMENTS:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def record_of(call: ToolCall, number: int) -> CallRecord:
    """Return the record of a call that a model made in round `number`."""
    return CallRecord(call.id, cleaned(call.name)[:200], arguments=call.arguments[:MAX_ARGUMENTS], round=number)
