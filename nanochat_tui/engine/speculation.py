"""Guessing tokens ahead, where that is faster: who guesses, how far, and whether it pays.

A guess is run beside the token before it, in one pass over the weights. The sampler then draws as it always does, and
a guess is kept when it is what was drawn; so a reply is token for token the one without guessing, at any temperature.
(That is speculative sampling, Leviathan et al. 2023, with a draft that is certain: it is accepted with the probability
of the guessed token, and otherwise another one is drawn in proportion.) Whether it pays depends on the text, and on
how much dearer a pass with more rows is: next to nothing for weights that come from memory, a lot for a small model
in the cache. So it is measured while replies are written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.kernels import slots as s

Mode = Literal["auto", "on", "off"]
UNLIMITED = 1 << 30
"""Passes of a job that ends for another reason."""
MOST = 7
"""Most tokens guessed at once: with the one before them they fill a tile of 8."""
NGRAM = 4
"""Longest ending looked for in the history; a longer agreement is no better sign."""
TRIAL_TOKENS = 48
"""Tokens without guessing after a trial that did not pay; doubled each time, up to REST_TOKENS."""
REST_TOKENS = 1536
GAIN = 1.05
"""What guessing must gain to be worth it: less is noise."""
MEMORY = 0.7
"""Weight of what was measured before, against a new measurement."""


def _mix(old: float | None, new: float) -> float:
    return new if old is None else MEMORY * old + (1 - MEMORY) * new


@dataclass(slots=True)
class Costs:
    """Seconds of a pass of one token, and of a pass with guesses; None before they were measured.

    They are the machine's and the model's, so replies may share them. How many guesses are right is the text's.
    """

    plain: float | None = None
    drafted: float | None = None


class Speculator:
    """Decides for one conversation how many tokens to guess, by what guessing cost and brought so far.

    mode: "auto" measures, "on" always guesses as much as it can, "off" never. costs: those measured with other
    conversations too; what was right, and how long guessing rests, is never taken from one text to another.
    """

    def __init__(self, mode: Mode, costs: Costs | None = None) -> None:
        self.mode: Mode = mode
        self._costs = costs or Costs()
        self._begun = False
        self._accepted: float | None = None
        self._rest = 0
        self._pause = TRIAL_TOKENS

    def most(self) -> int:
        """Return how many tokens may be guessed per pass now; 0 means none."""
        if self.mode == "on":
            return MOST
        # without a time for a pass of its own there is nothing to compare with; and shared ones are to stay true
        if self.mode == "off" or not self._begun or self._rest > 0:
            return 0
        return MOST

    def learn(self, seconds: float, passes: int, drafted: int, accepted: int) -> None:
        """Note what a job took: its passes, those of them with guesses, and the guesses that were right."""
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


class Drafter(Protocol):
    """Who guesses for one reply: told of its tokens, it proposes those that may come next.

    A job takes its guesses from here and verifies them; what is proposed never changes a reply, only how many passes it
    takes. Counts are those of the last job. Heads that guess from the state of the last pass (multi-token prediction)
    have to run in the compiled program, before the next one: they are a further case of `program.guesses_of`.
    """

    most_passes: int
    """Passes of a job that it has guesses for: 1 if it is asked before every job, and UNLIMITED if in every pass."""
    passes: int
    drafted_passes: int
    """Passes with guesses."""
    drafted: int
    """Tokens guessed."""
    accepted: int
    """Guesses that were right."""

    def fill(self, sequence: NDArray[np.int64], most: int, vocab: int) -> None:
        """Write into a row of the SEQUENCE table where the reply's tokens go and what is guessed.

        most: tokens to be guessed per pass, 0 to MOST. vocab: ids from 0 to it. Raises ValueError for another id.
        """

    def take(self, sequence: NDArray[np.int64]) -> None:
        """Read what the finished job added and counted."""


MakeDrafter = Callable[[Sequence[int], int], Drafter]
"""Makes the drafter of a reply from its prompt and the number of tokens that it may get."""


class History:
    """The tokens of a reply and its prompt, `room` of which jobs may add: what every drafter begins with."""

    most_passes = UNLIMITED

    def __init__(self, ids: Sequence[int], room: int) -> None:
        self._ids = np.zeros(len(ids) + room, np.int64)
        self._ids[: len(ids)] = ids
        self._count = len(ids)
        self._draft = np.zeros(s.HEAD_ROWS, np.int64)
        self.passes = self.drafted_passes = self.drafted = self.accepted = 0

    def fill(self, sequence: NDArray[np.int64], most: int, vocab: int) -> None:
        """See `Drafter`; nothing is guessed yet."""
        sequence[s.HISTORY], sequence[s.HISTORY_COUNT] = self._ids.ctypes.data, self._count
        sequence[s.DRAFT], sequence[s.DRAFT_MOST], sequence[s.NGRAM] = self._draft.ctypes.data, most, 0
        sequence[s.DRAFT_COUNT] = 0

    def take(self, sequence: NDArray[np.int64]) -> None:
        """See `Drafter`."""
        self._count = int(sequence[s.HISTORY_COUNT])
        self.passes, self.drafted_passes = int(sequence[s.PASSES]), int(sequence[s.DRAFTED_PASSES])
        self.drafted, self.accepted = int(sequence[s.PROPOSED]), int(sequence[s.ACCEPTED])


class Lookup(History):
    """Guesses what followed the last time that a text ended like this; the program itself looks, in every pass."""

    def fill(self, sequence: NDArray[np.int64], most: int, vocab: int) -> None:
        """See `Drafter`."""
        super().fill(sequence, most, vocab)
        sequence[s.NGRAM] = NGRAM


class Proposals(History, ABC):
    """Guesses what `propose` returns, which is asked before every pass. Subclasses say what that is."""

    most_passes = 1

    @abstractmethod
    def propose(self, ids: NDArray[np.int64], most: int) -> Sequence[int]:
        """Return up to `most` tokens that may follow prompt and reply, ids int64 [n]; none is a good answer, too."""

    def fill(self, sequence: NDArray[np.int64], most: int, vocab: int) -> None:
        """See `Drafter`."""
        super().fill(sequence, most, vocab)
        if most == 0:
            return
        guesses = np.array(self.propose(self._ids[: self._count], most)[:most], np.int64)
        if len(guesses) and (guesses.min() < 0 or guesses.max() >= vocab):
            raise ValueError("a drafter proposes a token that is outside the vocabulary")
        self._draft[: len(guesses)] = guesses
        sequence[s.DRAFT_COUNT], sequence[s.DRAFT_AT] = len(guesses), self._count
