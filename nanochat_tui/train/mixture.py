"""Several data sets in one training: each position of the run belongs to one of them, by weight."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024
"""Sequences in which every data set has its share, up to one sequence."""


class Mixture:
    """Which data set a sequence of the run is of, and its number there; a function of weights, seed and position.

    In every block of 1,024 positions each data set has the share of its weight, rounded so that the shares of the whole
    run are kept to a sequence; within a block the order is drawn.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        total = sum(weights)
        self.shares = [weight / total for weight in weights]
        self.seed = seed
        self._before = [np.zeros(len(weights), np.int64)]
        self._order = functools.lru_cache(maxsize=4)(self._draw)

    def before(self, block: int) -> NDArray[np.int64]:
        """Sequences of each data set before a block, int64 [data sets]."""
        while len(self._before) <= block:
            given = self._before[-1]
            due = np.array(self.shares) * BLOCK * len(self._before) - given
            counts = np.floor(np.maximum(due, 0)).astype(np.int64)
            # the rest goes where most is due, one sequence each
            rest = BLOCK - int(counts.sum())
            order = np.argsort(counts - due, kind="stable")
            if rest >= 0:
                counts[order[:rest]] += 1
            else:
                counts[[at for at in order[::-1] if counts[at] > 0][:-rest]] -= 1
            self._before.append(given + counts)
        return self._before[block]

    def _draw(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Data set of each position of a block, and the number of the sequence in it."""
        begin = self.before(block)
        counts = self.before(block + 1) - begin
        owner = np.repeat(np.arange(len(counts)), counts)
        number = np.concatenate([at + np.arange(n) for at, n in zip(begin, counts, strict=True)])
        order = np.random.default_rng([self.seed, block]).permutation(BLOCK)
        return owner[order], number[order]

    def place(self, position: int) -> tuple[int, int]:
        """Data set and number of the sequence there, of a position of the run."""
        owner, number = self._order(position // BLOCK)
        return int(owner[position % BLOCK]), int(number[position % BLOCK])
