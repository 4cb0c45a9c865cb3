"""Several runs against each other: curves on one axis, figures side by side, settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import PRESETS
from nanochat_tui.runs.config import SHAPE_FIELDS, TrainConfig
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.metrics import Series

AXES = ("step", "tokens", "seconds")
"""What losses may be drawn over."""


@dataclass(frozen=True, slots=True)
class RunFigures:
    """A run's name, numbers and settings, as far as they are known."""

    name: str
    series: Series
    config: dict[str, Any]

    @property
    def best_validation(self) -> tuple[int, float] | None:
        """Step and value of the lowest validation loss."""
        steps, losses = self.series.curve("val_loss")
        if not len(losses):
            return None
        best = int(np.argmin(losses))
        return int(steps[best]), float(losses[best])


RESOLVED = {
    **{name: ("model", name) for name in SHAPE_FIELDS},
    "seq_len": ("model", "context_length"),
    "device": ("environment", "device"),
    "dtype": ("environment", "dtype"),
    "threads": ("environment", "threads"),
    "compile": ("environment", "compiled"),
}
"""Settings that may be left to the trainer, and where config.json records what it took."""


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run directory as they took effect; empty when it recorded none.

    What was left open is what the trainer chose, and a setting an earlier version did not know has its default: a
    vocabulary of 50,257 is no other setting than that of a preset which has 50,257.
    """
    try:
        recorded = RunDirectory(path).config()
    except UserError:
        return {}
    config = recorded.get("config")
    if not isinstance(config, dict):
        return {}
    settings = {**{name: field.default for name, field in TrainConfig.model_fields.items()}, **config}
    named = PRESETS.get(str(settings["config"]))
    chosen: dict[str, dict[str, Any]] = {"model": asdict(named) if named else {}, "environment": {}}
    for part in chosen:
        if isinstance(recorded.get(part), dict):
            chosen[part] = recorded[part]
    for name, (part, key) in RESOLVED.items():
        if settings.get(name) in (None, "auto") or part == "environment":
            settings[name] = chosen[part].get(key, settings.get(name))
    return settings


def differing_settings(runs: Sequence[RunFigures]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, each with one value per run (None where unknown)."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    table = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def smooth(values: NDArray[np.float64], weight: float | None = None) -> NDArray[np.float64]:
    """Exponential moving average with bias correction, float64 of the same shape.

    Values that are not finite are passed over; before the first finite one the result is NaN. Without a `weight` a
    short curve is smoothed less than a long one, which keeps the mean from lagging far behind a loss that still falls.
    """
    if weight is None:
        weight = min(0.9, max(0.0, 1 - 20 / max(1, len(values))))
    finite = np.isfinite(values)
    sums = _moving_sum(np.where(finite, values, 0.0), weight)
    masses = _moving_sum(finite.astype(np.float64), weight)
    return np.divide(sums, masses, out=np.full_like(sums, np.nan), where=masses > 0)


def _moving_sum(values: NDArray[np.float64], weight: float, block: int = 128) -> NDArray[np.float64]:
    """y[t] = weight * y[t - 1] + (1 - weight) * x[t] from zero, a block at a time as one matrix product."""
    count = len(values)
    rows = np.zeros((-(-count // block), block))
    rows.reshape(-1)[:count] = values
    ages = np.arange(block)[:, None] - np.arange(block)[None, :]
    kernel = np.where(ages >= 0, (1 - weight) * weight ** np.maximum(ages, 0), 0.0)
    out = rows @ kernel.T
    fading = weight ** np.arange(1, block + 1)
    for i in range(1, len(out)):
        out[i] += out[i - 1, -1] * fading
    return out.reshape(-1)[:count]


def at_same_point(runs: Sequence[RunFigures], axis: str = "step") -> dict[str, float]:
    """Smoothed training loss of each run at the farthest point all of them have reached, by name.

    Comparing last values would favour the longer run. Runs without losses, or that begin later, are left out.
    """
    curves = {run.name: run.series.curve("loss", axis) for run in runs}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    if not curves:
        return {}
    common = min(float(x[-1]) for x, _ in curves.values())
    return {name: float(np.interp(common, x, smooth(y))) for name, (x, y) in curves.items() if x[0] <= common}


def summary(runs: Sequence[RunFigures]) -> list[dict[str, Any]]:
    """One row per run: steps, tokens, last losses, best validation, tokens per second, time."""
    rows = []
    for run in runs:
        series = run.series
        _, losses = series.curve("loss")
        speeds = series.curve("tok_per_s")[1]
        best = run.best_validation
        rows.append(
            {
                "name": run.name,
                "step": series.steps[-1] if len(series) else 0,
                "tokens": series.last("tokens"),
                "loss": float(smooth(losses)[-1]) if len(losses) else None,
                "val_loss": best[1] if best else None,
                "val_step": best[0] if best else None,
                "bits_per_byte": series.last("val_bits_per_byte"),
                "tok_per_s": float(np.median(speeds)) if len(speeds) else None,
                "seconds": series.last("seconds"),
            }
        )
    return rows
