"""Bad bytes, bad manners, bad luck: the server answers as it should, goes on, and leaks nothing."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from servers import PROMPT, Running, files, serving, wait_for

from nanochat_tui.serve.errors import ApiError


def _connect(running: Running) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", running.port), timeout=120)
    made.settimeout(20)
    return made


def _stalled(running: Running) -> socket.socket:
    """Ask for a reply longer than any buffer, by a connection from which nothing is read."""
    asked = {"prompt": PROMPT, "max_tokens": 32_000, "temperature": 0, "stream": True, "logprobs": 20}
    body = json.dumps(asked).encode()
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # before it is connected, or the window is larger
    made.connect(("127.0.0.1", running.port))
    made.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    return made


def _everything(connection: socket.socket) -> bytes:
    got = b""
    try:
        while part := connection.recv(65_536):
            got += part
    except ConnectionResetError:
        pass
    return got


def _answers(running: Running) -> bool:
    reply = running.post("/v1/completions", prompt=PROMPT, max_tokens=3, temperature=0)
    return reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": NaN}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"prompt": "x", "seed": 99999999999999999999}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": [1.5]}',
        b'{"prompt": [-1]}',
        b'{"prompt": [[]]}',
        b'{"prompt": ["x", 1]}',
        b'{"prompt": {"a": "b"}}',
        b'{"prompt": "x", "stop": ["a", 5]}',
        b'{"prompt": "x", "stream": "maybe"}',
        b"\x00" * 64,
    ],
)
def test_malformed_bodies_are_bad_requests(base: Running, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        answer = httpx.post(base.url + path, content=body, headers={"content-type": "application/json"}, timeout=120)
        assert answer.status_code == 400, (path, answer.text)
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error" and error["message"]
        assert "Traceback" not in answer.text and "site-packages" not in answer.text and len(answer.text) < 1000
    assert _answers(base)


def test_what_cannot_be_read_is_told_how_it_should_be(base: Running) -> None:
    for content, headers, status, words in (
        (b"", {}, 400, "the body is empty"),
        (b'{"prompt": "\xff"}', {}, 400, "not valid JSON in UTF-8"),
        (b"\x1f\x8b\x08\x00", {"content-encoding": "gzip"}, 415, "not compressed (gzip)"),
    ):
        answer = httpx.post(base.url + "/v1/completions", content=content, headers=headers, timeout=120)
        assert answer.status_code == status and words in answer.json()["error"]["message"]


def test_a_form_as_curl_sends_it_is_read_as_json(base: Running) -> None:
    content = json.dumps({"prompt": PROMPT, "max_tokens": 1})
    answer = httpx.post(
        base.url + "/v1/completions",
        content=content,
        headers={"content-type": "application/x-www-form-urlencoded"},
        timeout=60,
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_are_too_much(base: Running, chunked: bool) -> None:
    body = json.dumps({"prompt": "x" * 10_000_000}).encode()

    def parts() -> Iterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    answer = httpx.post(base.url + "/v1/completions", content=parts() if chunked else body, timeout=120)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert _answers(base)


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_megabytes_of_text_are_refused_by_their_beginning(
    base: Running, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    model, seen = base.service.model, []
    encode = type(model).encode

    def counting(self: object, text: str, *rest: object, **options: object) -> list[int]:
        seen.append(len(text))
        return encode(model, text, *rest, **options)

    monkeypatch.setattr(type(model), "encode", counting)
    text = "let x = 1;\n" * 300_000
    body = {"prompt": text} if route == "completions" else {"messages": [{"role": "user", "content": text}]}
    answer = base.post(f"/v1/{route}", **body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "context_length_exceeded" and "32768" in error["message"]
    assert 0 < sum(seen) < len(text) / 2, "the whole text was tokenised"


def test_text_of_long_tokens_is_not_refused_by_its_length(base: Running) -> None:
    from nanochat_tui.serve.prompts import check_text

    class Wide:
        """A tokenizer whose tokens have 128 characters, as those of GPT-2 for rows of spaces."""

        def encode(self, text: str) -> list[int]:
            return [0] * (len(text) // 128)

    check_text(Wide(), " " * 100_000, 1000, "prompt")  # 782 tokens in more than 16 characters each
    with pytest.raises(ApiError, match="more than 2000 tokens"):
        check_text(Wide(), " " * 10_000_000, 1000, "prompt")


def test_half_a_megabyte_of_text_is_counted_and_refused(base: Running) -> None:
    answer = base.post("/v1/completions", prompt="let x = 1;\n" * 50_000)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("raw", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"A" * 100_000, b"\r\n" * 10])
def test_what_is_no_http_is_told_so(base: Running, raw: bytes) -> None:
    with closing(_connect(base)) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        got = _everything(connection)
    assert got == b"" or got.startswith(b"HTTP/1.1 400")
    assert _answers(base)


def test_requests_on_one_connection_one_after_the_other(base: Running) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 2, "temperature": 0}).encode()
    one = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    last = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    with closing(_connect(base)) as connection:
        connection.sendall(one + one + last)
        assert _everything(connection).count(b"HTTP/1.1 200") == 3


def test_slow_senders_are_cut_and_a_thousand_of_them_disturb_nobody(base_file: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("this machine grants too few open files for a thousand connections and their other ends")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    with serving(files(base_file), receive_seconds=6.0) as running:
        before = psutil.Process(os.getpid()).num_fds()
        halves = [_connect(running) for _ in range(1000)]
        try:
            for index, half in enumerate(halves):
                if index % 4 == 1:
                    half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-le")
                elif index % 4 > 1:  # more of them than requests may be worked on at once
                    half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
            assert _answers(running)
            assert len(running.server.server_state.connections) > 500, "it answers while they are open"
            wait_for(lambda: len(running.server.server_state.connections) == 0, 120)
            said = _everything(halves[2])
            assert said.startswith(b"HTTP/1.1 408") and b"took too long" in said
            assert _everything(halves[0]) == b""
        finally:
            for half in halves:
                half.close()
        assert _answers(running)
        wait_for(lambda: psutil.Process(os.getpid()).num_fds() <= before + 5, 120)


def test_bodies_on_their_way_are_bounded_together(base_file: Path) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n"
    with serving(files(base_file), body_bytes=1_000_000, received_bytes=1_000_000) as running:
        with closing(_connect(running)) as first, closing(_connect(running)) as second:
            first.sendall(head + b" " * 700_000)
            assert _answers(running)
            second.sendall(head + b" " * 700_000)
            assert second.recv(65_536).startswith(b"HTTP/1.1 429")
        wait_for(lambda: len(running.server.server_state.connections) == 0)
        second_body = json.dumps({"prompt": "x", "max_tokens": 1}).encode() + b" " * 900_000
        assert httpx.post(running.url + "/v1/completions", content=second_body, timeout=120).status_code == 200


def test_a_byte_at_a_time_does_not_stretch_the_deadline(base_file: Path) -> None:
    slow = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n" + b" " * 1000
    with (
        serving(files(base_file), receive_seconds=0.5) as running,
        closing(_connect(running)) as connection,
        pytest.raises(OSError),  # long before the last byte
    ):
        for byte in slow:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)


def test_a_reader_that_stalls_is_cut(base_file: Path) -> None:
    with serving(files(base_file), stall_seconds=0.5) as running:
        with closing(_stalled(running)):
            wait_for(lambda: running.running() == 1)
            wait_for(lambda: running.running() == 0 and not running.server.server_state.connections, 120)
        text = "\n".join(running.lines)
        assert "Traceback" not in text
        now = httpx.get(running.url + "/metrics", timeout=120).text
        assert 'finished_reason="abort",model_name="tiny"} 1.0' in now
        assert _answers(running)


def test_a_half_sent_request_does_not_keep_the_server_from_ending(base_file: Path) -> None:
    with serving(files(base_file), drain_seconds=600) as running, closing(_connect(running)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        wait_for(lambda: running.server.server_state.tasks)
        running.server.should_exit = True
        said = _everything(connection)
        assert said.startswith(b"HTTP/1.1 503") and b'"stopping"' in said
        wait_for(lambda: running.service.state == "stopping" and not running.server.server_state.tasks, 120)
    assert not any("error:" in line for line in running.lines), running.lines


def test_a_reader_that_stalls_does_not_keep_the_server_from_ending(base_file: Path) -> None:
    with serving(files(base_file), drain_seconds=0.2, stall_seconds=60) as running, closing(_stalled(running)):
        wait_for(lambda: any(c.flow.write_paused for c in list(running.server.server_state.connections)))
        running.server.should_exit = True
        wait_for(lambda: running.service.state == "stopping" and not running.server.server_state.tasks, 120)
    assert not any("error:" in line for line in running.lines), running.lines


def test_idle_connections_are_closed(base_file: Path) -> None:
    with serving(files(base_file), idle_seconds=1.0) as running, closing(_connect(running)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert _everything(connection).startswith(b"HTTP/1.1 200")
