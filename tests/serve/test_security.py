"""Who is let in: host names, ambiguous requests, keys, and what one client can learn of another."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pages import CHROMIUM
from servers import PROMPT, Running, files, serving
from starlette.routing import Route

from nanochat_tui.cli.entry import run
from nanochat_tui.cli.serve_entry import _dispatch
from nanochat_tui.errors import UserError
from nanochat_tui.serve.page import load_page
from nanochat_tui.serve.routes_completion import completion_router
from nanochat_tui.serve.routes_other import other_router
from nanochat_tui.serve.settings import Settings, checked_hosts, find_keys

LONG_PROMPT = "let shared = [1, 2, 3];\n" * 20


def _ask(running: Running, raw: bytes) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", running.port), timeout=120)) as connection:
        connection.sendall(raw)
        got = b""
        while part := connection.recv(65_536):
            got += part
    return got


def _paths(running: Running) -> list[tuple[str, str]]:
    included = [
        completion_router(running.service),
        other_router(running.service, load_page()),
        running.server.config.app,
    ]
    routes = [route for each in included for route in each.routes if isinstance(route, Route)]
    found = [(method, route.path) for route in routes for method in route.methods or ()]
    return [(method, path.replace("{name:path}", "tiny")) for method, path in found]


def test_every_route_knows_only_its_own_names(base: Running) -> None:
    routes = [*_paths(base), ("GET", "/nowhere"), ("OPTIONS", "/v1/models")]
    assert {"/", "/metrics", "/openapi.json", "/v1/models", "/health", "/chat/completions"} <= {p for _, p in routes}
    for method, path in routes:
        for host in ("evil.test", f"evil.test:{base.port}", "127.0.0.1.evil.test", "localhost.evil.test", "x", "a@b"):
            answer = httpx.request(method, base.url + path, headers={"host": host}, timeout=120)
            assert answer.status_code == 403, (method, path, host)
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "foreign_host"
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.2:80", "[::1]:8080", "chat.localhost"):
            answer = httpx.request(method, base.url + path, headers={"host": host}, timeout=120)
            assert answer.status_code != 403, (method, path, host)


def test_further_names_are_allowed_by_name(base_file: Path) -> None:
    def status(running: Running, host: str) -> int:
        return httpx.get(running.url + "/v1/models", headers={"host": host}, timeout=120).status_code

    named = Settings("tiny", allowed_hosts=("llm.example.org",), cors_origins=("https://chat.example.org",))
    with serving(files(base_file), named) as running:
        hosts = ("LLM.example.org:443", "chat.example.org", "localhost", "evil.test")
        assert [status(running, host) for host in hosts] == [200, 200, 200, 403]
        own = {"host": "llm.example.org", "origin": "https://llm.example.org"}
        assert httpx.get(running.url + "/v1/models", headers=own, timeout=120).status_code == 200
    with serving(files(base_file), Settings("tiny", api_keys=("k",))) as running:
        paths = ("/", "/health", "/metrics")
        answers = [httpx.get(running.url + path, headers={"host": "evil.test"}, timeout=120) for path in paths]
        assert [answer.status_code for answer in answers] == [403, 403, 403]
    with serving(files(base_file), Settings("tiny", loopback=False)) as running:
        assert status(running, "box.home.arpa") == 200
    with serving(files(base_file), Settings("tiny", loopback=False, allowed_hosts=("box.home.arpa",))) as running:
        assert [status(running, host) for host in ("box.home.arpa", "192.168.0.7", "evil.test")] == [200, 200, 403]


@pytest.mark.slow
def test_a_browser_led_here_by_another_name_reads_nothing(base: Running) -> None:
    """DNS rebinding, with the name of the attacker made to lead to this server."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    paths = ["/", "/health", "/metrics", "/openapi.json", "/v1/models", "/v1/models/tiny", "/nowhere"]
    with api.sync_playwright() as play:
        rules = "--host-resolver-rules=MAP evil.test 127.0.0.1"
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
        page = browser.new_page()
        first = page.goto(f"http://evil.test:{base.port}/")
        assert first.status == 403 and "tiny" not in first.text() and "<html" not in first.text()
        script = """async (paths) => Promise.all(paths.map(async (path) => {
            const posts = path.startsWith("/v1/c") || path === "/tokenize";
            const answer = await fetch(path, posts ? { method: "POST", body: '{"prompt": "x", "content": "x"}' } : {});
            return [answer.status, await answer.text()];
        }))"""
        found = page.evaluate(script, [*paths, "/v1/completions", "/tokenize"])
        browser.close()
    for status, text in found:
        assert status == 403 and json.loads(text)["error"]["code"] == "foreign_host"
        assert "tiny" not in text and "python" not in text


BOTH = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + BOTH,
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: Chunked\r\ncontent-length: 4\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + BOTH,
        b"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n",
    ],
)
def test_a_request_with_two_ends_smuggles_nothing(base: Running, head: bytes) -> None:
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    got = _ask(base, head + b"\r\n0\r\n\r\n" + hidden)
    assert got.startswith(b"HTTP/1.1 400") and got.count(b"HTTP/1.1 ") == 1
    body = json.loads(got.partition(b"\r\n\r\n")[2])
    assert body["error"]["code"] == "invalid_http" and b"connection: close" in got.lower()


