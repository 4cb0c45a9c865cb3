"""Draft tokens, where they make replies faster: how many a pass takes, and whether they pay.

A draft token is run with the token before it, in one pass over the weights. The sampler then draws as it always does,
and the draft token is accepted if it is the one drawn; so a reply is token for token the one without drafts, at any
temperature. (That is speculative sampling, Leviathan et al. 2023, with a draft that is certain: it is accepted with the
probability of the draft token, and otherwise another one is drawn in proportion.) Whether it pays depends on the text,
and on the cost of a pass with more rows: almost none for weights that come from memory, much for a small model in the
cache. So it is measured during decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanochat_tui.engine.run.drafter import MOST

Mode = Literal["auto", "on", "off"]
TRIAL_TOKENS = 48
"""Tokens without drafts after a trial that did not pay; doubled each time, up to REST_TOKENS."""
REST_TOKENS = 1536
GAIN = 1.05
"""What draft tokens must gain to be worth it: less is noise."""
MEMORY = 0.7
"""Weight of what was measured before, against a new measurement."""


def _mix(old: float | None, new: float) -> float:
    return new if old is None else MEMORY * old + (1 - MEMORY) * new


@dataclass(slots=True)
class Costs:
    """Seconds of a pass of one token, and of a pass with draft tokens; None before they were measured.

    They are the machine's and the model's, so replies may share them. The share of accepted draft tokens is the text's.
    """

    plain: float | None = None
    drafted: float | None = None


class Speculator:
    """Decides for one conversation how many draft tokens a pass takes, by what they cost and brought so far.

    mode: "auto" measures, "on" always takes as many as it can, "off" none. costs: those measured with other
    conversations too; acceptance and pauses are never taken from one text to another.
    """

    def __init__(self, mode: Mode, costs: Costs | None = None) -> None:
        self.mode: Mode = mode
        self._costs = costs or Costs()
        self._begun = False
        self._accepted: float | None = None
        self._rest = 0
        self._pause = TRIAL_TOKENS

    def most(self) -> int:
        """Return how many draft tokens a pass may take now."""
        if self.mode == "on":
            return MOST
        # without a time for a pass of its own there is nothing to compare with; and shared ones are to stay true
        if self.mode == "off" or not self._begun or self._rest > 0:
            return 0
        return MOST

    def learn(self, seconds: float, passes: int, drafted: int, accepted: int) -> None:
        """Note what a job took: its passes, those of them with draft tokens, and the accepted draft tokens."""
        costs = self._costs
        if passes == 0:
            return
        if drafted == 0:
            self._begun = True
            costs.plain = _mix(costs.plain, seconds / passes)
            self._rest = max(0, self._rest - passes)
            return
        plain = costs.plain or 0.0
        costs.drafted = _mix(costs.drafted, max(0.0, seconds - (passes - drafted) * plain) / drafted)
        self._accepted = _mix(self._accepted, accepted / drafted)
        if (1 + self._accepted) * plain < GAIN * costs.drafted:
            # forget what was measured: the next trial meets other text
            self._rest, self._pause = self._pause, min(2 * self._pause, REST_TOKENS)
            costs.drafted = self._accepted = None
        else:
            self._pause = TRIAL_TOKENS
