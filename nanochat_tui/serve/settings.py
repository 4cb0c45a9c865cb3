"""Everything about a server that can be set, in one place; the defaults suit one machine and its owner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nanochat_tui.errors import UserError, display_safe

_DEFAULT_PORTS = {"http": 80, "https": 443}

Log = Callable[[str], None]
"""Receives one line for the person who started the server."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask for, and how long it may take. Sizes in bytes, times in seconds."""

    body_bytes: int = 4 << 20
    choices: int = 32
    """Replies of one request: prompts times `n`."""
    requests: int = 256
    """Requests being worked on at once, whatever they do; the rest is told to come again."""
    received_bytes: int = 256 << 20
    """Bodies that are on their way, all together."""
    receive_seconds: float = 30.0
    """From the first byte (or the connection) to the end of the body."""
    stall_seconds: float = 30.0
    """How long a client may leave what was sent to it unread."""
    idle_seconds: float = 30.0
    """How long a connection is kept between two requests."""
    ping_seconds: float = 10.0
    """Silence after which a stream gets a comment line, so that proxies do not cut it."""
    drain_seconds: float = 8.0
    """How long replies may go on once the server was told to end: containers are killed ten seconds after that."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One server. `name` is the model's id; `aliases` are further ids it answers to."""

    name: str
    aliases: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    """Accepted keys; with none, everybody who can connect is served."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may use the server, besides its own page."""
    loopback: bool = True
    """Whether only programs of this machine can connect."""
    max_sequences: int = 8
    max_waiting: int = 64
    limits: Limits = field(default_factory=Limits)
    log: Log = lambda line: None
    log_requests: bool = True


def checked_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Return API keys as they are. Raises UserError for one that no client could send: empty, or with spaces in it."""
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                "An API key must be of visible ASCII characters, without spaces and not empty; leave --api-key and "
                "NANOCHAT_API_KEY out to ask for none."
            )
    return tuple(keys)


def checked_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Return web origins as browsers send them: no slash at the end, small letters, no port that goes without saying.

    "*" (every origin) stays. Raises UserError for what is no origin, such as an address with a path.
    """
    found = []
    for origin in origins:
        if origin == "*":
            found.append(origin)
            continue
        try:
            parts = urlsplit(origin)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
        if not parts.scheme or not host or not plain:
            raise UserError(
                f"--cors-origin {display_safe(origin)} is not a web origin; give the beginning of the page's address, "
                "like https://chat.example.org"
            )
        name = f"[{host}]" if ":" in host else host
        found.append(
            f"{parts.scheme}://{name}" + (f":{port}" if port not in (None, _DEFAULT_PORTS.get(parts.scheme)) else "")
        )
    return tuple(found)
