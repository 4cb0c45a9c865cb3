"""How probable a model finds each token of a document, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.generate.reading import log_normalisers
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.held_out import Document


class LogitsModel(Protocol):
    """What is measured: anything that gives logits for a sequence, float32 [len(ids), vocab]."""

    def logits(self, ids: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Logits after each token."""
        ...


@dataclass(frozen=True)
class Windows:
    """How a document longer than the context is read.

    Each window holds `length` tokens and begins `stride` after the one before; a token is scored in the first window
    that reaches it. With `stride` = `length` windows are disjoint and a token has half a window of context on average;
    a shorter stride gives each at least `length - stride` tokens, at `length / stride` times the work.
    """

    length: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.length:
            raise UserError(f"a stride of 1 to {self.length} tokens is needed for such windows, not {self.stride}")

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"disjoint, {self.length}" if self.stride == self.length else f"strided, {self.length} by {self.stride}"

    def spans(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (start, end, first) for a document of `count` tokens: inputs start..end-1, of which the targets of
        `first`.. are scored."""
        start = scored = 0
        while scored < count - 1:
            end = min(start + self.length, count - 1)
            yield start, end, scored
            scored = end
            start += self.stride


@dataclass(frozen=True)
class Scored:
    """One document's tokens but the first: nats float64, whether the most probable token was right, and those ids."""

    document: Document
    nats: NDArray[np.float64]
    hits: NDArray[np.bool_]

    @property
    def targets(self) -> NDArray[np.int64]:
        """The ids that were to be predicted."""
        return self.document.ids[1:]


def token_scores(
    logits: NDArray[np.float32], targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Negative log probability in nats (softmax in float32, sums in float64) and whether argmax is the target.

    Shapes: logits [n, vocab], targets [n].
    """
    own = logits[np.arange(len(targets)), targets].astype(np.float64)
    return log_normalisers(logits) - own, logits.argmax(axis=1) == targets


def score_documents(
    model: LogitsModel,
    documents: Sequence[Document],
    windows: Windows,
    tick: Callable[[int], None] = lambda _: None,
) -> list[Scored]:
    """Score every document by itself; `tick` is told the tokens done after each window."""
    found = []
    done = 0
    for document in documents:
        count = len(document.ids)
        nats, hits = np.zeros(max(0, count - 1)), np.zeros(max(0, count - 1), bool)
        for start, end, first in windows.spans(count):
            logits = model.logits(document.ids[start:end])[first - start :]
            nats[first:end], hits[first:end] = token_scores(logits, document.ids[first + 1 : end + 1])
            done += end - first
            tick(done)
        found.append(Scored(document, nats, hits))
    return found
