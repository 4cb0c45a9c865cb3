"""Replies inside the compiled program: what is sampled from a pass's logits, and the rows of the next pass."""

from __future__ import annotations

from nanochat_tui.engine.kernels.attending import row_of
from nanochat_tui.engine.kernels.drafting import draft_from_history
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.sampler import sample
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import get, load_i64, put, store_i64


@compiled("i:Si")
def ends_reply(sequence, token):
    """Return whether a token is one of those after which a sequence stops."""
    for i in range(get(sequence, s.STOP_COUNT)):
        if load_i64(get(sequence, s.STOP_IDS) + i * 8) == token:
            return 1
    return 0


@compiled("v:MJTS")
def advance(model, job, thread, sequence):
    """Sample from the logits of a sequence's last pass: one token, and one more for every draft token it accepts.

    A draft token is accepted if it is the one drawn, so the reply is, token for token, the one without drafts: the
    chance of that is the token's probability, and a different draw is distributed as the rest.
    """
    drafted = get(sequence, s.SEQUENCE_ROWS) - 1
    put(sequence, s.PASSES, get(sequence, s.PASSES) + 1)
    put(sequence, s.DRAFTED_PASSES, get(sequence, s.DRAFTED_PASSES) + (1 if drafted > 0 else 0))
    put(sequence, s.PROPOSED, get(sequence, s.PROPOSED) + drafted)
    kept = 0
    while True:
        place = get(sequence, s.SEQUENCE_PLACE) + kept
        logits = get(job, s.LOGITS_OUT) + place * get(model, s.VOCAB_PADDED) * 4
        token = sample(model, thread, sequence, place, kept, logits)
        if get(sequence, s.HISTORY) != 0:
            store_i64(get(sequence, s.HISTORY) + get(sequence, s.HISTORY_COUNT) * 8, token)
            put(sequence, s.HISTORY_COUNT, get(sequence, s.HISTORY_COUNT) + 1)
        if ends_reply(sequence, token) == 1 or get(sequence, s.PRODUCED) >= get(sequence, s.STEPS):
            put(sequence, s.ACTIVE, 0)
            break
        if kept >= drafted or load_i64(get(sequence, s.DRAFT) + kept * 8) != token:
            break
        kept += 1
    put(sequence, s.LAST_TOKEN, token)
    put(sequence, s.ACCEPTED, get(sequence, s.ACCEPTED) + kept)
    if get(sequence, s.PASSES) >= get(sequence, s.MOST_PASSES):
        put(sequence, s.ACTIVE, 0)
    # the row that was sampled last is in the cache, and draft tokens beyond it are overwritten
    put(sequence, s.SEQUENCE_POSITION, get(sequence, s.SEQUENCE_POSITION) + kept + 1)


@compiled("v:JiSi")
def put_row(job, index, sequence, ahead):
    """Make row `index` a sequence's token: the last sampled one, or the draft token that many places ahead."""
    row = row_of(job, index)
    token = get(sequence, s.LAST_TOKEN) if ahead == 0 else load_i64(get(sequence, s.DRAFT) + (ahead - 1) * 8)
    put(row, s.TOKEN, token)
    put(row, s.POSITION, get(sequence, s.SEQUENCE_POSITION) + ahead)
    put(row, s.PAGES, get(sequence, s.SEQUENCE_PAGES))
    put(row, s.ROW_STATE, get(sequence, s.SEQUENCE_STATE))
    put(row, s.LOGITS_PLACE, index)


@compiled("i:Si")
def draft_tokens_of(sequence, most):
    """Return how many tokens DRAFT holds for a sequence's next pass, at most `most`: looked up, or given for it."""
    if get(sequence, s.NGRAM) > 0:
        draft_from_history(sequence, most)
    elif get(sequence, s.DRAFT_AT) != get(sequence, s.HISTORY_COUNT):
        return 0
    return min(most, get(sequence, s.DRAFT_COUNT))


@compiled("v:J")
def next_rows(job):
    """Make the job's rows the next pass of every sequence that goes on."""
    sequences, n = get(job, s.SEQUENCE_COUNT), 0
    going = 0
    for i in range(sequences):
        going += get(get(job, s.SEQUENCES) + i * 8 * s.SEQUENCE_SLOTS, s.ACTIVE)
    for i in range(sequences):
        sequence = get(job, s.SEQUENCES) + i * 8 * s.SEQUENCE_SLOTS
        if get(sequence, s.ACTIVE) == 0:
            continue
        drafted = 0
        if get(sequence, s.DRAFT_MOST) > 0:
            # draft tokens get rows only while every other sequence still gets one, and no further than the reply goes
            room = min(
                get(sequence, s.STEPS) - get(sequence, s.PRODUCED) - 1,
                get(sequence, s.LIMIT) - get(sequence, s.SEQUENCE_POSITION) - 1,
            )
            most = min(get(sequence, s.DRAFT_MOST), room, (s.HEAD_ROWS - going) // going)
            if most > 0:
                drafted = draft_tokens_of(sequence, most)
        put(sequence, s.SEQUENCE_PLACE, n)
        put(sequence, s.SEQUENCE_ROWS, drafted + 1)
        for ahead in range(drafted + 1):
            put_row(job, n, sequence, ahead)
            n += 1
    put(job, s.COUNT, n)
    put(job, s.WANTED, n)


@compiled("v:MJTii")
def advance_part(model, job, thread, part, parts):
    """Sample for every `parts`-th sequence that goes on, from number `part`."""
    for i in range(part, get(job, s.SEQUENCE_COUNT), parts):
        sequence = get(job, s.SEQUENCES) + i * 8 * s.SEQUENCE_SLOTS
        if get(sequence, s.ACTIVE) == 1:
            advance(model, job, thread, sequence)