def _cached(running: Running, key: str, **more: Any) -> int:
    body = {"prompt": LONG_PROMPT, "max_tokens": 1, "temperature": 0, **more}
    answer = httpx.post(running.url + "/v1/completions", json=body, headers={"x-api-key": key}, timeout=120).json()
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_nobody_learns_what_another_key_has_asked(base_file: Path) -> None:
    with serving(files(base_file), Settings("tiny", api_keys=("alice", "bob"))) as running:
        assert _cached(running, "alice") == 0 and _cached(running, "alice") > 0
        assert _cached(running, "bob") == 0  # the right guess is as good as a wrong one
        assert _cached(running, "bob") > 0
        assert _cached(running, "alice", cache_salt="x") == 0 and _cached(running, "alice", cache_salt="x") > 0
        assert _cached(running, "bob", cache_salt="x") == 0
        # a salt cannot spell another key's
        assert _cached(running, "bob", cache_salt="alice") == 0 and _cached(running, "bob", cache_salt="\0alice") == 0


def test_a_prompt_that_is_not_to_be_cached_is_not(base_file: Path) -> None:
    with serving(files(base_file)) as running:
        assert _cached(running, "", cache_prompt=False) == 0
        assert _cached(running, "") == 0  # and none was left behind
        assert _cached(running, "") > 0
        assert _cached(running, "", cache_prompt=False) == 0
        assert _cached(running, "", cache_salt="mine") == 0 and _cached(running, "", cache_salt="mine") > 0


def test_keys_come_from_the_line_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\n\n  one \ntwo\r\n", encoding="utf-8")
    environment = {"NANOCHAT_API_KEY": "client", "NANOCHAT_SERVE_API_KEY": "server"}
    assert find_keys((), file, environment) == ("one", "two")
    assert find_keys(("zero", "one"), file, {}) == ("zero", "one", "two")
    assert find_keys((), None, environment) == ("server",)
    assert find_keys((), None, {"NANOCHAT_API_KEY": "client"}) == ("client",)
    assert find_keys((), None, {}) == ()
    file.write_text("# none\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no key in it"):
        find_keys((), file, {})


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "There is no file of API keys"), (b"\xff\xfe\x00", "not a text"), (b"a b\n", "without spaces")],
)
def test_a_file_that_is_none_is_told(
    content: bytes | None, words: str, tmp_path: Path, base_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    assert run(_dispatch, [str(base_file), "--api-key-file", str(file), "--port", "0"]) == 2
    assert words in capsys.readouterr().err


def test_a_key_file_that_may_not_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_dispatch, ["--api-key-file", str(tmp_path), "--port", "0"]) == 2
    assert "There is no file of API keys" in capsys.readouterr().err


def test_without_a_key_beyond_loopback_it_warns(
    base_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nanochat_tui.serve.runner.run", lambda *_: 0)
    for host, more, warned in (("0.0.0.0", (), True), ("0.0.0.0", ("--api-key", "k"), False), ("127.0.0.1", (), False)):  # noqa: S104
        assert run(_dispatch, [str(base_file), "--host", host, *more]) == 0
        assert ("warning: anybody who reaches" in capsys.readouterr().err) is warned


@pytest.mark.parametrize("host", ["", "a/b", "a b", "me@x", "http://x", "[::1"])
def test_what_is_no_host_name_is_refused(host: str) -> None:
    with pytest.raises(UserError, match="is not a host name"):
        checked_hosts([host])


def test_refused_preflights_are_error_objects(base: Running, base_file: Path) -> None:
    def preflight(running: Running, origin: str, method: str) -> httpx.Response:
        headers = {"origin": origin, "access-control-request-method": method}
        return httpx.options(running.url + "/v1/completions", headers=headers, timeout=120)

    with serving(files(base_file), Settings("tiny", cors_origins=("https://friend.example",))) as running:
        for origin, method in (("https://evil.example", "POST"), ("null", "POST"), ("https://friend.example", "PUT")):
            refused = preflight(running, origin, method)
            assert refused.status_code == 403 and refused.json()["error"]["code"] == "foreign_origin"
            assert refused.headers["content-type"] == "application/json" and refused.json()["error"]["message"]
        assert preflight(running, "https://friend.example", "POST").status_code == 200
        for headers, status in (({"origin": "https://evil.example"}, 403), ({}, 200)):
            assert httpx.get(running.url + "/v1/models", headers=headers, timeout=120).status_code == status
    assert preflight(base, "https://evil.example", "POST").json()["error"]["code"] == "foreign_origin"


@contextmanager
def _page_of_another_site(script: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<!doctype html><title>x</title><script>{script}</script>".encode()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=other.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{other.server_address[1]}/"
    finally:
        other.shutdown()
        thread.join()
        other.server_close()


@pytest.mark.slow
def test_a_page_on_another_port_of_this_machine_reads_nothing(base: Running, browser: Any) -> None:
    script = f"""
      window.found = Promise.all(["/", "/v1/models", "/metrics"].map((path) =>
        fetch("{base.url}" + path).then((a) => a.text(), () => "refused")));"""
    with _page_of_another_site(script) as url:
        page = browser.new_page()
        page.goto(url)
        assert page.evaluate("window.found") == ["refused"] * 3
        page.close()


def test_prompts_of_one_key_still_share(base_file: Path) -> None:
    with serving(files(base_file), Settings("tiny", api_keys=("k",))) as running:
        client = running.openai(api_key="k")
        for expected in (False, True):
            made = client.completions.create(model="tiny", prompt=LONG_PROMPT, max_tokens=1)
            assert made.usage is not None and made.usage.prompt_tokens_details is not None
            assert bool(made.usage.prompt_tokens_details.cached_tokens) is expected
        assert client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1).choices
