"""One generation step, driven by hand: prefill in any pieces, decode in any passes, preemption in between."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import TINY

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.generate.speculation import Mode, Speculator
from nanochat_tui.engine.generate.step import BURST_SECONDS, Pace, TokenSequence, run_step
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.engine.run.paging import PAGE, PagePool, pages_for
from nanochat_tui.request import GenerationRequest, Token

MakeModel = Callable[..., Model]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0, "max_tokens": 30},
    {"temperature": 1.1, "seed": 3, "repeat_penalty": 1.2, "logprobs": True, "max_tokens": 40},
    {"temperature": 0.9, "seed": 4, "min_p": 0.02, "stop": ["le"], "top_logprobs": 1},
]
PROMPTS = [[5, 17, 200, 41, 9, 63] * 20, [7], [5, 17, 200, 41, 9, 63] * 11 + [8]]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Model:
    return make_model(TINY.with_(context_length=400), threads=2)


def sequence_of(model: Model, prompt: list[int], settings: dict[str, Any], mode: Mode = "off") -> TokenSequence:
    request = GenerationRequest.of(**settings)
    return TokenSequence(model, prompt, request, model.config.context_length, 16, Speculator(mode))


@pytest.mark.parametrize("mode", ["off", "on"])
@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_steps_gives_the_tokens_of_a_session(model: Model, seed: int, mode: Mode) -> None:
    rng = random.Random(seed)
    pool = PagePool(model.config, 0, model.kv)
    pool.grow(3 * pages_for(400) + 3)
    sequences = [sequence_of(model, p, s, mode) for p, s in zip(PROMPTS, SETTINGS, strict=True)]
    found: dict[TokenSequence, list[Token]] = {sequence: [] for sequence in sequences}
    going, cancel, preempted = list(sequences), threading.Event(), 0
    for sequence in sequences:
        sequence.attach(KVCache(model.config, 400, model.kv, pool))
    while going:
        if rng.random() < 0.2:
            victim = rng.choice(going)
            preempted += 1
            victim.preempt()
            victim.attach(KVCache(model.config, 400, model.kv, pool))
            if rng.random() < 0.5:
                victim.match_prefix()
        chosen = rng.sample(going, rng.randint(1, len(going)))
        prefill = {one: rng.randint(1, min(40, one.to_run)) for one in chosen if one.prefilling}
        decode = [one for one in chosen if not one.prefilling]
        step = run_step(model.executor, prefill, decode, rng.randint(1, 5))
        for one, drawn in step.drawn:
            assert one in decode or one.to_run == 0
            found[one] += one.accept(drawn, cancel)
            if one.finish_reason is not None:
                going.remove(one)
                one.release()
    assert preempted
    for sequence, prompt, settings in zip(sequences, PROMPTS, SETTINGS, strict=True):
        session = Session(model, speculation="off")
        assert found[sequence] == list(session.generate(prompt, **settings))
        assert sequence.finish_reason == session.finish_reason
        assert sequence.ids[: len(prompt)] == prompt
        assert pool.used == 0


def test_a_prefix_is_counted_once_however_often_it_is_looked_for(model: Model) -> None:
    prompt = PROMPTS[0]
    pool = PagePool(model.config, 0, model.kv)
    pool.grow(2 * pages_for(400) + 2)
    first, second = (sequence_of(model, prompt, SETTINGS[0]) for _ in range(2))
    for sequence in (first, second):
        sequence.attach(KVCache(model.config, 400, model.kv, pool))
    assert (first.match_prefix(), first.to_run, first.prefilling) == (0, len(prompt), True)
    run_step(model.executor, {first: PAGE + 3}, (), 1)
    assert (second.match_prefix(), second.match_prefix()) == (PAGE, 0)
    run_step(model.executor, {second: 5}, (), 1)
    assert second.match_prefix() == 0, "what it computed itself is no find"
    assert (second.stats.reused_tokens, second.stats.prompt_tokens) == (PAGE, 5)
    second.preempt()
    assert (second.stats.reused_tokens, second.stats.prompt_tokens) == (0, 0), "each token of the prompt counts once"
    with pytest.raises(RuntimeError, match="no KV cache"):
        second.match_prefix()


def test_a_cancelled_sequence_takes_no_further_token(model: Model) -> None:
    sequence, cancel = sequence_of(model, [1, 2, 3], SETTINGS[0]), threading.Event()
    sequence.attach(KVCache(model.config, 400, model.kv))
    ((_, drawn),) = run_step(model.executor, {sequence: 3}, (), 1).drawn
    assert len(list(sequence.accept(drawn, cancel))) == 1
    ((_, drawn),) = run_step(model.executor, {}, [sequence], 4).drawn
    assert len(drawn.ids) == 4
    taken = []
    for token in sequence.accept(drawn, cancel):
        taken.append(token.id)
        cancel.set()
    assert taken == drawn.ids[:1]
    assert sequence.finish_reason == "cancelled"
    assert sequence.cache.ids == sequence.ids, "the next reply may begin with it"


def test_the_pace_doubles_as_long_as_there_is_time() -> None:
    pace = Pace(16)
    found = []
    for seconds in (0.0001, 0.0001, 0.0001, 0.0001, 0.0001, BURST_SECONDS / 3, 1.0, 0.0001):
        pace.learn(seconds)
        found.append(pace.passes)
    assert found == [2, 4, 8, 16, 16, 3, 1, 2]
    pace.restart()
    assert pace.passes == 1
