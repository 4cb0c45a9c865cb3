"""The whole forward pass against an independent NumPy one, and against itself in every way of running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_support import KERNEL_NAMES
from reference import forward
from support import TINY, random_records

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.run.executor import CHUNK
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.formats.mhc import write_mhc
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.config import ModelConfig

MakeModel = Callable[..., Model]
CASES: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "two streams": (TINY, {}),
    "plain": (TINY.with_(n_streams=1), {}),
    "four streams": (TINY.with_(n_streams=4), {}),
    "four streams, version 1": (TINY.with_(n_streams=4, mhc_version=1), {}),
    "groups of 128": (TINY.with_(group_size=128, n_kv_heads=4), {"ternary": "PQ2_0"}),
    "groups of 256": (TINY.with_(dim=256, n_heads=8, group_size=256), {"ternary": "TQ2_0"}),
    "odd widths": (TINY.with_(dim=192, n_heads=8, n_kv_heads=1, hidden_dim=320, vocab_size=331), {}),
    "F16 table": (TINY, {"embedding": "F16"}),
    "untied": (TINY.with_(tied=False), {}),
    "d20's groups in blocks of 64": (TINY.with_(group_size=128, n_heads=2, n_kv_heads=2), {"ternary": "Q2_0"}),
}


def some_ids(n: int, vocab: int = 300, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab, n)]


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[ModelConfig, dict[str, Any]]:
    return CASES[request.param]


def reference_of(model: Model, ids: list[int], **options: bool) -> np.ndarray:
    with read_gguf(model.path) as file:
        return forward(file, nanochat.from_metadata(file.metadata, file.tensors), ids, **options)


def test_float_activations_agree_with_the_definition(
    case: tuple[ModelConfig, dict[str, Any]], make_model: MakeModel
) -> None:
    config, write = case
    model = make_model(config, write=write, threads=1, activations="float", kv="f32")
    ids = some_ids(50)
    wanted = reference_of(model, ids, rounded=False, half_cache=False)
    assert wanted.std() > 0.3
    np.testing.assert_allclose(model.logits(ids), wanted, atol=1e-4)


def test_int8_activations_agree_with_the_definition(
    case: tuple[ModelConfig, dict[str, Any]], make_model: MakeModel
) -> None:
    config, write = case
    model = make_model(config, write=write, threads=1)
    ids = some_ids(50)
    wanted = reference_of(model, ids, rounded=True, half_cache=True)
    got = model.logits(ids)
    # a value on a rounding border may fall either way and then touches everything after it
    assert np.sqrt(((got - wanted) ** 2).mean()) < 0.02 * wanted.std()
    # rows that no border touched agree to float32's precision: the roundings are the same ones
    by_row = np.abs(got - wanted).max(1)
    unrounded = np.abs(got - reference_of(model, ids, rounded=False, half_cache=True)).max(1)
    assert by_row.min() < 3e-4 < 0.1 * unrounded.min()


def run_in_chunks(model: Model, ids: list[int], sizes: list[int]) -> np.ndarray:
    cache, start, rows = KVCache(model.config, len(ids), model.kv), 0, []
    for size in sizes:
        part = np.array(ids[start : start + size], np.int64)
        rows.append(model.executor.logits(cache, part, start))
        start += size
    assert start == len(ids)
    return np.concatenate(rows)


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("kv", ["f16", "f32"])
def test_every_chunking_and_thread_count_gives_the_same_bits(kernel: str, kv: str, make_model: MakeModel) -> None:
    ids = some_ids(70)
    one = make_model(TINY, threads=1, kernel=kernel, kv=kv)
    wanted = run_in_chunks(one, ids, [1] * 70)
    for threads in (1, 2, 3):
        model = make_model(TINY, threads=threads, kernel=kernel, kv=kv)
        for sizes in ([70], [64, 6], [1, 2, 3, 5, 8, 13, 21, 17], [17, 53], [69, 1]):
            np.testing.assert_array_equal(run_in_chunks(model, ids, sizes), wanted, err_msg=f"{threads} {sizes}")
        model.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [[69], [1, 2, 3, 5, 7, 51], [4, 65]])
def test_tokens_that_only_fill_the_cache_leave_the_same_bits(
    threads: int, sizes: list[int], make_model: MakeModel
) -> None:
    """Few tokens are run one by one when nobody wants their logits."""
    model, ids = make_model(TINY, threads=threads), some_ids(70)
    cache, start = KVCache(model.config, 70), 0
    for size in sizes:
        model.executor.run(cache, np.array(ids[start : start + size]), start)
        start += size
    np.testing.assert_array_equal(
        model.executor.logits(cache, np.array(ids[-1:]), 69)[0], run_in_chunks(model, ids, [1] * 70)[-1]
    )


def test_every_instruction_set_gives_the_same_bits(
    case: tuple[ModelConfig, dict[str, Any]], make_model: MakeModel
) -> None:
    config, write = case
    ids = some_ids(20)
    results = [make_model(config, write=write, threads=1, kernel=name).logits(ids) for name in KERNEL_NAMES]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_logits_longer_than_one_chunk(make_model: MakeModel) -> None:
    config = TINY.with_(context_length=CHUNK + 40)
    model = make_model(config, threads=2)
    ids = some_ids(CHUNK + 40)
    got = model.logits(ids)
    assert got.shape == (len(ids), 300)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[:20], model.logits(ids[:20]))
    wanted = reference_of(model, ids, rounded=True, half_cache=True)
    assert np.sqrt(((got - wanted) ** 2).mean()) < 0.02 * wanted.std()


def test_streams_matter(make_model: MakeModel) -> None:
    """The reference itself must see the mixing: with the residual matrices the other way round logits change."""
    model = make_model(TINY, threads=1, activations="float", kv="f32")
    ids = some_ids(10)
    plain = make_model(TINY.with_(n_streams=1), threads=1, activations="float", kv="f32")
    assert np.abs(model.logits(ids) - plain.logits(ids)).max() > 0.05


@pytest.mark.parametrize("ids", [[], [300], [-1], [0] * 97])
def test_impossible_tokens_are_refused(ids: list[int], make_model: MakeModel) -> None:
    with pytest.raises(UserError):
        make_model(TINY, threads=1).logits(ids)


def test_the_executor_does_not_write_beyond_the_cache(make_model: MakeModel) -> None:
    model = make_model(TINY, threads=1)
    cache = KVCache(model.config, 10)
    for ids, position in ((np.zeros(11, np.int64), 0), (np.zeros(1, np.int64), 10), (np.zeros(1, np.int64), -1)):
        with pytest.raises(ValueError, match="fit"):
            model.executor.run(cache, ids, position)
    with pytest.raises(ValueError, match="vocabulary"):
        model.executor.run(cache, np.array([300]), 0)
    with pytest.raises(ValueError, match="1 to"):
        model.executor.run(KVCache(model.config, 500), np.zeros(CHUNK + 1, np.int64), 0)


def test_sidecar_must_agree(make_model: MakeModel, tmp_path: Any) -> None:
    path = make_model(TINY, threads=1).path
    from nanochat_tui.engine.generate.model import load

    good, bad = tmp_path / "good.mhc", tmp_path / "bad.mhc"
    records = random_records(TINY)
    write_mhc(good, 2, records)
    load(path, mhc=good, threads=1)
    records[3, 0] += 1
    write_mhc(bad, 2, records)
    with pytest.raises(UserError, match="disagrees"):
        load(path, mhc=bad, threads=1)


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"activations": "int4"}, {"kv": "q8"}, {"kernel": "sse9"}, {"threads": 1000}]
)
def test_impossible_options_are_refused(options: dict[str, Any], make_model: MakeModel) -> None:
    path = make_model(TINY, threads=1).path
    from nanochat_tui.engine.generate.model import load

    with pytest.raises(UserError):
        load(path, **options)
