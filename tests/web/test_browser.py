"""The real command in real Chromium: its own page, pages of other sites, a rebound name, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import TINY, write_model

pytest.importorskip("aiohttp")
pytest.importorskip("textual_serve")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow


@dataclass
class Command:
    """`nanochat-tui web` as a process."""

    process: subprocess.Popen[str]
    home: Path
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        found = re.search(r"http://\S+\?token=\S+", "\n".join(self.lines))
        return found[0] if found else ""

    @property
    def origin(self) -> str:
        return self.address.partition("/?")[0]

    def applications(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def crashes(self) -> list[Path]:
        return list(self.home.rglob("crash-*.txt"))


def wait(
    done: Callable[[], object], seconds: float = 120.0, turn: Callable[[], object] = lambda: time.sleep(0.05)
) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        turn()


@contextlib.contextmanager
def commanded(home: Path, *options: str) -> Iterator[Command]:
    model = write_model(home / "m.gguf", TINY)
    variables = os.environ | {f"NANOCHAT_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "STATE")}
    process = subprocess.Popen(
        [sys.executable, "-m", "nanochat_tui", "web", str(model), "--port", "0", *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=variables,
        cwd=home,
    )
    made = Command(process, home)

    def read() -> None:
        assert process.stderr is not None
        made.lines.extend(iter(process.stderr.readline, ""))

    threading.Thread(target=read, daemon=True).start()
    try:
        # the reader takes lines one at a time: extend() appends as the iterator yields
        wait(lambda: made.address or process.poll() is not None)
        assert made.address, made.lines
        yield made
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(120)
        process.kill()


@pytest.fixture
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: set CHROMIUM or install the package chromium")
    with api.sync_playwright() as play:
        made = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--host-resolver-rules=MAP *.test 127.0.0.1"]
        )
        yield made
        made.close()


class Screen:
    """What a page's terminal was sent, and what the page asked for."""

    def __init__(self, page: Any) -> None:
        self.page, self.seen, self.asked, self.wrong = page, bytearray(), [], []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self._said(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("websocket", lambda socket: socket.on("framereceived", self._frame))

    def _said(self, text: str) -> None:
        if "Cross-Origin-Opener-Policy header has been ignored" not in text:  # over plain HTTP at a name
            self.wrong.append(text)

    def _frame(self, payload: Any) -> None:
        self.seen += payload if isinstance(payload, bytes) else payload.encode()

    def until(self, part: str, seconds: float = 120.0) -> None:
        wait(lambda: part.encode() in self.seen, seconds, lambda: self.page.wait_for_timeout(50))

    def settle(self, before: int) -> None:
        """Wait until something was drawn since `before` bytes, then nothing for half a second; five at most."""
        still, last = 0, before
        for turn in range(600):
            self.page.wait_for_timeout(50)
            still = still + 1 if len(self.seen) == last else 0
            last = len(self.seen)
            if still >= 10 and (last > before or turn >= 100):
                return

    def type(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(30)


@contextlib.contextmanager
def hostile(body: str) -> Iterator[int]:
    """Serve one page, as another site would; checks no host, for it stands for a stranger."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = body.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def forwarded(to: int) -> Iterator[int]:
    """Forward a port of this machine byte for byte, as `ssh -L` does."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", to))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


ATTACK = """<script>
const socket = new WebSocket("ADDRESS/ws?width=80&height=24");
document.title = "trying";
socket.onopen = () => document.title = "in";
socket.onclose = () => { if (document.title != "in") document.title = "kept out"; };
</script>"""


def test_the_page_is_used_at_once_and_runs_no_commands(tmp_path: Path, browser: Any) -> None:
    with commanded(tmp_path) as command:
        page = browser.new_context(viewport={"width": 1200, "height": 800}).new_page()
        screen = Screen(page)
        page.goto(command.address)
        screen.until("ready")
        assert page.evaluate("document.activeElement.className") == "xterm-helper-textarea"
        assert page.url == f"{command.origin}/"
        screen.type("F4")  # without a click before
        screen.until("Dashboard")
        screen.type("n")
        screen.until("nothing: on this")
        target = tmp_path / "proof"
        for _ in range(60):  # to the prefix's field, wherever it stands
            before = len(screen.seen)
            screen.type("Tab")
            screen.settle(before)
            if b"Put before" in screen.seen[before:]:
                break
        page.keyboard.type(f"touch {target} #", delay=20)  # keys, as a person types
        screen.until("allow-commands")
        before = len(screen.seen)
        screen.type("Control+l")
        screen.settle(before)
        assert not target.exists()
        assert not list(tmp_path.glob("*/config.json")), "nothing was started, without the prefix neither"
        assert all(one.startswith((command.origin, "data:", "blob:")) for one in screen.asked), screen.asked
        assert not screen.wrong, screen.wrong
        running = command.applications()
        assert running
        page.context.close()
        wait(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in running), 20)
        assert not command.crashes()


