"""Who may use the page: a request must name this server, come from its own page, and know its token.

The three answer different attacks. The token keeps out other users of the machine and of the network. The origin keeps
out pages of other sites, whose scripts may open a websocket to any address and whose requests carry this site's
cookies. The host keeps out DNS rebinding, where another site's name is made to lead here, so that its pages are of the
"same" origin.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from nanochat_tui.errors import UserError
from nanochat_tui.hosts import ip_address, is_loopback
from nanochat_tui.text import display_safe

TOKEN_VARIABLE = "NANOCHAT_WEB_TOKEN"  # noqa: S105 - a variable's name
"""Holds a token to use instead of a new one at every start; a command line would show it to the whole machine."""
SHORTEST_TOKEN = 16


def make_token(given: str | None) -> str:
    """Return the token asked for, or a new one of 256 bits. Raises UserError for one that could be guessed."""
    if given is None:
        return secrets.token_urlsafe(32)
    token = given.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{TOKEN_VARIABLE} must hold at least {SHORTEST_TOKEN} printable ASCII characters without blanks; unset it "
            "to have a token made"
        )
    return token


def public_address(url: str) -> str:
    """Return an address under which visitors see the server, with a slash at its end. Raises UserError for none."""
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        valid = valid and (parts.port is None or parts.port > 0) and parts.username is None
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"{display_safe(url)} is no address of a page; give one like https://host.example/chat/")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/"


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides on requests by their headers. `host` and `port` are what the server listens on."""

    token: str
    host: str
    port: int
    public_url: str | None = None

    @property
    def address(self) -> str:
        """The page's address for a browser on this machine."""
        name = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host.strip("[]"), self.host.strip("[]"))  # noqa: S104
        return f"http://[{name}]:{self.port}/" if ":" in name else f"http://{name}:{self.port}/"

    @property
    def cookie(self) -> str:
        """The cookie's name; cookies know no ports, and several servers may share a host."""
        return f"nanochat-tui-{self.port}"

    @property
    def cookie_value(self) -> str:
        """What the cookie holds: not the token itself, which a fixed one would give away for later starts."""
        return hmac.new(self.token.encode(), b"cookie", hashlib.sha256).hexdigest()

    @property
    def open_to_others(self) -> bool:
        """Whether other machines can reach the server without help."""
        return not is_loopback(self.host)

    def knows_token(self, given: str | None) -> bool:
        """Whether `given` is the token."""
        return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())

    def knows_cookie(self, given: str | None) -> bool:
        """Whether `given` is what the cookie should hold."""
        return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self.cookie_value.encode())

    def accepts_host(self, header: str | None) -> bool:
        """Whether a Host header names this server; its port may be another one (`ssh -L`, a proxy).

        An address cannot be rebound, so where other machines are welcome any address will do.
        """
        name = _host_name(header)
        if name is None:
            return False
        if is_loopback(name) or name == self.host.strip("[]").lower():
            return True
        if self.public_url is not None and name == urlsplit(self.public_url).hostname:
            return True
        if not self.open_to_others:
            return False
        own = socket.gethostname().lower()
        return ip_address(name) is not None or name in (own, f"{own.partition('.')[0]}.local")

    def is_encrypted(self, header: str | None) -> bool:
        """Whether a request with this Host header came by the public address, and that has TLS."""
        public = urlsplit(self.public_url) if self.public_url is not None else None
        return public is not None and public.scheme == "https" and _host_name(header) == public.hostname

    def accepts_origin(self, origin: str | None, host: str | None) -> bool:
        """Whether an Origin header is this server's own; programs that are no browsers send none."""
        if origin is None:
            return True
        try:
            parts = urlsplit(origin.strip().lower())
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not parts.netloc:
            return False
        if parts.netloc == (host or "").strip().lower():
            return True
        public = urlsplit(self.public_url.lower()) if self.public_url is not None else None
        return public is not None and (parts.scheme, parts.netloc) == (public.scheme, public.netloc)


def _host_name(header: str | None) -> str | None:
    """Return the name in a Host header without its port, in lower case; None if it is no such header."""
    text = (header or "").strip()
    if not text or any(c in text for c in "/@?#\\ \t"):
        return None
    try:
        parts = urlsplit(f"//{text}")
        _ = parts.port  # raises for what is no number
    except ValueError:
        return None
    return (parts.hostname or "").rstrip(".") or None
