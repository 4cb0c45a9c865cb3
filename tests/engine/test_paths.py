"""One model, run in every way there is: any shape, context, chunking, thread count and company gives the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support import TINY

from nanochat_tui.engine.cache import KVCache
from nanochat_tui.engine.executor import CHUNK, Piece
from nanochat_tui.engine.model import Model
from nanochat_tui.engine.paging import PagePool
from nanochat_tui.engine.sampling import Draw, Sampling
from nanochat_tui.engine.session import Session
from nanochat_tui.model.config import ModelConfig

MakeModel = Callable[..., Model]


def shape_of(seed: int) -> ModelConfig:
    rng = np.random.default_rng(seed)
    head_dim = int(rng.choice([8, 16, 24, 32, 64]))
    kv_heads, per_kv = (int(rng.choice(choices)) for choices in ([1, 2, 4], [1, 2, 3, 4, 8]))
    heads = kv_heads * per_kv
    while head_dim * heads % 64:
        kv_heads, heads = 2 * kv_heads, 2 * heads
    return TINY.with_(
        dim=head_dim * heads,
        n_heads=heads,
        n_kv_heads=kv_heads,
        hidden_dim=64 * int(rng.integers(1, 6)),
        vocab_size=int(rng.integers(270, 400)),
        n_streams=int(rng.choice([1, 2, 4])),
        context_length=400,
    )


def run(model: Model, ids: list[int], sizes: list[int]) -> np.ndarray:
    cache, start, rows = KVCache(model.config, len(ids), model.kv), 0, []
    for size in sizes:
        rows.append(model.executor.logits(cache, np.array(ids[start : start + size]), start))
        start += size
    return np.concatenate(rows)


def random_sizes(rng: np.random.Generator, total: int) -> list[int]:
    sizes: list[int] = []
    while sum(sizes) < total:
        largest = min(CHUNK, total - sum(sizes))
        sizes.append(int(rng.integers(1, 1 + min(largest, int(rng.choice([3, 20, CHUNK]))))))
    return sizes


@pytest.mark.parametrize("seed", range(8))
def test_any_shape_chunking_and_number_of_threads(seed: int, make_model: MakeModel) -> None:
    config, rng = shape_of(seed), np.random.default_rng(seed)
    kv = ("f16", "f32", "int8")[seed % 3]
    ids = [int(i) for i in rng.integers(0, config.vocab_size, 150)]
    one = make_model(config, threads=1, kv=kv)
    wanted = run(one, ids, [1] * len(ids))
    for threads in (1, 2, 3, 4):
        model = make_model(config, threads=threads, kv=kv)
        for _ in range(2):
            sizes = random_sizes(rng, len(ids))
            np.testing.assert_array_equal(run(model, ids, sizes), wanted, err_msg=f"{config} {threads} {sizes}")
        model.close()


@pytest.mark.parametrize("seed", range(4))
def test_company_in_a_job_changes_nothing(seed: int, make_model: MakeModel) -> None:
    """Prompts of some sequences and steps of others in one pass, pages mixed up in one pool."""
    config, rng = shape_of(seed + 100), np.random.default_rng(seed)
    model = make_model(config, threads=1 + seed % 3)
    pool = PagePool(config, 60)
    caches = [KVCache(config, 300, pool=pool) for _ in range(7)]
    texts = [[int(i) for i in rng.integers(0, config.vocab_size, 300)] for _ in caches]
    done = [0] * len(caches)
    for _ in range(12):
        pieces, chosen = [], [i for i in range(len(caches)) if rng.random() < 0.6 and done[i] < 250] or [0]
        for i in chosen:
            n = int(rng.integers(1, 17))
            part = texts[i][done[i] : done[i] + n]
            draw = Draw(Sampling(temperature=0), config.vocab_size, [], 1)
            pieces.append(Piece(caches[i], np.array(part), done[i], draw))
            done[i] += n
        for i, drawn in zip(chosen, model.executor.execute(pieces), strict=True):
            alone = Session(model, speculation="off").generate(texts[i][: done[i]], max_tokens=1, temperature=0)
            token = next(alone, None)
            if token is not None:
                assert (drawn.ids, drawn.logprobs) == ([token.id], [token.logprob])


@pytest.mark.slow
def test_ten_thousand_tokens(make_model: MakeModel) -> None:
    config = TINY.with_(context_length=10_100)
    found = []
    for threads in (1, 2, 3):
        model = make_model(config, threads=threads)
        # nothing ends the text: an end token would make it short
        draw, cache = Draw(Sampling(temperature=1.0, seed=1), config.vocab_size, [], 10_000), KVCache(config, 10_100)
        found.append(model.executor.generate(cache, np.array([1, 2, 3]), 0, draw, 10_000))
    assert len(found[0].ids) == 10_000
    assert found[0] == found[1] == found[2]
