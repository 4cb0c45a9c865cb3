"""The run directory: the only thing a trainer and its watchers share.

config.json    resolved configuration, versions, device, data fingerprint
metrics.jsonl  one object per logged step, appended; a partial last line is not an error
samples.jsonl  text the model wrote on the way
log.txt        what the trainer printed
status.json    state, process, heartbeat, progress; replaced atomically
control        {"id", "command"}: checkpoint or stop; answered by control_done in status.json
step_N/ final/ checkpoints
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from nanochat_tui.errors import UserError
from nanochat_tui.formats.atomic import atomic_write

Json = dict[str, Any]


def write_json(path: Path, value: Json) -> None:
    """Replace a JSON file atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=1, default=str) + "\n").encode())


def read_json(path: Path) -> Json:
    """Read a JSON object; raises UserError when it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
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
            except ValueError:
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
        rows: dict[int, Json] = {}
        for row in read_jsonl(self.path / "metrics.jsonl"):
            step = row.get("step")
            if not isinstance(step, int):
                continue
            if rows and step < next(reversed(rows)):
                rows = {s: r for s, r in rows.items() if s < step}
            rows.pop(step, None)
            rows[step] = row
        return list(rows.values())

    def samples(self) -> list[Json]:
        """Text samples in the order written."""
        return list(read_jsonl(self.path / "samples.jsonl"))

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first; `final` last."""
        found = [
            (int(match.group(1)), entry)
            for entry in (self.path.iterdir() if self.path.is_dir() else ())
            if (match := re.fullmatch(r"step_(\d+)", entry.name)) and (entry / "state.json").exists()
        ]
        ordered = [entry for _, entry in sorted(found)]
        final = self.path / "final"
        return [*ordered, final] if (final / "state.json").exists() else ordered

    def is_alive(self, *, stale_after: float = 120.0) -> bool:
        """Whether the recorded process runs: by pid and start time on this host, else by heartbeat."""
        try:
            status = self.status()
        except UserError:
            return False
        if status.get("state") in ("finished", "stopped", "failed"):
            return False
        if status.get("host") == socket.gethostname():
            try:
                process = psutil.Process(int(status["pid"]))
                same = abs(process.create_time() - float(status["process_started"])) < 2
                return bool(same and process.status() != psutil.STATUS_ZOMBIE)
            except (psutil.Error, KeyError, TypeError, ValueError):
                return False
        return time.time() - float(status.get("heartbeat", 0)) < stale_after

    # -- writing

    def create(self, config: Json) -> None:
        """Make the directory and record the configuration."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", config)
        except OSError as error:
            raise UserError(f"cannot write the run directory {self.path}: {error.strerror}") from None

    def append(self, name: str, row: Json) -> None:
        """Append one object to metrics.jsonl or samples.jsonl in a single write."""
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a killed trainer left half a line behind
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def write_status(self, **fields: Any) -> None:
        """Replace status.json; process identity and heartbeat are added."""
        process = psutil.Process()
        write_json(
            self.path / "status.json",
            {
                "pid": process.pid,
                "process_started": process.create_time(),
                "host": socket.gethostname(),
                "heartbeat": time.time(),
                **fields,
            },
        )

    def send(self, command: str) -> int:
        """Ask the trainer for `checkpoint` or `stop`; returns the id its status will answer with."""
        request = time.time_ns()
        write_json(self.path / "control", {"id": request, "command": command})
        return request

    def last_control(self) -> int | None:
        """Id of the last command sent, answered or not; None without one."""
        try:
            request = read_json(self.path / "control").get("id")
        except UserError:
            return None
        return request if isinstance(request, int) else None

    def pending_control(self, done: int | None) -> tuple[int, str] | None:
        """The command not answered yet, as (id, word)."""
        try:
            control = read_json(self.path / "control")
        except UserError:
            return None
        request, command = control.get("id"), control.get("command")
        if isinstance(request, int) and request != done and command in ("checkpoint", "stop"):
            return request, str(command)
        return None
