"""What every request passes before it reaches a route. Plain ASGI: nothing here may buffer a stream.

From outside to inside: `Answers` (log, count, last resort), `Gate` (who may ask), `Bodies` (how much may be sent).
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat_tui.hosts import ip_address, is_loopback
from nanochat_tui.serve.errors import RETRY_SECONDS, ApiError, internal_error
from nanochat_tui.serve.metrics import ServerMetrics
from nanochat_tui.serve.page import SAFE_HEADERS
from nanochat_tui.serve.settings import Log, Settings
from nanochat_tui.text import display_safe

OPEN_PATHS = ("/", "/health", "/openapi.json")
"""Routes that need no key: they give nothing away and start no work."""
DRAIN_FACTOR = 16
"""A body that is too large is read up to this multiple of the limit, so that its sender gets to see the answer."""
MAX_BRACKETS = 1 << 18
"""Lists and objects of a body, counted by their brackets, in texts as well: making a million of them takes Python half
a second in which nothing else runs, and no context holds so many tokens."""
KEY = "nanochat.key"
"""Name in a request's scope of the API key it came with, "" if none is asked for."""
QUIET_PATHS = ("/health", "/metrics")
"""Routes that machines ask for all the time; only refusals are worth a line."""


def unambiguous(host: str) -> bool:
    """Return whether no name server decides where a host is: an address, or localhost and what ends in it."""
    return is_loopback(host) or ip_address(host) is not None


def host_of(address: str) -> str | None:
    """Return the host of an address ("//host:port" if it has no scheme) in small letters; None if it has none."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


class Answers:
    """Logs and counts every answer, adds the safe headers, and answers in place of a route that raised."""

    def __init__(
        self, app: ASGIApp, metrics: ServerMetrics, log: Log, each: bool = True, routes: Sequence[str] = ()
    ) -> None:
        self._app, self._metrics, self._log, self._each = app, metrics, log, each
        self._routes = [(compile_path(path)[0], path) for path in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0
        # every resource that can be got can be asked for its head; the protocol below leaves the body out
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(inner, receive, noting)
        except Exception as error:
            self._log(f"error: {scope['method']} {display_safe(scope['path'])}: {type(error).__name__}: {error}")
            if not status:
                await internal_error().response(path=scope["path"])(scope, receive, noting)
        finally:
            self._note(scope, self._route(inner), status, time.monotonic() - began)

    def _route(self, scope: Scope) -> str:
        """Return the route of a request as it was declared; "other" for paths of none, which anybody can make up."""
        taken = getattr(scope.get("route"), "path", None)
        if taken is not None:
            return str(taken)
        # refused before it came to a route
        return next((path for pattern, path in self._routes if pattern.match(scope["path"])), "other")

    def _note(self, scope: Scope, route: str, status: int, seconds: float) -> None:
        known = scope["method"] in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
        self._metrics.answered(route, scope["method"] if known else "other", status)
        path = scope["path"]
        if not self._each or (path in QUIET_PATHS and status in (200, 503)):
            return
        client = scope.get("client")
        who = f" for {client[0]}" if client else ""
        self._log(f"{scope['method']} {display_safe(path)} {status or 'cut off'} in {seconds:.2f} s{who}")


class Gate:
    """Keeps out requests without a key, and pages of other sites that use a visitor's browser to reach this server."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._keys = settings.api_keys
        self._origins = frozenset(settings.cors_origins)
        self._names = {host_of(origin) for origin in settings.cors_origins} | set(settings.allowed_hosts)
        # a server of the network has names that only its owner knows
        self._own_names_only = bool(settings.allowed_hosts) or settings.loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            key = self._key(headers)
            refusal = self._misnamed(headers) or self._foreign(headers) or self._keyless(scope["path"], key)
            if refusal is not None:
                extra = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
                await refusal.response(extra, scope["path"])(scope, receive, send)
                return
            scope[KEY] = key or ""  # in place: the router notes its route in the same scope
        await self._app(scope, receive, send)

    def _known_name(self, name: str | None) -> bool:
        return not self._own_names_only or (name is not None and (unambiguous(name) or name in self._names))

    def _misnamed(self, headers: Headers) -> ApiError | None:
        """Refuse a host name that is not ours.

        A stranger's name can be made to lead to this machine (DNS rebinding); to a browser his page and this server
        are then one site, and what it reads here it may show to the page.
        """
        host = headers.get("host")
        if host is None or self._known_name(host_of(f"//{host}")):  # every browser says where it thinks it is
            return None
        return ApiError(
            403,
            "this server is not known by that host name; --allowed-host names a further one",
            kind="permission_error",
            code="foreign_host",
        )

    def _foreign(self, headers: Headers) -> ApiError | None:
        origin = headers.get("origin")
        if origin is None or origin in self._origins or "*" in self._origins:
            return None
        page = host_of(origin)
        if page is not None and page == host_of(f"//{headers.get('host', '')}") and self._known_name(page):
            return None
        return ApiError(
            403,
            "pages of another web site may not use this server; --cors-origin allows one",
            kind="permission_error",
            code="foreign_origin",
        )

    def _key(self, headers: Headers) -> str | None:
        """Return the key that a request came with, None if it is none of ours."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")).encode()
        # every key is compared, each in constant time: neither the count nor the beginning of a key can be timed
        found = [key for key in self._keys if hmac.compare_digest(given, key.encode())]
        return found[0] if found else None

    def _keyless(self, path: str, key: str | None) -> ApiError | None:
        if not self._keys or path in OPEN_PATHS or key is not None:
            return None
        return ApiError(
            401,
            "this server needs an API key, as Authorization: Bearer KEY",
            kind="authentication_error",
            code="invalid_api_key",
        )


class Cors(CORSMiddleware):
    """Starlette's, with refusals that are error objects like all others."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a browser's question whether a page may ask."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        reason = bytes(answer.body).decode().removeprefix("Disallowed CORS ")
        error = ApiError(
            403,
            f"pages of this web site may not send such a request ({reason}); --cors-origin allows an origin",
            kind="permission_error",
            code="foreign_origin",
        )
        kept = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return error.response(kept)


