"""Tokens that one file shares with another, against plain references."""

import numpy as np
import pytest

from nanochat_tui.formats.ngrams import ngram_cover, ngram_owners


@pytest.mark.parametrize("n", [2, 5])
def test_owners_equal_a_reference_with_sets(n: int) -> None:
    rng = np.random.default_rng(3)
    corpus = rng.integers(0, 6, 4000).astype(np.uint16)
    starts = np.unique(np.concatenate([[0], rng.integers(1, 4000, 30)])).astype(np.int64)
    owners = rng.integers(0, 7, len(starts)).astype(np.int64)
    tokens = rng.integers(0, 7, 200).astype(np.uint16)
    who: dict[tuple[int, ...], set[int]] = {}
    for at in range(len(corpus) - n + 1):
        owner = owners[np.flatnonzero(starts <= at)[-1]]
        who.setdefault(tuple(corpus[at : at + n]), set()).add(int(owner))
    expected = np.zeros(len(tokens), int)
    for at in range(len(tokens) - n + 1):
        count = len(who.get(tuple(tokens[at : at + n]), ()))
        expected[at : at + n] = np.maximum(expected[at : at + n], count)
    found = ngram_owners(tokens, corpus, starts, owners, n)
    assert found.tolist() == expected.tolist()
    assert (found > 0).tolist() == ngram_cover(tokens, corpus, n).tolist()
    assert 0 < expected.max() <= 7 and expected.min() == 0
    assert not ngram_owners(tokens[: n - 1], corpus, starts, owners, n).any()
