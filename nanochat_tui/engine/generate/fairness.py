"""Who gets how much of a pass, and who may run: decisions of the batcher, without the engine.

Prompts share a pass shortest remaining first, by which the mean wait for a first token is least; waiting counts as if
it made a prompt shorter, and the oldest one always gets on, so none starves. A pass with running replies in it may take
`GAP` times as long as one without prompts, or has few tokens of them. Places go to the request with the fewest replies
running (max-min fairness).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

GAP = 1.75
"""How many times as long as usual a pass with running replies may become by tokens of prompts beyond the least."""
PASS_SECONDS = 0.02
"""A pass may always become this long: 50 tokens a second look like a steady stream to a reader."""
PREFILL_SECONDS = 0.25
"""How long a pass without running replies may become: a request that comes meanwhile waits for its end."""
LEAST_CHUNK, LEAST_PREFILL = 4, 64
"""Tokens of prompts that a pass takes however slow it is, with running replies (at least so many) and without."""
AGEING = 200
"""Tokens by which a second of waiting makes a prompt shorter in the order."""
FORGETTING = 0.02
"""Part by which what large passes took approaches, at every smaller one, what is expected of them after that one."""
LONG_SHARE = 16
"""Tokens that a prompt gets in a pass in which another one comes to its first token."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What counts about a prompt in prefill: tokens that remain, seconds since it came."""

    remaining: int
    waited: float


class Budget:
    """How many tokens of prompts a pass takes, by what passes of that size took.

    Kernels work on tiles of tokens, and one that is half empty takes as long as a full one; so a pass with running
    replies is filled up to whole tiles. tile: tokens of the largest one (`kinds.TILES`).
    """

    def __init__(self, tile: int) -> None:
        self.tile = tile
        self.plain = 0.0
        """Seconds of a pass of running replies alone, 0 before one was measured."""
        self._took: tuple[dict[int, float], dict[int, float]] = ({}, {})
        """Seconds of passes with prompts in them by rows, without and with running replies."""

    def learn(self, seconds: float, replies: int, prefilled: int) -> None:
        """Note what a pass took with so many running replies and tokens of prompts in it."""
        if prefilled == 0:
            self.plain = seconds if self.plain == 0.0 else 0.7 * self.plain + 0.3 * seconds
            return
        took, rows = self._took[replies > 0], self.rows(replies + prefilled)
        took[rows] = 0.5 * took.get(rows, seconds) + 0.5 * seconds
        for size in took:
            if size > rows:  # once slow, it is tried again after some time
                took[size] += FORGETTING * (self._scaled(took[rows], size / rows, replies) - took[size])

    def tokens(self, most: int, replies: int) -> int:
        """Return how many tokens of prompts the next pass takes, at most `most`."""
        if replies == 0:
            return min(most, max(LEAST_PREFILL, self._within(PREFILL_SECONDS, most, 0)))
        seconds = self.plain + max((GAP - 1) * self.plain, PASS_SECONDS)
        least = self.rows(replies + LEAST_CHUNK)
        rows = self._within(seconds, most + replies, replies) if self._took[1] else self.rows(replies + self.tile)
        return min(most, max(rows, least) - replies)

    def rows(self, tokens: int) -> int:
        """Return the tokens that the tiles hold in which a pass computes so many."""
        return -(-tokens // self.tile) * self.tile if tokens >= self.tile else 1 << (tokens - 1).bit_length()

    def _within(self, seconds: float, most: int, replies: int) -> int:
        """Return the most rows of whole tiles, at most `most`, that a pass computes in so many seconds."""
        took = self._took[replies > 0]
        if not took:
            return most
        size = best = 1
        while size <= min(most, 2 * max(took)):
            known = max((each for each in took if each <= size), default=min(took))
            expected = self._scaled(took[known], size / known, replies)
            # part of a pass takes at least its share
            expected = max([expected, *(took[each] * size / each for each in took if each > size)])
            if expected <= seconds:
                best = size
            size += min(size, self.tile)
        return best

    def _scaled(self, seconds: float, times: float, replies: int) -> float:
        """Return the seconds expected of a pass with so many times the rows of one that took `seconds`.

        A quarter of them at least is for the rows: what a pass without prompts takes depends on its replies.
        """
        rows = max(seconds - self.plain, seconds / 4) if replies else seconds
        return seconds + rows * (times - 1)


def order(prompts: Sequence[Prompt]) -> list[int]:
    """Return the prompts' numbers, the next to prefill first; of equals the earlier one."""
    return sorted(range(len(prompts)), key=lambda i: (prompts[i].remaining - AGEING * prompts[i].waited, i))


def share(prompts: Sequence[Prompt], budget: int) -> list[int]:
    """Return how many tokens of each prompt a pass of `budget` tokens takes."""
    taken = [0] * len(prompts)
    if not prompts or budget <= 0:
        return taken
    oldest = max(range(len(prompts)), key=lambda i: (prompts[i].waited, -i))
    # a quarter is the oldest one's, so that a stream of short prompts cannot hold up a prompt for ever
    taken[oldest] = min(prompts[oldest].remaining, max(1, min(LONG_SHARE, budget // 4)))
    left, ends = budget - taken[oldest], False
    for i in order(prompts):
        remaining = prompts[i].remaining
        some = min(remaining - taken[i], left)
        if some + taken[i] < remaining and ends:
            some = max(0, min(some, LONG_SHARE - taken[i]))
        taken[i] += some
        left -= some
        ends = ends or taken[i] == remaining
    return taken


def next_to_run(waiting: Sequence[Hashable], running: Sequence[Hashable]) -> int:
    """Return which of the waiting replies, by the requests they belong to, runs next: whose request has the fewest."""
    counts = Counter(running)
    return min(range(len(waiting)), key=lambda i: (counts[waiting[i]], i))


def to_displace(waiting: Sequence[Hashable], running: Sequence[Hashable]) -> int | None:
    """Return which running reply, when no place is free, makes room for a waiting one; None if places are shared well.

    It is the last one of the request with the most, if that has two more than another that waits.
    """
    counts = Counter(running)
    if not waiting or not running:
        return None
    least, most = min(counts[owner] for owner in waiting), max(counts.values())
    if most < least + 2:
        return None
    return max(i for i, owner in enumerate(running) if counts[owner] == most)
