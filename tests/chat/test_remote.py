"""The remote backend against a real server on loopback, well-behaved and otherwise."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from openai_server import WORDS, Server, serving

from nanochat_tui.chat.backend import (
    Backend,
    BackendError,
    Event,
    Finished,
    Message,
    Request,
    Stats,
    Token,
)
from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.chat.remote.events import ServerEvent
from nanochat_tui.chat.remote.http import base_url
from nanochat_tui.chat.remote.keys import key_warning
from nanochat_tui.chat.remote.stream import Reply
from nanochat_tui.errors import UserError
from nanochat_tui.request import SamplingParams

HI = Request(messages=(Message("system", "be kind"), Message("user", "hi")), top_logprobs=2)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NANOCHAT_API_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def ask(backend: RemoteBackend, request: Request, cancel: threading.Event | None = None) -> list[Event]:
    return list(backend.chat(request, cancel or threading.Event()))


def tokens(events: list[Event]) -> list[Token]:
    return [e for e in events if isinstance(e, Token)]


def text(events: list[Event]) -> str:
    return "".join(t.text for t in tokens(events) if not t.thinking)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://models.example.com:8000", True),
        ("http://192.168.1.5", True),
        ("http://[2001:db8::1]:80", True),
        ("https://models.example.com", False),
        ("http://localhost:8000", False),
        ("http://127.0.0.1", False),
        ("http://[::1]:8000", False),
    ],
)
def test_a_key_over_plain_http_is_warned_of(url: str, warned: bool) -> None:
    assert (key_warning(url, "sk-secret") is not None) is warned
    assert key_warning(url, None) is None
    assert "sk-secret" not in (key_warning(url, "sk-secret") or "")


def test_the_warning_comes_before_the_key_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat_tui.chat.remote.keys.is_loopback", lambda host: False)  # as a server elsewhere
    steps: list[str] = []
    RemoteBackend(server.url).load(steps.append)
    assert not any(step.startswith("warning: ") for step in steps), "there is no key"
    RemoteBackend(server.url, api_key="sk-1").load(steps.append)
    first = next(i for i, step in enumerate(steps) if step.startswith("warning: "))
    assert "https" in steps[first]
    assert steps[first + 1].startswith("asking")


def test_a_conversation(server: Server) -> None:
    remote = RemoteBackend(server.url + "/v1/")
    backend: Backend = remote
    backend.load()
    assert (backend.name, backend.is_chat, backend.context_size, backend.threads) == ("tiny", True, 0, 0)
    events = ask(remote, HI)
    assert text(events) == "".join(WORDS)
    assert events[-1] == Finished("stop")
    sent = server.requests[-1]
    assert sent["messages"] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    first = tokens(events)[0]
    assert first.logprob == pytest.approx(math.log(0.7))
    assert first.top[0] == (-1, "Hello", pytest.approx(math.log(0.7)))
    stats = [e for e in events if isinstance(e, Stats)][-1]
    assert (stats.generated, stats.context_used) == (6, 13)
    assert stats.decode_tps is not None
    assert stats.decode_tps > 0


def test_a_text_goes_through_completions_with_their_logprobs(server: Server) -> None:
    remote = RemoteBackend(server.url)
    events = ask(remote, Request(prompt="fn ", prefix="main", top_logprobs=3, max_tokens=3, stop=("}",)))
    sent = server.requests[-1]
    assert (sent["prompt"], sent["max_tokens"], sent["logprobs"], sent["stop"]) == ("fn main", 3, 3, ["}"])
    assert text(events) == "Hello there,"
    assert tokens(events)[1].top[1] == (-1, " other", pytest.approx(math.log(0.2)))


def test_thinking_is_told_apart_in_both_ways(server: Server) -> None:
    server.thoughts = ["hm", " hm"]
    events = ask(RemoteBackend(server.url), HI)
    assert [t.text for t in tokens(events) if t.thinking] == ["hm", " hm"]
    assert text(events) == "".join(WORDS)
    server.thoughts, server.words = [], ["<th", "ink>so</thi", "nk>yes"]
    events = ask(RemoteBackend(server.url), HI)
    assert text(events) == "yes"


def test_what_the_server_tells_of_itself(server: Server) -> None:
    server.owner, server.meta = "nanochat", {"n_ctx": 512, "chat_template": False}
    remote = RemoteBackend(server.url, "other")
    remote.load()
    assert (remote.name, remote.context_size, remote.is_chat) == ("other", 512, False)
    assert remote.can_continue(chat=True)
    assert [m.id for m in remote.list_models()] == ["tiny", "other"]


def test_continuing_is_offered_only_where_it_exists(server: Server) -> None:
    remote = RemoteBackend(server.url)
    remote.load()
    assert not remote.can_continue(chat=True)
    assert remote.can_continue(chat=False)
    with pytest.raises(UserError, match="middle of a reply"):
        ask(remote, Request(messages=(Message("user", "x"),), prefix="We"))
    server.completions = False
    again = RemoteBackend(server.url)
    again.load()
    assert not again.can_continue(chat=False)


def test_a_prefix_is_the_last_message(server: Server) -> None:
    server.owner = "vllm"
    ask(RemoteBackend(server.url), Request(messages=(Message("user", "x"),), prefix="We"))
    assert server.requests[-1]["messages"][-1] == {"role": "assistant", "content": "We"}
    assert server.requests[-1]["continue_final_message"] is True


def test_strict_servers_are_asked_again_without_the_extras(server: Server) -> None:
    server.strict = True
    remote = RemoteBackend(server.url)
    assert text(ask(remote, HI)) == "".join(WORDS)
    assert "top_k" not in server.requests[-1]
    count = len(server.requests)
    ask(remote, HI)
    assert len(server.requests) == count + 1, "it is remembered"


def test_a_server_that_dies_in_mid_reply_leaves_what_it_said(server: Server) -> None:
    server.die_after = 3
    got: list[Event] = []
    with pytest.raises(BackendError, match="broke off in mid-reply"):
        for event in RemoteBackend(server.url).chat(HI, threading.Event()):
            got.append(event)
    assert text(got) == "Hello there,"
    assert len(server.requests) == 1, "nothing is sent twice"


def test_an_error_inside_the_stream_is_told(server: Server) -> None:
    server.error_after = 2
    with pytest.raises(BackendError, match="the model fell over"):
        ask(RemoteBackend(server.url), HI)


def test_cancelling_is_quick_while_the_server_is_silent_and_it_notices(server: Server) -> None:
    server.hold_after = 2
    cancel = threading.Event()
    got: list[Event] = []

    def leave() -> None:
        while text(got) != "Hello there":
            time.sleep(0.01)
        cancel.set()

    threading.Thread(target=leave, daemon=True).start()
    for event in RemoteBackend(server.url).chat(HI, cancel):  # which the server alone would never end
        got.append(event)
    assert got[-1] == Finished("cancelled")
    assert text(got) == "Hello there"
    assert server.closed.wait(120), "the server is told by the closed connection"


def test_silence_ends_in_words(server: Server) -> None:
    server.hold_after = 0
    slow = socket.create_server(("127.0.0.1", 0))  # accepts and never answers
    remote = RemoteBackend(f"127.0.0.1:{slow.getsockname()[1]}", timeout=0.3)
    with pytest.raises(BackendError, match="said nothing for too long"):
        remote.load()
    slow.close()


def test_connecting_is_tried_again_while_a_server_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    steps: list[str] = []
    began = time.monotonic()
    with pytest.raises(BackendError, match="There is no server"):
        RemoteBackend(f"http://127.0.0.1:{port}").load(steps.append)
    assert steps[-1].endswith("attempt 3 of 3")
    assert time.monotonic() - began > 0.5


def test_keys_come_from_the_environment_and_go_only_where_they_belong(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "secret"
    with pytest.raises(BackendError, match="NANOCHAT_API_KEY"):
        RemoteBackend(server.url).load()
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(BackendError, match="refuses the key"):
        RemoteBackend(server.url).load()
    assert not any("Authorization" in headers for headers in server.headers), "OpenAI's key is for OpenAI"
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
    RemoteBackend(server.url).load()
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setenv("NANOCHAT_API_KEY", "secret")
    RemoteBackend(server.url).load()
    assert text(ask(RemoteBackend(server.url, api_key="secret"), HI))


@pytest.mark.parametrize(("status", "words"), [(500, "failed with status 500: broken"), (429, "too much to do")])
def test_statuses_are_put_into_words(server: Server, status: int, words: str) -> None:
    server.status = status
    with pytest.raises(BackendError, match=words):
        ask(RemoteBackend(server.url), HI)


def test_a_proxy_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)  # it is asked for the whole address, and is no proxy
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(BackendError, match="refused with status 421"):
        RemoteBackend("http://example.invalid").load()


def test_pages_that_are_no_model_server(server: Server) -> None:
    server.models = []
    with pytest.raises(BackendError, match="offers no model"):
        RemoteBackend(server.url).load()
    server.models = ["a"]
    with pytest.raises(UserError, match="no model b; it offers a"):
        RemoteBackend(server.url, "b").load()


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://host:99999", "http://h:x"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UserError, match="no address"):
        base_url(url)


def test_addresses_are_taken_as_people_write_them() -> None:
    assert base_url("localhost:8080") == "http://localhost:8080"
    assert base_url(" https://h/api/v1/ ") == "https://h/api"


@pytest.mark.parametrize(
    "line",
    [
        '{"choices": 5}',
        '{"choices": [null]}',
        '{"choices": [{"delta": {"content": 7}, "logprobs": {"content": [1, {"token": null}]}}]}',
        '{"choices": [{"text": null, "logprobs": {"tokens": ["a"], "token_logprobs": null}}]}',
        '{"usage": {"prompt_tokens": "many"}, "timings": {"prompt_per_second": "fast"}}',
        '{"choices": [{"delta": {"tool_calls": [7, {"function": 5}, {}]}, "finish_reason": 8}]}',
        '[{"choices": []}, 5]',
        "17",
        "",
    ],
)
def test_strange_chunks_do_no_harm(line: str) -> None:
    reply = Reply()
    assert all(token.text in ("", "a") for token in reply.feed(ServerEvent("", line)))
    assert not reply.complaint
    assert reply.prompt_tokens is None


def test_nonsense_is_refused() -> None:
    with pytest.raises(BackendError, match="does not speak"):
        list(Reply().feed(ServerEvent("", "<html>")))


def test_greedy_and_seed_reach_the_server(server: Server) -> None:
    ask(RemoteBackend(server.url), Request(prompt="x", sampling=SamplingParams(temperature=0.0, seed=4, min_p=0.1)))
    sent = server.requests[-1]
    assert (sent["temperature"], sent["seed"], sent["min_p"], sent["top_k"]) == (0.0, 4, 0.1, 40)


@pytest.mark.parametrize("strict", [False, True])
def test_a_server_that_refuses_probabilities_answers_without(strict: bool) -> None:
    with serving(refuses_logprobs=True, strict=strict) as server:
        remote = RemoteBackend(server.url)
        for _ in range(2):
            assert text(ask(remote, HI)) == "".join(WORDS)
        assert "logprobs" not in server.requests[-1]
        assert ("top_k" in server.requests[-1]) is not strict
        assert len(server.requests) == (4 if strict else 3), "what it minds is remembered"
        server.status = 400
        with pytest.raises(BackendError, match="broken on purpose"):
            ask(remote, HI)


@pytest.mark.parametrize("headers", [{"Host": "evil.test"}, {"Origin": "http://evil.test"}])
def test_the_tests_own_server_is_no_hole_either(server: Server, headers: dict[str, str]) -> None:
    import httpx

    assert httpx.get(f"{server.url}/v1/models", headers=headers, timeout=120).status_code == 421
    assert (
        httpx.post(f"{server.url}/v1/completions", headers=headers, json={"model": "x"}, timeout=120).status_code == 421
    )
    assert not server.requests
