"""Which servers there are: `mcpServers` as other programs write it, read from the user's own configuration.

Never read from the working directory: a folder that was cloned or unpacked must not start programs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nanochat_tui.errors import UserError, reason_of
from nanochat_tui.paths import config_directory
from nanochat_tui.text import display_safe

FILE = "mcp.json"
MAX_BYTES = 1 << 20
MAX_SERVERS = 64
Transport = Literal["stdio", "http", "sse"]
_TRANSPORTS: dict[str, Transport] = {
    "stdio": "stdio",
    "http": "http",
    "streamable-http": "http",
    "streamableHttp": "http",
    "streamable_http": "http",
    "sse": "sse",
}
"""What programs write into `type` or `transport`."""
_VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """One server. A program that is started has a command, one that is reached an address; `folder` is where it runs.

    Values are as they are written; `expanded` puts variables in.
    """

    name: str
    transport: Transport
    folder: Path
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    disabled: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of what the entry says: an approval of another one's tools does not hold."""
        said = [self.name, self.transport, str(self.folder), self.command, self.args, dict(self.env), self.url]
        return hashlib.sha256(json.dumps([*said, dict(self.headers)], sort_keys=True).encode()).hexdigest()

    @property
    def place(self) -> str:
        """The command or the address, for people."""
        return " ".join((self.command, *self.args)) if self.transport == "stdio" else self.url

    def expanded(self, text: str) -> str:
        """Return `text` with `${NAME}`, `${env:NAME}` and `${NAME:-otherwise}` replaced. Raises UserError."""

        def value(match: re.Match[str]) -> str:
            found = os.environ.get(match[1], match[2])
            if found is None:
                raise UserError(f"the variable {match[1]} is not set")
            return found

        return _VARIABLE.sub(value, text)


def config_file() -> Path:
    """Return the user's own file, which need not exist. Raises UserError where there is no home for it."""
    return config_directory() / FILE


def read_servers(path: Path | None = None) -> list[ServerEntry]:
    """Return the servers of a file, or of the user's own, in which case no file means no servers. Raises UserError."""
    file = config_file() if path is None else path
    shown = display_safe(str(file))
    try:
        with file.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        if path is None:
            return []
        raise UserError(f"There is no file {shown}; give the path of a JSON file with mcpServers.") from error
    except OSError as error:
        raise UserError(f"Cannot read {shown} ({reason_of(error)}); check the path.") from error
    if len(raw) > MAX_BYTES:
        raise UserError(f"{shown} is too large to be a list of servers; give a JSON file with mcpServers.")
    try:
        data = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown} is not JSON ({display_safe(str(error))}); correct it.") from error
    servers = data.get("mcpServers") if isinstance(data, dict) else None
    if not isinstance(servers, dict):
        raise UserError(f'{shown} has no "mcpServers" object, as in {{"mcpServers": {{"time": {{"command": …}}}}}}.')
    if len(servers) > MAX_SERVERS:
        raise UserError(f"{shown} has more than {MAX_SERVERS} servers; leave some out.")
    folder = file.absolute().parent
    return [_entry(name, entry, folder, shown) for name, entry in servers.items()]


def _entry(name: str, entry: Any, folder: Path, shown: str) -> ServerEntry:
    where = f"{shown}: the server {display_safe(name, 60)}"
    if not name.strip() or len(name) > 60:
        raise UserError(f"{shown}: the name of a server has 1 to 60 characters; change it.")
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be an object with a command or a url.")
    command, url = entry.get("command"), entry.get("url") or entry.get("httpUrl")
    if bool(command) == bool(url):
        raise UserError(f"{where} must have either a command or a url.")
    kind = entry.get("type") or entry.get("transport") or ("stdio" if command else "http")
    transport = _TRANSPORTS.get(kind) if isinstance(kind, str) else None
    if transport is None or (transport == "stdio") != bool(command):
        raise UserError(f"{where} has a type that does not go with it; it is stdio, http or sse.")
    if not isinstance(command or url, str):
        raise UserError(f"{where} must have a text as {'command' if command else 'url'}.")
    if url and not url.startswith(("http://", "https://", "${")):
        raise UserError(f"{where} has a url that does not begin with http:// or https://; correct it.")
    args = entry.get("args") or []
    if not isinstance(args, list) or not all(isinstance(arg, str) for arg in args):
        raise UserError(f"{where} must have a list of texts as args.")
    cwd = entry.get("cwd")
    if cwd is not None and not isinstance(cwd, str):
        raise UserError(f"{where} must have a text as cwd.")
    place = folder if cwd is None else folder / Path(cwd).expanduser()
    return ServerEntry(
        name,
        transport,
        place,
        command or "",
        tuple(args),
        _texts(entry, "env", where),
        url or "",
        _texts(entry, "headers", where),
        bool(entry.get("disabled")) or entry.get("enabled") is False,
    )


def _texts(entry: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    """Return an object of texts; numbers and truth values count as what JSON writes for them."""
    found = entry.get(key) or {}
    if not isinstance(found, dict) or not all(isinstance(v, str | int | float) for v in found.values()):
        raise UserError(f"{where} must have an object of texts as {key}.")
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}
