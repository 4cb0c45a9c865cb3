"""Which tokens make up the sequences of an epoch: files begin a sequence, and are cut elsewhere each time.

A sequence of length L is read as a row of L + 1 tokens, the last being the target of the one before. In every epoch

* a document longer than L begins a row; its second row begins at a random place up to an eighth of L before the end
  of the first (any place for a very long document, whose overlap is small), the following ones where the row before
  ended, so that the borders are others each time and every token is a target;
* the rest of a document that does not fill a row, and documents of at most L tokens, share rows, none of the short
  ones cut (best fit in random order). What is left of such a row is filled with the beginning of another document;
* all rows are shuffled.

An end-of-text token stands before each document, so a row that runs on into the next one predicts it rightly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_VERY_LONG = 64
"""Documents of so many rows may overlap by a whole row: at most a 64th is read twice."""


@dataclass(frozen=True)
class EpochPlan:
    """Rows of one epoch as pieces of the token file.

    Row r is the concatenation of the pieces `first[r]` to `first[r + 1]` (int64 [rows + 1]), each `lengths[i]` tokens
    from `starts[i]` (int64); all rows have the same length.
    """

    first: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.first) - 1


def document_starts(
    tokens: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32], end: int | None
) -> NDArray[np.int64]:
    """Positions where documents begin: at each end-of-text token `end`, and at 0; int64, sorted."""
    found = [np.zeros(1, np.int64)]
    if end is not None:
        for start in range(0, tokens.size, 1 << 22):
            found.append(np.flatnonzero(tokens[start : start + (1 << 22)] == end) + start)
    return np.unique(np.concatenate(found))


def plan_epoch(starts: NDArray[np.int64], total: int, length: int, seed: int, epoch: int) -> EpochPlan:
    """Lay out the documents that begin at `starts` in a file of `total` tokens as rows of `length` + 1 tokens.

    A function of its arguments alone. Raises ValueError if the file is shorter than one row.
    """
    row = length + 1
    if total < row:
        raise ValueError(f"{total} tokens do not fill a row of {row}")
    rng = np.random.default_rng([seed, epoch])
    ends = np.append(starts[1:], total)
    sizes = ends - starts
    # whole rows of long documents, and what is left of each
    long = np.flatnonzero(sizes > length)
    bound = np.where(sizes[long] >= _VERY_LONG * length, length, max(1, length // 8))
    overlap = np.minimum(rng.integers(0, bound), length - 1)
    after = length - overlap  # where the second row begins
    more = (sizes[long] - 1 - after) // length
    count = more + 1
    owner = np.repeat(np.arange(len(long)), count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    full = starts[long][owner] + np.where(number == 0, 0, after[owner] + (number - 1) * length)
    rest_at = after + more * length
    rest = sizes[long] - rest_at
    tails = (rest > 1) & (sizes[long] > row)
    # shared rows: each begins with a rest or with a short document, and takes what fits best
    short = rng.permutation(np.flatnonzero((sizes <= length) & (sizes > 0)))
    pieces: list[list[tuple[int, int]]] = [
        [(int(at), int(n))] for at, n in zip((starts[long] + rest_at)[tails], rest[tails], strict=True)
    ]
    _pack(pieces, [(int(starts[d]), int(sizes[d])) for d in short], row)
    filler = rng.permutation(len(starts))
    for number_, parts in enumerate(pieces):
        _fill(parts, row, starts, sizes, filler, number_)
    # arrays, not lists: a corpus of billions of tokens has millions of rows
    order = rng.permutation(len(full) + len(pieces))
    shared = np.flatnonzero(order >= len(full))
    sizes_of = np.ones(len(order), np.int64)
    sizes_of[shared] = [len(pieces[r - len(full)]) for r in order[shared]]
    first = np.concatenate(([0], np.cumsum(sizes_of)))
    at, lengths = np.zeros(first[-1], np.int64), np.full(first[-1], row, np.int64)
    whole = order < len(full)
    at[first[:-1][whole]] = full[order[whole]]
    for place in shared:
        spans = np.array(pieces[order[place] - len(full)], np.int64)
        at[first[place] : first[place + 1]], lengths[first[place] : first[place + 1]] = spans.T
    return EpochPlan(first, at, lengths)


def _pack(rows: list[list[tuple[int, int]]], documents: list[tuple[int, int]], row: int) -> None:
    """Put whole documents into the rows with the least space that suffices; open a row where none does."""
    by_space: list[list[int]] = [[] for _ in range(row + 1)]
    used = 0  # bit s is set where rows with space for s tokens are

    def put(number: int, space: int) -> None:
        nonlocal used
        by_space[space].append(number)
        used |= 1 << space

    for number, parts in enumerate(rows):
        put(number, row - parts[0][1])
    for at, size in sorted(documents, key=lambda document: -document[1]):
        enough = used >> size
        if enough:
            space = size + (enough & -enough).bit_length() - 1
            number = by_space[space].pop()
            if not by_space[space]:
                used ^= 1 << space
            rows[number].append((at, size))
        else:
            space, number = row, len(rows)
            rows.append([(at, size)])
        put(number, space - size)


def _fill(
    parts: list[tuple[int, int]],
    row: int,
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    order: NDArray[np.int64],
    number: int,
) -> None:
    left = row - sum(size for _, size in parts)
    at = number
    while left > 0:
        document = order[at % len(order)]
        size = min(left, int(sizes[document]))
        if size:
            parts.append((int(starts[document]), size))
        left -= size
        at += 1
