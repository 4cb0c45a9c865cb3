"""Several runs against each other: curves on one axis, figures side by side, settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError
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


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run directory; empty when it recorded none."""
    try:
        config = RunDirectory(path).config().get("config")
    except UserError:
        return {}
    return config if isinstance(config, dict) else {}


def differing_settings(runs: Sequence[RunFigures]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, each with one value per run (None where unknown)."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    table = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def smooth(values: NDArray[np.float64], weight: float = 0.9) -> NDArray[np.float64]:
    """Exponential moving average with bias correction, float64 of the same shape; not-finite values are passed over."""
    out = np.empty_like(values)
    average, mass = 0.0, 0.0
    for i, value in enumerate(values.tolist()):
        if np.isfinite(value):
            average = weight * average + (1 - weight) * value
            mass = weight * mass + (1 - weight)
        out[i] = average / mass if mass else np.nan
    return out


def at_same_point(runs: Sequence[RunFigures], axis: str = "step") -> dict[str, float]:
    """Smoothed training loss of each run at the farthest point all of them have reached, by name.

    Comparing last values would favour the longer run. Runs without losses are left out.
    """
    curves = {run.name: run.series.curve("loss", axis) for run in runs}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    if not curves:
        return {}
    common = min(float(x[-1]) for x, _ in curves.values())
    return {name: float(np.interp(common, x, smooth(y))) for name, (x, y) in curves.items()}


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
