"""The server behind `nanochat-tui web`: one page, its files, and a websocket per visitor.

The terminal in the page is textual-serve's script (xterm.js); its server is not used: it checks no visitor.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from nanochat_tui.browser import COMMANDS_VARIABLE
from nanochat_tui.errors import UserError, reason_of
from nanochat_tui.text import display_safe
from nanochat_tui.web.downloads import Downloads
from nanochat_tui.web.guard import TOKEN_VARIABLE, Guard
from nanochat_tui.web.visitor import Visitor, bounded

HEARTBEAT = 15.0
"""Seconds between signs of life that a page must answer, or it counts as gone."""
LARGEST_MESSAGE = 4 << 20
"""Bytes of one message of a page: a paste of megabytes fits."""
LONGEST_REASON = 120
"""Bytes that a closing websocket may say."""
HERE = Path(__file__).parent
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""What the page may do and load: nothing from elsewhere, and no page may frame it. xterm.js makes styles as it runs."""
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

DENIED = """<!DOCTYPE html>
<meta charset="utf-8"><title>nanochat-tui</title>
<p>This page needs its token: open the whole address that <code>nanochat-tui web</code> printed, or give the token here.
<form><input name="token" type="password" autofocus aria-label="token"> <button>Open</button></form>
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server is to do. `command` starts the application; `log` receives a line at a time."""

    command: Sequence[str]
    log: Callable[[str], None]
    max_visitors: int = 8
    allow_commands: bool = False


