"""The page's server on loopback, with real HTTP and websockets; a stand-in is the application."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

aiohttp = pytest.importorskip("aiohttp")
pytest.importorskip("textual_serve")
from aiohttp import web  # noqa: E402

from nanochat_tui.processes import process_runs  # noqa: E402
from nanochat_tui.web import visitor as visitor_module  # noqa: E402
from nanochat_tui.web.guard import Guard  # noqa: E402
from nanochat_tui.web.server import PageServer, Settings  # noqa: E402
from nanochat_tui.web.visitor import LARGEST, bounded  # noqa: E402

TOKEN = "0123456789abcdef" * 2
STAND_IN = [sys.executable, str(Path(__file__).with_name("stand_in.py"))]


class Place:
    """A running server and a browser-like client with its cookies."""

    def __init__(self, session: Any, runner: Any, port: int, guard: Guard) -> None:
        self.session, self.runner, self.port, self.guard = session, runner, port, guard
        self.url = f"http://127.0.0.1:{port}"

    async def get(self, path: str, **headers: str) -> tuple[int, str, Any]:
        async with self.session.get(self.url + path, headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.text(), answer.headers

    def connect(self, query: str = "?width=90&height=30", **headers: str) -> Any:
        return self.session.ws_connect(f"{self.url}/ws{query}", headers=headers)

    async def enter(self) -> None:
        assert (await self.get(f"/?token={TOKEN}"))[0] == 200


@contextlib.asynccontextmanager
async def running(*how: str, **options: Any) -> AsyncIterator[Place]:
    log: list[str] = []
    runner = None
    jar = aiohttp.CookieJar(unsafe=True)  # cookies of an address instead of a name
    try:
        listener = socket.create_server(("127.0.0.1", 0))
        guard = Guard(TOKEN, "127.0.0.1", listener.getsockname()[1])
        server = PageServer(guard, Settings([*STAND_IN, *how], log.append, **options))
        runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=2.0)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            yield Place(session, runner, guard.port, guard)
    finally:
        if runner is not None:
            await runner.cleanup()


async def drawn(page: Any) -> str:
    message = await page.receive(timeout=120)
    assert message.type is aiohttp.WSMsgType.BINARY, message
    return str(message.data.decode())


async def closed(page: Any) -> tuple[int, str]:
    while True:
        message = await page.receive(timeout=120)
        if message.type is aiohttp.WSMsgType.CLOSE:
            return page.close_code, message.extra
        assert message.type is aiohttp.WSMsgType.BINARY, message


async def gone(pid: int) -> bool:
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or not process_runs(pid, psutil_time(pid)):
            return True
        await asyncio.sleep(0.05)
    return False


def psutil_time(pid: int) -> float:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


PATHS = ["/", "/page.js", "/page.css", "/static/js/textual.js", "/static/", "/download/x", "/ws", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
async def test_without_the_token_nothing_is_told(path: str) -> None:
    async with running() as place:
        for query in ("", "?token=", "?token=wrong", f"?token={TOKEN[:-1]}"):
            status, text, headers = await place.get(path + query)
            assert (status, "Set-Cookie" in headers) == (403, False)
            assert "whole address" in text
        assert (await place.get(path, Cookie=f"{place.guard.cookie}={TOKEN}"))[0] == 403


@pytest.mark.parametrize("path", PATHS)
async def test_neither_other_hosts_nor_other_origins_are_served(path: str) -> None:
    async with running() as place:
        await place.enter()
        for host in ("evil.test", f"evil.test:{place.port}", "10.1.2.3"):
            assert (await place.get(f"{path}?token={TOKEN}", Host=host))[0] == 421
        for origin in ("http://evil.test", "null", f"http://127.0.0.1:{place.port + 1}"):
            assert (await place.get(f"{path}?token={TOKEN}", Origin=origin))[0] == 403


async def test_the_page_its_cookie_and_its_headers() -> None:
    async with running() as place:
        status, text, headers = await place.get(f"/?token={TOKEN}")
        assert status == 200
        assert "http" not in text.replace("<!DOCTYPE html>", ""), "nothing from elsewhere, and relative addresses only"
        assert TOKEN not in text
        cookie = headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Frame-Options"] == "DENY"
        assert (await place.get("/"))[0] == 200, "the cookie is enough from now on"
        for path in ("/page.js", "/page.css", "/static/js/textual.js", "/static/css/xterm.css"):
            assert (await place.get(path))[0] == 200
        for path in ("/static/", "/static", "/static/js/", "/static/../server.py", "/static/%2e%2e/server.py"):
            status, text, _ = await place.get(path)
            assert status in (403, 404)
            assert "textual.js" not in text


async def test_a_websocket_of_a_foreign_page_is_refused_with_cookie_and_without() -> None:
    async with running() as place:
        await place.enter()
        for headers in ({"Origin": "http://evil.test"}, {"Origin": "null"}, {"Host": "evil.test"}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await place.connect(**headers)
            assert refused.value.status in (403, 421)
        place.session.cookie_jar.clear()
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await place.connect(Origin=place.url)


async def test_a_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_WEB_TOKEN", TOKEN)
    async with running() as place:
        await place.enter()
        async with place.connect(Origin=place.url) as page:
            told = json.loads(await drawn(page))
            assert told | {"pid": 0} == {"pid": 0, "size": ["90", "30"], "commands": "off", "token": None}
            await page.send_json(["stdin", "hé\ud800"])
            assert await drawn(page) == "got Dhé?"
            for strange in (
                "no json",
                "[" * 100_000,
                '["stdin"]',
                '["stdin", 5]',
                "{}",
                "17",
                '["resize", null]',
                "[]",
            ):
                await page.send_str(strange)
            await page.send_bytes(b"\x00")
            for size in ([0, 0], [20_000, 20_000], [-1, 5], ["x", None], [1e400, 2]):
                await page.send_json(["resize", {"width": size[0], "height": size[1]}])
                got = json.loads((await drawn(page)).removeprefix("got M"))
                assert (got["width"], got["height"]) == bounded(*size)
            await page.send_json(["focus"])
            assert "focus" in await drawn(page)
        assert await gone(told["pid"]), "the application goes with its page"


def test_sizes_are_bounded() -> None:
    assert bounded("120", 36) == (120, 36)
    assert bounded(20_000, 20_000) == LARGEST
    assert bounded(0, 0) == (20, 6)
    assert bounded("x", None) == (80, 24)
    assert bounded(float("inf"), float("nan")) == (80, 24)


async def test_the_first_size_is_bounded_too() -> None:
    async with running() as place:
        await place.enter()
        async with place.connect("?width=20000&height=20000") as page:
            assert json.loads(await drawn(page))["size"] == list(map(str, LARGEST))


async def test_visitors_are_bounded_and_told() -> None:
    async with running(max_visitors=1) as place:
        await place.enter()
        async with place.connect() as first:
            pid = json.loads(await drawn(first))["pid"]
            async with place.connect() as second:
                code, why = await closed(second)
                assert code == 1013
                assert "1 pages are open" in why
        assert await gone(pid)
        for _ in range(200):  # its place is free a moment after its process has gone
            async with place.connect() as third:
                if (await third.receive(timeout=120)).type is aiohttp.WSMsgType.BINARY:
                    break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the place was not given back")


async def test_a_stubborn_application_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitor_module, "QUIT_SECONDS", 0.2)
    monkeypatch.setattr(visitor_module, "TERMINATE_SECONDS", 0.2)
    async with running("stubborn") as place:
        await place.enter()
        async with place.connect() as page:
            pid = json.loads(await drawn(page))["pid"]
        assert await gone(pid)


async def test_applications_end_with_the_server() -> None:
    async with running() as place:
        await place.enter()
        page = await place.connect()
        pid = json.loads(await drawn(page))["pid"]
        ending = asyncio.create_task(place.runner.cleanup())
        assert await closed(page) == (1001, "The server was ended.")
        await ending
        assert await gone(pid)


async def test_why_an_application_did_not_start_is_told() -> None:
    async with running("silent") as place:
        await place.enter()
        async with place.connect() as page:
            assert (await closed(page))[1] == "There is no file m.gguf; give the path of a GGUF file."


async def test_links_of_a_page_lead_to_pages_only() -> None:
    async with running() as place:
        await place.enter()
        async with place.connect() as page:
            await drawn(page)
            for bad in ("javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "x"):
                await page.send_json(["stdin", f"open {bad}"])
            await page.send_json(["stdin", "open https://example.org/"])
            message = await page.receive(timeout=120)
            assert json.loads(message.data) == ["open_url", {"url": "https://example.org/", "new_tab": True}]
            await page.send_json(["stdin", "exit"])
            assert (await closed(page))[0] == 1000


async def test_a_file_is_handed_out_once_and_never_shown_as_a_page() -> None:
    async with running() as place:
        await place.enter()
        async with place.connect() as page:
            await drawn(page)
            await page.send_json(["stdin", "file"])
            what, key = json.loads((await page.receive(timeout=120)).data)
            assert what == "deliver_file_start"
            status, text, headers = await place.get(f"/download/{key}")
            assert (status, text) == (200, "<svg onload=alert(1)>")
            assert headers["Content-Type"] == "application/octet-stream"
            assert headers["Content-Disposition"].startswith("attachment")
            assert (await place.get(f"/download/{key}"))[0] == 404


def test_no_page_means_no_environment_is_changed() -> None:
    assert "NANOCHAT_WEB_COMMANDS" not in os.environ
