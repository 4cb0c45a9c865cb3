"""The compiled program's one entry: a job is some tokens to run, then samples to draw."""

from __future__ import annotations

from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.kernels.forward import forward
from nanochat_tui.engine.kernels.head import all_logits, last_logits
from nanochat_tui.engine.kernels.registry import compiled, program_ir
from nanochat_tui.engine.kernels.sampler import sample
from nanochat_tui.engine.kernels.threads import barrier, wait_for_job
from nanochat_tui.engine.simd.intrinsics import get, put
from nanochat_tui.engine.simd.library import Target, compile_object


@compiled("v:iiiii")
def run_job(tid, model, job, layers, thread):
    """Run the job's tokens, then sample up to STEPS tokens, each run in turn (except the last one)."""
    control, threads = get(model, s.CONTROL), get(model, s.THREADS)
    if tid == 0:
        put(job, s.CURRENT, get(job, s.POSITION))
        put(job, s.PRODUCED, 0)
    barrier(control, threads)  # before it nothing of the job is read: thread 0 may still be writing
    count, tokens = get(job, s.COUNT), get(job, s.TOKENS)
    all_rows = get(job, s.WANT) == s.WANT_ALL_LOGITS
    # too few tiles leave threads without one of their own: then they share rows
    by_rows = 1 if threads == 1 or count < threads * get(model, s.TILE) else 0
    forward(model, job, layers, thread, tid, tokens, count, by_rows)
    rows = count
    if all_rows:
        all_logits(model, job, thread, tid, count, by_rows)
    elif get(job, s.WANT) == s.WANT_SAMPLES:
        last_logits(model, thread, tid, rows, by_rows)
    if get(job, s.WANT) == s.WANT_SAMPLES:
        steps, produced = get(job, s.STEPS), 0
        while True:
            if tid == 0:
                stop = sample(model, job, produced)
                put(job, s.GO_ON, 1 if stop == 0 and produced + 1 < steps else 0)
                put(job, s.PRODUCED, produced + 1)
                put(job, s.CURRENT, get(job, s.POSITION) + count + produced)
            barrier(control, threads)
            if get(job, s.GO_ON) == 0:
                break
            forward(model, job, layers, thread, tid, get(job, s.OUT_IDS) + produced * 8, 1, 1)
            last_logits(model, thread, tid, 1, 1)
            produced += 1
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


def build_program(target: Target) -> bytes:
    """Compile kernels and program for a target; return the object code, whose entry is `library.ENTRY_NAME`."""
    return compile_object(target, program_ir("work"))
