"""What every request passes before it reaches a route. Plain ASGI: nothing here may buffer a stream.

From outside to inside: `Answers` (log, count, last resort), `Gate` (who may ask), `Bodies` (how much may be sent).
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat_tui.errors import display_safe
from nanochat_tui.serve.errors import RETRY_SECONDS, ApiError, internal_error
from nanochat_tui.serve.metrics import Metrics
from nanochat_tui.serve.page import SAFE_HEADERS
from nanochat_tui.serve.settings import Log, Settings

OPEN_PATHS = ("/", "/health", "/openapi.json")
"""Routes that need no key: they give nothing away and start no work."""
DRAIN_FACTOR = 16
"""A body that is too large is read up to this multiple of the limit, so that its sender gets to see the answer."""
MAX_BRACKETS = 1 << 18
"""Lists and objects of a body, counted by their brackets, in texts as well: making a million of them takes Python half
a second in which nothing else runs, and no context holds so many tokens."""
QUIET_PATHS = ("/health", "/metrics")
"""Routes that machines ask for all the time; only refusals are worth a line."""


def unambiguous(host: str) -> bool:
    """Return whether no name server decides where a host is: an address (without brackets), or localhost."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class Answers:
    """Logs and counts every answer, adds the safe headers, and answers in place of a route that raised."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: Log, each: bool = True, routes: Sequence[str] = ()) -> None:
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
                await internal_error().response()(scope, receive, noting)
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

    def __init__(self, app: ASGIApp, keys: Sequence[str], origins: Sequence[str], loopback: bool) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._origins = frozenset(origins)
        # whoever has a key is known; and a server of the network has names that only its owner knows
        self._own_names_only = loopback and not keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            refusal = self._foreign(headers) or self._keyless(scope["path"], headers)
            if refusal is not None:
                extra = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
                await refusal.response(extra)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _foreign(self, headers: Headers) -> ApiError | None:
        origin = headers.get("origin")
        if origin is None or origin in self._origins or "*" in self._origins:
            return None
        try:
            page, own = urlsplit(origin).hostname, urlsplit(f"//{headers.get('host', '')}").hostname
        except ValueError:
            page, own = None, None
        # a stranger's name can be made to lead to this machine (DNS rebinding), and its page would seem to be ours
        if page is not None and page == own and (unambiguous(page) or not self._own_names_only):
            return None
        return ApiError(
            403,
            "pages of another web site may not use this server; --cors-origin allows one",
            kind="permission_error",
            code="foreign_origin",
        )

    def _keyless(self, path: str, headers: Headers) -> ApiError | None:
        if not self._keys or path in OPEN_PATHS:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")).encode()
        # every key is compared, each in constant time: neither the count nor the beginning of a key can be timed
        if sum([hmac.compare_digest(given, key) for key in self._keys]):
            return None
        return ApiError(
            401,
            "this server needs an API key, as Authorization: Bearer KEY",
            kind="authentication_error",
            code="invalid_api_key",
        )


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
            await error.response()(scope, receive, send)
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

        Until then it counts by its bytes alone: a thousand clients that send one byte each keep nobody out.
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
