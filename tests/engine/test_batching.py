"""Several replies at once: the same tokens as one by one, whatever else is running."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import TINY

from nanochat_tui.engine.generate import scheduler as batching
from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.scheduler import Batcher, QueueFull
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.run.draw import Draw
from nanochat_tui.engine.run.executor import Piece
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.errors import UserError
from nanochat_tui.request import GenerationRequest

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


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_sixteen_together_equal_sixteen_alone(threads: int, kv: str, make_model: MakeModel) -> None:
    model = make_model(TINY, threads=threads, kv=kv)
    prompts = [[int(i) for i in np.random.default_rng(n).integers(0, 300, 1 + 5 * n)] for n in range(16)]
    requests = [
        {"max_tokens": 10 + n, "seed": n, "temperature": 0.0 if n % 3 == 0 else 0.3 * n, "top_logprobs": n % 3}
        for n in range(16)
    ]
    wanted = [list(Session(model).generate(p, **r)) for p, r in zip(prompts, requests, strict=True)]
    batcher = Batcher(model, max_sequences=16)
    streams = [batcher.submit(p, **r) for p, r in zip(prompts, requests, strict=True)]
    assert [list(stream) for stream in streams] == wanted
    batcher.close()


def test_a_job_of_sixteen_equals_sixteen_jobs(make_model: MakeModel) -> None:
    """Below the batcher: one pass for all, many steps at once, sequences that end at different times."""
    model = make_model(TINY, threads=2)

    def pieces() -> list[Piece]:
        made = []
        for n in range(16):
            cache, ids = KVCache(model.config, 90, "f16"), np.arange(n, n + 1 + n % 4)
            draw = Draw(GenerationRequest.of(temperature=n / 5, seed=n), 300, [n], 40)
            made.append(Piece(cache, ids, 0, draw, 5 + 2 * n))
        return made

    together = model.executor.execute(pieces())
    assert together == [model.executor.execute([piece])[0] for piece in pieces()]
    assert {len(drawn.ids) for drawn in together} != {len(together[0].ids)}


def test_a_shared_beginning_is_computed_once(make_model: MakeModel) -> None:
    model = make_model(TINY.with_(context_length=400), threads=2)
    batcher = Batcher(model)
    system = [int(i) for i in np.random.default_rng(0).integers(0, 300, 200)]
    prompts = [[*system, 10 + i, 20 + i] for i in range(6)]
    streams = [batcher.submit(prompt, max_tokens=12, **GREEDY) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        assert [t.id for t in stream] == [i for i, _, _ in alone(model, prompt, max_tokens=12, **GREEDY)[0]]
    assert [stream.stats.reused_tokens for stream in streams] == [0] + [192] * 5
    assert batcher.snapshot().reused_tokens == 5 * 192
    later = batcher.submit([*prompts[0], 33], max_tokens=4, **GREEDY)
    assert [t.id for t in later] == [i for i, _, _ in alone(model, [*prompts[0], 33], max_tokens=4, **GREEDY)[0]]
    assert later.stats.reused_tokens == 192
    batcher.close()


def test_a_long_prompt_does_not_stall_the_others(make_model: MakeModel) -> None:
    model = make_model(TINY.with_(context_length=4000), threads=1, speculation="off")
    batcher = Batcher(model)
    batcher._budget.row = 1.0  # as if the model were slow: sixteen tokens of a prompt per pass
    short = batcher.submit([1, 2], max_tokens=3000, temperature=2.0, top_k=0, seed=1)
    first = next(short)
    long = batcher.submit([int(i) for i in np.random.default_rng(0).integers(0, 300, 3000)], max_tokens=1)
    assert next(long).id >= 0
    # with one token per pass at least (fewer than all, or the short one was simply first)
    assert short._arrived.qsize() >= 3000 // 128 - 1
    batcher.close()
    assert first.id >= 0


def test_little_memory_makes_requests_wait_not_fail(model: Model) -> None:
    batcher = Batcher(model, max_sequences=8, kv_tokens=130)
    streams = [batcher.submit([i, 2, 3], max_tokens=80, **GREEDY) for i in range(5)]
    assert batcher.snapshot().running <= 1
    for i, stream in enumerate(streams):
        assert [t.id for t in stream] == [t for t, _, _ in alone(model, [i, 2, 3], max_tokens=80, **GREEDY)[0]]
    assert batcher.snapshot().kv_total_tokens == 192
    batcher.close()


SAMPLED: list[dict[str, Any]] = [
    GREEDY,
    {"seed": 3, "temperature": 1.2, "top_k": 0, "repeat_penalty": 1.2},
    {"seed": 4, "presence_penalty": 1.0, "frequency_penalty": 0.3, "top_logprobs": 2},
]


@pytest.mark.parametrize("kv", ["f16", "int8"])
@pytest.mark.parametrize("speculation", ["off", "on"])
def test_preempted_replies_continue_as_if_they_had_not_been(
    kv: str, speculation: str, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(TINY.with_(context_length=400), threads=1, kv=kv, speculation=speculation)
    requests: list[tuple[list[int], dict[str, Any]]] = [
        ([int(i) for i in np.random.default_rng(n).integers(0, 300, 20 + 70 * (n % 3))], SAMPLED[n % 3])
        for n in range(5)
    ]
    wanted = [alone(model, ids, max_tokens=200, **settings) for ids, settings in requests]
    monkeypatch.setattr(batching, "RESERVED_TOKENS", 40)
    preempted: list[bool] = []
    preempt = Batcher._preempt
    monkeypatch.setattr(Batcher, "_preempt", lambda self, r: (preempted.append(r.resumed), preempt(self, r)))
    batcher = Batcher(model, max_sequences=4, kv_tokens=450)
    streams = [batcher.submit(ids, max_tokens=200, **settings) for ids, settings in requests]
    for (ids, _), stream, expected in zip(requests, streams, wanted, strict=True):
        found = [(t.id, t.text, t.logprob) for t in stream]
        assert (found, stream.finish_reason) == expected
        assert stream.stats.prompt_tokens + stream.stats.reused_tokens == len(ids)
        assert stream.stats.generated_tokens >= len(found) - 1
    assert any(preempted), "no request was preempted in the middle of a reply"
    assert batcher.snapshot().kv_used_tokens == 0
    batcher.close()


def test_replies_without_a_limit_run_together(make_model: MakeModel) -> None:
    """Most clients do not say how long a reply may be: the whole context for each would leave room for one."""
    model = make_model(TINY.with_(context_length=20_000), threads=1)
    batcher = Batcher(model, max_sequences=4, kv_tokens=24_000)
    streams = [batcher.submit([n, 2, 3], max_tokens=20_000, temperature=1.5, top_k=0, seed=n) for n in range(3)]
    for stream in streams:
        next(stream)
    assert batcher.snapshot().running == 3
    batcher.close()


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
    for options in ({"max_sequences": 0}, {"max_sequences": 17}, {"max_waiting": -1}, {"kv_tokens": 0}):
        with pytest.raises(UserError):
            Batcher(model, **options)  # type: ignore[arg-type]


def test_counters(model: Model) -> None:
    batcher = Batcher(model)
    assert batcher.snapshot().running == batcher.snapshot().waiting == 0
    tokens = len(list(batcher.submit([1, 2, 3], max_tokens=10, **GREEDY)))
    tokens += len(list(batcher.submit([1, 2, 3, 4], max_tokens=10, **GREEDY)))
    deadline = time.monotonic() + 120
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


def test_a_request_that_finds_no_memory_ends_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made = batching.KVCache

    def third_fails(*arguments: Any) -> KVCache:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("no room for a table")
        return made(*arguments)

    calls: list[int] = []
    monkeypatch.setattr(batching, "KVCache", third_fails)
    batcher = Batcher(model, max_sequences=2)
    streams = [batcher.submit([n + 1], max_tokens=4, **GREEDY) for n in range(5)]
    for n, stream in enumerate(streams):
        if n == 2:
            with pytest.raises(MemoryError):
                list(stream)
        else:
            assert [t.id for t in stream] == [i for i, _, _ in alone(model, [n + 1], max_tokens=4, **GREEDY)[0]]
    assert batcher.snapshot().running == 0
    batcher.close()


def test_the_cache_takes_no_more_than_its_share(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(TINY.with_(context_length=100_000), threads=1)
    for free, tokens in ((1 << 20, 512), (1 << 26, None), (1 << 50, 400_000)):
        monkeypatch.setattr(batching, "available_memory", lambda free=free: free)
        batcher = Batcher(model, max_sequences=4)
        total = batcher.snapshot().kv_total_tokens
        assert tokens is None or tokens <= total < tokens + batching.PAGE
        assert tokens == 512 or total // batching.PAGE * batcher._pool.page_bytes <= free // batching.MEMORY_SHARE
        assert batcher.context == min(100_000, total)
        assert len(list(batcher.submit([1], max_tokens=2, **GREEDY))) == 2
        batcher.close()


class _Recorded:
    """Lets passes begin when told to, and remembers which requests came to their first token in which pass."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.rows: list[list[int]] = []
        execute = model.executor.execute

        def recorded(pieces: list[Piece]) -> Any:
            assert self.go.wait(120)
            self.rows.append([len(piece.ids) for piece in pieces])
            return execute(pieces)

        monkeypatch.setattr(model.executor, "execute", recorded)


