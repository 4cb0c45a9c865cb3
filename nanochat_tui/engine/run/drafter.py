"""Who proposes draft tokens for a reply, and what a job keeps of its text for that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout import slots as s

UNLIMITED = 1 << 30
"""Passes of a job that ends for another reason."""


MOST = 7
"""Most draft tokens of a pass: with the token before them they fill a tile of 8."""


NGRAM = 4
"""Longest ending looked for in the history; a longer agreement is no better sign."""


class Drafter(Protocol):
    """Proposes draft tokens for one reply, whose tokens it is told.

    A job takes its draft tokens from here and verifies them; they never change a reply, only how many passes it
    takes. Counts are those of the last job. Heads that draft from the state of the last pass (multi-token prediction)
    have to run in the compiled program, before the next one: they are a further case of `program.draft_tokens_of`.
    """

    most_passes: int
    """Passes of a job that it has drafts for: 1 if it is asked before every job, and UNLIMITED if in every pass."""
    passes: int
    drafted_passes: int
    """Passes with draft tokens."""
    drafted: int
    """Draft tokens."""
    accepted: int
    proposed: NDArray[np.int64]
    """Draft tokens for the next pass, int64 [n]; empty where the program looks them up."""
    """Accepted draft tokens."""

    def fill(self, sequence: NDArray[np.int64], most: int, vocab: int) -> None:
        """Write into a row of the SEQUENCE table where the reply's tokens go, and the draft tokens.

        most: draft tokens per pass, 0 to MOST. vocab: ids from 0 to it. Raises ValueError for another id.
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
        self.proposed = self._draft[:0]
        self.passes = self.drafted_passes = self.drafted = self.accepted = 0

    def fill(self, sequence: NDArray[np.int64], most: int, vocab: int) -> None:
        """See `Drafter`; there is no draft yet."""
        sequence[s.HISTORY], sequence[s.HISTORY_COUNT] = self._ids.ctypes.data, self._count
        sequence[s.DRAFT], sequence[s.DRAFT_MOST], sequence[s.NGRAM] = self._draft.ctypes.data, most, 0
        sequence[s.DRAFT_COUNT] = 0
        self.proposed = self._draft[:0]

    def take(self, sequence: NDArray[np.int64]) -> None:
        """See `Drafter`."""
        self._count = int(sequence[s.HISTORY_COUNT])
        self.passes, self.drafted_passes = int(sequence[s.PASSES]), int(sequence[s.DRAFTED_PASSES])
        self.drafted, self.accepted = int(sequence[s.PROPOSED]), int(sequence[s.ACCEPTED])


class Lookup(History):
    """Drafts what followed the last time that a text ended like this; the program itself looks, in every pass."""

    def fill(self, sequence: NDArray[np.int64], most: int, vocab: int) -> None:
        """See `Drafter`."""
        super().fill(sequence, most, vocab)
        sequence[s.NGRAM] = NGRAM


class Proposals(History, ABC):
    """Drafts what `propose` returns, which is asked before every pass. Subclasses say what that is."""

    most_passes = 1

    @abstractmethod
    def propose(self, ids: NDArray[np.int64], most: int) -> Sequence[int]:
        """Return up to `most` tokens that may follow prompt and reply, ids int64 [n]; none is a good answer, too."""

    def fill(self, sequence: NDArray[np.int64], most: int, vocab: int) -> None:
        """See `Drafter`."""
        super().fill(sequence, most, vocab)
        if most == 0:
            return
        draft = np.array(self.propose(self._ids[: self._count], most)[:most], np.int64)
        if len(draft) and (draft.min() < 0 or draft.max() >= vocab):
            raise ValueError("a drafter proposes a token that is outside the vocabulary")
        self._draft[: len(draft)] = draft
        self.proposed = self._draft[: len(draft)]
        sequence[s.DRAFT_COUNT], sequence[s.DRAFT_AT] = len(draft), self._count
