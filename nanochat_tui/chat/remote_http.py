"""Speaking HTTP to a model server: addresses, keys, failures in words, and a stream that can be left at any moment."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from nanochat_tui.chat.backend import BackendError
from nanochat_tui.errors import UserError, display_safe

CONNECT_TRIES = 3
RETRY_SECONDS = 0.3
MAX_LINE = 4 << 20
"""Longest line of a stream that is believed, in characters."""
MAX_ERROR = 1 << 16
"""Bytes of an error's body that are read."""
_POLL = 0.05
"""Seconds after which a cancelled request is noticed while the server says nothing."""


def base_url(text: str) -> str:
    """Return an address without its trailing `/v1`, with a scheme. Raises `UserError` for what is none."""
    url = text.strip()
    if "://" not in url:
        url = "http://" + url
    parts = urlsplit(url)
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"{display_safe(text)} is no address of a server; give one like http://127.0.0.1:8080")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def api_key(url: str) -> str | None:
    """Return the key for a server: from NANOCHAT_API_KEY, for OpenAI itself OPENAI_API_KEY, or the system's keyring.

    The last is asked for service `nanochat-tui` and the host as user, if the package `keyring` is installed.
    """
    host = urlsplit(url).hostname or ""
    if key := os.environ.get("NANOCHAT_API_KEY"):
        return key
    own = (os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com").rstrip("/").removesuffix("/v1")
    if (key := os.environ.get("OPENAI_API_KEY")) and own == url:  # nobody else's business
        return key
    try:
        import keyring

        found = keyring.get_password("nanochat-tui", host)
        return found if isinstance(found, str) else None
    except Exception:  # not installed, locked, or no keyring on this system: then there is no key
        return None


def client(url: str, key: str | None, *, timeout: float, connect_timeout: float) -> httpx.Client:
    """Return an HTTP client; proxies and certificates come from the environment."""
    from nanochat_tui.version import __version__

    headers = {"User-Agent": f"nanochat-tui/{__version__}"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Timeout(timeout, connect=connect_timeout)
    try:
        return httpx.Client(base_url=url, headers=headers, timeout=limits, follow_redirects=False)
    except (ValueError, ImportError) as exc:  # a header that is no ASCII, a proxy of an unknown kind
        raise UserError(f"The key or a proxy of the environment cannot be used ({display_safe(str(exc))}).") from exc


def explain_status(response: httpx.Response, body: bytes) -> BackendError:
    """Put a refusal into words."""
    said = _message(body)
    why = f": {display_safe(said)}" if said else ""
    match response.status_code:
        case 401 | 403:
            return BackendError(f"The server refuses the key{why}; set NANOCHAT_API_KEY to the right one.")
        case 404:
            return BackendError(f"The server does not know that{why}; check the address and the model's name.")
        case 429:
            return BackendError(f"The server has too much to do{why}; try again in a moment.")
        case status if status >= 500:
            return BackendError(f"The server failed with status {status}{why}; its log says more.")
        case status:
            return BackendError(f"The server refused with status {status}{why}.")


def _message(body: bytes) -> str:
    import json

    try:
        data = json.loads(body)
    except ValueError:
        return body[:200].decode("utf-8", "replace").strip() if not body.lstrip().startswith(b"<") else ""
    error = data.get("error", data.get("detail", data.get("message"))) if isinstance(data, dict) else data
    if isinstance(error, dict):
        error = error.get("message", "")
    return str(error or "")


def explain_failure(exc: Exception, url: str, *, begun: bool) -> BackendError:
    """Put a broken connection into words; `begun` says that part of the reply had come."""
    where = display_safe(url)
    if begun:
        reason = "said nothing for too long" if isinstance(exc, httpx.TimeoutException) else "broke off"
        return BackendError(f"The server at {where} {reason} in mid-reply; what had come is kept.")
    match exc:
        case httpx.ConnectTimeout():
            return BackendError(f"The server at {where} does not answer; check the address and that it runs.")
        case httpx.ConnectError():
            return BackendError(f"There is no server at {where} ({display_safe(str(exc))}); check that it runs.")
        case httpx.TimeoutException():
            return BackendError(f"The server at {where} said nothing for too long; it may be busy or stuck.")
        case _:
            return BackendError(f"Speaking to {where} failed ({display_safe(str(exc) or type(exc).__name__)}).")


class RefusedError(BackendError):
    """A status other than 200; carries it, for the caller who can ask in another way."""

    def __init__(self, response: httpx.Response, body: bytes) -> None:
        super().__init__(str(explain_status(response, body)))
        self.status = response.status_code
        self.said = _message(body)


class Stream:
    """The lines of one answer, read by a thread, so that the reader can leave while the server is silent.

    Connecting is tried several times; once the request has gone out nothing is ever sent again by itself.
    """

    def __init__(self, http: httpx.Client, path: str, body: dict[str, Any], cancel: threading.Event) -> None:
        self._http, self._path, self._body, self._cancel = http, path, body, cancel
        self._lines: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        self._response: httpx.Response | None = None
        self._left = threading.Event()
        self.begun = False

    def lines(self) -> Iterator[str]:
        """Yield lines as they come, and end early when cancelled. Raises `BackendError`."""
        threading.Thread(target=self._read, name="remote", daemon=True).start()
        try:
            while not self._cancel.is_set():
                try:
                    line = self._lines.get(timeout=_POLL)
                except queue.Empty:
                    continue
                if line is None:
                    return
                if isinstance(line, BackendError):
                    raise line
                if isinstance(line, Exception):
                    raise explain_failure(line, str(self._http.base_url), begun=self.begun) from line
                yield line
        finally:
            self._leave()

    def _leave(self) -> None:
        """Wake the thread, which may sit in a read for minutes, by shutting the socket under it."""
        self._left.set()
        response = self._response
        if response is None:
            return
        with contextlib.suppress(Exception):
            stream = response.extensions.get("network_stream")
            raw = stream.get_extra_info("socket") if stream is not None else None
            if raw is not None and not response.is_closed:
                raw.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        try:
            for attempt in range(CONNECT_TRIES):
                try:
                    self._once()
                    break
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    if attempt == CONNECT_TRIES - 1 or self._left.wait(RETRY_SECONDS * (attempt + 1)):
                        raise
        except Exception as exc:
            self._lines.put(exc)
        else:
            self._lines.put(None)

    def _once(self) -> None:
        with self._http.stream("POST", self._path, json=self._body) as response:
            self._response = response
            if response.status_code != 200:
                body = b""
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > MAX_ERROR:
                        break
                raise RefusedError(response, body)
            rest = ""
            for text in response.iter_text():
                *whole, rest = (rest + text).split("\n")
                for line in whole:
                    self._lines.put(line.rstrip("\r"))
                if len(rest) > MAX_LINE:
                    raise BackendError("The server sent a line without end; it speaks another protocol.")
                if self._left.is_set():
                    return
            if rest:
                self._lines.put(rest)
