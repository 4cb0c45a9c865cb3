"""The log of the original Rust trainer as metrics: an adapter from its step lines to our keys.

Its step line is `[step/total] loss= lr= gnorm= tok/s= elapsed=`, with `H=` (mean entropy of the prediction) in later
builds and `ce=` in earlier ones; the reported loss holds label smoothing of 0.1. Colours and a tracing prefix may stand
around it. Our own trainer prints the same line, so its console output is read as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanochat_tui.runs.metrics import LineTail, Series

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_STEP = re.compile(r"\[\s*(\d{1,12})\s*/\s*(\d{1,12})\s*\]\s+(\S.*)")
_PAIR = re.compile(r"([A-Za-z][\w/]*)=\s*([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|inf|NaN|nan))")
_KEYS = {
    "loss": "loss",
    "ce": "cross_entropy",
    "H": "entropy",
    "lr": "lr",
    "gnorm": "grad_norm",
    "tok/s": "tok_per_s",
    "elapsed": "seconds",
    "val_loss": "val_loss",
    "accuracy": "val_accuracy",
    "bits/byte": "val_bits_per_byte",
}
_EVENTS = (
    ("checkpoint", re.compile(r"->\s*checkpoint saved to (?P<path>.+?)(?:\s+\(.*\))?\s*$")),
    ("checkpoint", re.compile(r"Final checkpoint saved to (?P<path>.+?)\s*$")),
    ("epoch", re.compile(r"---\s*Epoch (?P<epoch>\d+)/(?P<epochs>\d+) done")),
    ("finished", re.compile(r"Training complete!|Reached total_steps=\d+|^finished at step \d+")),
    ("failed", re.compile(r"^(?:Error:|thread '.*' panicked|failed at step \d+)")),
)
_SNIFF = 32 << 10


def parse_line(line: str) -> dict[str, Any] | None:
    """Turn one line into a row: a step with our metric keys and `total`, or `{"event": …}`; None for any other line."""
    text = _ESCAPES.sub("", line)
    match = _STEP.search(text)
    if match:
        pairs = {name: value for name, value in _PAIR.findall(match.group(3)) if name in _KEYS}
        if "loss" not in pairs:
            return None
        row: dict[str, Any] = {"step": int(match.group(1)), "total": int(match.group(2))}
        return row | {_KEYS[name]: _number(value) for name, value in pairs.items()}
    for event, pattern in _EVENTS:
        found = pattern.search(text)
        if found:
            return {"event": event, **found.groupdict()}
    return None


def _number(text: str) -> float:
    value = float(text)
    return math.inf if math.isnan(value) else value


def looks_like_original_log(path: Path) -> bool:
    """Whether a step line stands in the file's first 32 KiB."""
    try:
        with path.open("rb") as file:
            beginning = file.read(_SNIFF)
    except OSError:
        return False
    return any(has_step(line) for line in beginning.decode("utf-8", "replace").splitlines())


def has_step(line: str) -> bool:
    """Whether a line reports a step."""
    row = parse_line(line)
    return row is not None and "step" in row


def read_rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    """All rows of a log, steps and events, in order."""
    return [row for line in lines if (row := parse_line(line)) is not None]


class OriginalLog:
    """A log file that is followed: a `Series` of its steps, its checkpoints and whether it said how it ended."""

    def __init__(self, path: Path) -> None:
        self._tail = LineTail(path)
        self._clear()

    def _clear(self) -> None:
        self.series = Series()
        self.total = 0
        self.checkpoints: list[Path] = []
        self.ended: str = ""

    def poll(self) -> bool:
        """Read what is new; returns whether anything changed. Call again at once to read a long file on."""
        lines = self._tail.poll()
        if self._tail.restarted:
            self._clear()
        rows = read_rows(line.decode("utf-8", "replace") for line in lines)
        for row in rows:
            if "step" in row:
                self.total = row.pop("total")
                self.ended = ""
                self.series.add(row)
            elif row["event"] == "checkpoint":
                self.checkpoints.append(Path(row["path"]))
            elif row["event"] in ("finished", "failed"):
                self.ended = row["event"]
        return bool(rows) or self._tail.restarted
