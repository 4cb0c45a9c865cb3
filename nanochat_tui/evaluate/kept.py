"""Evaluations that are kept: which there are, how far each is, and starting, stopping and continuing one.

An evaluation is a process of its own, `nanochat-tui eval …`, which works on a folder: whoever watches reads the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from nanochat_tui.errors import UserError, WriteError, plain_reason
from nanochat_tui.evaluate.folder import ABOUT, COMMAND, PROBLEMS
from nanochat_tui.evaluate.pass_at_k import pass_rate
from nanochat_tui.evaluate.solving import ROWS, Row
from nanochat_tui.evaluate.summary import wilson
from nanochat_tui.files import atomic_write_text
from nanochat_tui.processes import process_runs
from nanochat_tui.text import display_safe

LAUNCH, LOG = "launch.json", "log.txt"
"""What `start` notes of the process, and what that one says."""
STOP_SECONDS = 10.0
"""An interrupted process has so long to end by itself."""
State = Literal["starting", "running", "finished", "stopped", "failed"]
DEPTH = 2
"""Folders below the root in which evaluations are looked for: those of a card lie one deeper."""


@dataclass(frozen=True)
class Kept:
    """An evaluation as its folder tells it."""

    path: Path
    name: str
    """Its place below the folder of evaluations."""
    about: Mapping[str, Any]
    """Its settings; empty while it has not begun to write."""
    rows: tuple[Row, ...]
    total: int
    """Completions in all; 0 where the folder does not say."""
    state: State
    failure: str
    """What the process said last, if it ended badly."""
    changed: float
    """Seconds since 1970."""
    arguments: tuple[str, ...] = ()
    """Of `nanochat-tui`, to continue it; none where the folder does not say."""
    seconds_left: float | None = None

    @property
    def done(self) -> int:
        """Completions that are judged."""
        return len(self.rows)

    @property
    def passed(self) -> int:
        """Completions that passed."""
        return sum(row.verdict == "passed" for row in self.rows)

    @property
    def title(self) -> str:
        """What was asked."""
        return str(self.about.get("set") or self.name)

    @property
    def model(self) -> str:
        """Who was asked."""
        return str(self.about.get("model") or "")

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that it has, each asking for something else; none for problems of one kind."""
        parts = self.about.get("parts")
        return tuple(str(part) for part in parts) if isinstance(parts, list) else ()

    def rate(self) -> tuple[float, float, float] | None:
        """Share that passed so far with its 95 % interval: Wilson's, or a bootstrap over problems where one has
        several samples; None without a row.
        """
        if not self.rows:
            return None
        of, right = Counter(row.problem for row in self.rows), Counter()  # type: Counter[str], Counter[str]
        right.update(row.problem for row in self.rows if row.verdict == "passed")
        if max(of.values()) == 1:
            return self.passed / self.done, *wilson(self.passed, self.done)
        found = pass_rate([(count, right[name]) for name, count in of.items()], 1)
        return found.value, found.low, found.high


@dataclass
class Shelf:
    """Reads the evaluations below a folder again and again; of files that grew only what is new."""

    root: Path
    _read: dict[Path, tuple[int, list[Row]]] = field(default_factory=dict)

    def look(self) -> list[Kept]:
        """Return what there is now, the newest first; a folder that cannot be read is left out."""
        found = [self._kept(path) for path in _folders(self.root, DEPTH)]
        return sorted((one for one in found if one is not None), key=lambda one: -one.changed)

    def _kept(self, path: Path) -> Kept | None:
        about, command, launch = (_object(path / name) for name in (ABOUT, COMMAND, LAUNCH))
        if about is None and launch is None:
            return None
        rows = self._rows(path / ROWS)
        total = _number(command, "total") or _guessed_total(about or {})
        newest = max((m for name in (ABOUT, COMMAND, LAUNCH, ROWS) if (m := _modified(path / name))), default=0.0)
        running = any(process_runs(one.get("pid"), one.get("started")) for one in (command, launch) if one)
        failure = ""
        state: State
        if total and len(rows) >= total:
            state, running = "finished", False  # a process that still runs is at work on another one
        elif running:
            state = "running" if rows or command else "starting"
        else:
            failure = last_line(path / LOG)
            state = "failed" if failure.startswith("error:") else "stopped"
        arguments = (command or launch or {}).get("arguments")
        words = tuple(arguments) if isinstance(arguments, list) and all(isinstance(w, str) for w in arguments) else ()
        return Kept(
            path,
            str(path.relative_to(self.root)) if path.is_relative_to(self.root) and path != self.root else path.name,
            about or {},
            tuple(rows),
            total,
            state,
            failure.removeprefix("error:").strip(),
            newest,
            words,
            _seconds_left(command, len(rows), total) if running else None,
        )

    def _rows(self, path: Path) -> list[Row]:
        """The rows of a file's whole lines; a line that is none is left out."""
        at, rows = self._read.get(path, (0, []))
        try:
            with path.open("rb") as file:
                if path.stat().st_size < at:
                    at, rows = 0, []
                file.seek(at)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        fresh = [row for line in whole.splitlines() if (row := _row(line)) is not None]
        if fresh:
            rows = list({row.key: row for row in (*rows, *fresh)}.values())
        self._read[path] = at + len(whole), rows
        return rows


