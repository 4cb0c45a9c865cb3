"""One run, looked at again and again: everything a dashboard shows, as plain data.

Knows nothing of widgets and starts no thread; the caller of `look` decides where and how often, because a directory on
another machine may let a read wait for long.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from nanochat_tui.errors import UserError
from nanochat_tui.runs.alarms import Alarm, find_alarms
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RESUMED, Json, RunDirectory, read_json
from nanochat_tui.runs.estimate import utilisation
from nanochat_tui.runs.hardware import Gpu, GpuMonitor, process_memory
from nanochat_tui.runs.metrics import JsonlTail, LogTail, MetricsTail, Series
from nanochat_tui.runs.original_log import OriginalLog
from nanochat_tui.runs.state import CONSOLE_FILE, Heartbeat, RunState, read_state

KEPT_SAMPLES = 50


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int
    modified: float
    loss: float | None = None
    val_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment. The series may grow afterwards; read it in the thread that looks, or copy its curves."""

    path: Path
    name: str
    state: RunState
    series: Series
    samples: list[Json] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    config: Json = field(default_factory=dict)
    """config.json: settings under "config", and model, parameters, environment, data."""
    speed: float | None = None
    """Tokens per second, median of the last ten rows."""
    eta: float | None = None
    """Seconds to the end at that speed; None when unknown or over."""
    mfu: float | None = None
    gpus: list[Gpu] = field(default_factory=list)
    memory: int | None = None
    is_log: bool = False
    revision: int = 0
    """Grows whenever a curve changed, so that nothing need be drawn again otherwise."""


class RunWatch:
    """Follows a run directory, or a log file of the original trainer."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or path.resolve().name
        self.is_log = path.is_file()
        self._heartbeat = Heartbeat()
        self._metrics = MetricsTail(path / "metrics.jsonl")
        self._original = OriginalLog(path) if self.is_log else None
        self._samples_tail = JsonlTail(path / "samples.jsonl")
        self._samples: list[Json] = []
        self._log = LogTail(path if self.is_log else path / "log.txt")
        self._console = LogTail(path / CONSOLE_FILE, keep=100)
        self._config: Json = {}
        self._config_seen: tuple[int, int] | None = None
        self._train_config: TrainConfig | None = None
        self._gpus = GpuMonitor()
        self._revision = 0

    def look(self) -> Snapshot:
        """Read what is new and return everything. Never raises for what the run's files hold."""
        changed = False
        while (self._original or self._metrics).poll():
            changed = True
        self._revision += changed
        self._log.poll()
        if self._original is not None:
            return self._log_snapshot(self._original)
        self._console.poll()
        self._read_samples()
        self._read_config()
        series = self._metrics.series
        state = read_state(self.path, self._heartbeat)
        if len(series) and (state.life == "unknown" or (state.life != "starting" and state.step < series.steps[-1])):
            # the rows are written step by step, the status may be older
            state = replace(state, step=series.steps[-1])
        speed = _recent_speed(series)
        environment = self._config.get("environment")
        here = state.local and state.alive
        return Snapshot(
            self.path,
            self.name,
            state,
            series,
            list(self._samples),
            self._log.lines,
            self._console.lines,
            find_alarms(state, series, self.path, _vocabulary(self._config)),
            self._checkpoints(series),
            self._config,
            speed,
            self._eta(state, series, speed) if state.alive else None,
            utilisation(self._train_config, environment, speed)
            if self._train_config and speed and isinstance(environment, dict)
            else None,
            self._gpus.read() if here and _on_gpu(environment) else [],
            process_memory(state.pid) if here else None,
            revision=self._revision,
        )

    def _log_snapshot(self, log: OriginalLog) -> Snapshot:
        series = log.series
        step = series.steps[-1] if len(series) else 0
        seconds = series.last("seconds") or 0.0
        life = log.ended or "unknown"
        state = RunState(life, step=step, total=log.total, seconds=seconds)  # type: ignore[arg-type]
        return Snapshot(
            self.path,
            self.name,
            state,
            series,
            log=self._log.lines,
            alarms=find_alarms(state, series),
            speed=_recent_speed(series),
            is_log=True,
            revision=self._revision,
        )

    def _read_samples(self) -> None:
        rows = self._samples_tail.poll()
        if self._samples_tail.restarted:
            self._samples = []
        for row in rows:
            back, step = row.get(RESUMED), row.get("step")
            if isinstance(back, int):
                self._samples = [s for s in self._samples if s["step"] <= back]
            elif isinstance(step, int) and isinstance(row.get("text"), str):
                self._samples = [s for s in self._samples if s["step"] < step] + [row]
        self._samples = self._samples[-KEPT_SAMPLES:]

    def _read_config(self) -> None:
        file = self.path / "config.json"
        try:
            status = file.stat()
            seen = (status.st_mtime_ns, status.st_size)
            if seen == self._config_seen:
                return
            value = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return
        self._config_seen = seen
        self._config = value if isinstance(value, dict) else {}
        settings = self._config.get("config")
        try:
            given = {k: v for k, v in settings.items() if v is not None} if isinstance(settings, dict) else None
            self._train_config = None if given is None else TrainConfig.model_validate(given)
        except ValidationError:  # of another version: shown, but nothing is estimated from it
            self._train_config = None

    def _checkpoints(self, series: Series) -> list[Checkpoint]:
        try:
            paths = RunDirectory(self.path).checkpoints()
        except (OSError, UserError):
            return []
        last = series.steps[-1] if len(series) else 0
        losses, validations = series.curve("loss"), series.curve("val_loss")
        found = []
        for path in paths:
            try:
                modified = (path / "state.json").stat().st_mtime
                step = _final_step(path, last) if path.name == "final" else int(path.name.removeprefix("step_"))
            except OSError:  # pruned between listing and looking
                continue
            found.append(Checkpoint(path, step, modified, _near(losses, step), _near(validations, step, 0)))
        return found

    def _eta(self, state: RunState, series: Series, speed: float | None) -> float | None:
        if not speed or not len(series) or not 0 < state.total < 10**9:
            return None
        tokens, steps = series.last("tokens"), series.steps[-1]
        if not tokens or not steps:
            return None
        return max(0.0, (state.total - state.step) * (tokens / steps) / speed)


def _final_step(path: Path, otherwise: int) -> int:
    try:
        step = read_json(path / "state.json").get("step")
    except UserError:
        return otherwise
    return step if isinstance(step, int) else otherwise


def _recent_speed(series: Series) -> float | None:
    speeds = series.curve("tok_per_s")[1][-10:]
    return float(np.median(speeds)) if len(speeds) else None


def _near(curve: tuple[Any, Any], step: int, tolerance: int = 20) -> float | None:
    """The curve's value at the last row up to `step`, unless that is more than `tolerance` steps before."""
    steps, values = curve
    at = int(np.searchsorted(steps, step, side="right")) - 1
    if at < 0 or step - steps[at] > tolerance:
        return None
    return float(values[at])


def _vocabulary(config: Json) -> int | None:
    model = config.get("model")
    size = model.get("vocab_size") if isinstance(model, dict) else None
    return size if isinstance(size, int) and size > 1 else None


def _on_gpu(environment: object) -> bool:
    return isinstance(environment, dict) and str(environment.get("device", "")).startswith("cuda")
