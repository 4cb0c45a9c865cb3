"""Threads that run the compiled program together.

The calling thread is thread 0. The others live as long as the model: between jobs they spin for a moment
inside compiled code (a conversation's next token comes at once), then sleep in Python until woken. A job does not wait
for them: what they are too late for is done without them (see `kernels.threads`).
"""

from __future__ import annotations

import threading
import weakref

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.compile.cache import Entry
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.errors import UserError
from nanochat_tui.system import stay_on_performance_cpus


class _Shared:
    """What a worker holds on to: the tables' addresses, but not the pool, so that the pool can be collected."""

    def __init__(
        self, entry: Entry, control: NDArray[np.int64], tables: tuple[int, int, int, int], keep: object
    ) -> None:
        self.entry = entry
        self.control = control
        self.tables = tables
        self.keep = keep  # the buffers behind the addresses
        self.wake = threading.Condition()
        self.closed = False


def _worker(shared: _Shared, number: int) -> None:
    stay_on_performance_cpus()
    job = seen = 0
    while True:
        with shared.wake:
            while shared.control[s.SEQUENCE] == job and not shared.closed:
                shared.wake.wait()
            if shared.closed:
                return
            job = int(shared.control[s.SEQUENCE])
        seen = shared.entry(number, seen, *shared.tables)


def _close(shared: _Shared) -> None:
    with shared.wake:
        shared.closed = True
        shared.wake.notify_all()


class Pool:
    """`threads` threads around one set of tables (addresses: model, job, layers, threads).

    control: the CONTROL table, which the addresses refer to as well. keep: owner of the buffers behind them.
    """

    def __init__(
        self,
        entry: Entry,
        threads: int,
        control: NDArray[np.int64],
        tables: tuple[int, int, int, int],
        keep: object,
    ) -> None:
        self._shared = _Shared(entry, control, tables, keep)
        self._threads = threads
        self._started = False
        self._close = weakref.finalize(self, _close, self._shared)
        # at exit a thread may be in a job: without its workers it would never come out
        self._close.atexit = False

    def _start(self) -> None:
        try:
            for number in range(1, self._threads):
                name = f"nanochat-engine-{number}"
                threading.Thread(target=_worker, args=(self._shared, number), name=name, daemon=True).start()
        except RuntimeError as error:
            self.close()
            raise UserError(f"the system does not allow {self._threads} threads; load the model with fewer") from error
        self._started = True

    def run(self, crew: int) -> None:
        """Run the job in the tables, which say that `crew` threads share it. One caller at a time, none during `close`.

        Raises UserError if the pool was closed or its threads cannot be started.
        """
        shared = self._shared
        if shared.closed:
            raise UserError("the model was closed; load it again")
        if crew > 1:
            if not self._started:
                self._start()
            with shared.wake:
                shared.control[s.SEQUENCE] += 1
                shared.wake.notify_all()
        shared.entry(0, 0, *shared.tables)

    def after_fork(self) -> None:
        """Begin again in a child process: a fork leaves the workers behind, and what they were doing half done."""
        self._shared.wake = threading.Condition()
        self._started = False
        control = self._shared.control
        control[s.SLEEPERS] = control[s.READY] = 0
        # the next pass begins behind every piece that was ever taken
        shares = control[s.SHARES :].reshape(-1, s.SHARE_SLOTS)
        shares[:, 0] = shares[:, s.SHARE_DONE] = shares[:, 0].max()

    def close(self) -> None:
        """Let the workers end; the pool cannot be used afterwards."""
        self._close()
