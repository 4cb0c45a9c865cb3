"""A reverse proxy that shows a server below a path, websockets included, and passes the Host on or puts its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import aiohttp
from aiohttp import web

PATH = "/chat/"
HOP = ("Connection", "Upgrade", "Keep-Alive", "Transfer-Encoding", "Content-Length", "Content-Encoding")


class Proxy:
    """Forwards to `target`, which is set before the first request."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.target = ""
        self.passes_host = True

    def _headers(self, request: web.Request) -> dict[str, str]:
        left_out = {name.lower() for name in HOP} | ({"host"} if not self.passes_host else set())
        websocket = {name.lower() for name in request.headers if name.lower().startswith("sec-websocket")}
        return {k: v for k, v in request.headers.items() if k.lower() not in left_out | websocket}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        url = f"{self.target}/{request.raw_path.removeprefix(PATH)}"
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._websocket(request, session, url)
            async with session.get(url, headers=self._headers(request), allow_redirects=False) as answer:
                headers = [(k, v) for k, v in answer.headers.items() if k not in HOP]
                made = web.Response(status=answer.status, body=await answer.read())
                made.headers.clear()
                for name, value in headers:
                    made.headers.add(name, value)
                return made

    async def _websocket(self, request: web.Request, session: Any, url: str) -> web.StreamResponse:
        async with session.ws_connect(url, headers=self._headers(request)) as far:
            near = web.WebSocketResponse()
            await near.prepare(request)

            async def pump(source: Any, target: Any) -> None:
                async for message in source:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        await target.send_str(message.data)
                    elif message.type is aiohttp.WSMsgType.BINARY:
                        await target.send_bytes(message.data)

            tasks = [asyncio.create_task(pump(near, far)), asyncio.create_task(pump(far, near))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await near.close()
            return near


@contextlib.contextmanager
def proxying() -> Iterator[Proxy]:
    """Run a proxy on a free port of loopback for the length of a block."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(listener.getsockname()[1])
    ended, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        application = web.Application()
        application.router.add_get(f"{PATH}{{tail:.*}}", proxy.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        while not ended.is_set():
            await asyncio.sleep(0.05)
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        ended.set()
        thread.join(120)
