"""Finding runs below a folder, and saying in a line what each is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.paths import expanded
from nanochat_tui.runs.original_log import looks_like_original_log
from nanochat_tui.runs.state import LAUNCH_FILE, RunState, read_state
from nanochat_tui.text import display_safe

MARKS = ("status.json", "metrics.jsonl", LAUNCH_FILE)
"""Any of these makes a folder a run directory."""
LOG_ENDINGS = (".log", ".txt", ".out")
LAST_ROWS = 64 << 10
"""Bytes at the end of metrics.jsonl that hold its last row; one with all mHC records has a few kilobytes."""
MOST_LOGS = 200
"""Text files looked into in one search."""
MOST_ENTRIES = 5000
"""Entries looked at in one search, so that a home directory given by mistake does not take minutes."""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run directory, or a log file of the original trainer."""

    path: Path
    name: str
    state: RunState
    changed: float
    """When it was last written to, seconds since 1970."""
    is_log: bool = False


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory."""
    return path.is_dir() and any((path / mark).is_file() for mark in MARKS)


def open_run(path: Path) -> FoundRun:
    """Describe the run at `path`, a run directory or a log of the original trainer.

    Raises UserError saying what was looked for when it is neither.
    """
    path = expanded(path)
    if is_run(path):
        return _describe(path, path.name or str(path.resolve().name))
    if path.is_file():
        if looks_like_original_log(path):
            return FoundRun(path, path.name, RunState("unknown"), _changed(path), is_log=True)
        raise UserError(
            f"{display_safe(str(path))} is not a training log; give a run directory or a trainer's log file"
        )
    if path.is_dir():
        log = next((f for f in sorted(path.iterdir()) if _is_log(f)), None)
        if log is not None:
            return FoundRun(log, f"{path.name}/{log.name}", RunState("unknown"), _changed(log), is_log=True)
        raise UserError(
            f"{display_safe(str(path))} is not a run directory: it has neither status.json nor metrics.jsonl"
        )
    raise UserError(f"there is no run at {display_safe(str(path))}; check the path")


def find_runs(root: Path, depth: int = 2) -> list[FoundRun]:
    """Find the runs in `root` and up to `depth` folders below, the one written to last first.

    `root` may itself be a run. Folders that cannot be read are passed over; inside a run nothing is looked for.
    """
    root = expanded(root)
    found = [
        _describe(path, _relative(path, root)) if path.is_dir() else _log(path, root) for path in _search(root, depth)
    ]
    return sorted(found, key=lambda run: (not run.state.alive, -run.changed, run.name))


def _log(path: Path, root: Path) -> FoundRun:
    return FoundRun(path, _relative(path, root), RunState("unknown"), _changed(path), is_log=True)


def _search(root: Path, depth: int) -> Iterator[Path]:
    if is_run(root) or root.is_file():
        yield root
        return
    budget, logs = MOST_ENTRIES, MOST_LOGS
    folders = [(root, 0)]
    while folders:
        folder, level = folders.pop(0)
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError:
            continue
        for entry in entries:
            budget -= 1
            if budget < 0:
                return
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    if is_run(path):
                        yield path
                    elif level + 1 < depth:
                        folders.append((path, level + 1))
                elif path.suffix in LOG_ENDINGS and logs > 0:
                    logs -= 1
                    if _is_log(path):
                        yield path
            except OSError:
                continue


def _is_log(path: Path) -> bool:
    return path.suffix in LOG_ENDINGS and path.is_file() and looks_like_original_log(path)


def look_again(run: FoundRun) -> FoundRun:
    """Describe a run found before; the same object when its files have not changed and no process may have gone."""
    changed = _changed(run.path)
    if run.is_log or (changed == run.changed and not run.state.alive):
        return run if changed == run.changed else replace(run, changed=changed)
    return _describe(run.path, run.name)


def _describe(path: Path, name: str) -> FoundRun:
    state = read_state(path)
    if state.life not in ("starting", "failed"):  # rows are written at each logged step, the status less often
        state = replace(state, step=max(state.step, latest_step(path, state.step)))
    return FoundRun(path, name, state, _changed(path))


def latest_step(path: Path, otherwise: int = 0) -> int:
    """Step of the last whole row of metrics.jsonl where that file is newer than status.json; else `otherwise`."""
    metrics = path / "metrics.jsonl"
    try:
        status = path / "status.json"
        if status.exists() and metrics.stat().st_mtime < status.stat().st_mtime:
            return otherwise
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - LAST_ROWS))
            lines = file.read().split(b"\n")[:-1]
        step = json.loads(lines[-1]).get("step") if lines else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return otherwise
    return step if isinstance(step, int) and not isinstance(step, bool) else otherwise


def _changed(path: Path) -> float:
    newest = 0.0
    for candidate in (path, *(path / mark for mark in MARKS)):
        try:
            newest = max(newest, candidate.stat().st_mtime)
        except OSError:
            continue
    return newest


def _relative(path: Path, root: Path) -> str:
    if path == root:
        return path.resolve().name
    return str(path.relative_to(root))
