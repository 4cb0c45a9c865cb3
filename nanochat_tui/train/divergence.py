"""Noticing that a training goes wrong: steps that are no numbers, a loss that stays above that of guessing."""

from __future__ import annotations

import math

from nanochat_tui.errors import UserError
from nanochat_tui.runs.alarms import guessing_loss

PATIENCE = 20
"""Steps in a row above the limit that end a run; spikes are shorter."""
AT_THE_END = 3
"""The same when the run ends anyway."""


class DivergedError(UserError):
    """The training has diverged."""

    exit_code = 1


class Divergence:
    """Looks at every step's loss and gradient norm.

    `vocabulary` is the number of token ids; up to `skips` steps in a row may be no numbers, and are not applied.
    """

    def __init__(self, vocabulary: int, *, stops: bool, skips: int = 0) -> None:
        self.limit = guessing_loss(vocabulary)
        self.stops, self.skips = stops, skips
        self.skipped = 0
        """Steps of the run that were not applied."""
        self.begin()

    def begin(self) -> None:
        """Forget the steps just before, for the run begins at a checkpoint."""
        self.above = 0
        """Steps in a row above the limit."""
        self.broken = 0
        """Steps in a row that were no numbers."""

    @property
    def is_suspected(self) -> bool:
        """Whether the last step stood above the limit or was no number: no time to remove earlier checkpoints."""
        return self.above > 0 or self.broken > 0

    def accepts(self, loss: float, norm: float) -> bool:
        """Whether a step may be applied; one that may not is counted."""
        if math.isfinite(loss) and math.isfinite(norm):
            self.broken = 0
            return True
        self.broken += 1
        self.skipped += 1
        return False

    def look(self, step: int, loss: float, *, last: bool) -> None:
        """Take in the loss of a step, after `accepts`. Raises DivergedError."""
        if self.broken:
            if self.broken > self.skips or last:
                times = f" for {self.broken} steps" if self.broken > 1 else ""
                raise DivergedError(
                    f"the training diverged: loss or gradient is not a number at step {step}{times}; "
                    "resume from an earlier checkpoint with a lower rate"
                )
            return
        self.above = self.above + 1 if loss > self.limit else 0
        if self.stops and self.above >= (AT_THE_END if last else PATIENCE):
            raise DivergedError(
                f"the training diverged: the loss is {loss:.2f} at step {step}, above {self.limit:.2f} for "
                f"{self.above} steps, where guessing gives less; resume from an earlier checkpoint with a lower rate, "
                "or pass --no-stop-on-divergence"
            )
