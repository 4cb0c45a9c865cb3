"""Screening the output table: bounds that hold for every row, and replies that are the same with and without."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import EVERY_NAME, KERNEL_NAMES, kernels_for
from support import TINY
from test_kernels import activations_of

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.layout import kinds
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned
from nanochat_tui.engine.run.draw import decisive
from nanochat_tui.engine.weights import screening as sc
from nanochat_tui.engine.weights.matrices import Matrix
from nanochat_tui.engine.weights.pack_blocks import pack_blocks
from nanochat_tui.request import GenerationRequest

F32 = np.float32
LARGE = replace(TINY, vocab_size=sc.LEAST_ROWS + 40)
"""The smallest vocabulary that is screened, and some rows that fill no block."""
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.9, "top_k": 5, "top_p": 0.9, "seed": 11}
SETTINGS = (GREEDY, SAMPLED, {**SAMPLED, "top_k": 40}, {**SAMPLED, "temperature": 5.0, "min_p": 0.1})


def quantised(values: np.ndarray) -> np.ndarray:
    """Return rows as Q8_0 blocks, by the format's rule."""
    blocks = values.reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
    divisor = np.where(scale > 0, scale.astype(F32), 1)
    codes = np.clip(np.rint(blocks / divisor), -127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], axis=1)


def table_of(values: np.ndarray, bias: int) -> Matrix:
    packed = pack_blocks("Q8_0", quantised(values), values.shape[1], bias=bias, multiple=s.STATISTICS_BLOCK)
    return Matrix(kinds.Q8, packed)


