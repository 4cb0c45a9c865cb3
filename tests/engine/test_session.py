"""Replies: text, stopping, cancelling, limits, re-use of the cache."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from support import TINY, tiny_tokenizer

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.generate.stopping import StopScanner
from nanochat_tui.engine.run.draw import Drawn
from nanochat_tui.engine.run.executor import CHUNK, Piece
from nanochat_tui.errors import UserError

MakeModel = Callable[..., Model]


@pytest.fixture(scope="module", params=[1, 2])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Model:
    return make_model(TINY, threads=request.param)


def greedy(model: Model, ids: list[int], n: int) -> list[int]:
    """Token by token from the logits of the whole sequence."""
    out: list[int] = []
    for _ in range(n):
        out.append(int(model.logits(ids + out)[-1].argmax()))
    return out


def test_greedy_reply_is_the_argmax_of_the_logits(model: Model) -> None:
    ids = model.encode("fn main")
    assert ids[0] == 299
    reply = model.generate(ids, max_tokens=20, temperature=0)
    tokens = list(reply)
    assert [t.id for t in tokens] == greedy(model, ids, len(tokens))
    assert reply.finish_reason == ("length" if len(tokens) == 20 else "stop")
    assert reply.stats.prompt_tokens == len(ids)
    assert reply.stats.generated_tokens == len(tokens) - 1


def test_a_string_prompt_is_encoded(model: Model) -> None:
    by_text = [t.id for t in model.generate("let main", max_tokens=5, seed=0)]
    assert by_text == [t.id for t in model.generate(model.encode("let main"), max_tokens=5, seed=0)]


@pytest.mark.parametrize("seed", range(5))
def test_text_is_whole_and_complete(model: Model, seed: int) -> None:
    tokens = list(model.generate("é", max_tokens=60, temperature=2.0, top_k=0, top_p=1.0, seed=seed))
    text = "".join(t.text for t in tokens)
    assert text == model.codec.decode([t.id for t in tokens])


def test_stop_string_cuts_the_text_wherever_tokens_end(model: Model) -> None:
    def reply(**options: object) -> tuple[str, list[int], str]:
        made = model.generate("fn", max_tokens=60, temperature=1.0, top_k=0, top_p=1.0, seed=4, **options)  # type: ignore[arg-type]
        tokens = list(made)
        return "".join(t.text for t in tokens), [t.id for t in tokens], made.finish_reason

    whole, ids, _ = reply()
    for start, length in ((3, 1), (10, 4), (20, 7)):
        stop = whole[start : start + length]
        text, used, reason = reply(stop=[stop, "never in the text"])
        assert text == whole[: whole.index(stop)]
        assert reason == "stop"
        assert used == ids[: len(used)]
    text, used, _ = reply(stop="\x00nowhere")
    assert (text, used) == (whole, ids)


def test_text_held_back_for_a_stop_string_comes_out_at_the_end(model: Model) -> None:
    whole = "".join(t.text for t in model.generate("fn", max_tokens=12, seed=4))
    stop = whole[-1] + "and something that never comes"
    assert "".join(t.text for t in model.generate("fn", max_tokens=12, seed=4, stop=[stop])) == whole


def test_an_end_token_ends_the_reply(make_model: MakeModel) -> None:
    model = make_model(TINY, threads=1)
    # the end token is likely enough at a high temperature
    for seed in range(300):
        reply = model.generate([1, 2, 3], max_tokens=40, temperature=30.0, top_k=0, top_p=1.0, seed=seed)
        tokens = list(reply)
        assert all(t.id != 299 for t in tokens)
        if reply.finish_reason == "stop":
            assert len(tokens) < 40
            return
    pytest.fail("no reply ended")


def test_scanner() -> None:
    def run(stops: list[str], *pieces: str) -> tuple[list[str], bool, str]:
        scanner = StopScanner(stops)
        out = [scanner.feed(piece) for piece in pieces]
        return out, scanner.stopped, scanner.flush()

    assert run([], "a", "b") == (["a", "b"], False, "")
    assert run(["END"], "aE", "N", "Db") == (["a", "", ""], True, "")
    assert run(["END"], "aE", "N", "x") == (["a", "", "ENx"], False, "")
    assert run(["END"], "aE", "N") == (["a", ""], False, "EN")
    assert run(["aab"], "a", "a", "a", "b") == (["", "", "a", ""], True, "")
    assert run(["xyz", "y"], "wx", "y") == (["w", "x"], True, "")
    assert run([""], "a") == (["a"], False, "")


@pytest.mark.parametrize("at", [0, 1, 5])
def test_cancel_takes_effect_at_the_next_token(model: Model, at: int) -> None:
    cancel = threading.Event()
    reply = model.generate("fn", max_tokens=80, seed=1, cancel=cancel)
    tokens = []
    if at == 0:
        cancel.set()
    for token in reply:
        tokens.append(token)
        if len(tokens) == at:
            cancel.set()
    assert len(tokens) == at
    assert reply.finish_reason == "cancelled"


def test_cancel_between_chunks_of_the_prompt(make_model: MakeModel) -> None:
    model = make_model(TINY.with_(context_length=4 * CHUNK), threads=1)
    session, cancel = Session(model), threading.Event()
    execute, calls = model.executor.execute, []

    def counted(pieces: Sequence[Piece]) -> list[Drawn]:
        calls.append(pieces)
        cancel.set()
        return execute(pieces)

    model.executor.execute = counted  # type: ignore[method-assign]
    assert list(session.generate([1] * (3 * CHUNK), cancel=cancel)) == []
    assert len(calls) == 1
    assert session.finish_reason == "cancelled"
    assert session.position == CHUNK
    del model.executor.execute
    # what was computed before is still good
    tokens = [t.id for t in session.generate([1] * (3 * CHUNK), max_tokens=5, temperature=0)]
    assert session.stats.reused_tokens == CHUNK
    assert tokens == [t.id for t in model.generate([1] * (3 * CHUNK), max_tokens=5, temperature=0)]


def test_common_beginning_is_not_computed_again(model: Model) -> None:
    session = Session(model)
    first = [9, 8, 7, 6, 5, 4]
    reply = [t.id for t in session.generate(first, max_tokens=8, temperature=0)]
    assert session.position >= len(first) + len(reply) - 1
    longer = [*first, *reply, 33, 34]
    again = [t.id for t in session.generate(longer, max_tokens=8, temperature=0)]
    assert session.stats.reused_tokens >= len(first) + len(reply) - 1
    assert session.stats.prompt_tokens + session.stats.reused_tokens == len(longer)
    assert again == [t.id for t in Session(model).generate(longer, max_tokens=8, temperature=0)]
    other = [*first[:3], 77, 78]
    changed = [t.id for t in session.generate(other, max_tokens=8, temperature=0)]
    assert session.stats.reused_tokens == 3
    assert changed == [t.id for t in Session(model).generate(other, max_tokens=8, temperature=0)]
    same = [t.id for t in session.generate(other, max_tokens=8, temperature=0)]
    assert session.stats.reused_tokens == 4
    assert same == changed


def test_abandoned_reply_leaves_the_session_usable(model: Model) -> None:
    session = Session(model)
    for seed in range(3):
        reply = session.generate([4, 5, 6], max_tokens=50, seed=seed)
        for _ in range(7):
            next(reply)
    wanted = [t.id for t in Session(model).generate([4, 5, 6], max_tokens=10, temperature=0)]
    assert [t.id for t in session.generate([4, 5, 6], max_tokens=10, temperature=0)] == wanted


def test_the_context_is_a_limit(model: Model) -> None:
    limit = TINY.context_length
    reply = model.generate([1] * (limit - 5), max_tokens=50, temperature=1.0, seed=0)
    assert len(list(reply)) == 5
    assert reply.finish_reason == "length"
    full = model.generate([1] * limit, max_tokens=5)
    assert list(full) == []
    assert full.finish_reason == "length"
    with pytest.raises(UserError, match=f"{limit + 1} tokens .* holds {limit}"):
        model.generate([1] * (limit + 1))
    session = Session(model, context=20)
    assert len(list(session.generate([1] * 12, max_tokens=50, seed=0))) == 8
    with pytest.raises(UserError):
        session.generate([1] * 21)
    for context in (0, limit + 1):
        with pytest.raises(UserError):
            Session(model, context=context)


def test_empty_prompts(make_model: MakeModel) -> None:
    model = make_model(TINY, threads=1)
    begin = [t.id for t in model.generate([299], max_tokens=4, temperature=0)]
    assert [t.id for t in model.generate("", max_tokens=4, temperature=0)] == begin
    assert [t.id for t in model.generate([], max_tokens=4, temperature=0)] == begin
    assert list(model.generate("fn", max_tokens=0)) == []
    with pytest.raises(UserError):
        model.generate("fn", max_tokens=-1)
    with pytest.raises(UserError):
        model.generate([300])


def test_sessions_share_a_model(model: Model) -> None:
    prompts = [[i, i + 1, i + 2] for i in range(4)]
    wanted = [[t.id for t in Session(model).generate(p, max_tokens=30, temperature=0)] for p in prompts]
    found: dict[int, list[int]] = {}

    def run(index: int) -> None:
        found[index] = [t.id for t in Session(model).generate(prompts[index], max_tokens=30, temperature=0)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [found[i] for i in range(4)] == wanted


def test_interleaved_sessions(model: Model) -> None:
    a, b = Session(model), Session(model)
    streams = [s.generate([i + 1, 2, 3], max_tokens=20, temperature=0) for i, s in enumerate((a, b))]
    mixed = [[t.id for t in pair] for pair in zip(*streams, strict=True)]
    for i, ids in enumerate(np.array(mixed).T.tolist()):
        assert ids == [t.id for t in Session(model).generate([i + 1, 2, 3], max_tokens=20, temperature=0)]


def test_nothing_runs_between_replies(make_model: MakeModel) -> None:
    model = make_model(TINY, threads=3)
    list(model.generate("fn", max_tokens=10))
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.25, "one thread that spins would need 0.5 s"
    list(model.generate("fn", max_tokens=10))
    model.close()


def test_threads_end_with_the_model(make_model: MakeModel) -> None:
    def workers() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if t.name.startswith("nanochat-engine")}

    before = workers()
    model = make_model(TINY, threads=4)
    list(model.generate("fn", max_tokens=3))
    own = workers() - before
    assert len(own) == 3
    del model
    gc.collect()
    deadline = time.monotonic() + 120
    while workers() & own and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not workers() & own


def test_tokenizer_is_the_bare_one(model: Model) -> None:
    assert model.tokenizer.encode("fn main").ids == tiny_tokenizer().encode("fn main").ids
    assert model.decode(model.encode("fn main é")) == "fn main é"
    assert model.chat_template is None
    assert model.name == "random"
