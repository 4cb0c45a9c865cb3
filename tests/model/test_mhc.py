"""mHC mathematics against the papers' equations and the golden values of the mHC-lite initialisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nanochat_tui.model.mhc import (
    PERMUTATIONS,
    MhcError,
    check_sidecar,
    collapse_streams,
    expand_streams,
    read_streams,
    record_names,
    stream_matrices,
    write_ceiling,
    write_streams,
)
from nanochat_tui.model.mhc_verify import verify

WIDTH = {2: 9, 4: 40}


def random_records(n: int, n_streams: int, spread: float = 2.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((n, WIDTH[n_streams]))).astype(np.float32)


def lite_record(n_streams: int) -> np.ndarray:
    """The mHC-lite authors' initialisation of layer 0, balanced so that bias carries it."""
    record = np.zeros(WIDTH[n_streams], dtype=np.float32)
    head = WIDTH[n_streams] - 4 * n_streams
    if n_streams == 2:
        record[0] = 8.0
    else:
        record[1:24] = -8.0
    for part in (1, 3):
        start = head + part * n_streams
        record[start : start + n_streams] = -1.0
        record[start] = 1.0
    return record


def test_permutations_are_lexicographic() -> None:
    assert PERMUTATIONS.shape == (24, 4, 4)
    assert np.array_equal(PERMUTATIONS[0], np.eye(4))
    assert np.array_equal(PERMUTATIONS[1], np.eye(4)[[0, 1, 3, 2]])
    assert np.array_equal(PERMUTATIONS[-1], np.eye(4)[::-1])
    assert len({matrix.tobytes() for matrix in PERMUTATIONS}) == 24
    # every entry is covered by 3! permutations
    assert np.array_equal(PERMUTATIONS.sum(axis=0), np.full((4, 4), 6.0))


@pytest.mark.parametrize("index", [0, 7, 23])
def test_one_hot_logits_give_the_permutation(index: int) -> None:
    record = np.zeros((1, 40), dtype=np.float32)
    record[0, :24] = -1e4
    record[0, index] = 1e4
    assert np.array_equal(stream_matrices(record, 4).residual[0], PERMUTATIONS[index].astype(np.float32))


@pytest.mark.parametrize(
    ("n_streams", "diagonal", "off_diagonal"), [(2, 0.9996646, 0.0003354), (4, 0.9940079, 0.0019974)]
)
def test_published_initialisation(n_streams: int, diagonal: float, off_diagonal: float) -> None:
    pre, residual, post = stream_matrices(lite_record(n_streams)[None], n_streams, 1)
    assert residual[0, 0, 0] == pytest.approx(diagonal, abs=1e-7)
    assert residual[0, 0, 1] == pytest.approx(off_diagonal, abs=1e-7)
    assert pre[0] == pytest.approx([0.7310586] + [0.2689414] * (n_streams - 1), abs=1e-7)
    assert post[0] == pytest.approx([1.4621172] + [0.5378828] * (n_streams - 1), abs=1e-6)


@pytest.mark.parametrize(("n_streams", "memory"), [(2, 0.96054), (4, 0.61798)])
def test_sixty_published_layers_forget_as_published(n_streams: int, memory: float) -> None:
    report = verify(np.repeat(lite_record(n_streams)[None], 60, axis=0), n_streams)
    assert report.ok
    assert report.stream_memory == pytest.approx(memory, abs=2e-5)


def test_two_streams_compose_in_closed_form() -> None:
    records = random_records(12, 2)
    a = 1 / (1 + np.exp(-records[:, 0].astype(np.float64)))
    diagonal = (1 + np.prod(2 * a - 1)) / 2
    composed = verify(records, 2).composed
    assert composed == pytest.approx(np.array([[diagonal, 1 - diagonal], [1 - diagonal, diagonal]]), abs=1e-5)


@pytest.mark.parametrize("n_streams", [2, 4])
def test_sixty_random_records_are_doubly_stochastic(n_streams: int) -> None:
    report = verify(random_records(60, n_streams, spread=4.0), n_streams)
    assert report.ok
    assert report.composed.min() >= 0
    assert report.composed_row_error < 1e-5
    assert report.composed_column_error < 1e-5


@given(st.sampled_from([2, 4]), st.data())
def test_any_finite_record_is_doubly_stochastic(n_streams: int, data: st.DataObject) -> None:
    finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
    records = data.draw(arrays(np.float32, (2, WIDTH[n_streams]), elements=finite))
    assert verify(records, n_streams).ok


@pytest.mark.parametrize("n_streams", [2, 4])
@pytest.mark.parametrize("version", [1, 2])
def test_weights_follow_the_layout(n_streams: int, version: int) -> None:
    record = random_records(1, n_streams)[0].astype(np.float64)
    n, head = n_streams, WIDTH[n_streams] - 4 * n_streams
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    pre, _, post = stream_matrices(record[None], n_streams, version)
    assert pre[0] == pytest.approx(sigmoid(record[head : head + n] + record[head + n : head + 2 * n]))
    expected = sigmoid(record[head + 2 * n : head + 3 * n] + record[head + 3 * n :])
    assert post[0] == pytest.approx((4 if (n_streams, version) == (4, 2) else 2) * expected)
    assert write_ceiling(n_streams, version) == (4 if (n_streams, version) == (4, 2) else 2)


@pytest.mark.parametrize("n_streams", [2, 4])
def test_mean_of_streams_ignores_the_mixing(n_streams: int) -> None:
    rng = np.random.default_rng(1)
    _, residual, post = stream_matrices(random_records(1, n_streams), n_streams)
    x = rng.standard_normal((3, n_streams, 16)).astype(np.float32)
    y = rng.standard_normal((3, 16)).astype(np.float32)
    for mix_first in (False, True):
        after = write_streams(x, y, residual[0], post[0], mix_first=mix_first)
        expected = collapse_streams(x) + post[0].mean() * y
        assert collapse_streams(after) == pytest.approx(expected, abs=1e-6)


