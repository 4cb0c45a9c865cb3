"""Guessing tokens ahead never changes a reply; when it is tried and given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import TINY

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.generate.speculation import REST_TOKENS, TRIAL_TOKENS, Costs, Speculator
from nanochat_tui.engine.run.drafter import MOST, Proposals
from nanochat_tui.engine.run.draw import Draw
from nanochat_tui.engine.run.executor import Piece
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.errors import UserError
from nanochat_tui.request import GenerationRequest

MakeModel = Callable[..., Model]
REPEATED = [5, 17, 200, 41, 9, 63] * 4
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "seed": 4},
    {"temperature": 0.5, "seed": 5, "repeat_penalty": 1.1, "frequency_penalty": 0.2, "top_logprobs": 2},
]


@pytest.fixture(scope="module", params=[1, 2])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Model:
    return make_model(TINY, threads=request.param)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("prompt", [REPEATED, [1, 2, 3]], ids=["repeated", "new"])
def test_the_reply_is_the_one_without_guessing(model: Model, settings: dict[str, Any], prompt: list[int]) -> None:
    options = {"max_tokens": 200, **settings}
    plain = list(Session(model, speculation="off").generate(prompt, **options))
    session = Session(model, speculation="on")
    assert list(session.generate(prompt, **options)) == plain
    assert session.stats.accepted_tokens <= session.stats.drafted_tokens
    # the cache is as good as after a reply without guesses
    longer = [*prompt, *(t.id for t in plain[:10]), 77]
    after = [t.id for t in session.generate(longer, max_tokens=10, temperature=0)]
    assert after == [t.id for t in Session(model, speculation="off").generate(longer, max_tokens=10, temperature=0)]


def known(text: list[int], *, wrong_every: int) -> type[Proposals]:
    """A drafter that knows how a text goes on, but for one token of so many."""

    class Known(Proposals):
        def propose(self, ids: NDArray[np.int64], most: int) -> list[int]:
            places = range(len(ids), min(len(ids) + most, len(text)))
            return [(text[i] + 1) % TINY.vocab_size if i % wrong_every == 0 else text[i] for i in places]

    return Known


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("wrong_every", [1, 5, 1000], ids=["wrong", "mixed", "right"])
def test_any_other_drafter_changes_nothing_either(model: Model, settings: dict[str, Any], wrong_every: int) -> None:
    prompt, options = [1, 2, 3], {"max_tokens": 200, **settings}
    plain = list(Session(model, speculation="off").generate(prompt, **options))
    text = [*prompt, *(t.id for t in plain)]
    session = Session(model, speculation="on", drafter=known(text, wrong_every=wrong_every))
    assert list(session.generate(prompt, **options)) == plain
    stats = session.stats
    if wrong_every == 1:
        assert stats.accepted_tokens == 0 < stats.drafted_tokens
    elif wrong_every == 1000:
        # all that there was to guess: seven of eight tokens behind the first
        assert stats.accepted_tokens == stats.drafted_tokens >= (len(plain) - 1) * MOST // (MOST + 1) - 1
    else:
        assert 0 < stats.accepted_tokens < stats.drafted_tokens
    longer = [*text, 77][: TINY.context_length - 10]
    after = [t.id for t in session.fork().generate(longer, max_tokens=10, temperature=0)]
    assert after == [t.id for t in Session(model, speculation="off").generate(longer, max_tokens=10, temperature=0)]


def test_guesses_given_for_another_place_are_left_alone(model: Model) -> None:
    """A prompt's job samples first: what was proposed behind the prompt is no guess for what comes after that."""
    cache, prompt = KVCache(model.config, 96, model.kv), [1, 2, 3]
    plain = [t.id for t in Session(model, speculation="off").generate(prompt, max_tokens=9, temperature=0)]
    drafter = known([*prompt, *plain], wrong_every=1000)(prompt, 60)
    draw = Draw(GenerationRequest.of(temperature=0), TINY.vocab_size, [], 32)
    (drawn,) = model.executor.execute([Piece(cache, np.array(prompt), 0, draw, 9, 9, drafter, MOST)])
    assert (drawn.ids, drafter.drafted, drafter.passes) == (plain, 0, 9)


def test_a_drafter_that_proposes_nonsense_is_told(model: Model) -> None:
    class Nonsense(Proposals):
        def propose(self, ids: NDArray[np.int64], most: int) -> list[int]:
            return [TINY.vocab_size]

    with pytest.raises(ValueError, match="outside the vocabulary"):
        list(Session(model, speculation="on", drafter=Nonsense).generate([1, 2, 3], max_tokens=5))


