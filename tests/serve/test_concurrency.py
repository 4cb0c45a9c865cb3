"""Many clients at once: the same replies as alone, a bounded queue, an orderly end."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from servers import PROMPT, Running, files, serving, wait_for

from nanochat_tui.serve.settings import Settings

CLIENTS = 8


def _ask(running: Running, index: int) -> tuple[str, str | None]:
    chunks = running.openai().completions.create(
        model="tiny", prompt=f"fn main {index}", max_tokens=200, temperature=1.0, seed=index, stream=True
    )
    text, reason = "", None
    for chunk in chunks:
        text += chunk.choices[0].text
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


def test_eight_clients_get_what_each_gets_alone(base: Running) -> None:
    alone = [_ask(base, i) for i in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(lambda i: _ask(base, i), range(CLIENTS)))
    assert together == alone and all(reason for _, reason in alone)


def test_the_queue_is_bounded_and_says_when_to_come_again(base_file: Path) -> None:
    settings = Settings("tiny", max_sequences=1, max_waiting=1)
    with serving(files(base_file, max_sequences=1, max_waiting=1), settings) as running:
        body = {"prompt": PROMPT, "max_tokens": 30_000, "temperature": 0, "stream": True}
        with running.client() as client:
            streams = []
            for held in (1, 2):
                streams.append(client.send(client.build_request("POST", "/v1/completions", json=body), stream=True))
                wait_for(lambda held=held: running.running() == held)
            refused = running.post("/v1/completions", prompt="x")
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
            assert refused.json()["error"]["code"] == "queue_full"
            with pytest.raises(openai.RateLimitError):
                running.openai().completions.create(model="tiny", prompt="x")
            too_many = running.post("/v1/completions", prompt="x", n=5)
            assert too_many.status_code == 400
            now = httpx.get(running.url + "/metrics", timeout=120).text
            assert 'num_requests_running{model_name="tiny"} 1.0' in now
            assert 'num_requests_waiting{model_name="tiny"} 1.0' in now
            for stream in streams:
                stream.close()
        wait_for(lambda: running.running() == 0, 120)
        assert running.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200


def test_half_of_a_request_that_does_not_fit_is_taken_back(base_file: Path) -> None:
    settings = Settings("tiny", max_sequences=1, max_waiting=2)
    with serving(files(base_file, max_sequences=1, max_waiting=2), settings) as running:
        body = {"prompt": PROMPT, "max_tokens": 30_000, "temperature": 0, "stream": True}
        with running.client() as client:
            held = client.send(client.build_request("POST", "/v1/completions", json=body), stream=True)
            wait_for(lambda: running.running() == 1)
            assert running.post("/v1/completions", prompt="x", n=3, max_tokens=2).status_code == 429
            held.close()
        wait_for(lambda: running.running() == 0, 120)


def test_a_server_that_ends_cuts_long_replies_with_a_word(base_file: Path) -> None:
    texts: list[str] = []
    codes: list[int] = []
    with serving(files(base_file), drain_seconds=0.3) as running:
        body = {"prompt": PROMPT, "max_tokens": 32_000, "temperature": 0}

        def stream() -> None:
            with (
                running.client() as client,
                client.stream("POST", "/v1/completions", json={**body, "stream": True}) as a,
            ):
                texts.append(a.read().decode())

        def whole() -> None:
            codes.append(running.post("/v1/completions", **body).status_code)

        threads = [threading.Thread(target=stream), threading.Thread(target=whole)]
        for thread in threads:
            thread.start()
        wait_for(lambda: running.running() == 2)
        running.server.should_exit = True
        for thread in threads:
            thread.join(120)
    assert texts[0].endswith("data: [DONE]\n\n")
    last = json.loads(texts[0].split("\n\n")[-3].removeprefix("data: "))
    assert last["error"]["code"] == "stopping" and codes == [503]


def test_a_server_that_ends_lets_short_replies_finish(base_file: Path) -> None:
    with serving(files(base_file), drain_seconds=20) as running:
        result: list[tuple[str, str | None]] = []
        thread = threading.Thread(target=lambda: result.append(_ask(running, 1)))
        alone = _ask(running, 1)
        thread.start()
        wait_for(lambda: running.running() or result)
        running.server.should_exit = True
        thread.join(120)
        assert result == [alone]
