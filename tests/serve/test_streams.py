"""Server-sent events on the wire, thinking, keep-alive."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
from servers import LONG, PROMPT, Running, files, serving, wait_for
from support import write_model

from nanochat_tui.request import Stats, Token

THINKING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% if enable_thinking is not defined or enable_thinking %}<think>\n"
    "{% else %}<think></think>{% endif %}{% endif %}"
)


class Scripted:
    """A stream of the engine's shape that says what it is told, with pauses."""

    stop_text: str | None = None
    end_token: Token | None = None

    def __init__(self, pieces: list[str], pause: float = 0.0, error: BaseException | None = None) -> None:
        self.prompt_tokens, self.stats, self.finish_reason = 3, Stats(), None
        self._pieces, self._pause, self._error = iter(pieces), pause, error
        self.cancelled = threading.Event()

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        if self.cancelled.wait(self._pause):
            self.finish_reason = "cancelled"
            raise StopIteration
        for piece in self._pieces:
            return Token(piece, 65, -0.5)
        if self._error is not None:
            raise self._error
        self.finish_reason = "stop"
        raise StopIteration

    def cancel(self) -> None:
        self.cancelled.set()


def _chat(running: Running, **more: object) -> tuple[list[str], list[dict]]:
    """Return the lines of a streamed answer, and the events parsed strictly."""
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True, **more}
    with running.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        text = answer.read().decode()
    assert text.endswith("data: [DONE]\n\n")
    events = []
    for block in text.split("\n\n")[:-2]:
        if not block.startswith(":"):
            assert block.startswith("data: ") and "\n" not in block
            events.append(json.loads(block[6:]))
    return text.split("\n"), events


def _deltas(events: list[dict], key: str) -> str:
    return "".join(e["choices"][0]["delta"].get(key) or "" for e in events if e.get("choices"))


def test_comments_keep_a_silent_stream_alive(base_file: Path, monkeypatch) -> None:
    with serving(files(base_file), ping_seconds=0.05) as running:
        monkeypatch.setattr(running.service, "submit", lambda *_, **__: Scripted(["a", "b"], 0.3))
        lines, events = _chat(running)
        assert sum(line.startswith(":") for line in lines) >= 4
        assert _deltas(events, "content") == "ab"


def test_a_failure_in_the_middle_is_an_event(base_file: Path, monkeypatch) -> None:
    with serving(files(base_file)) as running:
        broken = RuntimeError("/home/somebody/secret")
        monkeypatch.setattr(running.service, "submit", lambda *_, **__: Scripted(["a"], error=broken))
        lines, events = _chat(running)
        assert events[-1]["error"]["type"] == "server_error" and "secret" not in "".join(lines)
        assert any("secret" in line for line in running.lines)  # the log may know
        wait_for(lambda: running.service.state == "ok")


def test_line_ends_of_unicode_do_not_split_an_event(base_file: Path, monkeypatch) -> None:
    said = "a\u2028b\u2029c\x85d\x0be\x1cf\r\n"
    with serving(files(base_file)) as running:
        monkeypatch.setattr(running.service, "submit", lambda *_, **__: Scripted([said]))
        body = {"prompt": "x", "stream": True}
        with running.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: {")]  # by Unicode's rules
        assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines) == said


def test_thoughts_go_to_reasoning_content(tmp_path: Path, monkeypatch) -> None:
    path = write_model(tmp_path / "m.gguf", LONG, chat_template=THINKING)
    with serving(files(path)) as running:
        said = ["hm", "m\n", "</th", "ink>", "\n\n", "Yes", " & no"]
        monkeypatch.setattr(running.service, "submit", lambda *_, **__: Scripted(list(said)))
        _, events = _chat(running)
        assert _deltas(events, "reasoning_content") == "hmm\n" and _deltas(events, "content") == "Yes & no"
        whole = running.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}]).json()
        message = whole["choices"][0]["message"]
        assert message["reasoning_content"] == "hmm\n" and message["content"] == "Yes & no"

        monkeypatch.setattr(running.service, "submit", lambda *_, **__: Scripted(["plain </th", "e end"]))
        _, events = _chat(running, chat_template_kwargs={"enable_thinking": False})
        assert _deltas(events, "reasoning_content") == "" and _deltas(events, "content") == "plain </the end"


def test_a_reader_that_leaves_frees_its_place(base: Running) -> None:
    body = {"prompt": PROMPT, "max_tokens": 30_000, "temperature": 0, "stream": True}
    with base.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
        pieces = answer.iter_bytes()  # dropped, it would close the connection
        next(pieces)
        assert base.running() == 1
    wait_for(lambda: base.running() == 0, 120)


def test_a_client_that_leaves_before_the_whole_answer_frees_its_place(base: Running) -> None:
    body = {"prompt": PROMPT, "max_tokens": 30_000, "temperature": 0}
    try:
        httpx.post(base.url + "/v1/completions", json=body, timeout=httpx.Timeout(10, read=0.2))
        raise AssertionError("the answer came too early for this test")
    except httpx.ReadTimeout:
        pass
    wait_for(lambda: base.running() == 0, 120)
    # a failure of ours (503) would raise alarms for what the client did
    wait_for(lambda: any(line.split()[2:3] == ["499"] for line in base.lines[-3:]), 120)


def test_the_first_token_does_not_wait_for_the_last(base: Running) -> None:
    body = {"prompt": PROMPT, "max_tokens": 30_000, "temperature": 0, "stream": True}
    with base.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        first = json.loads(next(lines)[6:])["choices"][0]
        assert first["text"] and first["finish_reason"] is None
        assert base.running() == 1, "thousands of tokens are still to come"
        assert json.loads(next(lines)[6:])["choices"][0]["text"]
    wait_for(lambda: base.running() == 0, 120)
