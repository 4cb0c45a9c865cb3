"""How the next token is chosen, and what comes back from a draw."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.errors import UserError

MAX_ALTERNATIVES = 1000
GREEDY_BELOW = 1e-30
"""Temperatures at which only equal logits still share a draw; their inverse need not fit a float32."""
MAX_PENALTY = 1e6
NO_TOKEN = -1
SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of one reply, applied in this order: penalties, temperature, top-k, top-p, min-p, draw.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 cut nothing. top_p is the share of the mass that top-k
    left; min_p is relative to the most likely token. repeat_penalty divides positive and multiplies negative logits of
    every token of prompt and reply. presence_penalty is taken from the logit of every token the reply has,
    frequency_penalty from it for each time (OpenAI's API). seed None draws one. logprobs: whether the
    log-probability of every token is wanted; without, less has to be computed. Raises UserError for impossible values.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    top_logprobs: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: bool = True

    @property
    def counts_tokens(self) -> bool:
        """Whether the next token's distribution depends on which tokens were seen."""
        return self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def decisive(self) -> int:
        """How many of the largest logits decide about the next token, 0 if all do."""
        if self.logprobs or self.top_logprobs or self.counts_tokens:
            return 0
        return 1 if self.temperature < GREEDY_BELOW else self.top_k

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature >= 0, "must be 0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "must be 0 (no limit) or more"),
            ("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "must be between 0 and 1"),
            (
                "repeat_penalty",
                1 / MAX_PENALTY <= self.repeat_penalty <= MAX_PENALTY,
                f"must be {1 / MAX_PENALTY:g} to {MAX_PENALTY:g} (1 = none)",
            ),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "must be between -2 and 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "must be between -2 and 2"),
            ("top_logprobs", 0 <= self.top_logprobs <= MAX_ALTERNATIVES, f"must be 0 to {MAX_ALTERNATIVES}"),
        )
        for name, fine, rule in checks:
            value = getattr(self, name)
            if not fine or not math.isfinite(value):
                raise UserError(f"{name} is {value} and {rule}")


@dataclass(frozen=True, slots=True)
class Drawn:
    """Sampled tokens: ids [n], logprobs [n] (natural log, unmodified distribution; nan if not wanted), k best each."""

    ids: list[int]
    logprobs: list[float]
    alternatives: list[list[tuple[int, float]]]


class Draw:
    """The state of sampling one reply: random stream, tokens seen, buffers for up to `capacity` results per job."""

    def __init__(self, sampling: Sampling, vocab: int, end_ids: Iterable[int], capacity: int) -> None:
        self.sampling = sampling
        self.capacity = capacity
        # as `secrets` would draw it, which brings OpenSSL into every start
        seed = int.from_bytes(os.urandom(8)) if sampling.seed is None else sampling.seed
        self._seed = seed % 2**SEED_BITS
        self.passes = 0
        """Passes over the weights that the last job took for this reply."""
        self._drawn = 0
        self._vocab = vocab
        self._k = min(sampling.top_logprobs, vocab)
        self._ends: NDArray[np.int64] = np.array(sorted(end_ids), np.int64)
        self._ids = np.zeros(capacity, np.int64)
        self._logprobs = np.zeros(capacity, np.float32)
        # the program fills in as many as the table has tokens for, which may be fewer than rows
        self._other_ids = np.full((capacity, self._k), NO_TOKEN, np.int64)
        self._other_logprobs = np.zeros((capacity, self._k), np.float32)
        # 0: never seen; n + 1: generated n times
        self._times = np.zeros(vocab if sampling.counts_tokens else 0, np.int32)
        self._seen = np.zeros(len(self._times), np.int32)
        self._n_seen = 0
        self._row = self._settings()

    def see(self, ids: Iterable[int]) -> None:
        """Let the repetition penalty know the tokens of the prompt."""
        if self.sampling.repeat_penalty == 1:
            return
        for token in dict.fromkeys(ids):
            if not self._times[token]:
                self._times[token] = 1
                self._seen[self._n_seen] = token
                self._n_seen += 1

    def fill(self, sequence: NDArray[np.int64]) -> None:
        """Make a row of the SEQUENCE table that of this reply: its settings and its state, zero elsewhere."""
        sequence[:] = self._row
        sequence[s.DRAW], sequence[s.SEEN_COUNT] = self._drawn, self._n_seen

    def _settings(self) -> NDArray[np.int64]:
        """Return what is the same in every job."""

        def bits(value: float) -> int:
            return int(np.array(value, np.float32).view(np.uint32))

        c, row = self.sampling, np.zeros(s.SEQUENCE_SLOTS, np.int64)
        hottest = float(np.finfo(np.float32).max)
        temperature = 0.0 if c.temperature < GREEDY_BELOW else min(c.temperature, hottest)
        row[s.TEMPERATURE_BITS], row[s.TOP_K] = bits(temperature), min(c.top_k, self._vocab)
        row[s.TOP_P_BITS], row[s.MIN_P_BITS], row[s.PENALTY_BITS] = bits(c.top_p), bits(c.min_p), bits(c.repeat_penalty)
        row[s.SEED], row[s.ALTERNATIVES] = self._seed, self._k
        row[s.OUT_IDS], row[s.OUT_LOGPROBS] = self._ids.ctypes.data, self._logprobs.ctypes.data
        row[s.OUT_ALTERNATIVE_IDS] = self._other_ids.ctypes.data
        row[s.OUT_ALTERNATIVE_LOGPROBS] = self._other_logprobs.ctypes.data
        row[s.BEST] = c.decisive
        row[s.LOGPROBS] = int(c.logprobs or c.top_logprobs > 0)
        row[s.STOP_IDS], row[s.STOP_COUNT] = self._ends.ctypes.data, len(self._ends)
        row[s.PRESENCE_BITS], row[s.FREQUENCY_BITS] = bits(c.presence_penalty), bits(c.frequency_penalty)
        row[s.SEEN_TIMES] = self._times.ctypes.data if self._times.size else 0
        row[s.SEEN_IDS] = self._seen.ctypes.data
        return row

    def take(self, sequence: NDArray[np.int64]) -> Drawn:
        """Read a finished job's results."""
        n = int(sequence[s.PRODUCED])
        self.passes = int(sequence[s.PASSES])
        self._drawn, self._n_seen = int(sequence[s.DRAW]), int(sequence[s.SEEN_COUNT])
        others = [
            [(token, logprob) for token, logprob in zip(ids, logprobs, strict=True) if token != NO_TOKEN]
            for ids, logprobs in zip(self._other_ids[:n].tolist(), self._other_logprobs[:n].tolist(), strict=True)
        ]
        known = self.sampling.logprobs or self.sampling.top_logprobs > 0
        return Drawn(self._ids[:n].tolist(), self._logprobs[:n].tolist() if known else [math.nan] * n, others)
