"""Everything about a server that can be set, in one place; the defaults suit one machine and its owner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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
    drain_seconds: float = 15.0
    """How long replies may go on once the server was told to end."""


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
