"""What a model says of a text that is there already: how likely each of its tokens is, or an embedding of it.

A `Reading` collects the rows that the engine computes for a text's tokens, a part at a time, so that neither all logits
nor all states of a long text are in memory at once. The library runs readings by themselves (`run_readings`), the
batcher next to replies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.arguments import ArgumentError, described, token_ids
from nanochat_tui.engine.run.executor import Executor, Piece
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.engine.run.tables import CHUNK
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFValue, metadata_bool, metadata_int, metadata_string

if TYPE_CHECKING:
    from nanochat_tui.model.tokenizer import TextCodec
    from nanochat_tui.request import Token

Pooling = Literal["mean", "last", "cls", "none"]
"""What becomes of the states of a text's tokens: their mean, that of the last or of the first one, or all of them."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
MOST_LOGITS = 1 << 24
"""Logits that a job computes at most: 64 MiB."""
ROWS_AT_ONCE = 16
"""Rows whose exponentials are in memory at once: more would cost more than the arithmetic."""

Floats = NDArray[np.float32]


class Reading(ABC):
    """Takes what is computed for tokens `first` up to `rows` of a text; complete when it has all of them."""

    states: bool
    """Whether the rows are final states, not logits."""
    first = 0

    def __init__(self, rows: int) -> None:
        self.rows = rows

    @abstractmethod
    def take(self, begin: int, rows: Floats) -> None:
        """Take the rows of the tokens from `begin` on, float32 [n, vocab or dim]; the same ones may come again."""


def log_normalisers(logits: Floats) -> NDArray[np.float64]:
    """Return the logarithm of the sum of each row's exponentials, float64 [n]; softmax in float32, sums in float64."""
    found = np.empty(len(logits))
    powers = np.empty((min(ROWS_AT_ONCE, len(logits)), logits.shape[1]), np.float32)
    for start in range(0, len(logits), ROWS_AT_ONCE):
        part = logits[start : start + ROWS_AT_ONCE]
        largest = part.max(axis=1)
        shifted = np.subtract(part, largest[:, None], out=powers[: len(part)])
        found[start : start + len(part)] = np.log(np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64)) + largest
    return found


@dataclass(frozen=True, slots=True)
class Scored:
    """A token's natural log-probability after those before it, and the likeliest ones in its place (id, the same)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Scores(Reading):
    """Log-probabilities of the tokens of a text from place `start` >= 1 on, with `top` alternatives each."""

    states = False

    def __init__(self, ids: Sequence[int], start: int = 1, top: int = 0) -> None:
        super().__init__(max(0, len(ids) - 1))
        self.first = min(self.rows, start - 1)
        self._ids, self._start, self._top = list(ids), start, top
        self._found: list[Scored | None] = [None] * len(ids)

    def take(self, begin: int, rows: Floats) -> None:
        """Take logits, see `Reading.take`."""
        count, norms = min(self._top, rows.shape[1]), log_normalisers(rows)
        for place, (row, norm) in enumerate(zip(rows, norms, strict=True), begin + 1):
            best: tuple[tuple[int, float], ...] = ()
            if count:
                found = np.argpartition(row, -count)[-count:]
                found = found[np.argsort(-row[found], kind="stable")]
                best = tuple((int(i), float(row[i] - norm)) for i in found)
            token = self._ids[place]
            self._found[place] = Scored(token, float(row[token] - norm), best)

    @property
    def scored(self) -> list[Scored]:
        """The tokens from `start` on, once the reading is complete."""
        return [each for each in self._found[self._start :] if each is not None]

    def tokens(self, codec: TextCodec) -> list[Token]:
        """Return the same with texts: those of the tokens follow each other, UTF-8 safe across their borders."""
        from nanochat_tui.request import Token

        stream = codec.stream(after=self._ids[: self._start])
        return [
            Token(stream.feed(s.id), s.id, s.logprob, tuple((i, codec.decode([i]), p) for i, p in s.top))
            for s in self.scored
        ]


class Embedding(Reading):
    """The states of a text's tokens, pooled."""

    states = True

    def __init__(self, tokens: int, pooling: Pooling) -> None:
        super().__init__(tokens)
        self._pooling = pooling
        self.first = tokens - 1 if pooling == "last" else 0
        if pooling == "cls":  # the first token sees no other
            self.rows = min(1, tokens)
        self._parts: dict[int, Floats] = {}

    def take(self, begin: int, rows: Floats) -> None:
        """Take states, see `Reading.take`."""
        # of a mean sums are kept, of the last part the sum with it
        if self._pooling == "none":
            self._parts[begin] = rows
        elif self._pooling == "mean":
            before = {place: part for place, part in self._parts.items() if place < begin}
            self._parts = {**before, begin: rows.sum(axis=0, dtype=np.float64)}
        else:
            self._parts = {begin: rows[-1]}

    def vector(self, *, normalize: bool) -> Floats:
        """Return the embedding, float32 [dim], or [tokens, dim] without pooling; normalize: of length 1."""
        parts = [self._parts[place] for place in sorted(self._parts)]
        if self._pooling == "none":
            whole = np.concatenate(parts)
        elif self._pooling == "mean":
            whole = np.sum(parts, axis=0) / self.rows
        else:
            whole = parts[-1]
        return unit(whole) if normalize else whole.astype(np.float32)


