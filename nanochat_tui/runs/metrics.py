"""Following a run's growing files: whole lines only, each byte read once.

A trainer may be in the middle of a line, may have been killed there, may have gone back to a checkpoint, or the file
may have been replaced. None of these is an error for a reader: a partial line waits until it is whole, a damaged one is
passed over, the last row of a step wins, and a file that shrank or is another one is read again.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from bisect import bisect_left
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.runs.directory import RESUMED, Json

READ_AT_ONCE = 4 << 20
"""Bytes of one look at a file; a long run's file is taken in several looks, so that a watcher can stop between them."""
LONGEST_LINE = 16 << 20
"""A line that has not ended after so many bytes is not ours and is passed over."""


class LineTail:
    """Complete lines of a file as they are appended, without their line ends."""

    def __init__(self, path: Path, *, start_at_end: int | None = None) -> None:
        self.path = path
        self.restarted = False
        """Whether the last `poll` found another or a shortened file and began again."""
        self._start_at_end = start_at_end
        self._reset()

    def _reset(self) -> None:
        self._offset = 0
        self._identity: tuple[int, int] | None = None
        self._rest = b""
        self._skipping = False

    @property
    def partial(self) -> bytes:
        """What stands after the last line end so far."""
        return self._rest

    def poll(self, limit: int = READ_AT_ONCE) -> list[bytes]:
        """Return the lines that became complete since the last call; none when the file is missing or unreadable.

        Reads up to `limit` bytes; call again while lines come.
        """
        self.restarted = False
        try:
            with self.path.open("rb") as file:
                return self._read(file, limit)
        except OSError:
            return []

    def _read(self, file: BinaryIO, limit: int) -> list[bytes]:
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino)
        if self._identity is not None and (identity != self._identity or status.st_size < self._offset):
            self._reset()
            self.restarted = True
        if self._identity is None:
            self._identity = identity
            if self._start_at_end is not None and status.st_size > self._start_at_end:
                self._offset = status.st_size - self._start_at_end
                self._skipping = True  # the first line is likely cut
        file.seek(self._offset)
        piece = file.read(limit)
        self._offset += len(piece)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            self._rest, self._skipping = b"", True
        if lines and self._skipping:
            self._skipping = False
            del lines[0]
        return lines


class JsonlTail:
    """JSON objects of a .jsonl file as they are appended."""

    def __init__(self, path: Path) -> None:
        self._tail = LineTail(path)

    @property
    def restarted(self) -> bool:
        """Whether the last `poll` began again on another or a shortened file."""
        return self._tail.restarted

    def poll(self) -> list[Json]:
        """Return the objects completed since the last call; damaged lines and other values are passed over."""
        rows = []
        for line in self._tail.poll():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows


class Series:
    """Numbers by step, in columns: every key of the rows, NaN where a row had none.

    A row of a step at or before the last one replaces that step and everything after it, for a resume goes back.
    """

    def __init__(self) -> None:
        self.steps = array("q")
        self.columns: dict[str, array[float]] = {}
        self.mhc: dict[int, list[Json]] = {}
        """mHC records by step, as the trainer wrote them."""

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, row: Json) -> bool:
        """Take in one row; returns whether it had a step, or said that the run went back to one, and so was taken."""
        back = row.get(RESUMED)
        if isinstance(back, int) and not isinstance(back, bool):
            before = len(self.steps)
            self._cut(back + 1)
            return len(self.steps) < before
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 62:
            return False
        if self.steps and step <= self.steps[-1]:
            self._cut(step)
        count = len(self.steps)
        self.steps.append(step)
        for key, value in row.items():
            if key == "step" or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if key not in self.columns:
                self.columns[key] = array("d", [math.nan]) * count
            self.columns[key].append(_finite_float(value))
        for column in self.columns.values():
            if len(column) == count:
                column.append(math.nan)
        records = row.get("mhc")
        if isinstance(records, list) and records and all(isinstance(r, dict) for r in records):
            self.mhc[step] = records
        return True

    def _cut(self, step: int) -> None:
        at = bisect_left(self.steps, step)
        del self.steps[at:]
        for column in self.columns.values():
            del column[at:]
        self.mhc = {s: r for s, r in self.mhc.items() if s < step}

    def curve(self, key: str, x: str = "step") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (x, y), float64 [n] each, of the rows that have both keys; x ascends.

        A y that is infinite or not a number where the row had the key is kept as infinity, so that it can be told.
        """
        if key not in self.columns or (x != "step" and x not in self.columns):
            return np.empty(0), np.empty(0)
        ys = np.array(self.columns[key], np.float64)
        xs = np.array(self.steps if x == "step" else self.columns[x], np.float64)
        have = ~np.isnan(ys) & ~np.isnan(xs)
        return xs[have], ys[have]

    def last(self, key: str) -> float | None:
        """The newest value of a key; None when no row had it."""
        column = self.columns.get(key, array("d"))
        return next((v for v in reversed(column) if not math.isnan(v)), None)

    def mhc_curve(self, value: str, record: int, index: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return (steps, values) of one mHC record: `alpha`, or entry `index` of `p` or `q`."""
        points = []
        for step, records in self.mhc.items():
            found = records[record].get(value) if record < len(records) else None
            if index is not None:
                found = found[index] if isinstance(found, list) and index < len(found) else None
            if isinstance(found, (int, float)) and math.isfinite(found):
                points.append((step, float(found)))
        table = np.array(points, np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]


def _finite_float(value: float) -> float:
    """A float of any JSON number: too large or NaN becomes infinity, which the alarms look for."""
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    return math.inf if math.isnan(number) else number


class MetricsTail:
    """A run's metrics.jsonl as a `Series` that grows."""

    def __init__(self, path: Path) -> None:
        self._tail = JsonlTail(path)
        self.series = Series()

    def poll(self) -> bool:
        """Read what is new; returns whether the series changed. Call again at once to read a long file on."""
        rows = self._tail.poll()
        if self._tail.restarted:
            self.series = Series()
        taken = [self.series.add(row) for row in rows]
        return any(taken) or self._tail.restarted


class LogTail:
    """The last lines of a text file, following it."""

    def __init__(self, path: Path, keep: int = 400) -> None:
        self._tail = LineTail(path, start_at_end=keep * 200)
        self._keep = keep
        self.lines: list[str] = []

    def poll(self) -> bool:
        """Read what is new; returns whether `lines` changed."""
        new = self._tail.poll()
        if self._tail.restarted:
            self.lines = []
        if not new and not self._tail.restarted:
            return False
        # a progress bar rewrites its line with carriage returns: only its last state is worth a line
        texts = (line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode("utf-8", "replace") for line in new)
        self.lines = [*self.lines, *texts][-self._keep :]
        return True
