"""Draft tokens of a reply from its own history (prompt-lookup decoding, Saxena 2023).

A draft costs a scan of the history: `program` runs its tokens with the last one and accepts what the sampler draws.
"""

from __future__ import annotations

from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import get, load_i64, put, store_i64

SHORTEST = 2
"""Fewest tokens that must agree before a place in the history is believed."""


@compiled("i:iiii")
def agreeing(history, end, other, most):
    """Return how many of the tokens before `end` and before `other` agree, counted backwards, at most `most`."""
    n = 0
    while n < most and n < other and load_i64(history + (end - 1 - n) * 8) == load_i64(history + (other - 1 - n) * 8):
        n += 1
    return n


@compiled("v:Si")
def draft_from_history(sequence, most):
    """Set DRAFT to what followed the last occurrence of the longest repeated ending, up to `most` tokens.

    The ending has SHORTEST to NGRAM tokens; of equally long ones the latest counts. DRAFT_COUNT is 0 if there is none.
    """
    history, n = get(sequence, s.HISTORY), get(sequence, s.HISTORY_COUNT)
    longest, best, found = get(sequence, s.NGRAM), SHORTEST - 1, -1
    place = n - 1
    while place >= SHORTEST and best < longest:
        same = agreeing(history, n, place, longest)
        if same > best:
            best, found = same, place
        place -= 1
    count = 0
    if found >= 0:
        count = min(most, n - found)
        for i in range(count):
            store_i64(get(sequence, s.DRAFT) + i * 8, load_i64(history + (found + i) * 8))
    put(sequence, s.DRAFT_COUNT, count)
