"""Speaking HTTP to a model server: addresses, failures in words, and a stream that can be left at any moment."""

from __future__ import annotations

import contextlib
import errno
import json
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from nanochat_tui.chat.backend import BackendError
from nanochat_tui.chat.remote.events import ServerEvent, read_events
from nanochat_tui.chat.remote.keys import proxy_problem, sendable_key
from nanochat_tui.chat.remote.stream import message_in
from nanochat_tui.errors import UserError, reason_of
from nanochat_tui.hosts import is_loopback
from nanochat_tui.text import display_safe

CONNECT_TRIES = 3
RETRY_SECONDS = 0.3
MAX_ERROR = 1 << 16
"""Bytes of an error's body that are read."""
MAX_LIST = 16 << 20
"""Bytes of a list of models that are read; the longest public one has a megabyte."""
MAX_REDIRECTS = 5
_POLL = 0.05
"""Seconds after which a cancelled request is noticed while the server says nothing."""


def base_url(text: str) -> str:
    """Return an address without its trailing `/v1`, with a scheme. Raises `UserError` for what is none.

    A name and password in it stay; see `shown_url`.
    """
    url = text.strip()
    if "://" not in url:
        url = "http://" + url
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        valid = False
    if not valid or not url.isprintable():
        raise UserError(f"{shown_url(text)} is no address of a server; give one like http://127.0.0.1:8080")
    return url.partition("?")[0].rstrip("/").removesuffix("/v1").rstrip("/")


def shown_url(url: str) -> str:
    """Return an address as it may be shown: safe for a terminal, and without the name and password it may hold."""
    scheme, mark, rest = url.strip().partition("://") if "://" in url else ("", "", url.strip())
    host, slash, path = rest.partition("/")
    return display_safe(f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}".partition("?")[0])


def client(url: str, key: str | None, *, timeout: float, connect_timeout: float) -> httpx.Client:
    """Return an HTTP client; certificates come from the environment, and proxies, save for this machine's addresses.

    Raises UserError for a key that no header can hold, and for proxies that cannot be used.
    """
    from nanochat_tui.version import __version__

    headers = {"User-Agent": f"nanochat-tui/{__version__}"}
    if key and (key := sendable_key(key)):
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Timeout(timeout, connect=connect_timeout)
    # with a transport of its own, the client looks for no proxies
    transport = httpx.HTTPTransport() if is_loopback(urlsplit(url).hostname or "") else None
    try:
        return httpx.Client(base_url=url, headers=headers, timeout=limits, follow_redirects=False, transport=transport)
    except (ValueError, ImportError, httpx.InvalidURL):  # their words may hold a proxy's password
        raise UserError(proxy_problem()) from None


def explain_status(response: httpx.Response, body: bytes) -> BackendError:
    """Put a refusal into words."""
    said = _message(body)
    why = f": {hidden(display_safe(said), response.request.headers)}" if said else ""
    match response.status_code:
        case status if response.has_redirect_location:
            target = shown_url(urljoin(str(response.url), response.headers["Location"]))
            return BackendError(
                f"The server sends requests on to {target} (status {status}); if that is right, give that address."
            )
        case 401 | 403:
            return BackendError(f"The server refuses the key{why}; set NANOCHAT_API_KEY to the right one.")
        case 404:
            return BackendError(f"The server does not know that{why}; check the address and the model's name.")
        case 407:
            return BackendError("The proxy asks for a name and password; put them into the proxy's address.")
        case 429:
            return BackendError(f"The server has too much to do{why}; try again in a moment.")
        case status if status >= 500:
            return BackendError(f"The server failed with status {status}{why}; its log says more.")
        case status:
            return BackendError(f"The server refused with status {status}{why}.")


def hidden(text: str, headers: httpx.Headers) -> str:
    """Return what a server said without the key that it was sent, which some repeat."""
    secret = headers.get("Authorization", "").partition(" ")[2]
    return text.replace(secret, "…") if secret else text


def _message(body: bytes) -> str:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return body[:200].decode("utf-8", "replace").strip() if not body.lstrip().startswith(b"<") else ""
    return message_in(data)


