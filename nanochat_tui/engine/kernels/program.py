"""The compiled program's one entry: a job is some tokens to run, then replies to sample, step by step together."""

from __future__ import annotations

from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.kernels.drafting import draft_from_history
from nanochat_tui.engine.kernels.forward import forward, row_of
from nanochat_tui.engine.kernels.head import row_logits
from nanochat_tui.engine.kernels.registry import compiled, kernels_of, lowered
from nanochat_tui.engine.kernels.sampler import sample
from nanochat_tui.engine.kernels.screen import screened_logits
from nanochat_tui.engine.kernels.threads import barrier, wait_for_job
from nanochat_tui.engine.simd.intrinsics import get, load_i64, put, store_i64
from nanochat_tui.engine.simd.library import Target, compile_functions, compile_object


@compiled("i:ii")
def ends_reply(sequence, token):
    """Return whether a token is one of those after which a sequence stops."""
    for i in range(get(sequence, s.STOP_COUNT)):
        if load_i64(get(sequence, s.STOP_IDS) + i * 8) == token:
            return 1
    return 0


@compiled("v:iiii")
def advance(model, job, thread, sequence):
    """Sample from the logits of a sequence's last pass: one token, and one more for every guess that it confirms.

    A guessed token is kept when it is the one drawn, so the reply is, token for token, the one without guessing: the
    chance of that is the token's probability, and a different draw is distributed as the rest.
    """
    guesses = get(sequence, s.SEQUENCE_ROWS) - 1
    put(sequence, s.PASSES, get(sequence, s.PASSES) + 1)
    put(sequence, s.DRAFTED_PASSES, get(sequence, s.DRAFTED_PASSES) + (1 if guesses > 0 else 0))
    put(sequence, s.PROPOSED, get(sequence, s.PROPOSED) + guesses)
    kept = 0
    while True:
        place = get(sequence, s.SEQUENCE_PLACE) + kept
        logits = get(job, s.LOGITS_OUT) + place * get(model, s.VOCAB_PADDED) * 4
        token = sample(model, thread, sequence, place, logits)
        if get(sequence, s.HISTORY) != 0:
            store_i64(get(sequence, s.HISTORY) + get(sequence, s.HISTORY_COUNT) * 8, token)
            put(sequence, s.HISTORY_COUNT, get(sequence, s.HISTORY_COUNT) + 1)
        if ends_reply(sequence, token) == 1 or get(sequence, s.PRODUCED) >= get(sequence, s.STEPS):
            put(sequence, s.ACTIVE, 0)
            break
        if kept >= guesses or load_i64(get(sequence, s.DRAFT) + kept * 8) != token:
            break
        kept += 1
    put(sequence, s.LAST_TOKEN, token)
    put(sequence, s.ACCEPTED, get(sequence, s.ACCEPTED) + kept)
    if get(sequence, s.PASSES) >= get(sequence, s.MOST_PASSES):
        put(sequence, s.ACTIVE, 0)
    # the row that was sampled last is in the cache, and what was guessed beyond it is overwritten
    put(sequence, s.SEQUENCE_POSITION, get(sequence, s.SEQUENCE_POSITION) + kept + 1)


@compiled("v:iiii")
def put_row(job, index, sequence, ahead):
    """Make row `index` a sequence's token: the last sampled one, or the guess that many places ahead of it."""
    row = row_of(job, index)
    token = get(sequence, s.LAST_TOKEN) if ahead == 0 else load_i64(get(sequence, s.DRAFT) + (ahead - 1) * 8)
    put(row, s.TOKEN, token)
    put(row, s.POSITION, get(sequence, s.SEQUENCE_POSITION) + ahead)
    put(row, s.PAGES, get(sequence, s.SEQUENCE_PAGES))
    put(row, s.ROW_STATE, get(sequence, s.SEQUENCE_STATE))
    put(row, s.LOGITS_PLACE, index)


@compiled("i:ii")
def guesses_of(sequence, most):
    """Return how many guesses DRAFT holds for a sequence's next pass, at most `most`: looked up, or given for it."""
    if get(sequence, s.NGRAM) > 0:
        draft_from_history(sequence, most)
    elif get(sequence, s.DRAFT_AT) != get(sequence, s.HISTORY_COUNT):
        return 0
    return min(most, get(sequence, s.DRAFT_COUNT))