def test_a_drafter_that_proposes_nothing_at_all_is_told_when_it_is_made() -> None:
    class Silent(Proposals):
        pass

    with pytest.raises(TypeError, match="propose"):
        Silent([1, 2, 3], 5)  # type: ignore[abstract]


def test_right_guesses_are_counted(model: Model) -> None:
    """A greedy reply of a random model runs in circles, which is what guesses are good at."""
    session = Session(model, speculation="on")
    tokens = list(session.generate([1, 2, 3], max_tokens=90, temperature=0))
    stats = session.stats
    assert 10 < stats.accepted_tokens < stats.drafted_tokens
    assert stats.accepted_tokens < len(tokens)
    list(Session(model, speculation="off").generate([1, 2, 3], max_tokens=90, temperature=0))


def test_stop_strings_and_end_tokens_inside_guesses(model: Model) -> None:
    whole = "".join(t.text for t in Session(model).generate([1, 2, 3], max_tokens=90, temperature=0))
    stop = whole[40:43]
    texts = []
    for mode in ("off", "on"):
        session = Session(model, speculation=mode)  # type: ignore[arg-type]
        texts.append("".join(t.text for t in session.generate([1, 2, 3], max_tokens=90, temperature=0, stop=[stop])))
        assert session.finish_reason == "stop"
    assert texts[0] == texts[1] == whole[: whole.index(stop)]


@pytest.mark.parametrize("length", [80, 90, 93, 95])
def test_guesses_end_with_the_context(model: Model, length: int) -> None:
    prompt = (REPEATED * 4)[:length]
    plain = [t.id for t in Session(model, speculation="off").generate(prompt, temperature=0)]
    assert [t.id for t in Session(model, speculation="on").generate(prompt, temperature=0)] == plain
    assert len(plain) == TINY.context_length - length


def test_a_batch_guesses_for_a_reply_that_is_alone(make_model: MakeModel) -> None:
    model = make_model(TINY, threads=2, speculation="on")
    batcher = Batcher(model)
    stream = batcher.submit([1, 2, 3], max_tokens=90, temperature=0)
    found = [t.id for t in stream]
    assert stream.stats.accepted_tokens > 10
    streams = [batcher.submit([1, 2, i], max_tokens=80, temperature=0) for i in range(3, 6)]
    together = [[t.id for t in s] for s in streams]
    batcher.close()
    for i, ids in enumerate([found, *together]):
        plain = Session(model, speculation="off").generate([1, 2, max(3, i + 2)], max_tokens=len(ids), temperature=0)
        assert [t.id for t in plain] == ids


def test_it_waits_for_a_time_to_compare_with() -> None:
    speculator = Speculator("auto")
    assert speculator.most() == 0
    speculator.learn(0.001, 1, 0, 0)
    assert speculator.most() == MOST
    assert Speculator("on").most() == MOST
    off = Speculator("off")
    off.learn(0.001, 1, 0, 0)
    assert off.most() == 0


def test_it_goes_on_while_it_pays_and_rests_when_it_does_not() -> None:
    speculator = Speculator("auto")
    speculator.learn(0.010, 10, 0, 0)
    # passes with guesses take twice as long and bring two more tokens
    for _ in range(20):
        speculator.learn(0.010, 5, 5, 10)
        assert speculator.most() == MOST
    pause = TRIAL_TOKENS
    while pause < REST_TOKENS:
        # three times as long for hardly anything, until that is noticed
        for _ in range(20):
            if speculator.most() == 0:
                break
            speculator.learn(0.015, 5, 5, 1)
        rested = 0
        while speculator.most() == 0:
            speculator.learn(0.008, 8, 0, 0)
            rested += 8
        assert pause <= rested < pause + 8
        pause = min(2 * pause, REST_TOKENS)


def test_costs_are_shared_and_what_was_right_is_not() -> None:
    costs = Costs()
    first = Speculator("auto", costs)
    first.learn(0.010, 10, 0, 0)
    while first.most():
        first.learn(0.020, 5, 5, 0)  # nothing was right
    # another text is tried at once, as soon as a pass of its own was timed
    second = Speculator("auto", costs)
    assert second.most() == 0
    second.learn(0.005, 1, 0, 0)
    assert second.most() == MOST
    assert costs.plain == pytest.approx(0.7 * 0.001 + 0.3 * 0.005)
    # one pass that something else held up does not decide alone
    second.learn(0.010, 5, 5, 10)
    assert second.most() == MOST


def test_unknown_modes_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(UserError, match="speculation"):
        make_model(TINY, threads=1, speculation="maybe")
