"""How much of one token file is in another: the share of its tokens inside n-grams that the other holds, too.

n-grams are told apart by 64-bit hashes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32] | npt.NDArray[np.int64]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 21
_FILTER_BITS = 26


def _ngrams(tokens: Tokens, n: int) -> npt.NDArray[np.uint64]:
    wide = tokens.astype(np.uint64) + np.uint64(1)
    count = len(wide) - n + 1
    hashes = np.zeros(max(0, count), np.uint64)
    for offset in range(n if count > 0 else 0):
        hashes = hashes * _MULTIPLIER + wide[offset : offset + count]
        hashes ^= hashes >> np.uint64(31)
    return hashes


def _occurrences(
    unique: npt.NDArray[np.uint64], corpus: Tokens, n: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield, block by block, where the sorted n-grams `unique` occur: their indices and places in `corpus`."""
    shift = np.uint64(64 - _FILTER_BITS)
    possible = np.zeros(1 << _FILTER_BITS, bool)
    possible[unique >> shift] = True
    for start in range(0, max(0, len(corpus) - n + 1), _BLOCK):
        theirs = _ngrams(corpus[start : start + _BLOCK + n - 1], n)
        places = np.flatnonzero(possible[theirs >> shift])
        theirs = theirs[places]
        at = np.searchsorted(unique, theirs)
        same = (at < len(unique)) & (unique[np.minimum(at, len(unique) - 1)] == theirs)
        yield at[same], places[same] + start


def ngram_cover(tokens: Tokens, corpus: Tokens, n: int) -> npt.NDArray[np.bool_]:
    """Mark the tokens of `tokens` that lie in an n-gram which `corpus` holds; bool, one per token.

    Both are ids, 1-D, of which `corpus` may be memory-mapped: it is read once, in blocks.
    """
    unique, inverse = np.unique(_ngrams(tokens, n), return_inverse=True)
    found = np.zeros(len(unique), bool)
    if len(unique):
        for which, _ in _occurrences(unique, corpus, n):
            found[which] = True
    cover = np.zeros(len(tokens), bool)
    hits = found[inverse]
    for offset in range(n):
        cover[offset : offset + len(hits)] |= hits
    return cover


def ngram_owners(
    tokens: Tokens, corpus: Tokens, starts: npt.NDArray[np.int64], owners: npt.NDArray[np.int64], n: int
) -> npt.NDArray[np.int64]:
    """Count who holds the n-grams that cover each token of `tokens`; int64, one per token, 0 where none does.

    `corpus` is made of documents that begin at the sorted places `starts` and belong to `owners` (numbers below 2^20,
    one per document). A token counts for the n-gram over it that most owners hold: many stand for a common turn of
    phrase, one or two for a copy.
    """
    unique, inverse = np.unique(_ngrams(tokens, n), return_inverse=True)
    pairs = [np.zeros(0, np.int64)]
    if len(unique):
        for which, places in _occurrences(unique, corpus, n):
            owner = owners[np.searchsorted(starts, places, side="right") - 1]
            pairs.append(np.unique(which << 20 | owner))
    held = np.bincount(np.unique(np.concatenate(pairs)) >> 20, minlength=len(unique))
    counts = np.zeros(len(tokens), np.int64)
    hits = held[inverse]
    for offset in range(n):
        part = counts[offset : offset + len(hits)]
        np.maximum(part, hits, out=part)
    return counts