def explain_failure(exc: Exception, url: str, *, begun: bool) -> BackendError:
    """Put a broken connection into words; `begun` says that part of the reply had come."""
    where = shown_url(url)
    if begun:
        reason = "said nothing for too long" if isinstance(exc, httpx.TimeoutException) else "broke off"
        return BackendError(f"The server at {where} {reason} in mid-reply; what had come is kept.")
    match exc:
        case httpx.ConnectTimeout():
            return BackendError(f"The server at {where} does not answer; check the address and that it runs.")
        case httpx.ConnectError():
            return BackendError(f"There is no server at {where} ({_cause(exc)}); check that it runs.")
        case httpx.TimeoutException():
            return BackendError(f"The server at {where} said nothing for too long; it may be busy or stuck.")
        case httpx.ProxyError():
            return BackendError(f"The proxy on the way to {where} refused; check the proxy of the environment.")
        case httpx.DecodingError():
            return BackendError(f"The server at {where} sent data that cannot be unpacked; it may be damaged.")
        case httpx.RemoteProtocolError() | httpx.UnsupportedProtocol():
            return BackendError(f"What answers at {where} does not speak HTTP as expected; check the address.")
        case _:
            return BackendError(f"The connection to {where} broke before an answer came; see the server's log.")


def _cause(exc: BaseException) -> str:
    """Return why no connection came about, in words: the cause of a cause is the system's own error."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            why = getattr(seen, "verify_message", "")
            return "its certificate is not trusted" + (f": {display_safe(why)}" if why else "")
        if isinstance(seen, ssl.SSLError):
            return "it does not speak TLS; an address with http:// may be right"
        if isinstance(seen, socket.gaierror):
            return "its name is not known"
        if isinstance(seen, ConnectionRefusedError):
            return "nothing listens at that port"
        if isinstance(seen, OSError) and seen.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return "there is no way to its network"
        if isinstance(seen, OSError) and seen.strerror:
            return reason_of(seen)
        seen = seen.__cause__ or seen.__context__
    return "no connection came about"


class RefusedError(BackendError):
    """A status other than 200; carries it, for the caller who can ask in another way."""

    def __init__(self, response: httpx.Response, body: bytes) -> None:
        super().__init__(str(explain_status(response, body)))
        self.status = response.status_code


def get_json(http: httpx.Client, path: str) -> tuple[Any, str | None]:
    """Return what a GET of `path` answers, and the base address to use from now on where it moved, else None.

    A redirect is followed on the same host only, and never from https to http: the key is for that host alone.
    Raises RefusedError, BackendError, and httpx's errors.
    """
    url = http.base_url.join(path.lstrip("/"))
    moved: str | None = None
    for _ in range(MAX_REDIRECTS + 1):
        with http.stream("GET", url) as response:
            body = _read(response, MAX_LIST if response.status_code == 200 else MAX_ERROR)
            if response.status_code == 200:
                try:
                    return json.loads(body), moved
                except (ValueError, RecursionError):
                    raise BackendError(
                        f"{shown_url(str(http.base_url))} is no OpenAI-compatible server; check the address."
                    ) from None
            if not response.has_redirect_location:
                raise RefusedError(response, body)
            target = response.url.join(response.headers["Location"])
            if target.host != url.host or target.scheme not in (url.scheme, "https"):
                raise RefusedError(response, body)
            url = target
            found = str(target).partition("?")[0].rstrip("/")
            moved = base_url(found.removesuffix(path)) if found.endswith(path) else moved
    raise BackendError(f"The server at {shown_url(str(http.base_url))} sends requests round in circles.")


def _read(response: httpx.Response, limit: int) -> bytes:
    body = b""
    for piece in response.iter_bytes():
        body += piece
        if len(body) > limit:
            break
    return body


class Stream:
    """The events of one answer, read by a thread, so that the reader can leave while the server is silent.

    Connecting is tried several times; once the request has gone out nothing is ever sent again by itself.
    """

    def __init__(self, http: httpx.Client, path: str, body: dict[str, Any], cancel: threading.Event) -> None:
        self._http, self._path, self._body, self._cancel = http, path, body, cancel
        self._events: queue.SimpleQueue[ServerEvent | Exception | None] = queue.SimpleQueue()
        self._response: httpx.Response | None = None
        self._left = threading.Event()
        self.begun = False

    def events(self) -> Iterator[ServerEvent]:
        """Yield events as they come, and end early when cancelled. Raises `BackendError`."""
        threading.Thread(target=self._read, name="remote", daemon=True).start()
        try:
            while not self._cancel.is_set():
                try:
                    event = self._events.get(timeout=_POLL)
                except queue.Empty:
                    continue
                if event is None:
                    return
                if isinstance(event, BackendError):
                    raise event
                if isinstance(event, Exception):
                    raise explain_failure(event, str(self._http.base_url), begun=self.begun) from event
                yield event
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
            self._events.put(exc)
        else:
            self._events.put(None)

    def _once(self) -> None:
        with self._http.stream("POST", self._path, json=self._body) as response:
            self._response = response
            if response.status_code != 200:
                raise RefusedError(response, _read(response, MAX_ERROR))
            for event in read_events(response.iter_bytes()):
                self._events.put(event)
                if self._left.is_set():
                    return