def _folders(root: Path, depth: int) -> list[Path]:
    try:
        entries = [entry for entry in os.scandir(root) if entry.is_dir()]
    except OSError:
        return []
    found = []
    for entry in entries:
        path = Path(entry.path)
        if (path / ABOUT).is_file() or (path / LAUNCH).is_file():
            found.append(path)
        elif depth > 1:
            found += _folders(path, depth - 1)
    return found


def _object(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _row(line: bytes) -> Row | None:
    try:
        row = Row(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (row.problem, row.completion, row.verdict, row.detail)
    right = all(isinstance(text, str) for text in texts) and isinstance(row.scores, dict)
    return row if right and isinstance(row.sample, int) else None


def _number(found: Mapping[str, Any] | None, key: str) -> int:
    value = (found or {}).get(key)
    return value if isinstance(value, int) else 0


def _guessed_total(about: Mapping[str, Any]) -> int:
    """Completions of an evaluation whose folder was made before it said how many there are."""
    return 0 if "temperatures" in about else _number(about, "problems") * _number(about, "samples")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _seconds_left(command: Mapping[str, Any] | None, done: int, total: int) -> float | None:
    began, before = (command or {}).get("began"), _number(command, "done")
    if not isinstance(began, (int, float)) or done <= before:
        return None
    return (time.time() - began) / (done - before) * max(0, total - done)


def last_line(path: Path) -> str:
    """Return the last line of a log that says something; "" without one."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def find_kept(given: str, root: Path) -> Path:
    """Return a folder of an evaluation: a path, or the name of one that is kept below `root`."""
    path = Path(given)
    return path if path.is_dir() or not (root / given).is_dir() else root / given


def read_problems(path: Path) -> dict[str, dict[str, Any]]:
    """Return what was asked, by the problem's name; nothing where the folder does not say."""
    try:
        lines = (path / PROBLEMS).read_bytes().splitlines()
        rows = [json.loads(line) for line in lines]
        return {str(row["problem"]): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


# Starting and stopping


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start `nanochat-tui` with some arguments as a process that outlives this one; its log lies in `folder`.

    Raises:
        UserError: a process is at work on the folder.
        WriteError: the folder cannot be written, or the program not started.
    """
    known = [found for name in (COMMAND, LAUNCH) if (found := _object(folder / name)) is not None]
    if any(process_runs(one.get("pid"), one.get("started")) for one in known):
        raise UserError(f"{display_safe(folder.name)} is at work already; stop it first, or name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "nanochat_tui", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise WriteError(f"{display_safe(str(folder))} cannot be used: {plain_reason(error)}") from None
    try:
        started = psutil.Process(process.pid).create_time()
    except psutil.Error:
        started = time.time()
    note = {"arguments": list(arguments), "pid": process.pid, "started": started}
    atomic_write_text(folder / LAUNCH, json.dumps(note, indent=1) + "\n")
    threading.Thread(target=process.wait, name=f"evaluation-{process.pid}", daemon=True).start()
    return process


def stop(folder: Path) -> bool:
    """Interrupt the process that works on a folder, as Ctrl+C does; return whether there is one.

    One that has not ended after `STOP_SECONDS` is terminated: what it has judged is in its file, line by line.
    """
    for name in (COMMAND, LAUNCH):
        note = _object(folder / name) or {}
        if process_runs(note.get("pid"), note.get("started")):
            try:
                os.kill(int(note["pid"]), signal.SIGINT)
            except (OSError, ValueError):
                continue
            threading.Thread(target=_make_sure, args=(note,), name="evaluation-stop", daemon=True).start()
            return True
    return False


def _make_sure(note: dict[str, Any]) -> None:
    """Terminate a process that an interrupt does not end: Python loses one that comes in a callback from C."""
    end = time.monotonic() + STOP_SECONDS
    while process_runs(note.get("pid"), note.get("started")):
        if time.monotonic() > end:
            with contextlib.suppress(OSError):
                os.kill(int(note["pid"]), signal.SIGTERM)
            return
        time.sleep(0.1)


def resume(kept: Kept) -> subprocess.Popen[bytes]:
    """Continue an evaluation. Raises UserError where its folder does not say how, and as `start` does."""
    if not kept.arguments:
        raise UserError(f"{display_safe(kept.name)} does not say how it was started; give the same command again")
    if kept.arguments[:1] != ("eval",):
        raise UserError(f"{display_safe(kept.name)} names a command that is no evaluation; give the command yourself")
    return start(kept.arguments, kept.path)
