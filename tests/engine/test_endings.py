"""What ends a reply, and what does not: end tokens, tokens of the request's own, a least length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import TINY

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.engine.generate.session import Session

MakeModel = Callable[..., Model]
PROMPT = [1, 2, 3]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24}


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Model:
    return make_model(TINY, threads=1)


@pytest.fixture(params=["session", "batcher"])
def ids_of(request: pytest.FixtureRequest, model: Model) -> Iterator[Callable[..., tuple[list[int], str, str]]]:
    """Return the ids, the text and the reason of a greedy reply with settings of its ending, alone or in a batch."""
    if request.param == "session":
        session = Session(model)

        def alone(**ending: Any) -> tuple[list[int], str, str]:
            found = list(session.generate(PROMPT, **ending, **GREEDY))
            return [t.id for t in found], "".join(t.text for t in found), session.finish_reason

        yield alone
        return
    batcher = Batcher(model, max_sequences=2)

    def together(**ending: Any) -> tuple[list[int], str, str]:
        stream = batcher.submit(PROMPT, **ending, **GREEDY)
        found = list(stream)
        return [t.id for t in found], "".join(t.text for t in found), str(stream.finish_reason)

    yield together
    batcher.close()


IdsOf = Callable[..., tuple[list[int], str, str]]


def test_a_token_of_the_request_ends_it(ids_of: IdsOf) -> None:
    free, _, reason = ids_of()
    assert len(free) == 24 and reason == "length"
    fifth = free[4]
    first = free.index(fifth)
    assert ids_of(stop_token_ids=frozenset([fifth]))[::2] == (free[:first], "stop")
    # not before the least length, and then at its next place, if it has one
    later = next((i for i in range(first + 1, 24) if free[i] == fifth), 24)
    found, _, reason = ids_of(stop_token_ids=frozenset([fifth]), min_tokens=first + 1)
    assert found == free[:later] and reason == ("stop" if later < 24 else "length")


def test_end_tokens_are_ignored_when_asked(ids_of: IdsOf, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    free, _, _ = ids_of()
    end = free[6]
    first = free.index(end)
    monkeypatch.setitem(model.codec.__dict__, "end_ids", frozenset([end]))
    assert ids_of()[::2] == (free[:first], "stop")
    assert ids_of(ignore_eos=True)[::2] == (free, "length")
    assert ids_of(min_tokens=24)[::2] == (free, "length")
    assert ids_of(ignore_eos=True, stop_token_ids=frozenset([end]))[::2] == (free[:first], "stop")


def test_stop_strings_count_behind_the_least_length_only(ids_of: IdsOf) -> None:
    free, text, _ = ids_of()
    stop = text[2:4]
    assert ids_of(stop=[stop])[1:] == (text[: text.index(stop)], "stop")
    assert ids_of(stop=[stop], min_tokens=24)[1:] == (text, "length")
    assert len(free) == 24