def test_pages_of_other_sites_are_kept_out(tmp_path: Path, browser: Any) -> None:
    with commanded(tmp_path) as command:
        context = browser.new_context()
        own = context.new_page()
        screen = Screen(own)
        own.goto(command.address)  # so that this browser holds the cookie
        screen.until("ready")
        with hostile(ATTACK.replace("ADDRESS", command.origin.replace("http", "ws"))) as port:
            for host in ("evil.test", "127.0.0.1", "localhost"):
                page = context.new_page()
                page.goto(f"http://{host}:{port}/")
                wait(lambda page=page: page.title() != "trying", 20, lambda page=page: page.wait_for_timeout(50))
                assert page.title() == "kept out", host
            frame = context.new_page()
            frame.goto(f"http://127.0.0.1:{port}/")
            frame.evaluate(f"document.body.innerHTML = '<iframe src={command.origin}/></iframe>'")
            frame.wait_for_timeout(500)
            assert frame.frames[1].evaluate("document.querySelector('#terminal')") is None, "the page is in no frame"
        assert len(command.applications()) == 1


def test_a_rebound_name_is_kept_out(tmp_path: Path, browser: Any) -> None:
    with commanded(tmp_path) as command:
        page = browser.new_context().new_page()
        rebound = command.address.replace("127.0.0.1", "evil.test")
        answer = page.goto(rebound)
        assert answer.status == 421
        assert page.query_selector("#terminal") is None
        page.evaluate(f"window.socket = new WebSocket('{rebound.replace('http', 'ws').replace('/?', '/ws?')}')")
        page.wait_for_timeout(500)
        assert page.evaluate("socket.readyState") == 3
        assert not command.applications()


@pytest.mark.parametrize("passes_host", [True, False])
def test_below_the_path_of_a_proxy_at_another_name(tmp_path: Path, browser: Any, passes_host: bool) -> None:
    from path_proxy import PATH, proxying

    with proxying() as proxy:
        public = f"http://proxy.test:{proxy.port}{PATH}"
        with commanded(tmp_path, "--public-url", public) as command:
            proxy.target, proxy.passes_host = command.origin, passes_host
            page = browser.new_context().new_page()
            screen = Screen(page)
            page.goto(command.address.replace(f"{command.origin}/", public))
            screen.until("ready")
            assert page.url == public
            assert not screen.wrong, screen.wrong
            assert all(one.startswith((public, "data:", "blob:")) for one in screen.asked), screen.asked


def test_on_a_forwarded_port(tmp_path: Path, browser: Any) -> None:
    with commanded(tmp_path) as command, forwarded(int(command.origin.rpartition(":")[2])) as port:
        page = browser.new_context().new_page()
        screen = Screen(page)
        page.goto(command.address.replace(command.origin, f"http://localhost:{port}"))
        screen.until("ready")
        assert not screen.wrong, screen.wrong


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_server_ends(tmp_path: Path, browser: Any, number: int) -> None:
    with commanded(tmp_path) as command:
        page = browser.new_context().new_page()
        screen = Screen(page)
        page.goto(command.address)
        screen.until("ready")
        running = command.applications()
        assert running
        command.process.send_signal(number)
        assert command.process.wait(120) == (0 if number == signal.SIGTERM else -number)
        wait(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in running), 20)
        page.wait_for_function("document.body.classList.contains('-closed')")
        assert not command.crashes()


def test_beyond_loopback_a_warning(tmp_path: Path) -> None:
    with commanded(tmp_path, "--host", "0.0.0.0", "--allow-commands") as command:  # noqa: S104
        wait(lambda: len(command.lines) >= 4)
        said = "\n".join(command.lines)
        assert "other machines can reach 0.0.0.0" in said
        assert "ssh -L" in said
        assert "can run any program" in said
        assert command.origin.startswith("http://127.0.0.1:")
