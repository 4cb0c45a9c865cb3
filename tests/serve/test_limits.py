"""Large and wrong bodies: refused at their first mistake, in a sentence that names the field."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest
from servers import Running

from nanochat_tui.errors import UserError
from nanochat_tui.model.tokenizer.codec import TextCodec
from nanochat_tui.serve.bodies import MAX_IDS, MAX_MESSAGES, MAX_TOKENIZED
from nanochat_tui.serve.middleware import MAX_BRACKETS

MEGABYTES = 4_000_000


@contextmanager
def watched(running: Running) -> Iterator[dict[str, float]]:
    """Measure how much this process grows meanwhile, in bytes; /health is asked all the time, and must answer."""
    process, over = psutil.Process(os.getpid()), threading.Event()
    before = process.memory_info().rss
    seen = {"grown": 0.0, "answers": 0.0}

    def grow() -> None:
        while not over.wait(0.01):
            seen["grown"] = max(seen["grown"], process.memory_info().rss - before)

    def ask() -> None:
        with running.client() as client:
            while not over.wait(0.01):
                assert client.get("/health").status_code == 200
                seen["answers"] += 1

    threads = [threading.Thread(target=grow), threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    ("path", "field", "entry"),
    [
        ("/v1/completions", "prompt", "{}"),
        ("/v1/completions", "prompt", "1"),
        ("/v1/completions", "prompt", "[]"),
        ("/v1/completions", "stop", "{}"),
        ("/v1/chat/completions", "messages", "{}"),
        ("/detokenize", "tokens", "-1"),
    ],
)
def test_many_mistakes_cost_no_more_than_one(base: Running, path: str, field: str, entry: str) -> None:
    most = MAX_BRACKETS - 10 if entry in ("{}", "[]") else MEGABYTES
    entries = ",".join([entry] * min(most, MEGABYTES // (len(entry) + 1)))
    body = f'{{"prompt":"x","{field}":[{entries}]}}' if field == "stop" else f'{{"{field}":[{entries}]}}'
    with watched(base) as seen:
        answer = httpx.post(base.url + path, content=body, timeout=120)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].split(".")[0] == field
    assert seen["grown"] < 400 << 20, f"{seen['grown'] / 2**20:.0f} MiB"


@pytest.mark.parametrize("entry", ["{}", "[]"])
def test_a_million_lists_are_not_even_read(base: Running, entry: str) -> None:
    entries = ",".join([entry] * (MEGABYTES // 3))
    with watched(base) as seen:
        answer = httpx.post(base.url + "/v1/completions", content=f'{{"prompt":[{entries}]}}', timeout=120)
    assert answer.status_code == 400 and "opening brackets" in answer.json()["error"]["message"]
    assert seen["grown"] < 100 << 20


REPLY = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"prompt": "x", "stop": 5}, "stop", "up to 16 texts"),
        ({"prompt": "x", "stop": ["a" * 1001]}, "stop", "up to 1000 characters"),
        ({"prompt": "x", "stop": ["a"] * 17}, "stop", "16 entries at most"),
        ({"prompt": ["x", 1]}, "prompt", "a list of texts, a list of token ids"),
        ({"prompt": {"a": 1}}, "prompt", "give a text"),
        ({"prompt": []}, "prompt", "no list may be empty"),
        ({"prompt": [1] * (MAX_IDS + 1)}, "prompt", f"{MAX_IDS} entries at most"),
        ({"prompt": ["x"] * 33}, "prompt", "32 prompts at most, not 33"),
        ({"prompt": ["x"] * 17, "n": 2}, "n", "32 replies at most, not 34"),
        ({"prompt": "x", "max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"prompt": "x", "repetition_penalty": "s"}, "repetition_penalty", "valid number"),
        ({"prompt": "x", "stream_options": {}}, "stream_options", "only allowed with stream=true"),
        ({"prompt": "x", "stream_options": 5, "stream": True}, "stream_options", "give a JSON object"),
        ({"messages": [REPLY], "top_logprobs": 3}, "top_logprobs", "only allowed with logprobs=true"),
        ({"messages": [REPLY], "continue_final_message": True}, "continue_final_message", "needs a last message"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "refusal"}]}]}, "messages.0.content", "a list of parts"),
        ({"messages": [REPLY] * (MAX_MESSAGES + 1)}, "messages", "1024 entries at most"),
    ],
)
def test_a_refusal_names_the_field_and_what_it_may_be(
    base: Running, change: dict[str, Any], param: str, words: str
) -> None:
    route = "chat/completions" if "messages" in change else "completions"
    error = base.post(f"/v1/{route}", **{"max_tokens": 1} | change).json()["error"]
    assert error["param"] == param and words in error["message"]


def test_as_many_messages_as_the_limit_are_taken(base: Running) -> None:
    assert base.post("/v1/chat/completions", messages=[REPLY] * MAX_MESSAGES, max_tokens=1).status_code == 200


def test_long_texts_are_tokenised_beside_the_streams(base: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's lock is released on the way: nothing else in the process runs while one thread keeps it."""
    text = "let x = 1;\n" * 80_000
    meanwhile: list[float] = []
    encode = TextCodec.encode
    with watched(base) as seen:

        def counted(codec: TextCodec, text: str, *options: bool) -> list[int]:
            before = seen["answers"]
            ids = encode(codec, text, *options)
            meanwhile.append(seen["answers"] - before)
            return ids

        monkeypatch.setattr(TextCodec, "encode", counted)
        answer = base.post("/tokenize", content=text)
        ids = answer.json()["tokens"]
        assert answer.status_code == 200 and len(ids) > 100_000
        assert base.post("/detokenize", tokens=ids[:50_000]).json()["content"] in text
    assert meanwhile[0] >= 2, "the event loop answers while a text is tokenised"


def test_more_than_a_million_characters_are_not_tokenised(base: Running) -> None:
    error = base.post("/tokenize", content="a" * (MAX_TOKENIZED + 1)).json()["error"]
    assert error["param"] == "content" and error["message"] == "content: 1048576 characters at most"
    error = base.post("/detokenize", tokens=[1] * (MAX_IDS + 1)).json()["error"]
    assert error["param"] == "tokens" and "1048576 entries at most" in error["message"]


def test_long_texts_get_the_ids_of_short_ones(base: Running) -> None:
    codec = base.service.model.codec
    for text in ("let x = 1;\n" * 2000, "naïve 日本 🦀 " * 2000):
        assert codec.encode(text, bos=False) == codec.tokenizer.encode(text, add_special_tokens=False).ids
    with pytest.raises(UserError, match="not valid Unicode"):
        codec.encode("a" * 10_000 + "\ud800")
