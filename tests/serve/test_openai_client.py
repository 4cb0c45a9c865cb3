"""OpenAI's own Python client, unchanged: every parameter, streams, and errors as its exceptions."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import httpx
import openai
import pytest
from servers import LONG, PROMPT, Running, files, serving
from support import write_model

from nanochat_tui.chat.backend import Request, Token
from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.engine.generate.model import load
from nanochat_tui.request import SamplingParams
from nanochat_tui.serve.settings import Settings

ASK = [{"role": "user", "content": "hello"}]


def test_a_chat_completion_has_every_field(chat: Running) -> None:
    reply = chat.openai().chat.completions.create(model="tiny", messages=ASK, max_tokens=8, temperature=0)
    assert reply.object == "chat.completion" and reply.model == "tiny" and reply.id.startswith("chatcmpl-")
    (choice,) = reply.choices
    assert choice.index == 0 and choice.message.role == "assistant" and choice.logprobs is None
    assert choice.finish_reason == "length"
    assert reply.usage is not None
    # BOS, "Q: hello\nA:" in single bytes
    assert reply.usage.prompt_tokens == 12 and reply.usage.completion_tokens == 8 and reply.usage.total_tokens == 20
    assert reply.system_fingerprint and reply.created > 1_600_000_000


def test_the_engine_says_the_same(chat: Running) -> None:
    model = chat.service.model
    expected = "".join(t.text for t in model.generate("Q: hello\nA:", max_tokens=40, temperature=0))
    reply = chat.openai().chat.completions.create(model="tiny", messages=ASK, max_tokens=40, temperature=0)
    assert reply.choices[0].message.content == expected


def test_a_stream_says_the_same_as_a_whole_reply(chat: Running) -> None:
    client = chat.openai()
    settings = {"model": "tiny", "messages": ASK, "max_completion_tokens": 60, "temperature": 1.0, "seed": 5}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1])
    assert chunks[-1].choices == [] and all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_without_include_usage_no_chunk_has_it(chat: Running) -> None:
    chunks = list(chat.openai().chat.completions.create(model="tiny", messages=ASK, max_tokens=3, stream=True))
    assert all(c.usage is None and c.choices for c in chunks)


def test_log_probabilities_of_a_chat(chat: Running) -> None:
    client = chat.openai()
    settings = {"model": "tiny", "messages": ASK, "max_tokens": 12, "temperature": 0, "logprobs": True}
    reply = client.chat.completions.create(**settings, top_logprobs=4)
    entries = reply.choices[0].logprobs.content
    assert len(entries) == 12
    for entry in entries:
        assert len(entry.top_logprobs) == 4
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)  # greedy takes the likeliest
        assert entry.bytes == entry.top_logprobs[0].bytes
        assert sum(math.exp(o.logprob) for o in entry.top_logprobs) <= 1 + 1e-5
    joined = b"".join(bytes(e.bytes) for e in entries)
    assert joined.decode("utf-8", "replace") == reply.choices[0].message.content
    streamed = [
        e
        for c in client.chat.completions.create(**settings, top_logprobs=4, stream=True)
        if c.choices and c.choices[0].logprobs
        for e in c.choices[0].logprobs.content
    ]
    assert streamed == entries
    alone = client.chat.completions.create(**settings)
    assert [e.top_logprobs for e in alone.choices[0].logprobs.content] == [[]] * 12


def test_log_probabilities_of_a_completion(base: Running) -> None:
    client = base.openai()
    settings = {"model": "tiny", "prompt": PROMPT, "max_tokens": 10, "temperature": 0}
    reply = client.completions.create(**settings, logprobs=3)
    logprobs = reply.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 10
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert len(top) == 3 and top[token] == pytest.approx(logprob)
    assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)
    chosen_only = client.completions.create(**settings, logprobs=0).choices[0].logprobs
    assert chosen_only.tokens == logprobs.tokens
    assert [list(top) for top in chosen_only.top_logprobs] == [[token] for token in logprobs.tokens]


def test_the_chosen_token_is_among_the_probabilities_even_if_unlikely(base: Running) -> None:
    settings = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "temperature": 2.0, "seed": 1}
    logprobs = base.openai().completions.create(**settings, logprobs=1).choices[0].logprobs
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == pytest.approx(logprob)
        assert len(top) == (1 if max(top, key=top.__getitem__) == token else 2)
    assert {len(top) for top in logprobs.top_logprobs} >= {2}


def test_a_completion_defaults_to_sixteen_tokens_and_streams(base: Running) -> None:
    client = base.openai()
    whole = client.completions.create(model="tiny", prompt=PROMPT, temperature=0)
    assert whole.object == "text_completion" and whole.usage.completion_tokens == 16
    chunks = list(client.completions.create(model="tiny", prompt=PROMPT, temperature=0, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_echo_repeats_the_prompt(base: Running) -> None:
    client = base.openai()
    plain = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, temperature=0)
    echo = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, temperature=0, echo=True)
    assert echo.choices[0].text == PROMPT + plain.choices[0].text
    only = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, echo=True)
    assert only.choices[0].text == PROMPT and only.choices[0].finish_reason == "length"
    streamed = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=5, temperature=0, echo=True, stream=True
    )
    assert "".join(c.choices[0].text for c in streamed) == echo.choices[0].text


def test_several_replies_have_seeds_of_their_own(base: Running) -> None:
    client = base.openai()
    settings = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 1.0}
    three = client.completions.create(**settings, seed=7, n=3)
    assert [c.index for c in three.choices] == [0, 1, 2]
    alone = [client.completions.create(**settings, seed=7 + i).choices[0].text for i in range(3)]
    assert [c.text for c in three.choices] == alone and len(set(alone)) == 3
    assert three.usage.completion_tokens == 36
    again = client.completions.create(**settings, seed=7, n=3, stream=True)
    texts = ["", "", ""]
    for chunk in again:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == alone


def test_several_prompts_and_prompts_of_ids(base: Running) -> None:
    client = base.openai()
    settings = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    both = client.completions.create(prompt=[PROMPT, "let"], n=2, **settings)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    one, other = (client.completions.create(prompt=p, **settings).choices[0].text for p in (PROMPT, "let"))
    assert [c.text for c in both.choices] == [one, one, other, other]
    ids = base.service.model.encode(PROMPT)
    assert client.completions.create(prompt=ids, **settings).choices[0].text == one
    assert client.completions.create(prompt=[ids, ids], **settings).choices[1].text == one
    assert both.usage.prompt_tokens == len(ids) + len(base.service.model.encode("let"))


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_across_token_borders(base: Running, stream: bool) -> None:
    client = base.openai()
    settings = {"model": "tiny", "prompt": PROMPT, "max_tokens": 60, "temperature": 1.0, "seed": 3}
    text = client.completions.create(**settings).choices[0].text
    stop = text[20:26]
    assert len(stop.encode()) > 1  # one token is one byte here, so the stop string lies across tokens
    reply = client.completions.create(**settings, stop=["never to be found", stop], stream=stream)
    if stream:
        chunks = list(reply)
        got, reason = "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        got, reason = reply.choices[0].text, reply.choices[0].finish_reason
    assert got == text[: text.index(stop)] and reason == "stop"


def test_penalties_change_the_reply(base: Running) -> None:
    client = base.openai()
    settings = {"model": "tiny", "prompt": PROMPT, "max_tokens": 60, "temperature": 0}
    plain = client.completions.create(**settings).choices[0].text
    for name in ("presence_penalty", "frequency_penalty"):
        assert client.completions.create(**settings, **{name: 2.0}).choices[0].text != plain
    for name in ("repeat_penalty", "repetition_penalty"):
        assert client.completions.create(**settings, extra_body={name: 1.5}).choices[0].text != plain


def test_top_k_and_top_p_of_almost_nothing_are_greedy(base: Running) -> None:
    client = base.openai()
    settings = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20}
    greedy = client.completions.create(**settings, temperature=0).choices[0].text
    for narrow in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert client.completions.create(**settings, temperature=2, extra_body=narrow).choices[0].text == greedy


def test_characters_of_several_bytes_are_never_broken(base: Running) -> None:
    # random bytes: nearly every reply holds unfinished characters, so pieces must agree with the whole decoding
    client = base.openai()
    for seed in range(4):
        settings = {"model": "tiny", "prompt": "日本", "max_tokens": 80, "temperature": 2.0, "seed": seed}
        extra = {"top_k": 0, "top_p": 1.0}
        whole = client.completions.create(**settings, extra_body=extra)
        pieces = client.completions.create(**settings, extra_body=extra, stream=True)
        assert "".join(c.choices[0].text for c in pieces) == whole.choices[0].text


def test_models(chat: Running) -> None:
    client = chat.openai()
    first, second = client.models.list().data
    assert (first.id, second.id) == ("tiny", "gpt-4o") and first.object == "model"
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"
    assert client.chat.completions.create(model="gpt-4o", messages=ASK, max_tokens=1).model == "gpt-4o"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"top_logprobs": 3}, None),
        ({"stream_options": {"include_usage": True}}, None),
        ({"temperature": -1}, "temperature"),
        ({"extra_body": {"repeat_penalty": 1e-7}}, "repeat_penalty"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 33}, "n"),
        ({"stop": ["x" * 1001]}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
    ],
)
def test_refusals_are_bad_requests_that_name_the_parameter(chat: Running, change: dict, param: str | None) -> None:
    body = {"model": "tiny", "messages": ASK, "max_tokens": 3} | change
    with pytest.raises(openai.BadRequestError) as caught:
        chat.openai().chat.completions.create(**body)
    assert caught.value.body["type"] == "invalid_request_error"
    if param is not None:
        assert caught.value.body["param"] == param


@pytest.mark.parametrize(
    "neutral",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"user": "someone", "metadata": {"a": "b"}, "extra_body": {"never_heard_of": 1, "top_k": None}},
    ],
)
def test_neutral_and_unknown_fields_are_accepted(chat: Running, neutral: dict) -> None:
    assert chat.openai().chat.completions.create(model="tiny", messages=ASK, max_tokens=1, **neutral).choices


@pytest.mark.parametrize("change", [{"suffix": "x"}, {"best_of": 33}, {"best_of": 2, "n": 3}, {"prompt": [999]}])
def test_completion_refusals(base: Running, change: dict) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        base.openai().completions.create(**({"model": "tiny", "prompt": "x", "max_tokens": 2} | change))
    assert next(iter(change)) in str(caught.value.body)


def test_a_prompt_that_leaves_no_room_says_the_limit(base: Running) -> None:
    with pytest.raises(openai.BadRequestError, match=r"40001 tokens .* 32768") as caught:
        base.openai().completions.create(model="tiny", prompt="x" * 40_000)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"


def test_an_unknown_model_is_not_found_where_names_count(base_file: Path) -> None:
    with serving(files(base_file), Settings("tiny", strict_model=True)) as running:
        with pytest.raises(openai.NotFoundError) as caught:
            running.openai().completions.create(model="gpt-4o", prompt="x")
        assert caught.value.code == "model_not_found"


def test_a_base_model_continues_the_messages_and_takes_no_system(base: Running) -> None:
    client = base.openai()
    text = client.completions.create(model="tiny", prompt="fn main", max_tokens=8, temperature=0).choices[0].text
    turns = [{"role": "user", "content": "fn"}, {"role": "assistant", "content": [{"type": "text", "text": " main"}]}]
    reply = client.chat.completions.create(model="tiny", messages=turns, max_tokens=8, temperature=0)
    assert reply.choices[0].message.content == text
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="tiny", messages=[{"role": "system", "content": "x"}, *turns])


def test_the_last_message_can_be_continued(chat: Running) -> None:
    turns = [*ASK, {"role": "assistant", "content": "well"}]
    model = chat.service.model
    expected = "".join(t.text for t in model.generate("Q: hello\nA: well", max_tokens=8, temperature=0))
    reply = chat.openai().chat.completions.create(
        model="tiny", messages=turns, max_tokens=8, temperature=0, extra_body={"continue_final_message": True}
    )
    assert reply.choices[0].message.content == expected


def test_keys(base_file) -> None:
    with serving(files(base_file), Settings("tiny", api_keys=("first", "second"))) as running:
        for key in ("first", "second"):
            assert running.openai(api_key=key).models.list().data
        with pytest.raises(openai.AuthenticationError):
            running.openai(api_key="third").models.list()
        for path in ("/metrics", "/v1/models", "/v1/nowhere"):
            assert httpx.get(running.url + path, timeout=120).status_code == 401
        for path in ("/tokenize", "/detokenize", "/v1/completions"):
            assert httpx.post(running.url + path, json={}, timeout=120).status_code == 401
        assert httpx.get(running.url + "/metrics", headers={"x-api-key": "second"}, timeout=120).status_code == 200
        for path in ("/health", "/", "/openapi.json"):
            assert httpx.get(running.url + path, timeout=120).status_code == 200
        assert "first" not in "\n".join(running.lines)


def test_a_suffix_is_filled_in_before(tmp_path: Path) -> None:
    path = write_model(tmp_path / "infill.gguf", LONG, infill=True)
    with load(path, threads=1) as model:
        expected = model.generate("fn ", suffix="}", max_tokens=8, temperature=0).read()
        plain = model.generate("fn ", max_tokens=8, temperature=0).read()
    with serving(files(path)) as running:
        ask = {"model": "tiny", "prompt": "fn ", "max_tokens": 8, "temperature": 0}
        client = running.openai().completions
        assert client.create(**ask, suffix="}").choices[0].text == expected != plain
        assert client.create(**ask, suffix="").choices[0].text == plain
        streamed = "".join(part.choices[0].text for part in client.create(**ask, suffix="}", stream=True))
        assert streamed == expected
        attached = RemoteBackend(running.url)
        attached.load()
        request = Request(prompt="fn ", suffix="}", max_tokens=8, sampling=SamplingParams(temperature=0.0))
        events = list(attached.chat(request, threading.Event()))
        assert "".join(event.text for event in events if isinstance(event, Token)) == expected
        with pytest.raises(openai.BadRequestError, match="must be text"):
            client.create(**(ask | {"prompt": [1, 2]}), suffix="}")
