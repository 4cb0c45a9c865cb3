"""Threads that share the steps of a pass: a step is cut into pieces, and the threads that are there take them.

Every thread has a share of each step's pieces and takes those first, from a counter that no other touches, so two
threads at full speed never meet but at the step's end. A thread that waits there for longer takes what is left of the
others' shares: one that the system keeps from running delays the step only by a piece that it has begun. Waiting begins
with spinning and ends in sleep: the processor is free then, and the system moves the thread that everybody waits for to
it. No thread gives its turn away while it spins; Linux takes that for a thread that needs little time (from 6.18 on).

Between steps threads may prepare for the next one in buffers of their own, by what the last step left. A thread that
then comes so late that its next step is over may have read what was being overwritten, so it leaves the pass (a held
piece keeps a step open, and an open step its inputs). Where everything lies in shared buffers a late thread goes on
with the step that the others have come to. Who computes a piece never changes its bits.
"""

from __future__ import annotations

from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import (
    atomic_add,
    atomic_load,
    atomic_max,
    atomic_store,
    exchange_if,
    get,
    nap,
    put,
    relax,
    wake,
)

SPINS = 600
"""Rounds of waiting before a thread sleeps in the middle of a pass: some 30 us."""
IDLE_SPINS, IDLE_NAPS = 8000, 8
"""Rounds of waiting for the next pass before a thread sleeps, a few hundred us, and how often it does so (each time for
milliseconds at most) before it goes to sleep in Python."""
PATIENCE, HASTE = 4000, 100
"""Rounds of waiting before a thread takes pieces of the others' shares, some 200 us: longer than any piece of a small
model takes, as taking one that its owner was about to begin makes the step longer, and much shorter than the
system runs another program. It need not wait so long for one that was not there last time."""
LARGE = 1 << 23
"""Layers times squared width of a model from which on a thread also sleeps (`tables.NAP_NANOSECONDS` at most) before it
takes others' pieces. A thread that loses a piece is out of the pass; of a pass of many milliseconds that costs more
than waiting until a short task, such as sending the last token, gives the processor back."""


@compiled("H:Ci")
def share_of(control, number):
    """Return the address of a thread's share."""
    return control + 8 * (s.SHARES + number * s.SHARE_SLOTS)


@compiled("i:Hii")
def take(share, base, each):
    """Take the next of a share's pieces base to base + each; return its number in the step, or -1."""
    taken = atomic_load(share)
    while taken >= base and taken < base + each:
        seen = exchange_if(share, taken, taken + 1)
        if seen == taken:
            return taken - base
        taken = seen
    return -1


@compiled("i:Cii")
def unfinished(control, crew, target):
    """Return the number of a share of which fewer than `target` pieces were ever finished, or -1."""
    for number in range(crew):
        if atomic_load(share_of(control, number) + 8 * s.SHARE_DONE) < target:
            return number
    return -1


@compiled("v:Cii")
def sleep_while(control, address, value):
    """Sleep for a moment at most, unless the int64 at the address is another already."""
    atomic_add(control + 8 * s.SLEEPERS, 1)
    nap(address, value, control + 8 * s.NAP_LIMIT)
    atomic_add(control + 8 * s.SLEEPERS, -1)


