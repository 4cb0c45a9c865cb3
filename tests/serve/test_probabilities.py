"""Probabilities of a reply belong to its text: their bytes joined are the text, their offsets lie in it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from servers import PROMPT, Running
from support import tiny_tokenizer

from nanochat_tui.engine.generate.stopping import ReplyText
from nanochat_tui.model.tokenizer import TextCodec
from nanochat_tui.request import Token
from nanochat_tui.serve.spelling import Spelling
from nanochat_tui.serve.writers import TextWriter

NOISE = {"max_tokens": 60, "temperature": 2.0, "top_k": 0, "top_p": 1.0}


@pytest.mark.parametrize("text", ["日本 🦀 é\n    x", "    if é {\n        f(\t)\n\n    }", "plain"])
@pytest.mark.parametrize("lot", [1, 3, 100])
def test_offsets_count_characters_of_the_text(text: str, lot: int) -> None:
    codec = TextCodec(tiny_tokenizer(), bos=299, eos=299, add_bos=True, indentation=4)
    before = codec.encode("let a =")
    ids = codec.encode("let a =" + text)[len(before) :]
    reply = ReplyText(codec.stream(after=before), [])
    tokens = [Token(reply.feed(token), token, -1.0) for token in ids]
    writer = TextWriter(0, "echo", Spelling(codec, before))
    for start in range(0, len(tokens), lot):
        writer.add(tokens[start : start + lot])
    found = writer.whole("length").logprobs
    assert found is not None and len(found.tokens) == len(ids)
    decoder, written = codec.stream(after=before), 4
    for token, offset in zip(ids, found.text_offset, strict=True):
        assert offset == written
        written += len(decoder.feed(token))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_what_a_stop_string_took_away_has_no_probabilities(base: Running, seed: int, stream: bool) -> None:
    client = base.openai()
    settings: dict[str, Any] = {"model": "tiny", "prompt": "日本", "max_tokens": 60, "temperature": 1.0, "seed": seed}
    text = client.completions.create(**settings).choices[0].text
    stop = text[20:26]
    answer = client.completions.create(**settings, stop=[stop], logprobs=1, stream=stream)
    choices = [part.choices[0] for part in answer] if stream else [answer.choices[0]]
    got = "".join(choice.text for choice in choices)
    assert got == text[: text.index(stop)]
    names = [name for choice in choices if choice.logprobs for name in choice.logprobs.tokens]
    raw = b"".join(_bytes(name) for name in names)
    assert raw.decode("utf-8", "replace") == got
    offsets = [offset for choice in choices if choice.logprobs for offset in choice.logprobs.text_offset]
    assert offsets == sorted(offsets) and (not offsets or offsets[-1] < len(got))


def _bytes(name: str) -> bytes:
    if not name.startswith("bytes:"):
        return name.encode()
    return bytes(int(part, 16) for part in name.removeprefix("bytes:").split("\\x")[1:])


def test_chats_and_their_streams_are_cut_alike(chat: Running) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "seed": 3, **NOISE}
    text = chat.post("/v1/chat/completions", **body).json()["choices"][0]["message"]["content"]
    stop = text[10:14]
    choice = chat.post("/v1/chat/completions", **body, stop=stop).json()["choices"][0]
    content = choice["message"]["content"]
    assert content == text[: text.index(stop)] and choice["finish_reason"] == "stop"
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace") == content
    chunks = chat.openai().chat.completions.create(
        model="tiny",
        messages=body["messages"],
        logprobs=True,
        seed=3,
        stop=stop,
        max_tokens=60,
        temperature=2.0,
        top_p=1.0,
        extra_body={"top_k": 0},
        stream=True,
    )
    streamed = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content or ()]
    assert [entry.model_dump() for entry in streamed] == entries


def test_a_token_in_which_a_stop_string_begins_is_cut_there() -> None:
    codec = TextCodec(tiny_tokenizer(), bos=299, eos=299, add_bos=True)
    ids = codec.encode("let main", bos=False)
    assert " main" in [codec.decode([token]) for token in ids]
    reply = ReplyText(codec.stream(), ["ain"])
    writer = TextWriter(0, "", Spelling(codec, codec.encode("")))
    for token in ids:
        writer.add([Token(reply.feed(token), token, -1.0)])
    whole = writer.whole("stop")
    assert whole.text == "let m" and "".join(whole.logprobs.tokens if whole.logprobs else ()) == "let m"


def test_timings_count_every_token(base: Running) -> None:
    reply = base.post("/v1/completions", prompt=PROMPT, max_tokens=8, temperature=0).json()
    assert reply["timings"]["predicted_n"] == reply["usage"]["completion_tokens"] == 8
    with base.client() as client:
        body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stream": True}
        assert '"predicted_n":8' in client.post("/v1/completions", json=body).text
    assert httpx.get(base.url + "/health", timeout=120).status_code == 200
