"""How the next token is chosen, and what comes back from a draw."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.run.drafter import MOST
from nanochat_tui.errors import UserError
from nanochat_tui.request import GenerationRequest

GREEDY_BELOW = 1e-30
"""Temperatures at which only equal logits still share a draw; their inverse need not fit a float32."""
NO_TOKEN = -1
SEED_BITS = 63


def decisive(request: GenerationRequest) -> int:
    """Return how many of the largest logits decide about the next token, 0 if all do."""
    sampling = request.sampling
    if request.wants_logprobs or sampling.counts_tokens or request.logit_bias or request.grammar is not None:
        return 0
    return 1 if sampling.temperature < GREEDY_BELOW else sampling.top_k


class Rules(Protocol):
    """Says which tokens may come next in one reply, for which every pass asks: a grammar, in practice."""

    def masks(self, drafts: NDArray[np.int64], out: NDArray[np.uint32]) -> int:
        """Write which tokens may come next, and after each of the draft tokens, int64 [n]; change nothing else.

        out: uint32 [n + 1, words], a bit per token, lowest first. Returns how many of the draft tokens may come; the
        rows behind those are not written. At least one bit of a row that is written is set.
        """


@dataclass(frozen=True, slots=True)
class Drawn:
    """Sampled tokens: ids [n], logprobs [n] (natural log, unmodified distribution; nan if not wanted), k best each."""

    ids: list[int]
    logprobs: list[float]
    alternatives: list[list[tuple[int, float]]]


class Draw:
    """The state of sampling one reply: random stream, tokens seen, buffers for up to `capacity` results per job.

    rules: which tokens may come; a job then takes one pass for this reply. Raises UserError for a bias of a token that
    is outside the vocabulary.
    """

    def __init__(
        self,
        request: GenerationRequest,
        vocab: int,
        end_ids: Iterable[int],
        capacity: int,
        rules: Rules | None = None,
    ) -> None:
        self.request, self.sampling = request, request.sampling
        sampling = self.sampling
        self.capacity = capacity
        # as `secrets` would draw it, which brings OpenSSL into every start
        seed = int.from_bytes(os.urandom(8)) if sampling.seed is None else sampling.seed
        self._seed = seed % 2**SEED_BITS
        self.passes = 0
        """Passes over the weights that the last job took for this reply."""
        self._drawn = 0
        self._vocab = vocab
        self._k = min(request.top_logprobs, vocab)
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
        beyond = next((token for token, _ in request.logit_bias if token >= vocab), None)
        if beyond is not None:
            raise UserError(f"logit_bias names token {beyond}, which is outside the vocabulary of {vocab} tokens")
        self._bias_ids = np.array([token for token, _ in request.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in request.logit_bias], np.float32)
        self.rules = rules
        words = -(-vocab // s.STATISTICS_BLOCK) * s.STATISTICS_BLOCK // 32
        self._masks = np.zeros((0 if rules is None else MOST + 1, words), np.uint32)
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
        row[s.TYPICAL_P_BITS] = bits(c.typical_p)
        row[s.SEED], row[s.ALTERNATIVES] = self._seed, self._k
        row[s.OUT_IDS], row[s.OUT_LOGPROBS] = self._ids.ctypes.data, self._logprobs.ctypes.data
        row[s.OUT_ALTERNATIVE_IDS] = self._other_ids.ctypes.data
        row[s.OUT_ALTERNATIVE_LOGPROBS] = self._other_logprobs.ctypes.data
        row[s.BEST] = decisive(self.request)
        row[s.LOGPROBS] = int(self.request.wants_logprobs)
        row[s.STOP_IDS], row[s.STOP_COUNT] = self._ends.ctypes.data, len(self._ends)
        row[s.PRESENCE_BITS], row[s.FREQUENCY_BITS] = bits(c.presence_penalty), bits(c.frequency_penalty)
        row[s.SEEN_TIMES] = self._times.ctypes.data if self._times.size else 0
        row[s.SEEN_IDS] = self._seen.ctypes.data
        row[s.BIAS_IDS], row[s.BIASES] = self._bias_ids.ctypes.data, self._biases.ctypes.data
        row[s.BIAS_COUNT] = len(self._bias_ids)
        if self._masks.size:
            row[s.MASKS], row[s.MASK_BYTES] = self._masks.ctypes.data, self._masks.strides[0]
        return row

    def apply_rules(self, sequence: NDArray[np.int64], drafts: NDArray[np.int64]) -> None:
        """Write the masks of a row's next pass, if there are rules. drafts: what its drafter proposes for that pass.

        What the rules forbid of it is no draft token any more.
        """
        if self.rules is None:
            return
        # draft tokens that the program looks up itself come when no mask can be made any more
        given = sequence[s.NGRAM] == 0 and sequence[s.DRAFT_MOST] > 0 and len(drafts) > 0
        sequence[s.NGRAM], sequence[s.MOST_PASSES] = 0, 1
        sequence[s.DRAFT_COUNT] = self.rules.masks(drafts if given else drafts[:0], self._masks)

    def take(self, sequence: NDArray[np.int64]) -> Drawn:
        """Read a finished job's results."""
        n = int(sequence[s.PRODUCED])
        self.passes = int(sequence[s.PASSES])
        self._drawn, self._n_seen = int(sequence[s.DRAW]), int(sequence[s.SEEN_COUNT])
        others = [
            [(token, logprob) for token, logprob in zip(ids, logprobs, strict=True) if token != NO_TOKEN]
            for ids, logprobs in zip(self._other_ids[:n].tolist(), self._other_logprobs[:n].tolist(), strict=True)
        ]
        logprobs = self._logprobs[:n].tolist() if self.request.wants_logprobs else [math.nan] * n
        return Drawn(self._ids[:n].tolist(), logprobs, others)
