"""Time as the length of a run: compiling, evaluations and checkpoints count, and the last evaluation must fit."""

from __future__ import annotations

import time

from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.train.schedule import Schedule, total_steps

LARGEST_RESERVE = 0.25
"""Share of the time that is kept for the last evaluation at most; a longer one is cut short."""


class TimeBudget:
    """Clock of a run over all its processes: `seconds` are allowed (None: no limit), `used` were used before."""

    def __init__(self, seconds: float | None, used: float = 0.0) -> None:
        self.seconds = seconds
        self.used = used
        self._began = time.monotonic()
        self._first_step: float | None = None
        self._steps = 0
        self.evaluation_rate: float | None = None
        """Validation tokens per second of the last evaluation."""

    @property
    def elapsed(self) -> float:
        """Seconds of this run so far, everything counted."""
        return self.used + time.monotonic() - self._began

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.seconds is not None and self.elapsed >= self.seconds

    def step_done(self) -> None:
        """Note the end of an optimiser step. The first compiles and fills caches: it tells nothing of others."""
        if self._first_step is None:
            self._first_step = time.monotonic()
        else:
            self._steps += 1

    @property
    def per_step(self) -> float | None:
        """Seconds per step with evaluations and checkpoints shared out, None before the second step.

        The mean of this process, not a recent one: a busy minute must not end a long run early.
        """
        if not self._steps or self._first_step is None:
            return None
        return (time.monotonic() - self._first_step) / self._steps

    def total(
        self, config: TrainConfig, schedule: Schedule, train_tokens: int, step: int, seen: int, kept: float
    ) -> int:
        """Steps of the run by what the time allows, `kept` seconds of it for the last evaluation; see `total_steps`."""
        used = self.elapsed + kept
        found = total_steps(config, train_tokens, step, used, self.per_step, seen)
        if self.per_step is None and self.seconds is not None and used >= self.seconds:
            found = step
        # a decay that has begun may be cut short but not drawn out
        return max(step, min(found, schedule.total) if schedule.decay_start is not None else found)

    def reserve(self, evaluation_tokens: int, tokens_per_step: int) -> float:
        """Seconds to keep for the last evaluation: by the speed of those before, else that of training."""
        if self.seconds is None or not evaluation_tokens:
            return 0.0
        per_step = self.per_step
        rate = self.evaluation_rate or (tokens_per_step / per_step if per_step else None)
        most = LARGEST_RESERVE * self.seconds
        return most if rate is None else min(most, evaluation_tokens / rate)
