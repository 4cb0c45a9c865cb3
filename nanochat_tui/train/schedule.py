"""How long a run is and how its learning rate moves: warm-up, stable, decay (WSD, Hu et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from nanochat_tui.runs.config import TrainConfig


@dataclass(slots=True)
class Schedule:
    """Learning-rate multiplier by step: linear warm-up, 1, linear decay to zero at `total`."""

    warmup: int
    total: int
    decay_fraction: float
    decay_start: int | None = None
    """Fixed once decay has begun, so that a changing estimate of the length cannot move it."""
    rewarm_step: int = 0
    rewarm_from: float = 1.0

    def planned_decay_start(self) -> int:
        """First step of the decay."""
        return self.decay_start if self.decay_start is not None else math.ceil(self.total * (1 - self.decay_fraction))

    def multiplier(self, step: int) -> float:
        """Multiplier of the update number `step`, counted from 0."""
        start = self.planned_decay_start()
        if step >= start:
            return max(0.0, (self.total - step) / max(1, self.total - start))
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.rewarm_from < 1.0:
            done = min(1.0, (step - self.rewarm_step + 1) / max(1, self.warmup))
            return self.rewarm_from + (1 - self.rewarm_from) * done
        return warm

    def enter(self, step: int) -> bool:
        """Note that `step` is about to run; returns whether the run is now in its decay."""
        if self.decay_start is None and step >= self.planned_decay_start():
            self.decay_start = step
        return self.decay_start is not None

    def extend(self, total: int, step: int) -> None:
        """Continue a finished or decaying run to a later end: re-warm, stay stable, decay anew."""
        if total <= self.total:
            return
        if self.decay_start is not None:
            self.rewarm_from = self.multiplier(step)
            self.rewarm_step = step
            self.decay_start = None
        self.total = total

    def to_json(self) -> dict[str, Any]:
        """Fields for state.json."""
        return asdict(self)


def total_steps(config: TrainConfig, train_tokens: int, step: int, seconds: float, per_step: float | None) -> int:
    """Steps the run will have: the first reached of --steps, --tokens, --epochs and --minutes.

    `seconds` have been used for `step` steps; `per_step` is the recent time of a step, None when unknown.
    """
    limits: list[float] = []
    if config.steps:
        limits.append(config.steps)
    if config.tokens:
        limits.append(math.ceil(config.tokens / config.tokens_per_step))
    if config.epochs:
        limits.append(math.ceil(config.epochs * train_tokens / config.tokens_per_step))
    if config.minutes and per_step:
        limits.append(step + max(1, math.floor((config.minutes * 60 - seconds) / per_step)))
    return max(1, int(min(limits))) if limits else 1_000_000_000