@compiled("v:i")
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
        guesses = 0
        if get(sequence, s.DRAFT_MOST) > 0:
            # guesses are worth a row only while every other sequence still gets one, and no further than the reply goes
            room = min(
                get(sequence, s.STEPS) - get(sequence, s.PRODUCED) - 1,
                get(sequence, s.LIMIT) - get(sequence, s.SEQUENCE_POSITION) - 1,
            )
            most = min(get(sequence, s.DRAFT_MOST), room, (s.HEAD_ROWS - going) // going)
            if most > 0:
                guesses = guesses_of(sequence, most)
        put(sequence, s.SEQUENCE_PLACE, n)
        put(sequence, s.SEQUENCE_ROWS, guesses + 1)
        for ahead in range(guesses + 1):
            put_row(job, n, sequence, ahead)
            n += 1
    put(job, s.COUNT, n)
    put(job, s.WANTED, n)


@compiled("v:iiiii")
def run_job(tid, model, job, layers, thread):
    """Run the job's rows; then, as long as a sequence has steps left, sample and run what was sampled."""
    control, threads = get(model, s.CONTROL), get(model, s.THREADS)
    if tid == 0 and get(job, s.ONLY_SEQUENCES) == 1:
        next_rows(job)
    barrier(control, threads)  # before it nothing of the job is read: thread 0 may still be writing
    sequences = get(job, s.SEQUENCE_COUNT)
    while True:
        count = get(job, s.COUNT)
        if count == 0:
            break
        # the weights are read once if threads share rows; many tokens rather share the work between the matrices
        by_rows = 1 if threads == 1 or count <= s.HEAD_ROWS or count < threads * get(model, s.TILE) else 0
        forward(model, job, layers, thread, tid, count, by_rows)
        if get(job, s.WANTED) > 0:
            row_logits(model, job, thread, tid, count, by_rows)
        if sequences == 0:
            break
        for i in range(tid, sequences, threads):
            sequence = get(job, s.SEQUENCES) + i * 8 * s.SEQUENCE_SLOTS
            if get(sequence, s.ACTIVE) == 1:
                advance(model, job, thread, sequence)
        # thread 0 looks after a single sequence, and goes on with the rows at once
        barrier(control, threads if sequences > 1 else 1)
        if tid == 0:
            next_rows(job)
        barrier(control, threads)
    barrier(control, threads)


@compiled("i:iiiiii")
def work(tid, seen, model, job, layers, threads):
    """Thread 0 runs the current job once; the others run job after job until none came for a while.

    Returns the number of the last job seen. tid: this thread's number; seen: the last job it knows of;
    tables: see `slots`.
    """
    if tid == 0:
        # the pool looks here for whether the job it announced was begun
        put(get(model, s.CONTROL), s.STARTED, get(get(model, s.CONTROL), s.SEQUENCE))
        run_job(0, model, job, layers, threads)
        return seen
    while True:
        sequence = wait_for_job(get(model, s.CONTROL), seen)
        if sequence == seen:
            return seen
        seen = sequence
        if sequence < 0:
            return seen
        run_job(tid, model, job, layers, threads + tid * 8 * s.THREAD_SLOTS)


SAMPLER, SCREEN = "sample", screened_logits.__name__
"""Functions that are compiled apart from the rest of the program: to divide the work between processes, and because it
is not always wanted."""


def build_program(target: Target) -> list[bytes]:
    """Compile the program without its sampler for a target; return the object code, which has `objects.ENTRY_NAME`."""
    functions = lowered("work", "work", target.known, apart=frozenset({SAMPLER}))
    return [compile_functions(target, functions, "work")]


def build_kernels(target: Target) -> list[bytes]:
    """Compile the kernels that a target's program calls, and the sampler; return the object code of each."""
    kernels = compile_object(target, names=kernels_of("work", target.known))
    return [kernels, compile_functions(target, lowered("work", SAMPLER, target.known), SAMPLER)]


def build_screen(target: Target) -> list[bytes]:
    """Compile what screens an output table, with its kernels; return the object code of each."""
    kernels = compile_object(target, names=kernels_of(SCREEN, target.known))
    return [kernels, compile_functions(target, lowered(SCREEN, SCREEN, target.known), SCREEN)]


BUILDERS = {"program": build_program, "kernels": build_kernels, "screen": build_screen}
"""What makes the parts of `compile_cache.PARTS`."""