class Bodies:
    """Bounds what is sent and how many requests are in hand, and takes a body for JSON whatever it is called.

    (curl calls everything a form. A browser could use that to send a page's requests across sites; `Gate` stops those.)
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._limit = settings.limits.body_bytes
        self._most = settings.limits.requests
        self._most_held = max(self._limit, settings.limits.received_bytes)
        self._in_hand = self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole body, or refuse it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            coding = Headers(scope=scope).get("content-encoding", "identity")
            if coding != "identity":
                text = f"bodies are taken as they are, not compressed ({display_safe(coding)})"
                raise ApiError(415, text, code="unsupported_encoding")
            body = await self._whole(receive)
            if self._in_hand >= self._most:
                raise _busy(f"{self._in_hand} requests are being worked on")
        except ApiError as error:
            await error.response(path=scope["path"])(scope, receive, send)
            return
        if body is None:
            return
        self._in_hand += 1
        try:
            await self._pass_on(scope, body, receive, send)
        finally:
            self._in_hand -= 1

    async def _whole(self, receive: Receive) -> bytes | None:
        """Return a body once all of it is there; None if the client leaves before. Raises ApiError.

        Until then it counts by its bytes alone: a thousand clients that send one byte each do not block others.
        """
        parts: list[bytes] = []
        size = held = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                part = message.get("body", b"")
                size += len(part)
                if size <= self._limit:
                    parts.append(part)
                    held += len(part)
                    self._held += len(part)
                    if self._held > self._most_held:
                        raise _busy("too many bodies are arriving")
                elif size > self._limit * DRAIN_FACTOR:
                    break
                else:
                    parts.clear()
                if not message.get("more_body", False):
                    break
        finally:
            self._held -= held
        if size > self._limit:
            text = f"the body is larger than the {self._limit} bytes this server takes"
            raise ApiError(413, text, code="body_too_large")
        body = b"".join(parts)
        if body.count(b"[") + body.count(b"{") > MAX_BRACKETS:
            raise ApiError(400, f"the body has more than {MAX_BRACKETS} opening brackets", code="too_many_brackets")
        return body

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def once() -> Message:
            nonlocal whole
            if whole is not None:
                message, whole = whole, None
                return message
            return await receive()

        others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope["headers"] = [*others, (b"content-type", b"application/json")]
        await self._app(scope, once, send)


def _busy(what: str) -> ApiError:
    text = f"{what}; try again in a moment"
    return ApiError(429, text, kind="rate_limit_error", code="too_many_requests", retry_after=RETRY_SECONDS)
