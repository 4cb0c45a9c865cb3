"""Threads inside the compiled program: a spinning barrier and the workers' waiting loop."""

from __future__ import annotations

from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.simd.intrinsics import atomic_add, atomic_load, atomic_store, relax, yield_processor

SPINS = 200
"""Rounds of waiting before a thread offers its processor to another."""
IDLE_YIELDS = 100
"""Offers before an idle worker goes to sleep in Python: well under a millisecond on an idle machine."""


@compiled("v:ii")
def barrier(control, threads):
    """Wait until `threads` threads have come here. `control`: address of the CONTROL table."""
    if threads == 1:
        return
    generation = atomic_load(control + 8 * s.BARRIER_GENERATION)
    if atomic_add(control + 8 * s.BARRIER_COUNT, 1) == threads - 1:
        atomic_store(control + 8 * s.BARRIER_COUNT, 0)
        atomic_add(control + 8 * s.BARRIER_GENERATION, 1)
        return
    spins = 0
    while atomic_load(control + 8 * s.BARRIER_GENERATION) == generation:
        relax()
        spins += 1
        if spins > SPINS:
            yield_processor()
            spins = 0


@compiled("i:ii")
def wait_for_job(control, seen):
    """Return the number of the next job, or `seen` again when nothing came for a while."""
    for _ in range(IDLE_YIELDS):
        for _spin in range(SPINS):
            sequence = atomic_load(control + 8 * s.SEQUENCE)
            if sequence != seen:
                return sequence
            relax()
        yield_processor()
    return seen
