"""OpenAI's own Python client: conversations with several replies, stops and penalties, and the rarer refusals."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any

import openai
import pytest
from servers import PROMPT, Running, files, serving, wait_for

from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.serve.settings import Log, Settings

ASK: Any = [{"role": "user", "content": "hello"}]
SETTINGS: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 40, "temperature": 1.0, "seed": 4}


def _streamed(running: Running, count: int, **settings: Any) -> list[tuple[str, str | None]]:
    """Return text and reason of each reply of a stream."""
    texts, reasons = [""] * count, [None] * count
    for chunk in running.openai().chat.completions.create(**settings, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    return list(zip(texts, reasons, strict=True))


def _whole(running: Running, **settings: Any) -> list[tuple[str | None, str | None]]:
    reply = running.openai().chat.completions.create(**settings)
    return [(choice.message.content, choice.finish_reason) for choice in reply.choices]


def test_several_replies_of_a_chat_have_seeds_of_their_own(chat: Running) -> None:
    three = _whole(chat, **SETTINGS, n=3)
    assert three == [_whole(chat, **SETTINGS | {"seed": 4 + i})[0] for i in range(3)] and len(set(three)) == 3
    assert _streamed(chat, 3, **SETTINGS, n=3) == three


def test_a_chat_ends_before_its_stop_string(chat: Running) -> None:
    text = _whole(chat, **SETTINGS)[0][0]
    assert text
    stop = text[12:15]
    wanted = [(text[: text.index(stop)], "stop")]
    assert _whole(chat, **SETTINGS, stop=["never to be found", stop]) == wanted
    assert _whole(chat, **SETTINGS, stop=stop) == wanted
    assert _streamed(chat, 1, **SETTINGS, stop=stop) == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"extra_body": {"repeat_penalty": 1.5}},
        {"extra_body": {"min_p": 0.9}},
    ],
)
def test_streams_with_penalties_and_cuts_say_what_whole_replies_say(chat: Running, change: dict[str, Any]) -> None:
    settings = SETTINGS | change
    assert _streamed(chat, 1, **settings) == _whole(chat, **settings) != _whole(chat, **SETTINGS)


def test_a_page_of_another_site_is_permission_denied(chat: Running) -> None:
    client = chat.openai(default_headers={"origin": "https://evil.example"})
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.chat.completions.create(**SETTINGS)
    assert caught.value.code == "foreign_origin"


def test_while_the_model_is_loaded_it_is_a_server_error_to_try_again(base_file: Path) -> None:
    go, load = threading.Event(), files(base_file)

    def slowly(log: Log) -> list[Batcher]:
        go.wait(120)
        return list(load(log))

    with serving(slowly, ready=False) as running:
        with pytest.raises(openai.InternalServerError) as caught:
            running.openai().completions.create(model="tiny", prompt="x")
        assert caught.value.status_code == 503 and caught.value.code == "loading"
        assert int(caught.value.response.headers["retry-after"]) > 0
        go.set()


def test_a_body_too_large_is_said_with_its_status(base: Running) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        base.openai().completions.create(model="tiny", prompt="x" * 5_000_000)
    assert caught.value.status_code == 413 and caught.value.code == "body_too_large"


def test_more_requests_than_may_be_in_hand_are_told_to_come_again(base_file: Path) -> None:
    body = {"prompt": PROMPT, "max_tokens": 30_000, "temperature": 0, "stream": True}
    with serving(files(base_file), requests=2) as running, running.client() as client:
        held = [client.send(client.build_request("POST", "/v1/completions", json=body), stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as caught:
            running.openai().completions.create(model="tiny", prompt="x")
        assert caught.value.code == "too_many_requests" and int(caught.value.response.headers["retry-after"]) > 0
        assert client.get("/health").status_code == 200
        for stream in held:
            stream.close()
        wait_for(lambda: running.running() == 0)
        wait_for(lambda: running.post("/v1/completions", prompt="x", max_tokens=1).status_code == 200)
    assert Settings("tiny").limits.requests == 256


def test_the_command_line_chats_with_our_own_server(chat: Running) -> None:
    wanted = _whole(chat, **SETTINGS | {"temperature": 0})[0][0]
    command = [sys.executable, "-m", "nanochat_tui", "chat", "--attach", chat.url, "-p", "hello"]
    done = run(
        [*command, "--temperature", "0", "-n", "40"], capture_output=True, timeout=60, check=False, stdin=DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip("\n") == str(wanted).strip("\n")
    refused = run([*command, "--temperature", "-1"], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2 and "temperature" in refused.stderr and "Traceback" not in refused.stderr
