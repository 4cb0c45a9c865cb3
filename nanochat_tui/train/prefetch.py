"""Batches made ahead of their use, in threads: the same ones in the same order, whatever their number.

A batch is a function of its index alone, so it does not matter which thread makes it: the trainer takes them in the
order of their indexes, and after a resume or a rollback simply asks for others. Threads and not processes: one thread
hides nearly as much of a batch's time as one process does (benchmarks/loader.py measures both), starts at once and
needs no memory of its own; PyTorch and the tokenizer release the interpreter's lock while they work.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from nanochat_tui.train.data import BatchLoader
from nanochat_tui.train.infill import Infill

Batch = tuple[Tensor, Tensor]
Key = tuple[int, int, int | None]
"""Origin of the run's positions, index and length: all that a batch depends on."""


class PrefetchLoader:
    """A `BatchLoader` that has the next `ahead` batches made by `workers` threads; `pin`: in page-locked memory.

    Copies from page-locked memory to a GPU need no copy in between. Exceptions of a batch are raised when it is asked
    for, as without threads.
    """

    def __init__(self, loader: BatchLoader, *, workers: int, ahead: int, pin: bool = False) -> None:
        self.loader, self.ahead, self.pin = loader, ahead, pin
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
        self._waiting: deque[tuple[Key, Future[Batch]]] = deque()

    @property
    def origin(self) -> int:
        """See `BatchLoader`."""
        return self.loader.origin

    @origin.setter
    def origin(self, value: int) -> None:
        self.loader.origin = value

    @property
    def infill(self) -> Infill | None:
        """See `BatchLoader`."""
        return self.loader.infill

    def batch_at(self, index: int, length: int | None = None) -> Batch:
        """Return what `BatchLoader.batch_at` returns, and have the batches after it made."""
        key = (self.loader.origin, index, length)
        while self._waiting and self._waiting[0][0] != key:
            self._waiting.popleft()[1].cancel()  # another origin or length, or an earlier index: not the one wanted
        future = self._waiting.popleft()[1] if self._waiting else self._submit(key)
        following = self._waiting[-1][0][1] + 1 if self._waiting else index + 1
        for number in range(following, index + 1 + self.ahead):
            later = (self.loader.origin, number, length)
            self._waiting.append((later, self._submit(later)))
        return future.result()

    def _submit(self, key: Key) -> Future[Batch]:
        return self._pool.submit(self._make, key)

    def _make(self, key: Key) -> Batch:
        inputs, targets = self.loader.batch_from(*key)
        return (inputs.pin_memory(), targets.pin_memory()) if self.pin else (inputs, targets)

    def close(self) -> None:
        """End the threads; batches that were not asked for are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()