class PageServer:
    """The routes, and the visitors at this moment."""

    def __init__(self, guard: Guard, settings: Settings) -> None:
        self._guard, self._settings = guard, settings
        self._downloads = Downloads()
        self._sockets: set[web.WebSocketResponse] = set()
        self._visitors = 0
        self._ended = asyncio.Event()
        """Set while there are no visitors."""
        self._ended.set()

    def application(self) -> web.Application:
        """Return the routes. Raises UserError without textual-serve, whose files the page needs."""
        spec = importlib.util.find_spec("textual_serve")
        if spec is None or spec.origin is None:
            raise UserError("This needs one more package; install it with: pip install 'nanochat-tui[web]'")
        made = web.Application(middlewares=[self._admit])
        made.router.add_get("/", self._page)
        made.router.add_get("/page.css", self._file)
        made.router.add_get("/page.js", self._file)
        made.router.add_get("/ws", self._websocket)
        made.router.add_get("/download/{key}", self._download)
        made.router.add_static("/static", Path(spec.origin).parent / "static", show_index=False)
        made.on_shutdown.append(self._end)
        return made

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse whom `Guard` refuses, before anything else is looked at."""
        guard, host = self._guard, request.headers.get("Host")
        token = request.query.get("token")
        response: web.StreamResponse
        if not guard.accepts_host(host):
            response = web.Response(
                status=421, text="This is not the name of this server; start it with --public-url if it should be.\n"
            )
        elif not guard.accepts_origin(request.headers.get("Origin"), host):
            response = web.Response(status=403, text="Pages of other sites may not use this server.\n")
        elif not (guard.knows_token(token) or guard.knows_cookie(request.cookies.get(guard.cookie))):
            response = web.Response(status=403, text=DENIED, content_type="text/html")
        else:
            try:
                response = await handler(request)
            except web.HTTPException as refusal:
                response = web.Response(status=refusal.status, text=f"{refusal.status} {refusal.reason}\n")
            if token is not None and not response.prepared:
                response.set_cookie(
                    guard.cookie,
                    guard.cookie_value,
                    httponly=True,
                    samesite="Strict",
                    secure=guard.is_encrypted(host),
                    path="/",
                )
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _page(self, _: web.Request) -> web.StreamResponse:
        return web.FileResponse(HERE / "page.html")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(HERE / PurePath(request.path).name)

    async def _download(self, request: web.Request) -> web.StreamResponse:
        return await self._downloads.answer(request, HEADERS)

    # the websocket

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        page = web.WebSocketResponse(heartbeat=HEARTBEAT, max_msg_size=LARGEST_MESSAGE)
        await page.prepare(request)
        if self._visitors >= self._settings.max_visitors:
            await _close(
                page,
                WSCloseCode.TRY_AGAIN_LATER,
                f"{self._visitors} pages are open already (--max-visitors); close one.",
            )
            return page
        self._visitors += 1
        self._ended.clear()
        self._sockets.add(page)
        try:
            await self._visit(page, bounded(request.query.get("width"), request.query.get("height")))
        finally:
            self._sockets.discard(page)
            self._visitors -= 1
            if not self._visitors:
                self._ended.set()
        return page

    async def _visit(self, page: web.WebSocketResponse, size: tuple[int, int]) -> None:
        try:
            visitor = await Visitor.start(self._settings.command, size, self._environment())
        except OSError as error:
            self._settings.log(f"error: the application could not be started: {reason_of(error)}")
            await _close(page, WSCloseCode.INTERNAL_ERROR, "The application could not be started.")
            return
        drawing = asyncio.create_task(self._draw(page, visitor))
        try:
            async for message in page:
                await self._hear(page, visitor, message)
        except (ConnectionError, asyncio.CancelledError, RuntimeError):
            pass  # the page has gone or the server ends
        finally:
            self._downloads.forget(visitor)
            await visitor.end()
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)

    def _environment(self) -> Mapping[str, str]:
        variables = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        for name in (
            "TMUX",
            "STY",
            "DISPLAY",
            "WAYLAND_DISPLAY",
        ):  # of the user who started the server, not the visitor's
            variables.pop(name, None)
        return variables | {COMMANDS_VARIABLE: "on" if self._settings.allow_commands else "off"}

    async def _draw(self, page: web.WebSocketResponse, visitor: Visitor) -> None:
        """Pass on what the application draws until it ends, then close the page."""
        with contextlib.suppress(ConnectionError):
            async for kind, payload in visitor.packets():
                if kind == "D":
                    await page.send_bytes(payload)
                elif kind == "P":
                    self._downloads.received(payload)
                elif kind == "M":
                    await self._obey(page, visitor, payload)
        with contextlib.suppress(ConnectionError):
            await _close(page, WSCloseCode.OK, visitor.last_words or "The session has ended.")

    async def _obey(self, page: web.WebSocketResponse, visitor: Visitor, payload: bytes) -> None:
        message = _object(payload)
        match message.get("type"):
            case "open_url" if urlsplit(str(message.get("url"))).scheme in ("http", "https", "mailto"):
                await page.send_json(["open_url", {"url": str(message["url"]), "new_tab": True}])
            case "deliver_file_start":
                key = self._downloads.offer(visitor, message)
                await page.send_json(["deliver_file_start", key])
            case _:
                pass  # "exit": its output ends next

    async def _hear(self, page: web.WebSocketResponse, visitor: Visitor, message: WSMessage) -> None:
        """Do what a page says; what is of no known form is dropped."""
        if message.type is not WSMsgType.TEXT:
            return
        try:
            said = json.loads(message.data)
        except (ValueError, RecursionError):
            return
        match said:
            case ["stdin", str(text)]:
                await visitor.type(text)
            case ["resize", {"width": width, "height": height}]:
                await visitor.resize(width, height)
            case ["ping", str(text)]:
                await page.send_json(["pong", text[:32]])
            case ["focus" | "blur" as what, *_]:
                await visitor.tell(type=what)
            case _:
                pass

    async def _end(self, _: web.Application) -> None:
        """Close every page, and wait for the applications to save and leave."""
        for page in tuple(self._sockets):
            with contextlib.suppress(Exception):
                await _close(page, WSCloseCode.GOING_AWAY, "The server was ended.")
        await self._ended.wait()


def _object(payload: bytes) -> dict[str, object]:
    try:
        found = json.loads(payload)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def _close(page: web.WebSocketResponse, code: WSCloseCode, why: str) -> None:
    await page.close(code=code, message=why.encode()[:LONGEST_REASON].decode("utf-8", "ignore").encode())


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Raises UserError if the address cannot be had."""
    made = None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, proto)
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except (OSError, UnicodeError) as error:
        if made is not None:
            made.close()
        where, why = f"{display_safe(host)} port {port}", reason_of(error)
        raise UserError(f"cannot listen on {where}: {why}; choose another with --host and --port") from error
    return made


async def serve(listener: socket.socket, guard: Guard, settings: Settings, opened: Callable[[], None]) -> int:
    """Serve until a signal ends it; the applications of all visitors have ended when this returns its number."""
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(number: int) -> None:
        if not told.done():
            told.set_result(number)

    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's & have it
            with contextlib.suppress(NotImplementedError):  # Windows
                asyncio.get_running_loop().add_signal_handler(number, end, number)
    runner = web.AppRunner(
        PageServer(guard, settings).application(), access_log=None, handle_signals=False, shutdown_timeout=2.0
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        opened()
        return await told
    finally:
        await runner.cleanup()
