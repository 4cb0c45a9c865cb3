"""A folder of an evaluation: what was asked, and rows appended as soon as they are known, so that it can go on."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from nanochat_tui.errors import UserError, WriteError, plain_reason
from nanochat_tui.files import atomic_write_text
from nanochat_tui.text import display_safe

ABOUT = "evaluation.json"
COMMAND = "command.json"
"""How the evaluation was started: its arguments, where, and the process."""
PROBLEMS = "problems.jsonl"
"""What was asked: a row for each problem with its prompt, for people who read the samples."""
REPORT = "report.json"
"""What was found, once all was judged."""
LOCK = ".lock"


class EvaluationFolder:
    """A folder with its settings in evaluation.json, and files of JSON lines."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Begin a folder, or continue one of the same settings.

        Raises:
            UserError: the folder holds an evaluation with other settings, or is damaged.
            WriteError: the folder cannot be written.
        """
        self.path = path
        self.total = 0
        """Completions in all, once `describe` was told."""
        shown = display_safe(str(path))
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"{shown} cannot be made: {plain_reason(error)}; name another folder with --out") from None
        if not (path / ABOUT).exists():
            atomic_write_text(path / ABOUT, json.dumps(about, indent=1) + "\n")
            return
        before = read_about(path)
        different = sorted(key for key in {*before, *about} if before.get(key) != about.get(key))
        if different:
            raise UserError(
                f"{shown} holds another evaluation (its {', '.join(map(display_safe, different))} differ); "
                "name another folder with --out, or give the same options to continue it"
            )

    @contextlib.contextmanager
    def hold(self, arguments: Sequence[str], done: int = 0) -> Iterator[None]:
        """Keep the folder for this process, and note by which arguments of `nanochat-tui` it is completed;
        `done` completions are there.

        Raises:
            UserError: another process is at work on it.
            WriteError: the folder cannot be written.
        """
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            shown = display_safe(str(self.path))
            raise UserError(
                f"another process works on {shown}; wait for it, or name another folder with --out"
            ) from None
        try:
            process = psutil.Process()
            command = {
                "arguments": list(arguments),
                "folder": str(Path.cwd()),
                "total": self.total,
                "done": done,
                "began": time.time(),
                "pid": process.pid,
                "started": process.create_time(),
            }
            atomic_write_text(self.path / COMMAND, json.dumps(command, indent=1) + "\n")
            yield
        finally:
            lock.release()

    def describe(self, rows: Sequence[Mapping[str, Any]], total: int) -> None:
        """Keep what is asked, and of how many completions the evaluation consists. Raises WriteError."""
        self.total = total
        if not (self.path / PROBLEMS).exists():
            atomic_write_text(self.path / PROBLEMS, "".join(json.dumps(row) + "\n" for row in rows))

    def finish(self, report: Mapping[str, Any]) -> None:
        """Keep what was found. Raises WriteError."""
        atomic_write_text(self.path / REPORT, json.dumps(report, indent=1) + "\n")

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a row to a file, synced. Raises WriteError."""
        path = self.path / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            shown = display_safe(str(path))
            raise WriteError(f"{shown} cannot be written: {plain_reason(error)}; run the same command again") from None

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a file that are whole; a last line that a crash cut is dropped from the file.

        Raises:
            UserError: the file holds something else.
        """
        found, whole, size = read_rows(self.path / name)
        if whole < size:
            with (self.path / name).open("r+b") as file:
                file.truncate(whole)
        return found


def read_about(path: Path) -> dict[str, Any]:
    """Return the settings of an evaluation's folder. Raises UserError for a damaged one."""
    try:
        found = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{display_safe(str(path / ABOUT))} is damaged; name another folder with --out")
    return found


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Return the rows of a file's whole lines, the bytes of these, and those of the file."""
    if not path.exists():
        return [], 0, 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        found = [json.loads(line) for line in whole.splitlines()]
    except (ValueError, RecursionError):
        found = [None]
    if not all(isinstance(row, dict) for row in found):
        raise UserError(f"{display_safe(str(path))} is damaged; name another folder with --out")
    return found, len(whole), len(data)
