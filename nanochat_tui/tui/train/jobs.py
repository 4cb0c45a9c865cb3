"""Exports in a process of their own, and the scrubber's thread that lets every checkpoint write.

A checkpoint is turned into a GGUF by `nanochat-train export` in a subprocess: arrays of a model's size stay out of the
application, and a person who changes their mind can end it. Files for a talk or the scrubber lie in a temporary folder
that goes with the application.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from textual.message import Message

from nanochat_tui.chat.backend import Request, Token
from nanochat_tui.chat.local import LocalBackend, threads_next_to
from nanochat_tui.errors import UserError
from nanochat_tui.runs.compare import read_settings
from nanochat_tui.runs.discovery import FoundRun
from nanochat_tui.runs.submission import MODULE
from nanochat_tui.text import display_safe
from nanochat_tui.tui.background import start_thread
from nanochat_tui.tui.lent import make_folder
from nanochat_tui.tui.train.messages import JobEnded, ScrubEnded, ScrubProgress

KEPT_EXPORTS = 8
"""Temporary model files kept for another prompt; d20's have 17 MB."""
TEXT_SECONDS = 0.1
Post = Callable[[Message], object]


def export_command(checkpoint: Path, gguf: Path, tokenizer: Path | None, *, compare: bool) -> list[str]:
    """The command that exports a checkpoint; `compare` runs both on a text and takes longer."""
    command = [sys.executable, "-m", MODULE, "export", "--checkpoint", str(checkpoint), "--gguf", str(gguf)]
    if tokenizer is not None:
        command += ["--tokenizer", str(tokenizer)]
    return command if compare else [*command, "--no-compare"]


def run_tokenizer(config: dict[str, Any]) -> Path | None:
    """The tokenizer a run was told to use, if it is on this machine; None leaves the choice to the export."""
    settings = config.get("config")
    named = settings.get("tokenizer") if isinstance(settings, dict) else None
    return Path(named) if isinstance(named, str) and Path(named).is_file() else None


def talk_problem(config: dict[str, Any]) -> str | None:
    """Why there is no chat with a run's checkpoints, if so."""
    settings = config.get("config")
    if isinstance(settings, dict) and settings.get("dataset") == "synthetic":
        return "This run trains on synthetic data, so there is nothing to chat with; train on data of prepare-data."
    return None


def busy_threads(runs: Iterable[FoundRun]) -> int:
    """Threads that the living runs of this machine compute with; one whose number is not known counts as one."""
    count = 0
    for run in runs:
        if run.state.alive and run.state.local:
            threads = read_settings(run.path).get("threads")
            count += threads if isinstance(threads, int) else 1
    return count


def shared_threads(runs: Iterable[FoundRun]) -> int | None:
    """Threads for a model next to the living runs of this machine; None, for as many as usual, without any."""
    busy = busy_threads(runs)
    return threads_next_to(busy) if busy else None


