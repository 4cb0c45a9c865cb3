"""Everything about a server that can be set, in one place; the defaults suit one machine and its owner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

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
    load_seconds: float = 600.0
    """How long a request waits for a model that has to be loaded first, and for its memory."""
    stored_responses: int = 1000
    """Responses that are kept for `previous_response_id`, the latest ones."""
    stored_bytes: int = 64 << 20
    """Bytes that they may take together."""
    stored_seconds: float = 6 * 3600.0
    """How long one is kept."""
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
    """Web origins whose pages may use the server, in addition to its own page."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names by which the server may be asked, apart from addresses and localhost; none: see `middleware.Gate`."""
    strict_model: bool = False
    """Refuse names of models that are not served, in place of answering with the one that is."""
    loopback: bool = True
    """Whether only programs of this machine can connect."""
    max_sequences: int = 8
    max_waiting: int = 64
    limits: Limits = field(default_factory=Limits)
    log: Log = lambda line: None
    log_requests: bool = True


KEY_VARIABLES = ("NANOCHAT_SERVE_API_KEY", "NANOCHAT_API_KEY")
"""Environment variables that may hold the server's key; the second is the one that clients of this project use."""
MAX_SETTING_FILE = 1 << 20
"""Bytes of a file with keys or a chat template."""


def checked_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Return API keys, each once. Raises UserError for one that no client could send: empty, or with spaces in it."""
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                "An API key must be of visible ASCII characters, without spaces and not empty; leave --api-key, "
                f"--api-key-file and {' and '.join(KEY_VARIABLES)} out to ask for none."
            )
    return tuple(dict.fromkeys(keys))


def read_setting(path: Path, what: str) -> str:
    """Return the text of a file that holds a setting. Raises UserError if it cannot be read, in words."""
    name = display_safe(str(path))
    try:
        if not path.is_file():
            raise UserError(f"There is no {what} {name}; check the path.")
        with path.open("rb") as file:
            raw = file.read(MAX_SETTING_FILE + 1)
        if len(raw) > MAX_SETTING_FILE:
            raise UserError(f"The {what} {name} is larger than {MAX_SETTING_FILE} bytes; is it the right file?")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The {what} {name} is not a text in UTF-8; is it the right file?") from error
    except OSError as error:
        raise UserError(f"The {what} {name} cannot be read; check that it is yours to read.") from error


def keys_of_file(path: Path) -> list[str]:
    """Return the keys of a file, one a line; empty lines and those that begin with # are left out. Raises UserError."""
    lines = [line.strip() for line in read_setting(path, "file of API keys").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"The file of API keys {display_safe(str(path))} has no key in it; write one per line.")
    return keys


def find_keys(given: Sequence[str], file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys of the command line and of a file, or else that of the environment. Raises UserError."""
    keys = [*given, *(keys_of_file(file) if file is not None else ())]
    if not keys:
        keys = [environment[name] for name in KEY_VARIABLES if name in environment][:1]
    return checked_keys(keys)


def checked_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    """Return host names in small letters, without a port. Raises UserError for what is none."""
    found = []
    for host in hosts:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if not name or set(host) & set("/@?# "):
            raise UserError(f"--allowed-host {display_safe(host)} is not a host name, such as llm.example.org.")
        found.append(name)
    return tuple(found)


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
