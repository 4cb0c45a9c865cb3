"""Whose prompts share pages: those with the same salt, and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import TINY

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.engine.run.paging import NO_PARENT, PAGE, root_of

MakeModel = Callable[..., Model]
LONG = [(7 * i + 3) % 250 for i in range(4 * PAGE + 5)]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Model:
    return make_model(TINY.with_(context_length=1024), threads=1)


def reused(batcher: Batcher, salt: str | None) -> int:
    stream = batcher.submit(LONG, max_tokens=2, temperature=0, cache_salt=salt)
    list(stream)
    return stream.stats.reused_tokens


def test_a_salt_finds_its_own_pages_only(model: Model) -> None:
    batcher = Batcher(model, max_sequences=2)
    assert [reused(batcher, salt) for salt in ("", "", "a", "a", "b", "", "b")] == [0, 256, 0, 256, 0, 256, 256]
    batcher.close()


def test_without_sharing_nothing_is_found_and_nothing_left_behind(model: Model) -> None:
    batcher = Batcher(model, max_sequences=2)
    assert [reused(batcher, salt) for salt in (None, None, "", None, "")] == [0, 0, 0, 0, 256]
    batcher.close()


def test_a_reply_is_the_same_under_every_salt(model: Model) -> None:
    batcher = Batcher(model, max_sequences=4)
    streams = [batcher.submit(LONG, max_tokens=12, temperature=0, cache_salt=salt) for salt in ("", "a", None, "a")]
    first, *others = [[t.id for t in stream] for stream in streams]
    assert all(other == first for other in others)
    batcher.close()


def test_a_prompt_does_not_wait_for_that_of_another_salt(make_model: MakeModel) -> None:
    # read together, each on its own: neither is told by its time that the other has the same beginning
    batcher = Batcher(make_model(TINY.with_(context_length=8192), threads=1), max_sequences=2)
    ids = [(11 * i) % 250 for i in range(4000)]
    streams = [batcher.submit(ids, max_tokens=1, temperature=0, cache_salt=salt) for salt in ("a", "b")]
    for stream in streams:
        list(stream)
    assert [stream.stats.reused_tokens for stream in streams] == [0, 0]
    assert [stream.stats.prompt_tokens for stream in streams] == [4000, 4000]
    batcher.close()


def test_roots_are_no_pages_numbers() -> None:
    assert root_of("") == NO_PARENT
    roots = {root_of(salt) for salt in ("a", "b", "a\0b", "\ud800", "é")}
    assert len(roots) == 5 and all(root < NO_PARENT for root in roots)
