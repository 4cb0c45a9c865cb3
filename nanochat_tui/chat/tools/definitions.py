"""A tool as a server defines it, and what it is called where."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nanochat_tui.chat.backend import ToolSpec
from nanochat_tui.text import printable

MAX_NAME = 64
"""Characters of a function's name that OpenAI's protocol allows."""
MAX_DESCRIPTION = 8000
"""Characters of a description that a model is told."""
MAX_SCHEMA = 64_000


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool of one server. `function` is its name for models, `entry` the hash of the server's configuration."""

    server: str
    entry: str
    name: str
    description: str
    schema: Mapping[str, Any]
    function: str = ""

    @property
    def title(self) -> str:
        """The name for people, and for `--allow-tool`."""
        return f"{self.server}.{self.name}"

    @property
    def digest(self) -> str:
        """SHA-256 of the definition: an approval holds for what was approved."""
        said = {"name": self.name, "description": self.description, "inputSchema": self.schema}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @property
    def spec(self) -> ToolSpec:
        """The tool as a model is told of it."""
        return ToolSpec(self.function, printable(self.description[:MAX_DESCRIPTION]), self.schema)


def usable(tool: Tool) -> bool:
    """Whether a definition is of a size that a model could be told."""
    try:
        return 0 < len(tool.name) <= 128 and len(json.dumps(tool.schema)) <= MAX_SCHEMA
    except (ValueError, RecursionError):
        return False


def with_functions(tools: Iterable[Tool]) -> list[Tool]:
    """Give each tool the name that models call it by: SERVER__TOOL, of the characters that all protocols allow.

    It depends on nothing else, so that it stays the same when other servers come and go.
    """
    named: dict[str, Tool] = {}
    for tool in tools:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{tool.server}__{tool.name}")
        if len(name) > MAX_NAME or name in named:
            mark = hashlib.sha256(tool.title.encode()).hexdigest()[:8]
            name = f"{name[: MAX_NAME - 9]}_{mark}"
        named.setdefault(name, replace(tool, function=name))
    return list(named.values())
