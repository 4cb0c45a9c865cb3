"""The layout of an epoch: nothing lost, files at the beginning of a row, other borders each time."""

import itertools

import numpy as np
import pytest

from nanochat_tui.train.batches import EpochPlan, document_starts, plan_epoch

END = 9999
LENGTH = 32


def _file(seed: int, documents: int = 300) -> np.ndarray:
    """Documents of 1 to 400 tokens, each an end-of-text token and then numbers that occur once only."""
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([rng.integers(1, LENGTH, documents // 2), rng.integers(LENGTH, 400, documents // 2)])
    tokens = np.arange(sizes.sum(), dtype=np.uint32) + 10_000
    tokens[np.cumsum(rng.permutation(sizes))[:-1]] = END
    tokens[0] = END
    return tokens


def _rows(plan: EpochPlan) -> list[list[tuple[int, int]]]:
    spans = list(zip(plan.starts.tolist(), plan.lengths.tolist(), strict=True))
    return [spans[a:b] for a, b in zip(plan.first[:-1], plan.first[1:], strict=True)]


def _epoch(seed: int = 0, epoch: int = 0) -> tuple[np.ndarray, np.ndarray, EpochPlan]:
    tokens = _file(1)
    starts = document_starts(tokens, END)
    return tokens, starts, plan_epoch(starts, tokens.size, LENGTH, seed, epoch)


def test_documents_are_found_at_their_first_token() -> None:
    tokens = _file(1)
    starts = document_starts(tokens, END)
    assert len(starts) == 300
    assert (tokens[starts] == END).all()
    assert document_starts(tokens, None).tolist() == [0]


def test_all_rows_are_full_and_every_token_is_read_with_its_successor() -> None:
    tokens, starts, plan = _epoch()
    seen = np.zeros(tokens.size, int)
    for parts in _rows(plan):
        assert sum(n for _, n in parts) == LENGTH + 1
        row = np.concatenate([np.arange(at, at + n) for at, n in parts])
        follows = np.flatnonzero(np.diff(row) == 1)
        seen[row[follows + 1]] += 1
        # where a piece ends within a row, its document ends, and the next one begins
        for (at, n), (then, _) in itertools.pairwise(parts):
            assert at + n in starts or at + n == tokens.size
            assert then in starts
    inner = np.ones(tokens.size, bool)
    inner[starts] = False  # what comes before the first token of a document is another one, by chance
    assert (seen[inner] >= 1).all()
    assert seen[inner].mean() < 1.25


def test_a_long_document_begins_a_row_and_a_short_one_is_not_cut() -> None:
    tokens, starts, plan = _epoch()
    sizes = np.diff(np.append(starts, tokens.size))
    rows = _rows(plan)
    first_of_rows = {parts[0][0] for parts in rows}
    whole = {part for parts in rows for part in parts}
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        if size > LENGTH:
            assert start in first_of_rows
        else:
            assert (start, size) in whole


def test_borders_and_order_change_from_epoch_to_epoch_and_repeat_by_seed() -> None:
    _, starts, first = _epoch()
    _, _, again = _epoch()
    _, _, second = _epoch(epoch=1)
    assert first.starts.tolist() == again.starts.tolist()
    inner = [set(plan.starts.tolist()) - set(starts.tolist()) for plan in (first, second)]
    assert len(inner[0] & inner[1]) < len(inner[0]) / 2
    assert [r[0][0] for r in _rows(first)[:50]] != [r[0][0] for r in _rows(second)[:50]]


def test_one_very_long_document_is_cut_anywhere() -> None:
    second = {min(s for s in plan_epoch(np.zeros(1, np.int64), 9000, 32, 0, e).starts if s > 0) for e in range(60)}
    assert min(second) <= 4
    assert max(second) >= 29
    assert plan_epoch(np.zeros(1, np.int64), 33, 32, 0, 0).rows == 1


def test_less_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        plan_epoch(np.zeros(1, np.int64), 32, 32, 0, 0)
