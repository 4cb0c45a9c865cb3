"""What in a run deserves a look: numbers that broke, losses that jump, silence."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nanochat_tui.runs.metrics import Series
from nanochat_tui.runs.mhc_health import mhc_problems
from nanochat_tui.runs.state import RunState
from nanochat_tui.text import display_safe

WINDOW = 40
"""Logged losses a new one is compared with."""
SPIKE_DEVIATIONS = 8.0
RECENT = 200
"""Logged rows back in which a spike is still news."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One finding; errors first."""

    level: Literal["error", "warning"]
    text: str
    step: int | None = None


def guessing_loss(vocabulary: int) -> float:
    """Loss in nats above which a model of so many token ids does worse than guessing, with room for a bad start."""
    return math.log(vocabulary) + 0.5


def find_alarms(
    state: RunState, series: Series, path: Path | None = None, vocabulary: int | None = None
) -> list[Alarm]:
    """Everything worth saying of a run now, the gravest first. `vocabulary` is the model's number of token ids."""
    found = [*_life(state), *_not_finite(series), *_streams(series), *_skipped(series)]
    found += [*_spikes(series), *_validation(series)]
    if vocabulary is not None:
        found += _diverged(series, vocabulary)
    if path is not None and state.alive:
        found += _disk(path)
    return sorted(found, key=lambda alarm: alarm.level != "error")


def _life(state: RunState) -> list[Alarm]:
    age = _duration(state.heartbeat_age)
    if state.life == "crashed":
        how = "its process is gone" if state.local else f"no heartbeat for {age}"
        return [Alarm("error", f"crashed: {how}; resume from the last checkpoint", state.step)]
    if state.life == "killed":
        return [
            Alarm("warning", f"{display_safe(state.error) or 'killed'}; resume from the last checkpoint", state.step)
        ]
    if state.life == "stalled":
        return [Alarm("error", f"stalled: process {state.pid} lives, but its last heartbeat is {age} old", state.step)]
    if state.life == "failed":
        return [Alarm("error", f"failed: {display_safe(state.error) or 'see the log'}", state.step)]
    return []


def _not_finite(series: Series) -> list[Alarm]:
    alarms = []
    for key, name in (("loss", "loss"), ("val_loss", "validation loss"), ("grad_norm", "gradient norm")):
        steps, values = series.curve(key)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            alarms.append(Alarm("error", f"{name} is not a number since step {int(steps[bad[0]])}", int(steps[bad[0]])))
    return alarms


def _skipped(series: Series) -> list[Alarm]:
    """Steps the trainer did not apply; one now and then is no harm."""
    steps, counts = series.curve("skipped")
    if not len(counts):
        return []
    return [Alarm("warning", f"{counts[-1]:.0f} steps skipped: loss or gradient was not a number", int(steps[0]))]


def _streams(series: Series) -> list[Alarm]:
    """What the newest mHC records say: values that broke are an error, dead mixing is a warning."""
    if not series.mhc:
        return []
    step = max(series.mhc)
    found = mhc_problems(series.mhc[step])
    return [Alarm("error" if "not a number" in text else "warning", text, step) for text in found]


def _diverged(series: Series, vocabulary: int) -> list[Alarm]:
    steps, losses = series.curve("loss")
    limit = guessing_loss(vocabulary)
    if len(losses) < 3 or not np.isfinite(losses[-3:]).all() or losses[-3:].min() <= limit:
        return []
    step = int(steps[-1])
    text = f"diverged: the loss is {losses[-1]:.2f}, and guessing gives {math.log(vocabulary):.2f}; lower the rate"
    return [Alarm("error", text, step)]


def spike_steps(series: Series) -> list[int]:
    """Steps whose loss stands more than eight robust deviations, and a tenth, above the losses just before.

    The deviation is 1.4826 times the median distance from the median of the 40 rows before.
    """
    steps, losses = series.curve("loss")
    good = np.isfinite(losses)
    steps, losses = steps[good], losses[good]
    if len(losses) < 12:
        return []
    found = []
    first = max(10, len(losses) - RECENT)
    for i in range(first, len(losses)):
        before = losses[max(0, i - WINDOW) : i]
        middle = float(np.median(before))
        spread = 1.4826 * float(np.median(np.abs(before - middle)))
        if losses[i] > middle + max(SPIKE_DEVIATIONS * spread, 0.1 * abs(middle)):
            found.append(int(steps[i]))
    return found


def _spikes(series: Series) -> list[Alarm]:
    spikes = spike_steps(series)
    if not spikes:
        return []
    last = spikes[-1]
    more = f" (and {len(spikes) - 1} before)" if len(spikes) > 1 else ""
    steps, losses = series.curve("loss")
    value = float(losses[steps == last][0])
    return [Alarm("warning", f"loss spike to {value:.3f} at step {last}{more}", last)]


def _validation(series: Series) -> list[Alarm]:
    """Three evaluations in a row above the best one: what is learnt now is the training data."""
    steps, losses = series.curve("val_loss")
    if len(losses) < 4 or not np.isfinite(losses).all():
        return []
    best = int(np.argmin(losses))
    if len(losses) - 1 - best < 3 or losses[-1] < losses[best] * 1.01:
        return []
    return [Alarm("warning", f"validation loss rises since step {int(steps[best])} (best {losses[best]:.4f})")]


def _disk(path: Path) -> list[Alarm]:
    try:
        free = shutil.disk_usage(path).free
        sizes = [sum(f.stat().st_size for f in folder.iterdir()) for folder in path.glob("step_*") if folder.is_dir()]
    except OSError:
        return []
    need = 2 * max(sizes, default=0)
    if need and free < need:
        return [Alarm("warning", f"only {free / 1e9:.1f} GB of disk are free, fewer than two checkpoints need")]
    return []


def _duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "unknown time"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