def unit(vectors: NDArray[np.floating]) -> Floats:
    """Return vectors [..., dim] scaled to length 1; one of zeros stays."""
    exact = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(exact, axis=-1, keepdims=True)
    return np.asarray(exact / np.where(lengths > 0, lengths, 1.0), np.float32)


POOLING_TYPES: dict[int, Pooling] = {0: "none", 1: "mean", 2: "cls", 3: "last"}
"""Of a file's `pooling_type`, by llama.cpp's enumeration; 4 is a reranker's."""


@dataclass(frozen=True, slots=True)
class Convention:
    """How a file wants texts to be embedded. named: whether it says so itself. ends: an end token follows the text."""

    pooling: Pooling = "mean"
    named: bool = False
    ends: bool = False


def convention_of(metadata: Mapping[str, GGUFValue]) -> Convention:
    """Return what a file says of embeddings; the mean, where it says nothing or is a reranker's."""
    architecture = metadata_string(metadata, "general.architecture", "")
    kind = metadata_int(metadata, f"{architecture}.pooling_type", -1)
    ends = metadata_bool(metadata, "tokenizer.ggml.add_eos_token", False)
    return Convention(POOLING_TYPES.get(kind, "mean"), kind in POOLING_TYPES, ends)


def checked_pooling(pooling: object) -> Pooling:
    """Return a pooling that there is. Raises UserError."""
    for known in POOLINGS:
        if pooling == known:
            return known
    raise UserError(f"pooling {pooling!r} is unknown; it is one of {', '.join(POOLINGS)}")


def one_or_several(texts: object) -> tuple[bool, list[Any]]:
    """Return whether one text (or its ids) was given, and all texts as a list. Raises ArgumentError."""
    if isinstance(texts, str):
        return True, [texts]
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
        raise ArgumentError(f"texts is {described(texts)} and must be a text, token ids, or a list of either")
    found = list(texts)
    if found and all(isinstance(each, Integral) for each in found):
        return True, [found]
    for each in found:
        if not isinstance(each, str):
            token_ids("texts", each)
    return False, found


def most_rows(reading_states: bool, vocab: int) -> int:
    """Return how many tokens a job of readings takes at most."""
    return CHUNK if reading_states else max(1, min(CHUNK, MOST_LOGITS // vocab))


def run_readings(executor: Executor, texts: Sequence[tuple[Sequence[int], Reading]]) -> None:
    """Run texts of one kind of reading by themselves, a chunk at a time; short ones share a job.

    Raises UserError if the memory of a text's keys and values cannot be had.
    """
    if not texts:
        return
    states = texts[0][1].states
    waiting = deque(_Text(executor, ids, reading) for ids, reading in texts if reading.rows)
    most = most_rows(states, executor.vocab_padded)
    while waiting:
        text = waiting[0]
        if text.done < text.reading.first:
            text.run(executor, min(CHUNK, text.reading.first - text.done))
            continue
        job: list[tuple[_Text, Piece]] = []
        left = most
        for text in waiting:
            if not left or text.done < text.reading.first:
                break
            piece = text.piece(min(left, text.reading.rows - text.done))
            job.append((text, piece))
            left -= len(piece.ids)
        rows, place = executor.read([piece for _, piece in job], states=states), 0
        for text, piece in job:
            count = len(piece.ids)
            text.reading.take(text.done, rows[place : place + count])
            text.done += count
            place += count
        while waiting and waiting[0].done == waiting[0].reading.rows:
            waiting.popleft()


class _Text:
    """A text on its way through the model; it has a cache once it has begun."""

    def __init__(self, executor: Executor, ids: Sequence[int], reading: Reading) -> None:
        self.ids, self.reading, self.done = np.array(ids[: reading.rows], np.int64), reading, 0
        self._executor = executor
        self._cache: KVCache | None = None

    def piece(self, count: int) -> Piece:
        """Return the part of a job that runs the next tokens."""
        if self._cache is None:
            self._cache = KVCache(self._executor.shape, len(self.ids), self._executor.kv)
        return Piece(self._cache, self.ids[self.done : self.done + count], self.done)

    def run(self, executor: Executor, count: int) -> None:
        """Run the next tokens, of which nothing is wanted."""
        executor.execute([self.piece(count)])
        self.done += count
