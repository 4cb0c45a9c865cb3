"""One model, run in every way there is: any shape, context, chunking, thread count and company gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import TINY

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.run.draw import Draw
from nanochat_tui.engine.run.executor import CHUNK, Piece
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.engine.run.paging import PagePool
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.tokenizer import TextCodec
from nanochat_tui.request import GenerationRequest

MakeModel = Callable[..., Model]


TERNARY = {64: ("Q2_0",), 128: ("Q2_0", "PQ2_0"), 256: ("TQ2_0", "TQ1_0")}
"""File types whose blocks divide rows of so many weights, and that hold groups of 64 and 128."""


def shape_of(seed: int) -> tuple[ModelConfig, dict[str, Any]]:
    """Return a random shape, and what else `write_model` is told: the ternary type. All comes from the seed."""
    rng = np.random.default_rng(seed)
    head_dim = int(rng.choice([8, 16, 24, 32, 64]))
    unit = int(rng.choice(list(TERNARY)))
    ternary = str(rng.choice(TERNARY[unit]))
    kv_heads, per_kv = (int(rng.choice(choices)) for choices in ([1, 2, 4], [1, 2, 3, 4, 8]))
    heads = kv_heads * per_kv
    while head_dim * heads % unit:
        kv_heads, heads = 2 * kv_heads, 2 * heads
    config = TINY.with_(
        dim=head_dim * heads,
        n_heads=heads,
        n_kv_heads=kv_heads,
        hidden_dim=unit * int(rng.integers(1, 6 if unit < 256 else 3)),
        vocab_size=int(rng.integers(270, 400)),
        n_streams=int(rng.choice([1, 2, 4])),
        context_length=int(rng.integers(320, 700)),
        group_size=int(rng.choice([64, 128])) if unit > 64 and ternary == "Q2_0" else min(unit, 128),
    )
    return config, {"ternary": ternary}


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
    (config, write), rng = shape_of(seed), np.random.default_rng(seed)
    kv = ("f16", "f32", "int8")[seed % 3]
    ids = [int(i) for i in rng.integers(0, config.vocab_size, int(rng.integers(60, 240)))]
    one = make_model(config, threads=1, kv=kv, write=write)
    wanted = run(one, ids, [1] * len(ids))
    for threads in (1, 2, 3, 4):
        model = make_model(config, threads=threads, kv=kv, write=write)
        for _ in range(2):
            sizes = random_sizes(rng, len(ids))
            np.testing.assert_array_equal(run(model, ids, sizes), wanted, err_msg=f"{config} {threads} {sizes}")
        model.close()


@pytest.mark.parametrize("seed", range(4))
def test_company_in_a_job_changes_nothing(seed: int, make_model: MakeModel) -> None:
    """Prompts of some sequences and steps of others in one pass, pages mixed up in one pool."""
    (config, write), rng = shape_of(seed + 100), np.random.default_rng(seed)
    model = make_model(config, threads=1 + seed % 3, write=write)
    pool = PagePool(model.config, 60)
    caches = [KVCache(model.config, 300, pool=pool) for _ in range(7)]
    texts = [[int(i) for i in rng.integers(0, config.vocab_size, 300)] for _ in caches]
    done = [0] * len(caches)
    for _ in range(12):
        pieces, chosen = [], [i for i in range(len(caches)) if rng.random() < 0.6 and done[i] < 250] or [0]
        for i in chosen:
            n = int(rng.integers(1, 17))
            part = texts[i][done[i] : done[i] + n]
            draw = Draw(GenerationRequest.of(temperature=0), config.vocab_size, [], 1)
            pieces.append(Piece(caches[i], np.array(part), done[i], draw))
            done[i] += n
        for i, drawn in zip(chosen, model.executor.execute(pieces), strict=True):
            alone = Session(model, speculation="off").generate(texts[i][: done[i]], max_tokens=1, temperature=0)
            token = next(alone, None)
            if token is not None:
                assert (drawn.ids, drawn.logprobs) == ([token.id], [token.logprob])


def test_the_seeds_draw_every_group_and_type() -> None:
    drawn = [shape_of(seed) for seed in (*range(8), *range(100, 104))]
    assert {config.group_size for config, _ in drawn} == {64, 128}
    assert {write["ternary"] for _, write in drawn} == {name for names in TERNARY.values() for name in names}
    assert len({config.context_length for config, _ in drawn}) > 8


@pytest.mark.slow
def test_bursts_of_a_session_are_the_same_with_any_number_of_threads(make_model: MakeModel) -> None:
    """As `benchmarks/identity.py` does for ten thousand tokens of the shipped shape."""
    config, found = TINY.with_(context_length=4000), []
    for threads, speculation in ((1, "off"), (2, "off"), (3, "off"), (3, "on"), (2, "auto")):
        model = make_model(config, threads=threads, speculation=speculation)
        # nothing ends the text: an end token would make it short
        model.codec = TextCodec(model.tokenizer, bos=None, eos=None, add_bos=False, ends=frozenset())
        reply = model.generate([1, 2, 3], max_tokens=3900, temperature=1.0, seed=1)
        found.append([(token.id, token.logprob) for token in reply])
        assert reply.finish_reason == "length"
        model.close()
    assert len(found[0]) == 3900
    assert all(other == found[0] for other in found[1:])


@pytest.mark.slow
def test_ten_thousand_tokens(make_model: MakeModel) -> None:
    config = TINY.with_(context_length=10_100)
    found = []
    for threads in (1, 2, 3):
        model = make_model(config, threads=threads)
        # nothing ends the text: an end token would make it short
        draw = Draw(GenerationRequest.of(temperature=1.0, seed=1), config.vocab_size, [], 10_000)
        cache = KVCache(model.config, 10_100)
        found.append(model.executor.generate(cache, np.array([1, 2, 3]), 0, draw, 10_000))
    assert len(found[0].ids) == 10_000
    assert found[0] == found[1] == found[2]
