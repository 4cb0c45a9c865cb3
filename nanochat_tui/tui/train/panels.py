"""From a run's numbers to what the dashboard's charts show. Pure, and called in the thread that reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nanochat_tui.runs.compare import RunFigures, smooth
from nanochat_tui.runs.metrics import Series
from nanochat_tui.tui.widgets.raster import Curve

PALETTE = ("primary", "secondary", "accent", "success", "warning", "error")
"""Theme colours of several curves, in turn."""
RECENT_SHARE = 0.2
RECENT_LEAST = 50


@dataclass(frozen=True, slots=True)
class Panel:
    """The curves of one chart, the range of x it begins with (None: everything), and its title where it has another."""

    curves: tuple[Curve, ...]
    window: tuple[float, float] | None = None
    title: str | None = None
    log: bool = True
    """Whether the y axis may be logarithmic."""


PANELS: dict[str, str] = {
    "loss": "loss",
    "recent": "recent loss",
    "lr": "lr",
    "grad_norm": "grad norm",
    "tok_per_s": "tok/s",
    "mhc": "mHC α",
    "accuracy": "accuracy",
}
"""Charts of the dashboard: key and title."""


def make_panels(series: Series, mhc_value: str = "alpha") -> dict[str, Panel]:
    """Curves of every chart. `mhc_value` is a key of the mHC records; of p and q the first stream's share is shown."""
    losses = _losses(series)
    practised = _reinforcement(series, losses) if "reward" in series.columns else {}
    return {
        "loss": Panel(losses),
        "recent": Panel(losses, _recent(series)),
        "lr": Panel(_plain(series, "lr", "primary")),
        "grad_norm": Panel(_plain(series, "grad_norm", "accent")),
        "tok_per_s": Panel(_plain(series, "tok_per_s", "success")),
        "mhc": Panel(_mhc(series, mhc_value)),
        "accuracy": Panel(
            (
                *_plain(series, "val_accuracy", "primary", "all tokens"),
                *_plain(series, "val_accuracy_no_indent", "secondary", "without indentation"),
            )
        ),
    } | practised


def _reinforcement(series: Series, losses: tuple[Curve, ...]) -> dict[str, Panel]:
    """What a run by rewards shows where others show parts of the loss: reward, lengths, KL and entropy.

    Its loss is around 0, of either sign, and stands next to what is forgotten.
    """
    return {
        "loss": Panel(losses, title="policy loss", log=False),
        "recent": Panel(
            (
                *_plain(series, "reward", "primary"),
                *_plain(series, "success", "success"),
                *_plain(series, "reward_compiles", "secondary", "compiles"),
                *_plain(series, "reward_parses", "accent", "parses"),
            ),
            title="reward",
        ),
        "tok_per_s": Panel(_plain(series, "completion_length", "success"), title="tokens of a completion"),
        "accuracy": Panel(
            (*_plain(series, "kl", "warning"), *_plain(series, "entropy", "primary")), title="KL to the start, entropy"
        ),
    }


def _losses(series: Series) -> tuple[Curve, ...]:
    x, y = series.curve("loss")
    curves = []
    if len(x):
        curves = [Curve("logged", x, y, "primary", faint=len(x) > 5), Curve("train", x, smooth(y), "primary")]
    validation = series.curve("val_loss")
    if len(validation[0]):
        curves.append(Curve("val", *validation, "secondary", points=True))
    held_out = series.curve("held_out_loss")
    if len(held_out[0]):
        curves.append(Curve("held out", *held_out, "warning", points=True))
    return tuple(curves)


def _recent(series: Series) -> tuple[float, float] | None:
    x = series.curve("loss")[0]
    if len(x) <= RECENT_LEAST:
        return None
    first = x[-max(RECENT_LEAST, int(len(x) * RECENT_SHARE))]
    return float(first), float(x[-1])


def _plain(series: Series, key: str, colour: str, label: str = "") -> tuple[Curve, ...]:
    x, y = series.curve(key)
    return (Curve(label or key, x, y, colour),) if len(x) else ()


def _mhc(series: Series, value: str) -> tuple[Curve, ...]:
    records = max((len(r) for r in series.mhc.values()), default=0)
    curves = []
    for record in range(records):
        x, y = series.mhc_curve(value, record, 0 if value in ("p", "q") else None)
        if value in ("p", "q"):
            other = series.mhc_curve(value, record, 1)[1]
            if len(other) == len(y):
                y = y / np.maximum(y + other, 1e-9)
        if len(x):
            place = f"{record // 2}{'af'[record % 2]}"
            curves.append(Curve(place, x, y, PALETTE[record // 2 % len(PALETTE)], faint=False))
    return tuple(curves)


def compared(runs: list[RunFigures], axis: str) -> tuple[Curve, ...]:
    """Smoothed training losses of several runs over one axis, and their validation losses as points."""
    lines, points = [], []
    for index, run in enumerate(runs):
        colour = PALETTE[index % len(PALETTE)]
        x, y = run.series.curve("loss", axis)
        if len(x):
            lines.append(Curve(run.name, x, smooth(y), colour))
        vx, vy = run.series.curve("val_loss", axis)
        if len(vx):
            points.append(Curve(f"{run.name} val", vx, vy, colour, points=True, faint=True))
    return (*points, *lines)
