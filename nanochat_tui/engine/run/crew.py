"""How many threads run a job: all of them, unless others want the processors, by what jobs took lately.

Threads of one job wait for each other after every matrix. On processors that are shared with other programs more of
them can be slower than fewer: each is kept from running now and then, and all wait. So jobs are timed. While thread 0
is seldom kept waiting nothing else happens; when it often is, a few jobs are tried with fewer threads, and from then on
now and then with more. What was faster stays. Trials that bring nothing become rarer, but never so rare that a machine
that is free again goes unnoticed for more than `LONGEST_PAUSE` of work. Seconds are those of jobs: what trials cost is
in proportion to the work, and not to the time without requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW = 0.03
"""Seconds of jobs that are judged together: several turns of a processor that is shared."""
WAITED = 0.08
"""Share of the time in which thread 0 does not run, from which on fewer threads are tried."""
GAIN_FEWER, GAIN_MORE = 1.25, 1.02
"""What another number of threads must gain. Windows on a shared machine differ by a fifth; a processor that is really
taken away costs more, and where both are about equal all threads are used, so that a free machine is used."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""Seconds of work between trials; each that brought nothing doubles them."""
REST = 12
"""Windows between trials at least, where a single job takes longer than a window."""
WARM_UP = 3
"""Windows of each kind of job that are not judged: pages, caches and the processor's clock come first."""
PROBATION = 8
"""Windows after a change to more threads in which one that is slower than before ends it: with another program on one
of the processors a single trial may have had luck."""
MEMORY = 0.5
"""Weight of what was measured before, against a new window."""
FEW_ROWS = 16
"""Rows of a job up to which a pass costs much the same."""


def fewer(threads: int) -> int:
    """Return the next lower number of threads to try."""
    return max(1, threads - max(1, threads // 4))


def more(threads: int, most: int) -> int:
    """Return the next higher number of threads to try."""
    return min(most, threads + max(1, threads // 3))


@dataclass(slots=True)
class _Kind:
    """What is known of jobs of one kind. size: threads they run with; tried: those of a trial, 0 outside of one.

    rate: work per second at `size`. work, seconds, waited: of the window. until: when more (True) or fewer threads may
    be tried. pause: how long the next pause is. before: size and rate before more threads were taken, for so many
    windows (`probation`). windows: measured so far.
    """

    size: int
    tried: int = 0
    rate: float = 0.0
    work: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    until: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    pause: dict[bool, float] = field(default_factory=lambda: {True: FIRST_PAUSE, False: FIRST_PAUSE})
    before: tuple[int, float] = (0, 0.0)
    probation: int = 0
    windows: int = 0


@dataclass(frozen=True, slots=True)
class ThreadCounts:
    """What the threads of a model did since it was loaded.

    now: threads that the latest kind of job runs with. passes: how many ran with so many threads. changes: how often
    the number of threads changed. stolen: pieces of work that a thread did for one that was late.
    dropped: passes that a late thread left. naps: waits in the middle of a pass that became sleep.
    """

    now: int
    passes: dict[int, int]
    changes: int
    stolen: int
    dropped: int
    naps: int


class Crew:
    """Decides for one model how many of its threads take part in a job. Knows no clock: it is told what jobs took.

    most: threads of the model. adapts: False to use all of them always.
    """

    def __init__(self, most: int, *, adapts: bool = True) -> None:
        self.most = most
        self.passes: dict[int, int] = {}
        """Passes that ran with so many threads."""
        self.changes = 0
        """How often the number of threads of some kind of job was changed."""
        self._adapts = adapts and most > 1
        self._kinds: dict[int, _Kind] = {}
        self._latest = most
        self._clock = 0.0
        """Seconds of all jobs."""

    @property
    def now(self) -> int:
        """Threads that the latest kind of job runs with."""
        return self._latest

    def size(self, rows: int) -> int:
        """Return how many threads a job is to have whose first pass has so many rows."""
        if not self._adapts:
            return self.most
        kind = self._kinds.setdefault(rows.bit_length(), _Kind(self._latest))
        return kind.tried or kind.size

    def learn(self, rows: int, size: int, passes: int, seconds: float, waited: float) -> None:
        """Note what a job took: wall seconds, and of them those in which thread 0 did not run.

        rows, size: as asked and answered by `size`.
        """
        self.passes[size] = self.passes.get(size, 0) + passes
        if not self._adapts:
            return
        kind = self._kinds[rows.bit_length()]
        self._clock += seconds
        kind.work += passes if rows <= FEW_ROWS else rows
        kind.seconds += seconds
        kind.waited += max(0.0, waited)
        if kind.seconds < WINDOW:
            return
        rate, share, length = kind.work / kind.seconds, kind.waited / kind.seconds, kind.seconds
        kind.work = kind.seconds = kind.waited = 0.0
        kind.windows += 1
        if kind.windows <= WARM_UP:
            return
        if kind.tried:
            self._judge(kind, rate, length)
        elif kind.probation > 0 and rate < kind.before[1]:
            (kind.size, kind.rate), kind.probation = kind.before, 0
            self.changes += 1
            self._put_off(kind, True, length)
        else:
            kind.probation -= kind.probation > 0
            if kind.probation == 1:
                kind.pause[True] = FIRST_PAUSE
            kind.rate = rate if kind.rate == 0.0 else MEMORY * kind.rate + (1 - MEMORY) * rate
            if kind.size < self.most and self._clock >= kind.until[True]:
                kind.tried = more(kind.size, self.most)
            elif kind.size > 1 and share > WAITED and self._clock >= kind.until[False]:
                # what was measured while the machine was free says nothing of now
                kind.rate = rate
                kind.tried = fewer(kind.size)
        self._latest = kind.size

    def _judge(self, kind: _Kind, rate: float, length: float) -> None:
        """End a trial, in which jobs did `rate` work per second."""
        up = kind.tried > kind.size
        if rate > (GAIN_MORE if up else GAIN_FEWER) * kind.rate:
            kind.before, kind.probation = (kind.size, kind.rate), PROBATION if up else 0
            kind.size, kind.rate = kind.tried, rate
            if not up:
                kind.pause[up] = FIRST_PAUSE
            # the way back is not tried at once, and soon if this was wrong
            kind.until[up], kind.until[not up] = self._clock, self._clock + max(FIRST_PAUSE, length)
            self.changes += 1
        else:
            self._put_off(kind, up, length)
        kind.tried = 0

    def _put_off(self, kind: _Kind, up: bool, length: float) -> None:
        """Try more (`up`) or fewer threads later, and after a longer pause each time."""
        kind.until[up] = self._clock + max(kind.pause[up], REST * length if length > 2 * WINDOW else 0.0)
        kind.pause[up] = min(2 * kind.pause[up], LONGEST_PAUSE)
