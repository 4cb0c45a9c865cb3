"""What servers really send: every shape of an answer, of a list of models and of a refusal, over real HTTP."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai_server import Server, serving

from nanochat_tui.chat.backend import BackendError, Event, Finished, Message, Request, Started, Stats, Token
from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.chat.remote.events import MAX_HELD, read_events
from nanochat_tui.chat.remote.http import base_url, explain_failure, explain_status, shown_url
from nanochat_tui.chat.remote.stream import Reply, without_halves
from nanochat_tui.cli.app import dispatch
from nanochat_tui.cli.entry import run
from nanochat_tui.errors import UserError

HI = Request(messages=(Message("user", "hi"),))
SECRET = "sk-" + "very-secret"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NANOCHAT_API_KEY", "OPENAI_API_KEY", *PROXIES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def delta(**fields: Any) -> bytes:
    return json.dumps({"choices": [{"delta": fields}]}).encode()


def events_of(*texts: bytes, end: bytes = b"\n") -> bytes:
    return b"".join(b"data: " + text + end + end for text in texts)


def ask(server: Server, *pieces: bytes, request: Request = HI) -> list[Event]:
    server.raw = list(pieces)
    return list(RemoteBackend(server.url).chat(request, threading.Event()))


def said(events: list[Event], *, thinking: bool = False) -> str:
    return "".join(e.text for e in events if isinstance(e, Token) and e.thinking is thinking)


A, B, DONE = delta(content="a"), delta(content="b"), b"[DONE]"
STOP = b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}'
USAGE = b'{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}'
WHOLE = b'{"choices": [{"message": {"content": "ab"}, "finish_reason": "stop"}]}'


@pytest.mark.parametrize(
    "pieces",
    [
        [events_of(A, B, DONE)],
        [events_of(A, B, DONE, end=b"\r\n")],
        [events_of(A, B, DONE, end=b"\r")],
        [b"\xef\xbb\xbf" + events_of(A, B, DONE)],
        [b"\xef", b"\xbb\xbf\n", events_of(A, B, DONE)],
        [bytes([byte]) for byte in events_of(A, B, STOP, end=b"\r\n")],
        [events_of(A, B, STOP)],  # no [DONE]
        [events_of(A, B, STOP).rstrip()],  # nor the last blank line
        [events_of(A, B) + b"data: [DONE]"],
        [b"data:\n\ndata: \n\n" + events_of(A, b"", B, DONE)],
        [b": keep-alive\n\n" * 3 + events_of(A) + b":\n\n: x\n" + events_of(B, DONE)],
        [b'event: ping\ndata: {"type": "ping"}\n\nevent: x\ndata: soon\n\n' + events_of(A, B, DONE)],
        [b"id: 1\nretry: 10\nevent: message\n" + events_of(A) + b"event: completion.chunk\n" + events_of(B, DONE)],
        [b'data: {"choices":\ndata: [{"delta": {"content": "a"}}]}\n\n' + events_of(B, DONE)],
        [events_of(b'{"choices": []}', b'{"choices": null}', b"{}", b"null", A, delta(content=None), B, USAGE, DONE)],
        [events_of(delta(role="assistant", content=""), delta(content="a", tool_calls=None), B, STOP, USAGE)],
        [events_of(delta(content=[{"type": "text", "text": "a"}]), delta(content=["b"]), DONE)],
        [events_of(b'{"choices": [{"delta": null, "message": {"content": "ab"}}]}', DONE)],
        [events_of(delta(refusal="ab"), STOP)],
        [WHOLE],
        [json.dumps(json.loads(WHOLE), indent=2).encode()],
        [b"[" + WHOLE + b"]"],
        [A + b"\n" + B + b"\n" + STOP + b"\n"],
        [events_of(A, B, DONE, b"after the end nothing is read")],
    ],
)
def test_every_shape_of_an_answer_is_the_same_text(server: Server, pieces: list[bytes]) -> None:
    events = ask(server, *pieces)
    assert said(events) == "ab"
    assert isinstance(events[0], Started)
    assert events[-1] == Finished("stop")


def test_compressed_answers(server: Server) -> None:
    server.raw_headers["Content-Encoding"] = "gzip"
    assert said(ask(server, gzip.compress(events_of(A, B, DONE)))) == "ab"
    with pytest.raises(BackendError, match="cannot be unpacked"):
        ask(server, b"this is no gzip")


def test_lines_end_where_the_standard_says_and_nowhere_else(server: Server) -> None:
    text = "a\u2028b\x85c\x0bd\x1ce"
    raw = json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False).encode()
    assert said(ask(server, events_of(raw, DONE))) == text


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ((r"\ud83d", r"\ude00"), "😀"),
        ((r"a\ud83d", r"\ude00b", "c"), "a😀bc"),
        ((r"\ud83d",), "\ufffd"),
        ((r"\ud83d", "x"), "\ufffdx"),
        ((r"\ude00x",), "\ufffdx"),
        ((r"\ud83d", r"\ud83d", r"\ude00"), "\ufffd😀"),
    ],
)
@pytest.mark.parametrize("channel", ["content", "reasoning_content"])
def test_half_characters_are_joined_and_never_poison_a_session(
    server: Server, pieces: tuple[str, ...], text: str, channel: str
) -> None:
    chunks = [f'{{"choices": [{{"delta": {{"{channel}": "{piece}"}}}}]}}'.encode() for piece in pieces]
    events = ask(server, events_of(*chunks, STOP))
    got = said(events, thinking=channel != "content")
    assert got == text
    got.encode()  # fits a store, a file, the next request
    broken = Request(messages=(Message("user", "half \ud83d"),))
    ask(server, events_of(A, DONE), request=broken)
    assert server.requests[-1]["messages"][-1]["content"] == "half \ufffd"


def test_halves() -> None:
    assert without_halves("\ud83d\ude00 \ud83d é") == "😀 \ufffd é"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_has_several_names(server: Server, field: str) -> None:
    events = ask(server, events_of(delta(**{field: "hm"}), delta(**{field: None}, content="a"), B, DONE))
    assert (said(events, thinking=True), said(events)) == ("hm", "ab")


def test_thinking_as_a_part_of_the_content(server: Server) -> None:
    part = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    events = ask(server, events_of(delta(content=[part]), A, B, DONE))
    assert (said(events, thinking=True), said(events)) == ("hm", "ab")


TOOL = delta(tool_calls=[{"index": 0, "function": {"name": "get_weather", "arguments": ""}}])
CALLS = b'{"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}'
ERROR = b'{"message": "the model fell over"}'


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (events_of(TOOL, CALLS, DONE), "only called tools \\(get_weather\\)"),
        (events_of(delta(function_call={"name": "old"}), DONE), "only called tools \\(old\\)"),
        (b"event: error\n" + events_of(ERROR), "the model fell over"),
        (events_of(A) + b"event: error\n" + events_of(ERROR, DONE), "the model fell over"),
        (b"event: error\n" + events_of(b'{"error": {"message": "the model fell over"}}'), "the model fell over"),
        (b"event: error\n" + events_of(b"the model fell over"), "the model fell over"),
        (b"event: error\n" + events_of(b""), "it does not say which"),
        (events_of(b'{"error": "the model fell over"}'), "the model fell over"),
        (events_of(b'{"object": "error", "message": "the model fell over", "code": 400}'), "the model fell over"),
        (events_of(b'{"error": {"code": 7}}'), "reports an error"),
        (b'{"error": {"message": "the model fell over"}}', "the model fell over"),
        (b'{"detail": "nothing of use"}', "ended without a word"),
        (events_of(A, b'{"choices": [{"delta": {}, "finish_reason": "content_filter"}]}'), "filter ended.*is kept"),
        (events_of(b'{"choices": [{"finish_reason": "error", "error": {"message": "boom"}}]}'), "error \\(boom\\)"),
        (events_of(A), "broke off in mid-reply"),
        (b"", "ended without a word"),
        (b"OK\n", "ended without a word"),
        (b"<!DOCTYPE html><p>hello", "it sent a page"),
        (b"data: <html>\n\n", "does not speak OpenAI's protocol"),
        (b"[" * 100_000, "does not speak OpenAI's protocol"),
        (events_of(b"[" * 100_000), "does not speak OpenAI's protocol"),
    ],
)
def test_what_cannot_be_used_is_said_and_the_exit_code_tells(
    server: Server, pieces: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError, match=words):
        ask(server, pieces)
    assert run(dispatch, ["chat", "--attach", server.url, "-p", "x"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "happen" not in complaint


def test_an_event_without_end_is_refused() -> None:
    piece = b"data: " + b"x" * (1 << 20)
    with pytest.raises(BackendError, match="without end"):
        list(read_events([piece] * (MAX_HELD // len(piece) + 2)))
    comments = [b": waiting\n\n"] * 100
    assert [e.text for e in read_events([*comments, b"data: x\n\n"])] == ["x"]


def test_a_reply_with_tool_calls_is_a_reply() -> None:
    reply = Reply()
    for event in read_events([events_of(A, TOOL, CALLS, DONE)]):
        list(reply.feed(event))
    assert not reply.complaint


# the list of models


@pytest.mark.parametrize(
    "body",
    [
        {"data": [{"id": "tiny"}]},
        [{"id": "tiny"}],
        {"models": [{"name": "tiny"}]},
        {"data": ["tiny"]},
        {"data": [None, 5 * [{}], {}, {"id": None}, {"id": "tiny", "meta": 5, "owned_by": None}]},
    ],
)
def test_lists_of_models(server: Server, body: Any) -> None:
    server.listed = (200, json.dumps(body).encode())
    assert "tiny" in [m.id for m in RemoteBackend(server.url).list_models()]
    named = RemoteBackend(server.url, "tiny")
    named.load()
    assert named.name == "tiny"


NO_LIST = [(200, b'{"data": null}'), (200, b'{"data": []}'), (200, b"null"), (404, b"no such page"), (405, b"")]


@pytest.mark.parametrize("listed", NO_LIST)
def test_a_server_without_a_list_is_used_with_a_named_model(server: Server, listed: tuple[int, bytes]) -> None:
    server.listed = listed
    with pytest.raises(BackendError, match=r"name (one|it) as MODEL"):
        RemoteBackend(server.url).load()
    server.raw = [events_of(A, DONE)]
    events = list(RemoteBackend(server.url, "mine").chat(HI, threading.Event()))
    assert said(events) == "a"
    assert server.requests[-1]["model"] == "mine"


@pytest.mark.parametrize(
    "body", [b"<html>", b"5", b'"x"', b"{}", b'{"data": 5}', b'{"data": {"id": "x"}}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_list(server: Server, body: bytes) -> None:
    server.listed = (200, body)
    with pytest.raises(BackendError, match="no OpenAI-compatible server"):
        RemoteBackend(server.url).load()


def test_a_path_as_the_models_name_is_shown_as_the_files(server: Server) -> None:
    server.models = ["/home/me/models/m.gguf"]
    backend = RemoteBackend(server.url)
    server.raw = [events_of(A, DONE)]
    list(backend.chat(HI, threading.Event()))
    assert backend.name == "m.gguf"
    assert server.requests[-1]["model"] == "/home/me/models/m.gguf"


# redirects


def test_a_redirect_on_the_same_host_is_followed_and_kept(server: Server) -> None:
    server.base, server.moved = "/api", "/api/v1/models"
    server.raw = [events_of(A, B, DONE)]
    backend = RemoteBackend(server.url)
    assert said(list(backend.chat(HI, threading.Event()))) == "ab"
    assert backend.url == server.url + "/api"


def test_a_redirect_to_another_host_is_said_and_gets_no_key(server: Server) -> None:
    with serving() as other:
        server.moved = other.url.replace("127.0.0.1", "localhost") + "/v1/models"
        with pytest.raises(BackendError, match="sends requests on to http://localhost"):
            RemoteBackend(server.url, api_key=SECRET).load()
        assert not other.headers
    server.moved = "/v1/models"
    with pytest.raises(BackendError, match="in circles"):
        RemoteBackend(server.url).load()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirected_question_is_not_asked_elsewhere_but_said(status: int) -> None:
    request = httpx.Request("POST", "http://h/v1/chat/completions")
    answer = httpx.Response(status, headers={"Location": f"//me:{SECRET}@other/v1/x?key={SECRET}"}, request=request)
    said_of_it = str(explain_status(answer, b""))
    assert f"sends requests on to http://other/v1/x (status {status})" in said_of_it


# keys


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}\r\n", f"  {SECRET} "])
def test_line_ends_of_a_key_are_taken_off(server: Server, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = SECRET
    monkeypatch.setenv("NANOCHAT_API_KEY", key)
    RemoteBackend(server.url).load()
    RemoteBackend(server.url, api_key=key).load()


@pytest.mark.parametrize("key", ["se\nkret", "se\rkret", "se kret", "se\u2028kret", "schlüssel-kret", "\x1bkret"])
def test_what_no_header_can_hold_is_refused_without_repeating_it(
    server: Server, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOCHAT_API_KEY", key)
    assert run(dispatch, ["chat", "--attach", server.url, "-p", "x"]) == 2
    complaint = "".join(capsys.readouterr())
    assert "The key holds a character" in complaint
    assert "kret" not in complaint


@pytest.mark.parametrize("where", ["status", "stream", "event", "filter"])
def test_a_server_that_repeats_the_key_does_not_get_it_shown(server: Server, where: str) -> None:
    echo = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}"}}).encode()
    if where == "status":
        server.status, server.body = 401, echo
    elif where == "stream":
        server.raw = [events_of(echo)]
    elif where == "event":
        server.raw = [b"event: error\n" + events_of(echo)]
    else:
        error = {"message": f"bad {SECRET}"}
        server.raw = [events_of(json.dumps({"choices": [{"finish_reason": "error", "error": error}]}).encode())]
    with pytest.raises(BackendError) as refused:
        list(RemoteBackend(server.url, api_key=SECRET).chat(HI, threading.Event()))
    assert SECRET not in str(refused.value)
    assert "…" in str(refused.value)


def test_a_password_in_an_address_is_never_shown(server: Server) -> None:
    url = server.url.replace("://", f"://me:{SECRET}@")
    backend = RemoteBackend(url)
    steps: list[str] = []
    backend.load(steps.append)
    assert "Authorization" in server.headers[-1]
    server.raw = [events_of(A)]
    with pytest.raises(BackendError) as refused:
        list(backend.chat(HI, threading.Event()))
    shown = [*steps, backend.name, backend.kernel, str(refused.value), shown_url(f"ftp://me:{SECRET}@h")]
    with pytest.raises(UserError) as no_address:
        base_url(f"ftp://me:{SECRET}@h/")
    with pytest.raises(BackendError) as nowhere:
        RemoteBackend(f"http://me:{SECRET}@127.0.0.1:9").load()
    assert not [text for text in (*shown, str(no_address.value), str(nowhere.value)) if SECRET in text]


# proxies


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://x"])
def test_this_machine_is_never_reached_through_a_proxy(
    server: Server, name: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, proxy)
    RemoteBackend(server.url).load()


def test_a_socks_proxy_names_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setattr("nanochat_tui.chat.remote.keys._has_socks", lambda: False)
    monkeypatch.setenv("ALL_PROXY", f"socks5://me:{SECRET}@127.0.0.1:9")
    with pytest.raises(UserError, match=r"ALL_PROXY names a SOCKS proxy.*nanochat-tui\[socks\]") as refused:
        RemoteBackend("http://host.invalid").load()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("proxy", [f"gopher://me:{SECRET}@h", f"http://me:{SECRET}@h:port"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(UserError, match="proxy of") as refused:
        RemoteBackend("https://host.invalid").load()
    assert SECRET not in str(refused.value)


# failures in words


def failure(url: str) -> str:
    with pytest.raises(BackendError) as failed:
        RemoteBackend(url, timeout=5, connect_timeout=5).load()
    return str(failed.value)


def test_no_number_of_the_system_reaches_people(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert "nothing listens at that port" in failure(f"http://127.0.0.1:{port}")
    assert "its name is not known" in failure("http://no-such-host.invalid")
    with serving() as plain:
        assert "does not speak TLS" in failure(plain.url.replace("http", "https"))
    for answer in (b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"):
        with socket.create_server(("127.0.0.1", 0)) as odd:

            def talk(odd: socket.socket = odd, answer: bytes = answer) -> None:
                peer, _ = odd.accept()
                peer.recv(4096)
                peer.sendall(answer)
                peer.close()

            threading.Thread(target=talk, daemon=True).start()
            said_of_it = failure(f"http://127.0.0.1:{odd.getsockname()[1]}")
            assert "does not speak HTTP" in said_of_it or "broke before an answer came" in said_of_it
            assert "Errno" not in said_of_it


def test_errors_of_tls_need_no_number_either() -> None:
    for cause in (ssl.SSLCertVerificationError(1, "x"), OSError(113, "No route to host"), OSError(5, "I/O"), OSError()):
        exc = httpx.ConnectError(f"[Errno 7] {cause}")
        exc.__cause__ = cause
        assert "Errno" not in str(explain_failure(exc, "http://h", begun=False))


# numbers


def test_what_a_server_does_not_tell_is_null_in_json(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["chat", "--attach", server.url, "-p", "x", "--raw", "--json", "--top-logprobs", "1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["prompt_tokens"] is None
    tokens = [row for row in rows if row["event"] == "token"]
    assert all(row["id"] is None and len(row["top"]) == 1 and row["top"][0][0] is None for row in tokens)
    assert rows[-1]["prompt_tokens"] == 7
    stats = [row for row in rows if row["event"] == "stats"]
    assert stats[-1]["prompt_tokens"] == 7


def test_no_more_alternatives_than_were_asked_for(server: Server) -> None:
    request = Request(prompt="x", top_logprobs=1)
    events = list(RemoteBackend(server.url).chat(request, threading.Event()))
    assert {len(e.top) for e in events if isinstance(e, Token)} == {1}
    assert [e for e in events if isinstance(e, Stats)][-1].prompt_tokens == 7