@compiled("i:MTi")
def next_piece(model, thread, each):
    """Take a piece of the current step, whose shares have `each` pieces; return its number among all, or -1."""
    control, number, crew = get(model, s.CONTROL), get(thread, s.NUMBER), get(thread, s.CREW)
    base = get(thread, s.BASE)
    piece = take(share_of(control, number), base, each)
    if piece >= 0:
        put(thread, s.OPEN, 1)
        put(thread, s.HELD, number)
        return number * each + piece
    if crew == 1:
        return -1
    for _ in range(HASTE if get(thread, s.HASTY) > 0 else PATIENCE):
        if unfinished(control, crew, base + each) < 0:
            # a thread that had to do the others' pieces in this step expects the same of the next
            put(thread, s.HASTY, get(thread, s.HASTY) // 2)
            return -1
        put(thread, s.OPEN, 1)
        relax()
    if get(thread, s.HASTY) == 0 and get(model, s.LAYERS) * get(model, s.DIM) * get(model, s.DIM) >= LARGE:
        late = unfinished(control, crew, base + each)
        if late >= 0:
            done = share_of(control, late) + 8 * s.SHARE_DONE
            value = atomic_load(done)
            if value < base + each:
                put(thread, s.NAPS, get(thread, s.NAPS) + 1)
                sleep_while(control, done, value)
    for away in range(1, crew):
        other = (number + away) % crew
        piece = take(share_of(control, other), base, each)
        if piece >= 0:
            put(thread, s.HELD, other)
            put(thread, s.HASTY, 2)
            put(thread, s.STOLEN, get(thread, s.STOLEN) + 1)
            return other * each + piece
    return -1


@compiled("v:MT")
def piece_done(model, thread):
    """Tell that the piece that was taken last is finished."""
    control = get(model, s.CONTROL)
    done = share_of(control, get(thread, s.HELD)) + 8 * s.SHARE_DONE
    atomic_add(done, 1)
    if atomic_load(control + 8 * s.SLEEPERS) > 0:
        wake(done)


@compiled("i:MTi")
def end_step(model, thread, each):
    """Wait until every piece of the step is finished; return 1, or 0 if this thread is too late for the pass."""
    control, crew = get(model, s.CONTROL), get(thread, s.CREW)
    target = get(thread, s.BASE) + each
    put(thread, s.BASE, target)
    if crew == 1:
        return 1
    still = get(thread, s.OPEN)
    put(thread, s.OPEN, 0)
    if still == 0 and get(thread, s.OWN_STREAMS) == 1:
        put(thread, s.DROPPED, get(thread, s.DROPPED) + 1)
        return 0
    spins = 0
    while True:
        number = unfinished(control, crew, target)
        if number < 0:
            return 1
        relax()
        spins += 1
        if spins > SPINS:
            spins = 0
            done = share_of(control, number) + 8 * s.SHARE_DONE
            value = atomic_load(done)
            if value < target:
                put(thread, s.NAPS, get(thread, s.NAPS) + 1)
                sleep_while(control, done, value)


@compiled("v:Ci")
def wait_for_workers(control, crew):
    """Wait a moment for workers that were woken for this job: what comes after a pass has begun is of no use to it."""
    for _ in range(IDLE_SPINS):
        if atomic_load(control + 8 * s.READY) >= crew - 1:
            break
        relax()


@compiled("i:MTiiiiii")
def announce(model, thread, crew, count, by_rows, wanted, sequences, best):
    """Let the crew begin a pass; return its number. For thread 0, when no pass is running."""
    control = get(model, s.CONTROL)
    number = atomic_load(control + 8 * s.PASS) + 1
    base = get(thread, s.BASE)
    facts = control + 8 * (s.PASS_FACTS + number % 2 * s.FACT_SLOTS)
    if crew == 1:
        # no other thread comes, and late ones of earlier passes are late for this one as well
        number -= 1
    else:
        for other in range(crew):
            share = share_of(control, other)
            if atomic_load(share) != base:
                atomic_store(share, base)
                atomic_store(share + 8 * s.SHARE_DONE, base)
        atomic_store(facts + 8 * s.FACT_CREW, crew)
        atomic_store(facts + 8 * s.FACT_BASE, base)
        atomic_store(facts + 8 * s.FACT_COUNT, count)
        atomic_store(facts + 8 * s.FACT_BY_ROWS, by_rows)
        atomic_store(facts + 8 * s.FACT_WANTED, wanted)
        atomic_store(facts + 8 * s.FACT_SEQUENCES, sequences)
        atomic_store(facts + 8 * s.FACT_BEST, best)
        atomic_add(control + 8 * s.PASS, 1)
        if atomic_load(control + 8 * s.SLEEPERS) > 0:
            wake(control + 8 * s.PASS)
    return number


@compiled("v:MTi")
def end_pass(model, thread, number):
    """Tell that a pass is finished."""
    if get(thread, s.CREW) > 1:
        control = get(model, s.CONTROL)
        atomic_max(control + 8 * s.ENDED, number)
        if atomic_load(control + 8 * s.SLEEPERS) > 0:
            wake(control + 8 * s.ENDED)


@compiled("v:MTi")
def wait_for_end(model, thread, number):
    """Wait until the others have finished a pass that thread 0 was too late for; learn how many pieces it had."""
    control, spins = get(model, s.CONTROL), 0
    ended = control + 8 * s.ENDED
    while True:
        value = atomic_load(ended)
        if value >= number:
            break
        relax()
        spins += 1
        if spins > SPINS:
            spins = 0
            put(thread, s.NAPS, get(thread, s.NAPS) + 1)
            sleep_while(control, ended, value)
    put(thread, s.BASE, atomic_load(share_of(control, 0)))


@compiled("i:Ci")
def wait_for_pass(control, seen):
    """Return the number of a pass other than the one seen, or `seen` again when nothing came for a while."""
    announced = control + 8 * s.PASS
    for turn in range(IDLE_NAPS):
        for _spin in range(IDLE_SPINS if turn == 0 else 1):
            number = atomic_load(announced)
            if number != seen:
                return number
            relax()
        sleep_while(control, announced, seen)
    return seen
