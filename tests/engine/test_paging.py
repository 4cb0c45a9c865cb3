"""Pages: shared by content, copied before they are written, forgotten in order; replies never notice."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import TINY

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.engine.run.paging import NO_PARENT, PAGE, PagePool, PoolFull, pages_for
from nanochat_tui.errors import UserError
from nanochat_tui.model.architectures.nanochat import of_config

MakeModel = Callable[..., Model]
LONG = TINY.with_(context_length=600)
SHAPE = of_config(TINY)
A, B = list(range(PAGE)), list(range(100, 100 + PAGE))


def ids_of(seed: int, n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 300, n)]


# ---- the pool


def test_a_page_is_found_by_its_tokens_and_what_is_before_them() -> None:
    pool = PagePool(SHAPE, 4)
    first, second = pool.take(), pool.take()
    assert pool.register(first, NO_PARENT, A) is first
    assert pool.register(second, first.number, B) is second
    assert pool.find(NO_PARENT, A) is first
    assert pool.find(first.number, B) is second
    for parent, ids in ((NO_PARENT, B), (first.number, A), (second.number, B), (NO_PARENT, [*A[:-1], 9])):
        assert pool.find(parent, ids) is None
    assert (first.users, second.users, pool.used) == (2, 2, 2)


def test_equal_pages_become_one() -> None:
    pool = PagePool(SHAPE, 2)
    first, second = pool.take(), pool.take()
    pool.register(first, NO_PARENT, A)
    assert pool.register(second, NO_PARENT, A) is first
    assert (first.users, pool.used) == (2, 1)
    assert pool.take() is second


def test_pages_nobody_uses_are_kept_until_their_memory_is_needed() -> None:
    pool = PagePool(SHAPE, 3)
    pages = [pool.take() for _ in range(3)]
    for page, ids in zip(pages, (A, B, [7] * PAGE), strict=True):
        pool.register(page, NO_PARENT, ids)
    with pytest.raises(PoolFull):
        pool.take()
    for page in (pages[1], pages[0]):
        pool.drop(page)
    assert (pool.used, pool.available) == (1, 2)
    assert pool.find(NO_PARENT, B) is pages[1]
    pool.drop(pages[1])
    # A has not been used for longest
    assert pool.take() is pages[0]
    assert pool.find(NO_PARENT, A) is None
    assert pool.take() is pages[1]
    with pytest.raises(PoolFull):
        pool.take()


def test_a_page_is_copied_before_it_is_written() -> None:
    pool = PagePool(SHAPE, 3)
    page = pool.take()
    page.memory[:] = 5
    assert pool.own(page) is page
    pool.share(page)
    copy = pool.own(page)
    assert copy is not page
    assert (copy.memory == 5).all()
    assert (page.users, copy.users) == (1, 1)
    pool.register(page, NO_PARENT, A)
    other = pool.own(page)
    assert other is not page
    assert pool.find(NO_PARENT, A) is page


def test_without_memory_for_a_copy_a_known_page_is_forgotten() -> None:
    pool = PagePool(SHAPE, 1)
    page = pool.register(pool.take(), NO_PARENT, A)
    assert pool.own(page) is page
    assert pool.find(NO_PARENT, A) is None
    pool.register(page, NO_PARENT, A)
    pool.share(page)
    with pytest.raises(PoolFull):
        pool.own(page)


def test_a_pool_shrinks_as_pages_come_back() -> None:
    pool = PagePool(SHAPE, 1)
    pool.grow(2)
    pages = [pool.take() for _ in range(3)]
    pool.grow(-2)
    for page in pages:
        pool.drop(page)
    pool.take()
    with pytest.raises(PoolFull):
        pool.take()


@pytest.mark.parametrize("seed", range(5))
def test_no_page_is_lost_whatever_is_done(seed: int) -> None:
    """Random starts, growth, edits, forks and ends of sequences over two texts."""
    rng, pool = np.random.default_rng(seed), PagePool(of_config(LONG), 40)
    caches: list[KVCache] = []
    for _ in range(400):
        action = rng.integers(5)
        cache = caches[rng.integers(len(caches))] if caches else None
        if cache is None or (action == 0 and len(caches) < 6):
            caches.append(KVCache(of_config(LONG), 600, pool=pool))
        elif action == 1 and len(caches) < 6:
            caches.append(cache.fork())
        elif action == 2:
            caches.remove(cache)
            cache.release()
        else:
            wanted = ids_of(int(rng.integers(2)), int(rng.integers(1, 300)))
            kept = cache.begin(wanted)
            assert cache.ids == wanted[:kept]
            assert kept < len(wanted)
            try:
                cache.reserve(kept, len(wanted))
            except PoolFull:
                cache.truncate(0)
                continue
            cache.extend(wanted[kept:])
            addresses = [page.address for page in cache._pages]
            assert cache.table[: len(addresses)].tolist() == addresses
        held = [page for c in caches for page in c._pages]
        assert pool.used == len(set(map(id, held)))
        assert all(page.users == sum(p is page for p in held) for page in held)
        assert pool.used + len(pool._idle) + len(pool._free) == pool._made <= 40
    for cache in caches:
        cache.release()
    assert pool.used == 0


# ---- sessions on pages


@pytest.fixture(scope="module", params=["f16", "f32", "int8"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Model:
    return make_model(LONG, threads=2, kv=request.param)


def reply(session: Session, ids: list[int], n: int = 8) -> list[Any]:
    return [(t.id, t.logprob) for t in session.generate(ids, max_tokens=n, temperature=0)]


def test_edits_and_branches_equal_a_fresh_run(model: Model) -> None:
    session, rng = Session(model), np.random.default_rng(0)
    text = ids_of(1, 500)
    for _ in range(25):
        cut, tail = int(rng.integers(1, 450)), int(rng.integers(1, 60))
        prompt = [*text[:cut], *ids_of(int(rng.integers(3)), tail)]
        found = reply(session, prompt)
        assert session.stats.reused_tokens + session.stats.prompt_tokens == len(prompt)
        assert found == reply(Session(model), prompt)


def test_going_back_to_an_earlier_branch_costs_what_was_forgotten_only(model: Model) -> None:
    session = Session(model)
    first, second = ids_of(1, 300), ids_of(2, 200)
    wanted = reply(session, first)
    reply(session, second)
    assert reply(session, first) == wanted
    assert session.stats.reused_tokens >= 3 * PAGE


def test_a_fork_shares_until_it_writes(model: Model) -> None:
    session = Session(model)
    prompt = ids_of(3, 100)
    reply(session, prompt)
    pool = session._cache.pool
    used = pool.used
    forks = [session.fork() for _ in range(3)]
    assert pool.used == used
    for i, fork in enumerate(forks):
        branch = [*prompt, 200 + i]
        assert reply(fork, branch) == reply(Session(model), branch)
        assert fork.stats.reused_tokens == 100
    longer = [*prompt, 250]
    assert reply(session, longer) == reply(Session(model), longer)
    capacity = pool.capacity
    del forks, fork
    gc.collect()
    assert pool.used == pages_for(session.position)
    assert pool.capacity < capacity


def test_a_session_that_ends_gives_its_pages_back(model: Model) -> None:
    session = Session(model)
    reply(session, ids_of(0, 200))
    pool = session._cache.pool
    assert pool.used > 0
    del session
    gc.collect()
    assert pool.used == 0


def test_a_full_pool_is_told_in_words(model: Model) -> None:
    pool = PagePool(model.config, 1, model.kv)
    cache = KVCache(model.config, 600, model.kv, pool)
    with pytest.raises(UserError, match="cache is full"):
        model.executor.run(cache, np.arange(100), 0)


def test_int8_stays_close_to_f32(make_model: MakeModel) -> None:
    ids = ids_of(5, 200)
    exact = make_model(LONG, threads=1, kv="f32", activations="float").logits(ids)
    rounded = make_model(LONG, threads=1, kv="int8", activations="float").logits(ids)
    error = np.sqrt(((exact - rounded) ** 2).mean())
    assert 0 < error < 0.02 * exact.std()
