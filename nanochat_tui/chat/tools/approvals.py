"""What the user decided about tools, kept in the configuration folder.

A decision is bound to the server's entry, the tool and its definition: if any of them changes, it is asked again.
"""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from nanochat_tui.chat.tools.definitions import Tool
from nanochat_tui.errors import UserError, WriteError
from nanochat_tui.files import atomic_write_text
from nanochat_tui.paths import config_directory, make_private
from nanochat_tui.text import display_safe

FILE = "tools.json"
VERSION = 1
Decision = Literal["always", "never"]
Key = tuple[str, str, str, str]


def approvals_file() -> Path:
    """Return the file of the decisions, which need not exist. Raises UserError where there is no home for it."""
    return config_directory() / FILE


def _key(tool: Tool) -> Key:
    return (tool.server, tool.entry, tool.name, tool.digest)


class Approvals:
    """Decisions that last, and what is turned off. `path` None keeps them until the end.

    A file that cannot be read holds no decision: everything is asked again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = Lock()
        self._decided: dict[Key, Decision] = {}
        self._off: set[tuple[str, str]] = set()
        self._read()

    def decision(self, tool: Tool) -> Decision | None:
        """Return what was decided about a tool as it is defined now."""
        return self._decided.get(_key(tool))

    def decide(self, tool: Tool, decision: Decision | None) -> None:
        """Keep a decision, or forget those about the tool. Raises UserError if the file cannot be written."""
        with self._lock:
            self._read()
            mine = (tool.server, tool.name)
            self._decided = {key: said for key, said in self._decided.items() if (key[0], key[2]) != mine}
            if decision is not None:
                self._decided[_key(tool)] = decision
            self._write()

    def is_off(self, server: str, tool: str = "") -> bool:
        """Whether a server, or one tool of it, is turned off."""
        return (server, "") in self._off or bool(tool and (server, tool) in self._off)

    def turn(self, server: str, tool: str = "", *, on: bool) -> None:
        """Turn a server, or one tool of it, on or off. Raises UserError if the file cannot be written."""
        with self._lock:
            self._read()
            (self._off.discard if on else self._off.add)((server, tool))
            self._write()

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            data = None
        self._decided, self._off = {}, set()
        if not isinstance(data, dict) or data.get("version") != VERSION:
            return
        for one in _dictionaries(data.get("decisions")):
            key = tuple(one.get(name) for name in ("server", "entry", "tool", "definition"))
            if all(isinstance(part, str) for part in key) and one.get("decision") in ("always", "never"):
                self._decided[key] = one["decision"]  # type: ignore[index]
        for one in _dictionaries(data.get("off")):
            self._off.add((str(one.get("server")), str(one.get("tool") or "")))

    def _write(self) -> None:
        if self._path is None:
            return
        names = ("server", "entry", "tool", "definition")
        data = {
            "version": VERSION,
            "decisions": [{**dict(zip(names, key, strict=True)), "decision": d} for key, d in self._decided.items()],
            "off": [{"server": server, "tool": tool} for server, tool in sorted(self._off)],
        }
        try:
            make_private(self._path.parent)
            atomic_write_text(self._path, json.dumps(data, indent=2) + "\n")
        except (OSError, WriteError) as error:
            raise UserError(
                f"The decision could not be kept in {display_safe(str(self._path))}; it holds for this time only."
            ) from error


def _dictionaries(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