def test_written_output_is_mixed_unless_the_original_four_streams() -> None:
    rng = np.random.default_rng(2)
    _, residual, post = stream_matrices(random_records(1, 4), 4)
    x = rng.standard_normal((4, 8)).astype(np.float32)
    y = rng.standard_normal(8).astype(np.float32)
    loops = np.zeros((4, 8))
    for i in range(4):
        for j in range(4):
            loops[i] += residual[0, i, j] * (x[j] + post[0, j] * y)
    assert write_streams(x, y, residual[0], post[0]) == pytest.approx(loops, abs=1e-5)
    unmixed = residual[0] @ x + np.outer(post[0], y)
    assert write_streams(x, y, residual[0], post[0], mix_first=True) == pytest.approx(unmixed, abs=1e-5)


def test_lite_initialisation_is_the_plain_residual_on_equal_streams() -> None:
    rng = np.random.default_rng(3)
    embedding = rng.standard_normal((5, 16)).astype(np.float32)
    y = rng.standard_normal((5, 16)).astype(np.float32)
    pre, residual, post = stream_matrices(lite_record(2)[None], 2)
    x = expand_streams(embedding, 2)
    assert read_streams(x, pre[0]) == pytest.approx(embedding, abs=1e-6)
    after = write_streams(x, y, residual[0], post[0])
    assert collapse_streams(after) == pytest.approx(embedding + y, abs=1e-5)


def test_gain_is_the_largest_growth_of_the_state() -> None:
    records = random_records(3, 2, seed=4)
    report = verify(records, 2)
    pre, residual, post = stream_matrices(records, 2)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 4000)).astype(np.float32)
    x /= np.linalg.norm(x, axis=0)
    first = write_streams(x, read_streams(x, pre[0]), residual[0], post[0])
    growth = np.linalg.norm(first, axis=0)
    assert growth.max() <= report.gains[0] + 1e-5
    assert growth.max() == pytest.approx(report.gains[0], rel=1e-3)
    state = x
    for index in range(3):
        state = write_streams(state, read_streams(state, pre[index]), residual[index], post[index])
    assert np.log2(np.linalg.norm(state, axis=0).max()) == pytest.approx(report.log2_total_gain, abs=1e-3)


def test_gain_is_not_a_tautology() -> None:
    quiet, loud = np.zeros((1, 9), dtype=np.float32), np.zeros((1, 9), dtype=np.float32)
    quiet[0, 5:7], loud[0, 5:7] = -20.0, 20.0
    assert verify(quiet, 2).gains[0] == pytest.approx(1.0, abs=1e-6)
    assert verify(loud, 2).gains[0] == pytest.approx(3.0, abs=1e-6)  # equal streams: 1 + sum p · q = 1 + 1 · 2


def test_deep_total_gain_does_not_overflow() -> None:
    report = verify(np.zeros((5000, 9), dtype=np.float32), 2)
    assert report.log2_total_gain == pytest.approx(5000.0, rel=1e-6)
    assert report.gain_per_sublayer == pytest.approx(2.0, rel=1e-6)


def test_equal_write_weights_are_reported_as_dead() -> None:
    dead = np.zeros((12, 9), dtype=np.float32)
    dead[:, 0], dead[:, 3:5], dead[:, 7:9] = 5.0, 0.5, 0.5  # the original's records, trained or not
    assert verify(dead, 2).ok
    assert not verify(dead, 2).alive
    alive = dead.copy()
    alive[4, 7] = 0.6
    assert verify(alive, 2).alive
    alive[4, 0] = 0.0  # a mixing matrix of halves averages the difference away again
    assert not verify(alive, 2).alive


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    records = random_records(4, 2)
    records[2, 5] = bad
    report = verify(records, 2)
    assert not report.ok
    assert "record 2" in str(report.error)
    with pytest.raises(MhcError, match="record 2"):
        stream_matrices(records, 2)


def test_wrong_counts_and_shapes_are_refused() -> None:
    records = random_records(4, 2)
    assert "4 mHC records but the model needs 12" in str(verify(records, 2, expected_records=12).error)
    for bad, n_streams, version in [(records, 4, 2), (records, 3, 2), (records, 2, 3), (records[0], 2, 2)]:
        assert not verify(bad, n_streams, version).ok


def test_sidecar_must_belong_to_the_model() -> None:
    inside = random_records(4, 2)
    model = {"n_streams": 2, "version": 2, "n_records": 4, "inside": inside}
    check_sidecar(inside.copy(), 2, 1, **model)
    other = inside.copy()
    other[3, 8] = np.nextafter(other[3, 8], np.float32(10))
    with pytest.raises(MhcError, match="record 3"):
        check_sidecar(other, 2, 2, **model)
    with pytest.raises(MhcError, match="3 records but the model needs 4"):
        check_sidecar(inside[:3], 2, 2, **model)
    with pytest.raises(MhcError, match="for 4 streams"):
        check_sidecar(random_records(4, 4), 4, 2, **model)
    with pytest.raises(MhcError, match="plain residual"):
        check_sidecar(inside, 2, 2, n_streams=1, version=2, n_records=0)
    with pytest.raises(MhcError, match="version 1"):
        check_sidecar(random_records(4, 4), 4, 1, n_streams=4, version=2, n_records=4)


def test_record_names_are_in_file_order() -> None:
    assert record_names(4) == ["blk.0.attn_mhc", "blk.0.ffn_mhc", "blk.1.attn_mhc", "blk.1.ffn_mhc"]
