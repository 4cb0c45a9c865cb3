"""The run directory: the only thing a trainer and its watchers share.

config.json    resolved configuration, versions, device, data fingerprint
metrics.jsonl  one object per logged step, appended; a partial last line is not an error
samples.jsonl  text the model wrote on the way
log.txt        what the trainer printed
status.json    state, process, heartbeat, progress; replaced atomically
control        checkpoint or stop, as a bare word or as {"id", "command"}; answered by control_done in status.json
tokenizer.json the tokenizer of the run's data
step_N/ final/ checkpoints
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.files import atomic_write

Json = dict[str, Any]
RESUMED = "resumed_from"
"""Key of a line in metrics.jsonl and samples.jsonl that says: the run went back to this step, and what stands above
of later steps belongs to the part that was given up."""
COMMANDS = ("checkpoint", "stop")


@dataclass(frozen=True, slots=True)
class Control:
    """What the control file holds."""

    request: int
    """Its id, or for a bare word the file's time of change: never the same for two commands."""
    command: str | None
    """`checkpoint` or `stop`; None for anything else."""
    text: str
    """The file's content, cut."""


def write_json(path: Path, value: Json) -> None:
    """Replace a JSON file atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=1, default=str) + "\n").encode())


def read_json(path: Path) -> Json:
    """Read a JSON object; raises UserError when it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {plain_reason(error)}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON; the run may have been damaged") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def read_jsonl(path: Path) -> Iterator[Json]:
    """Yield the complete lines of a .jsonl file; a partial or damaged line is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


class RunDirectory:
    """A run on disk. The trainer writes through it; anybody may read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"RunDirectory({self.path})"

    # -- reading

    def config(self) -> Json:
        """Resolved configuration and environment as the trainer recorded them."""
        return read_json(self.path / "config.json")

    def status(self) -> Json:
        """Last status the trainer wrote."""
        return read_json(self.path / "status.json")

    def metrics(self) -> list[Json]:
        """Logged steps in order; the last row of a step wins, and steps a resume went back over are dropped."""
        return _in_order(read_jsonl(self.path / "metrics.jsonl"))

    def samples(self) -> list[Json]:
        """Text samples in order of steps, the last one written at each."""
        return _in_order(read_jsonl(self.path / "samples.jsonl"))

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first; `final` last. A folder that cannot be read holds none."""
        entries: list[Path] = []
        with contextlib.suppress(OSError):
            entries = list(self.path.iterdir())
        found = [
            (int(match.group(1)), entry)
            for entry in entries
            if (match := re.fullmatch(r"step_(\d+)", entry.name)) and (entry / "state.json").exists()
        ]
        ordered = [entry for _, entry in sorted(found)]
        final = self.path / "final"
        return [*ordered, final] if (final / "state.json").exists() else ordered

    # -- writing

    def create(self, config: Json) -> None:
        """Make the directory and record the configuration."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", config)
        except OSError as error:
            raise UserError(f"cannot write the run directory {self.path}: {plain_reason(error)}") from None

    def append(self, name: str, row: Json) -> None:
        """Append one object to metrics.jsonl or samples.jsonl in a single write, or raise OSError and leave no part."""
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a killed trainer left half a line behind
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, size)  # the disk took a part only
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)

    def write_status(self, **fields: Any) -> None:
        """Replace status.json; process identity and heartbeat are added. Raises WriteError.

        Not synced to the disk: it is written at each logged step, and worth nothing after a power failure.
        """
        process = psutil.Process()
        value = {
            "pid": process.pid,
            "process_started": process.create_time(),
            "host": socket.gethostname(),
            "heartbeat": time.time(),
            **fields,
        }
        with atomic_write(self.path / "status.json", synced=False) as file:
            file.write((json.dumps(value, indent=1, default=str) + "\n").encode())

    def send(self, command: str) -> int:
        """Ask the trainer for `checkpoint` or `stop`; returns the id its status will answer with."""
        request = time.time_ns()
        write_json(self.path / "control", {"id": request, "command": command})
        return request

    def read_control(self) -> Control | None:
        """The last command given, answered or not; None without one. Never raises for what the file holds."""
        path = self.path / "control"
        try:
            with path.open("rb") as file:
                text = file.read(4096).decode("utf-8", "replace").strip()
                changed = os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return None
        if not text:
            return None  # a shell has opened it and not written yet
        request, word = changed, text
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
            if isinstance(value, dict):
                word = str(value.get("command", ""))
                given = value.get("id")
                request = given if isinstance(given, int) and not isinstance(given, bool) else changed
            elif isinstance(value, str):
                word = value
        word = word.strip().lower()
        return Control(request, word if word in COMMANDS else None, text[:200])

    def last_control(self) -> int | None:
        """Id of the last command sent, answered or not; None without one."""
        control = self.read_control()
        return None if control is None else control.request

    def pending_control(self, done: int | None) -> Control | None:
        """What was sent and is not answered yet, understood or not."""
        control = self.read_control()
        return None if control is None or control.request == done else control


def _in_order(rows: Iterator[Json]) -> list[Json]:
    kept: dict[int, Json] = {}
    for row in rows:
        back, step = row.get(RESUMED), row.get("step")
        if isinstance(back, int):
            kept = {s: r for s, r in kept.items() if s <= back}
        elif isinstance(step, int):
            if kept and step < next(reversed(kept)):
                kept = {s: r for s, r in kept.items() if s < step}
            kept.pop(step, None)
            kept[step] = row
    return list(kept.values())