def test_a_short_prompt_overtakes_a_long_one(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(TINY.with_(context_length=4000), threads=1, speculation="off")
    passes = _Recorded(model, monkeypatch)
    batcher = Batcher(model)
    rng = np.random.default_rng(1)
    long_ids, short_ids = ([int(i) for i in rng.integers(0, 300, n)] for n in (3000, 40))
    long = batcher.submit(long_ids, max_tokens=1, **GREEDY)
    short = batcher.submit(short_ids, max_tokens=1, **GREEDY)
    passes.go.set()
    assert [t.id for t in short] == [i for i, _, _ in alone(model, short_ids, max_tokens=1, **GREEDY)[0]]
    assert [t.id for t in long] == [i for i, _, _ in alone(model, long_ids, max_tokens=1, **GREEDY)[0]]
    batcher.close()
    first = next(rows for rows in passes.rows if 40 in rows)
    assert passes.rows.index(first) <= 1 and sum(first) <= 40 + 16, "with a bounded share of the long one next to it"
    assert sum(map(sum, passes.rows)) >= 3040


def test_a_request_for_many_replies_leaves_places_to_others(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(TINY.with_(context_length=1000), threads=1, speculation="off")
    passes = _Recorded(model, monkeypatch)
    batcher = Batcher(model, max_sequences=4, max_waiting=64)
    settings: dict[str, Any] = {"max_tokens": 300, "temperature": 1.5, "top_k": 0}
    many = [batcher.submit([5, 6, 7], seed=n, owner="many", **settings) for n in range(12)]
    single = batcher.submit([8, 9], seed=99, max_tokens=4, temperature=1.5, top_k=0)
    passes.go.set()
    assert len(list(single)) == 4
    assert sum(stream.finish_reason is not None for stream in many) <= 4, "it waited for a place, not for all of them"
    for n, stream in enumerate(many):
        wanted = alone(model, [5, 6, 7], seed=n, **settings)
        assert ([(t.id, t.text, t.logprob) for t in stream], stream.finish_reason) == wanted, (
            "also after giving it back"
        )
    batcher.close()
