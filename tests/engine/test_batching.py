"""Several replies at once: the same tokens as one by one, whatever else is running."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import TINY

from nanochat_tui.engine.batching import Batcher, QueueFull
from nanochat_tui.engine.model import Model
from nanochat_tui.engine.session import Session
from nanochat_tui.errors import UserError

MakeModel = Callable[..., Model]
GREEDY: dict[str, Any] = {"temperature": 0.0}


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Model:
    return make_model(TINY, threads=2)


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher]:
    made = Batcher(model, max_sequences=4)
    yield made
    made.close()


def alone(model: Model, ids: list[int], **settings: Any) -> tuple[list[tuple[int, str, float]], str]:
    session = Session(model)
    tokens = [(t.id, t.text, t.logprob) for t in session.generate(ids, **settings)]
    return tokens, session.finish_reason


def test_replies_are_those_of_a_session_of_their_own(model: Model, batcher: Batcher) -> None:
    requests: list[tuple[list[int], dict[str, Any]]] = [
        ([1, 2, 3], {"max_tokens": 20, **GREEDY}),
        ([1, 2, 3], {"max_tokens": 30, "seed": 5, "temperature": 1.5, "top_k": 0, "repeat_penalty": 1.3}),
        (list(range(60)), {"max_tokens": 10, "seed": 1, "top_logprobs": 3}),
        ([7], {"max_tokens": 0}),
        ([8, 9], {"max_tokens": 90, "seed": 2, "presence_penalty": 1.5, "frequency_penalty": 0.5}),
        ([8, 9, 10], {"max_tokens": 200, **GREEDY}),
    ]
    streams = [batcher.submit(ids, **settings) for ids, settings in requests]
    for (ids, settings), stream in zip(requests, streams, strict=True):
        found = [(t.id, t.text, t.logprob) for t in stream]
        assert (found, stream.finish_reason) == alone(model, ids, **settings)
        assert stream.stats.prompt_tokens + stream.stats.reused_tokens == (len(ids) if settings["max_tokens"] else 0)


def test_stop_strings(model: Model, batcher: Batcher) -> None:
    whole = "".join(t.text for t in batcher.submit([5], max_tokens=40, seed=4))
    stream = batcher.submit([5], max_tokens=40, seed=4, stop=whole[5:8])
    assert "".join(t.text for t in stream) == whole[: whole.index(whole[5:8])]
    assert stream.finish_reason == "stop"


def test_cancelling_one_leaves_the_others(model: Model, batcher: Batcher) -> None:
    event = threading.Event()
    streams = [batcher.submit([i, 2], max_tokens=90, cancel=event if i == 1 else None, **GREEDY) for i in range(3)]
    first = [next(streams[0])]
    event.set()
    streams[0].cancel()
    first += list(streams[0])
    assert len(first) <= 90
    list(streams[1])
    assert streams[1].finish_reason == "cancelled"
    assert [t.id for t in streams[2]] == [i for i, _, _ in alone(model, [2, 2], max_tokens=90, **GREEDY)[0]]


def test_a_request_waits_no_longer_than_the_queue(model: Model) -> None:
    batcher = Batcher(model, max_sequences=1, max_waiting=2)
    streams = []
    with pytest.raises(QueueFull, match="waiting"):
        for _ in range(50):
            streams.append(batcher.submit([1] * 90, max_tokens=90, temperature=2.0))
    assert len(streams) >= 2
    batcher.close()
    for stream in streams:
        list(stream)
        assert stream.finish_reason in ("cancelled", "length", "stop")
    with pytest.raises(UserError, match="closed"):
        batcher.submit([1])


def test_closing_lets_replies_end(model: Model) -> None:
    batcher = Batcher(model)
    streams = [batcher.submit([i], max_tokens=10, **GREEDY) for i in range(5)]
    batcher.close(drain_seconds=60)
    for i, stream in enumerate(streams):
        assert [t.id for t in stream] == [t for t, _, _ in alone(model, [i], max_tokens=10, **GREEDY)[0]]


def test_impossible_requests_are_refused(model: Model, batcher: Batcher) -> None:
    for ids, settings in (
        ([300], {}),
        ([1] * 97, {}),
        ([1], {"temperature": -1.0}),
        ([1], {"presence_penalty": 3.0}),
        ([1], {"frequency_penalty": float("nan")}),
        ([1], {"max_tokens": -1}),
    ):
        with pytest.raises(UserError):
            batcher.submit(ids, **settings)
    for options in ({"max_sequences": 0}, {"max_waiting": -1}, {"kv_tokens": 0}):
        with pytest.raises(UserError):
            Batcher(model, **options)  # type: ignore[arg-type]


def test_counters(model: Model) -> None:
    batcher = Batcher(model)
    assert batcher.snapshot().running == batcher.snapshot().waiting == 0
    tokens = len(list(batcher.submit([1, 2, 3], max_tokens=10, **GREEDY)))
    tokens += len(list(batcher.submit([1, 2, 3, 4], max_tokens=10, **GREEDY)))
    deadline = time.monotonic() + 10
    while batcher.snapshot().running and time.monotonic() < deadline:
        time.sleep(0.01)
    now = batcher.snapshot()
    assert now.generated_tokens == tokens
    assert now.prompt_tokens + now.reused_tokens == 7
    assert 0 <= now.kv_used_tokens <= now.kv_total_tokens
    batcher.close()


def test_a_closed_model_ends_the_stream_with_its_reason(make_model: MakeModel) -> None:
    model = make_model(TINY, threads=1)
    batcher = Batcher(model)
    model.close()
    with pytest.raises(UserError, match="was closed"):
        list(batcher.submit([1, 2]))
    batcher.close()