class Exports:
    """Runs exports, and owns the temporary files."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._processes: set[subprocess.Popen[str]] = set()
        self._made: dict[tuple[Path, float], Path] = {}
        self._lent: set[Path] = set()
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """End what runs and remove the temporary files."""
        with self._lock:
            self._closed = True
            processes, folder = list(self._processes), self._folder
            self._folder = None
        for process in processes:
            process.kill()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self) -> None:
        """End the exports that run."""
        with self._lock:
            processes = list(self._processes)
        for process in processes:
            process.kill()

    def temporary(self, checkpoint: Path, tokenizer: Path | None, *, lend: bool = False) -> Path:
        """Export to a temporary GGUF, or return the one made before. Raises UserError.

        `lend` keeps the file as long as the application lives, for a chat that uses it.
        """
        key = (checkpoint, _modified(checkpoint))
        with self._lock:
            made = self._made.get(key)
        if made is None or not made.is_file():
            folder = self._make_folder() / f"{checkpoint.parent.name}-{checkpoint.name}-{len(self._made)}"
            made = folder / f"{checkpoint.parent.name}-{checkpoint.name}.gguf"
            self.export(checkpoint, made, tokenizer, compare=False)
            with self._lock:
                self._made[key] = made
        if lend:
            self._lent.add(made)
        self._forget()
        return made

    def _make_folder(self) -> Path:
        with self._lock:
            if self._closed:
                raise UserError("the application is closing")
            if self._folder is None:
                self._folder = make_folder()
            return self._folder

    def _forget(self) -> None:
        with self._lock:
            spare = [key for key, path in self._made.items() if path not in self._lent][:-KEPT_EXPORTS]
            gone = [self._made.pop(key) for key in spare]
        for path in gone:
            shutil.rmtree(path.parent, ignore_errors=True)

    def export(self, checkpoint: Path, gguf: Path, tokenizer: Path | None, *, compare: bool) -> list[str]:
        """Export a checkpoint and return what the command reported. Raises UserError with its last line."""
        if not (checkpoint / "state.json").is_file():
            raise UserError(f"{display_safe(checkpoint.name)} is gone; the trainer keeps only the newest checkpoints")
        process = subprocess.Popen(
            export_command(checkpoint, gguf, tokenizer, compare=compare),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        with self._lock:
            self._processes.add(process)
            closed = self._closed
        if closed:
            process.kill()
        try:
            output, _ = process.communicate()
        finally:
            with self._lock:
                self._processes.discard(process)
        lines = [line for line in output.splitlines() if line.strip()]
        if process.returncode < 0:
            raise UserError("the export was ended")
        if process.returncode:
            said = lines[-1].removeprefix("error: ") if lines else f"it ended with code {process.returncode}"
            raise UserError(f"the export of {display_safe(checkpoint.name)} failed: {display_safe(said, 400)}")
        return lines


def _modified(checkpoint: Path) -> float:
    try:
        return (checkpoint / "state.json").stat().st_mtime
    except OSError:
        return 0.0


def start_export(
    exports: Exports, checkpoint: Path, gguf: Path | None, tokenizer: Path | None, job: str, post: Post
) -> threading.Thread:
    """Export in the background, to `gguf` or a temporary file; `JobEnded` follows."""

    def work() -> None:
        try:
            if gguf is None:
                made = exports.temporary(checkpoint, tokenizer, lend=True)
                post(JobEnded(job, checkpoint, made))
            else:
                report = exports.export(checkpoint, gguf, tokenizer, compare=True)
                post(JobEnded(job, checkpoint, gguf, report=report))
        except (UserError, OSError) as error:
            post(JobEnded(job, checkpoint, error=str(error)))

    return start_thread(f"export-{checkpoint.name}", work)


class Scrubber:
    """Lets checkpoints write, one after the other, with the same prompt and seed."""

    def __init__(self, number: int, exports: Exports, post: Post) -> None:
        self.number = number
        self._exports, self._post = exports, post
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None

    def start(
        self, checkpoints: Sequence[Path], request: Request, tokenizer: Path | None, threads: int | None = None
    ) -> None:
        """Begin; `ScrubProgress` follows for each checkpoint and `ScrubEnded` at last.

        threads: how many compute; None: as many as usual.
        """

        def work() -> None:
            for checkpoint in checkpoints:
                if self._cancel.is_set():
                    break
                try:
                    self._one(checkpoint, request, tokenizer, threads)
                except (UserError, OSError, MemoryError) as error:
                    text = str(error) or "there is not enough memory"
                    self._post(ScrubProgress(self.number, checkpoint, "", done=True, error=text))
            self._post(ScrubEnded(self.number))

        self._thread = start_thread(f"scrub-{self.number}", work)

    def stop(self) -> None:
        """End at the next token."""
        self._cancel.set()
        self._exports.stop()

    @property
    def is_working(self) -> bool:
        """Whether it still works."""
        return self._thread is not None and self._thread.is_alive()

    def _one(self, checkpoint: Path, request: Request, tokenizer: Path | None, threads: int | None) -> None:
        backend = LocalBackend(self._exports.temporary(checkpoint, tokenizer), threads=threads)
        backend.load()
        text, shown = "", time.monotonic()
        for event in backend.chat(request, self._cancel):
            if isinstance(event, Token):
                text += event.text
                if time.monotonic() - shown > TEXT_SECONDS:
                    shown = time.monotonic()
                    self._post(ScrubProgress(self.number, checkpoint, text, done=False))
        self._post(ScrubProgress(self.number, checkpoint, text, done=not self._cancel.is_set()))
