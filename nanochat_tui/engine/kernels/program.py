"""The compiled program's one entry: a job is some tokens to run, then replies to sample, step by step together."""

from __future__ import annotations

from nanochat_tui.engine.kernels.head import screened
from nanochat_tui.engine.kernels.passes import run_pass
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.replies import advance_part, next_rows
from nanochat_tui.engine.kernels.threads import (
    announce,
    end_pass,
    share_of,
    wait_for_end,
    wait_for_pass,
    wait_for_workers,
)
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import atomic_add, atomic_load, get, put


@compiled("v:MJLT")
def run_job(model, job, layers, thread):
    """Run the job's rows; then, as long as a sequence has steps left, sample and run what was sampled.

    This is thread 0's part. Other threads see passes only, and come to those for which they are in time.
    """
    crew, sequences = get(job, s.JOB_CREW), get(job, s.SEQUENCE_COUNT)
    put(thread, s.BASE, atomic_load(share_of(get(model, s.CONTROL), 0)))
    wait_for_workers(get(model, s.CONTROL), crew)
    put(thread, s.HASTY, 0)
    if get(job, s.ONLY_SEQUENCES) == 1:
        next_rows(job)
    while True:
        count, wanted, best = get(job, s.COUNT), get(job, s.WANTED), 0
        if count == 0:
            break
        if get(job, s.JOB_STATES) == 1:
            # told with the pass: a thread that is late may not look at the job, which is the next one's by then
            wanted = -wanted
        # the weights are read once if threads share rows; many tokens rather share the work between the matrices
        by_rows = 1 if crew == 1 or count <= s.HEAD_ROWS or count < crew * get(model, s.TILE) else 0
        if get(model, s.SCREEN_COLUMNS) > 0:
            best = screened(model, job)
        number = announce(model, thread, crew, count, by_rows, wanted, sequences, best)
        put(thread, s.NUMBER, 0)
        put(thread, s.CREW, crew)
        put(thread, s.OPEN, 0)
        put(thread, s.BEST_NOW, best)
        if run_pass(model, job, layers, thread, count, by_rows, wanted, sequences) == 1:
            end_pass(model, thread, number)
        else:
            wait_for_end(model, thread, number)
        if sequences == 0:
            break
        if sequences == 1:
            advance_part(model, job, thread, 0, 1)
        next_rows(job)


@compiled("v:iiMJLT")
def join_pass(tid, number, model, job, layers, thread):
    """Take part in a pass as thread `tid`, if it is still the last one that was announced and wants so many threads."""
    control = get(model, s.CONTROL)
    facts = control + 8 * (s.PASS_FACTS + number % 2 * s.FACT_SLOTS)
    crew, base = atomic_load(facts + 8 * s.FACT_CREW), atomic_load(facts + 8 * s.FACT_BASE)
    count, by_rows = atomic_load(facts + 8 * s.FACT_COUNT), atomic_load(facts + 8 * s.FACT_BY_ROWS)
    wanted, sequences = atomic_load(facts + 8 * s.FACT_WANTED), atomic_load(facts + 8 * s.FACT_SEQUENCES)
    best = atomic_load(facts + 8 * s.FACT_BEST)
    # the facts of a pass are overwritten only after the next one was announced
    if atomic_load(control + 8 * s.PASS) != number or tid >= crew:
        return
    put(thread, s.NUMBER, tid)
    put(thread, s.CREW, crew)
    put(thread, s.BASE, base)
    put(thread, s.OPEN, 0)
    put(thread, s.BEST_NOW, best)
    if run_pass(model, job, layers, thread, count, by_rows, wanted, sequences) == 1:
        end_pass(model, thread, number)


@compiled("i:iiMJLT")
def work(tid, seen, model, job, layers, threads):
    """Thread 0 runs the current job; the others take part in pass after pass until none came for a while.

    Returns the number of the last pass seen. tid: this thread's number; seen: the last pass it knows of;
    tables: see `slots`.
    """
    if tid == 0:
        run_job(model, job, layers, threads)
        return 0
    ready = get(model, s.CONTROL) + 8 * s.READY
    atomic_add(ready, 1)
    while True:
        number = wait_for_pass(get(model, s.CONTROL), seen)
        if number == seen:
            atomic_add(ready, -1)
            return seen
        seen = number
        join_pass(tid, number, model, job, layers, threads + tid * 8 * s.THREAD_SLOTS)