def bounds_of(name: str, screen: sc.Screen, columns: int, x: np.ndarray, scales: np.ndarray) -> np.ndarray:
    kernels = kernels_for(name)
    facts = aligned(16, F32, 0)
    blocks = len(screen.table)
    bounds, largest = aligned(blocks * s.ROW_BLOCK, F32, np.nan), aligned(blocks, F32, np.nan)
    kernels.screen_input(x, scales, screen.basis, columns, facts)
    kernels.screen_bounds(screen.table, columns, x, scales, facts, 0, blocks, bounds, largest)
    np.testing.assert_array_equal(largest, bounds.reshape(-1, s.ROW_BLOCK).max(1))
    return bounds


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    columns=st.sampled_from([64, 128, 256]),
    rows=st.integers(300, 700),
    common=st.sampled_from([0.0, 1.0, 50.0]),
    spikes=st.sampled_from([0, 3]),
    size=st.sampled_from([1e-3, 1.0, 3.0]),
    spread=st.sampled_from([0, 1, 3]),
    name=st.sampled_from(EVERY_NAME),
)
def test_no_row_exceeds_its_bound(
    seed: int, columns: int, rows: int, common: float, spikes: int, size: float, spread: int, name: str
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, columns)) + common * rng.standard_normal(columns)
    values[rng.integers(0, rows, spikes)] *= 20
    values[rng.integers(0, rows, spikes)] = 0
    bias = kernels_for(name).isa.q8_bias
    table = table_of((values * size).astype(F32), bias)
    stored = sc.row_values(*sc.table_rows(table, 0, len(table.weights)), bias)[:rows]
    np.testing.assert_allclose(stored, values * size, atol=float(np.abs(values).max()) * size / 50)
    screen = sc.make_screen(table, rows, bias)
    assert screen is not None
    x = aligned(columns, np.int8)
    x[:] = np.clip(np.rint(rng.standard_normal(columns) * 40), -127, 127)
    x[rng.integers(0, columns, spikes)] = 127
    scales = (0.01 * rng.uniform(0.1, 1, columns // 32) ** spread).astype(F32)
    upper = bounds_of(name, screen, columns, x, scales)
    token = x * np.repeat(scales.astype(np.float64), 32)
    logits = stored.astype(np.float64) @ token
    assert (upper[:rows] >= logits).all()
    # and the bounds tell something: what 4 bits leave out is a seventh of a row at most, not far from a tenth
    length = np.linalg.norm(stored, axis=1).max() * np.linalg.norm(token)
    assert (upper[:rows] - logits).max() <= length / 4


def test_rows_that_are_no_tokens_are_never_among_the_largest() -> None:
    rng = np.random.default_rng(1)
    table = table_of(-np.abs(rng.standard_normal((128, 64))).astype(F32), 0)
    screen = sc.make_screen(table, 70, 0)
    assert screen is not None
    x = aligned(64, np.int8)
    x[:] = 1
    upper = bounds_of("portable", screen, 64, x, np.ones(2, F32))
    assert upper[70:].max() < 10 * upper[:70].min() < 0


def test_numbers_too_large_for_half_precision_are_not_screened() -> None:
    table = table_of(np.full((512, 64), 6e4, F32), 0)
    assert sc.make_screen(table, 512, 0) is None


def test_rows_too_far_from_their_coarse_copy_for_half_precision_are_not_screened() -> None:
    # one direction that all rows share, others that none prefers: only the length of what 4 bits leave out is infinite
    values = np.ones((1, 1), F32)
    while len(values) < 1024:
        values = np.kron(values, np.array([[1, 1], [1, -1]], F32))
    values *= 20_000
    values[:, 0] = 50_000
    assert sc.make_screen(table_of(values, 0), len(values), 0) is None


@pytest.mark.parametrize("name", EVERY_NAME)
def test_a_single_row_has_the_logit_of_the_whole_product(name: str) -> None:
    rng = np.random.default_rng(5)
    kernels, columns = kernels_for(name), 192
    bias = kernels.isa.q8_bias
    table = table_of(rng.standard_normal((128, columns)).astype(F32), bias)
    screen = sc.make_screen(table, 128, bias)
    assert screen is not None
    x, scales = aligned(columns, np.int8), rng.uniform(0.001, 0.1, (1, columns // 32)).astype(F32)
    x[:] = rng.integers(-127, 128, columns)
    sums, _ = activations_of(kernels, kinds.Q8, x[None], scales, 1)
    matrix = np.zeros(s.MATRIX_SLOTS, np.int64)
    matrix[s.MATRIX_KIND], matrix[s.MATRIX_COLUMNS], matrix[s.MATRIX_PADDED] = kinds.Q8, columns, columns
    matrix[s.MATRIX_WEIGHTS], matrix[s.MATRIX_SCALES] = table.weights.ctypes.data, table.scales.ctypes.data
    whole = aligned(128, F32, np.nan)
    kernels.matrix_product(matrix, 1, x, sums, scales, 0, 0, 0, whole, 0, 0, 8, 1, 0, 1, 1)
    single = [kernels.screened_row(screen.rows, row, x, sums, scales, columns) for row in range(128)]
    np.testing.assert_array_equal(np.array(single, F32), whole)


@pytest.mark.parametrize("name", EVERY_NAME)
def test_what_is_no_number_is_below_nothing(name: str) -> None:
    values = aligned(16, F32, 0.0)
    values[[3, 7, 15]] = 1.0, np.nan, -np.inf
    kernels = kernels_for(name)
    assert kernels.not_below(values, 0.5) == 1 << 3 | 1 << 7
    assert kernels.not_below(values, math.nan) == 0xFFFF
    assert kernels.not_below(values, -math.inf) == 0xFFFF


def reply(model: Model, count: int, *, logprobs: bool = False, **chosen: Any) -> list[int]:
    tokens = Session(model).generate([3, 1, 4, 1, 5], max_tokens=count, logprobs=logprobs, **chosen)
    return [token.id for token in tokens]


def screened(model: Model) -> sc.Screening:
    """Make the model's screen now, as the thread would."""
    screening = model.executor.screening
    assert screening is not None
    screening.make()
    assert screening._made
    return screening


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_replies_are_the_same_with_and_without(
    make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, kernel: str, threads: int
) -> None:
    monkeypatch.setattr(sc, "MOST_READ", 1.1)
    model = make_model(LARGE, kernel=kernel, threads=threads, speculation="off")
    found = [reply(model, 60, logprobs=True, **chosen) for chosen in SETTINGS]
    assert [reply(model, 60, **chosen) for chosen in SETTINGS] == found
    screened(model)
    for chosen in SETTINGS:
        assert reply(model, 60, **chosen) == found.pop(0)
        assert model.executor._tables.threads[0, s.SCREEN_PASSES] > 0
    model.close()


def test_a_screen_is_made_beside_the_replies_and_spares_bytes(
    make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(LARGE, threads=1, speculation="off")
    monkeypatch.setattr(sc, "BEGIN_AFTER", 64)
    screening, whole = model.executor.screening, model.bytes_per_token
    assert screening is not None and screening.screen is None
    reply(model, sc.BEGIN_AFTER + 2, **GREEDY)
    assert screening._maker is not None
    screening._maker.join(120)
    monkeypatch.setattr(sc, "MOST_READ", 1.1)
    reply(model, sc.TRIAL + 40, **GREEDY)
    assert screening.screen is not None
    assert model.bytes_per_token == whole - screening.spared < whole


def test_what_needs_all_logits_is_not_screened(make_model: Callable[..., Model]) -> None:
    model = make_model(LARGE, threads=1, speculation="off")
    made = screened(model)
    for chosen in (
        {**GREEDY, "logprobs": True},
        {**GREEDY, "top_logprobs": 2},
        {**GREEDY, "repeat_penalty": 1.1},
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 1.0, "top_k": sc.MOST_BEST + 1},
    ):
        reply(model, 5, **chosen)
        assert made.passes == 0 and model.executor._tables.threads[0, s.SCREEN_PASSES] == 0, chosen
    reply(model, 5, **GREEDY)
    assert made.passes > 0 and model.executor._tables.threads[0, s.SCREEN_PASSES] > 0


def test_other_tables_are_not_screened(make_model: Callable[..., Model]) -> None:
    assert make_model(TINY, threads=1).executor.screening is None, "too short"
    assert make_model(LARGE, threads=1, activations="float").executor.screening is None
    assert make_model(LARGE, write={"embedding": "F16"}, threads=1).executor.screening is None


def test_log_probabilities_are_told_if_wanted(make_model: Callable[..., Model]) -> None:
    model = make_model(TINY, threads=1)
    (plain,) = Session(model).generate([1, 2, 3], max_tokens=1, logprobs=False, **GREEDY)
    (known,) = Session(model).generate([1, 2, 3], max_tokens=1, **GREEDY)
    (listed,) = Session(model).generate([1, 2, 3], max_tokens=1, logprobs=False, top_logprobs=1, **GREEDY)
    assert math.isnan(plain.logprob) and plain.id == known.id
    assert known.logprob == listed.logprob == listed.top[0][2]


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [(GREEDY, 1), ({"top_k": 7}, 7), ({"top_k": 0}, 0), ({**GREEDY, "presence_penalty": 0.5}, 0)],
)
def test_how_many_logits_decide(chosen: dict[str, Any], wanted: int) -> None:
    assert decisive(GenerationRequest.of(**chosen, logprobs=False)) == wanted
    assert decisive(GenerationRequest.of(**chosen)) == 0


def test_a_screen_that_rules_out_little_rests_and_is_tried_again() -> None:
    table = table_of(np.ones((64, 64), F32), 0)
    use = sc.Screening(
        table, 64, 0, int, screen=sc.Screen(np.zeros((4, 8), np.uint8), np.zeros(1, F32), np.zeros((64, 72), np.uint8))
    )
    assert use.best(1) == 1 and use.best(sc.MOST_BEST + 1) == 0 and use.best(0) == 0
    use.learn(1, sc.TRIAL, sc.TRIAL, int(64 * sc.TRIAL * (sc.MOST_READ + 0.1)))
    assert use.best(1) == 0 and use.spared == 0, "too much was read"
    assert use.best(5) == 5, "other settings are judged by themselves"
    for _ in range(sc.REST // sc.TRIAL):
        use.learn(1, sc.TRIAL, 0, 0)
    assert use.best(1) == 1
    use.learn(1, sc.TRIAL, sc.TRIAL, 0)
    assert use.best(1) == 1 and use.spared == table.nbytes - use.screen.table.nbytes  # type: ignore[union-attr]


def test_a_reply_goes_on_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    screening = sc.Screening(table_of(np.ones((64, 64), F32), 0), 64, 0, int)
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        screening.learn(1, sc.BEGIN_AFTER, 0, 0)
    screening.settle()
    screening.learn(1, 1, 0, 0)
    screening.settle()
    assert screening.ready() is not None, "it is tried again"


@pytest.mark.parametrize("error", [FileNotFoundError("kernels"), ValueError("the object code lacks a function")])
def test_replies_go_on_where_no_code_can_be_made(error: Exception) -> None:
    def code() -> int:
        raise error

    screening = sc.Screening(table_of(np.ones((64, 64), F32), 0), 64, 0, code)
    screening.make()
    assert screening.ready() is None and screening.best(1) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_makes_its_own_screen(make_model: Callable[..., Model]) -> None:
    model = make_model(LARGE, threads=1, speculation="off")
    screening = model.executor.screening
    assert screening is not None
    screening._maker = threading.Thread()  # at work in the parent when it forks
    child = os.fork()
    if child == 0:
        os._exit(0 if screening._maker is None else 1)
    assert os.waitpid(child, 0)[1] == 0
