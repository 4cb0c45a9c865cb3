"""How long a run is and how its learning rate moves: warm-up, stable, decay (WSD, Hu et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from nanochat_tui.runs.config import TrainConfig


@dataclass(slots=True)
class Schedule:
    """Learning-rate multiplier by step: linear warm-up, 1, decay to zero at `total`.

    Shapes of the decay at its share u: linear, 1 - u; cosine, (1 + cos πu) / 2; sqrt, 1 - √u (Hägele et al. 2024).
    """

    warmup: int
    total: int
    decay_fraction: float
    decay_start: int | None = None
    """Fixed once decay has begun, so that a changing estimate of the length cannot move it."""
    decay_from: float | None = None
    """Multiplier the decay began at; None before it, or of a version that knew none (then it follows from the rest)."""
    rewarm_step: int = 0
    rewarm_from: float = 1.0
    shape: str = "linear"

    def planned_decay_start(self) -> int:
        """First step of the decay. Warm-up comes first, in up to half of what there is to run."""
        if self.decay_start is not None:
            return self.decay_start
        warm = self.rewarm_step + min(self.warmup, (self.total - self.rewarm_step) // 2)
        return max(math.ceil(self.total * (1 - self.decay_fraction)), warm)

    def multiplier(self, step: int) -> float:
        """Multiplier of the update number `step`, counted from 0."""
        start = self.planned_decay_start()
        if step < start:
            return self._rising(step)
        top = self.decay_from if self.decay_from is not None else self._reached(start)
        return top * _shaped(self.shape, max(0.0, (self.total - step) / max(1, self.total - start)))

    def _rising(self, step: int) -> float:
        if self.rewarm_from < 1.0:
            done = min(1.0, (step - self.rewarm_step + 1) / max(1, self.warmup))
            return self.rewarm_from + (1 - self.rewarm_from) * done
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0

    def _reached(self, start: int) -> float:
        """What warm-up had reached when the decay began: that, and no more, is decayed from."""
        return self._rising(start - 1) if start > self.rewarm_step else self._rising(start)

    def enter(self, step: int) -> bool:
        """Note that `step` is about to run; returns whether the run is now in its decay."""
        if self.decay_start is None and step >= self.planned_decay_start():
            self.decay_start, self.decay_from = step, self._reached(step)
        return self.decay_start is not None

    def is_ternary(self, config: TrainConfig) -> bool:
        """Whether the present step computes with ternary weights: always, never, or once it decays."""
        return not config.full_precision and (not config.quantise_with_decay or self.decay_start is not None)

    def extend(self, total: int, step: int) -> None:
        """Give a run at `step` another end.

        A later one re-warms a decaying or finished run, which is then stable and decays again; an earlier one has a
        decay that has begun go down from where it is to the new end.
        """
        if self.decay_start is not None and total > self.total:
            self.rewarm_from = self.multiplier(step)
            self.rewarm_step = step
            self.decay_start = self.decay_from = None
        elif self.decay_start is not None and total < self.total:
            self.decay_from = self.multiplier(step)
            self.decay_start = step
        self.total = total

    def to_json(self) -> dict[str, Any]:
        """Fields for state.json."""
        return asdict(self)


def _shaped(shape: str, left: float) -> float:
    """Share of the learning rate that remains when `left` of the decay, 1 to 0, is to come."""
    if shape == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    return 1 - math.sqrt(max(0.0, 1 - left)) if shape == "sqrt" else left


def sequence_length(config: TrainConfig, step: int, total: int) -> int:
    """Tokens of the sequences of update number `step` of `total`: short ones first, where the run asks for them."""
    early = config.short_seq_len and step < config.short_fraction * total
    return config.short_seq_len if early else config.sequence_length


def total_steps(
    config: TrainConfig,
    train_tokens: int,
    step: int,
    seconds: float,
    per_step: float | None,
    seen: int | None = None,
) -> int:
    """Steps the run will have: the first reached of --steps, --tokens, --epochs and --minutes.

    `seconds` of all the time allowed have been used; `per_step` is what a step takes, None when unknown; `seen` are the
    tokens of the `step` steps so far (default: all steps had the present size).
    """
    size = config.tokens_per_step
    seen = step * size if seen is None else seen
    limits: list[float] = []
    if config.steps:
        limits.append(config.steps)
    if config.tokens:
        limits.append(step + math.ceil((config.tokens - seen) / size))
    if config.epochs:
        limits.append(step + math.ceil((config.epochs * train_tokens - seen) / size))
    if config.minutes and per_step:
        limits.append(step + math.floor((config.minutes * 60 - seconds) / per_step))
    return max(1, int(min(limits))) if limits else 1_000_000_000
