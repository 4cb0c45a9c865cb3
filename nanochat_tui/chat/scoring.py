"""How likely each token of a text was that is already there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from nanochat_tui.chat.backend import BackendError, Token

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

MOST_BYTES = 1 << 30
"""Largest array of logits that is made for it."""


def reply_ids(prompt: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Return the tokens of `whole`, a prompt and its reply, that belong to the reply: those beyond its common beginning
    with `prompt`, for the prompt's last token may be another one with the reply behind it.
    """
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
    return list(whole[common:])


def score(model: Model, whole: Sequence[int], start: int, top: int) -> list[Token]:
    """Return the tokens of `whole` from place `start` >= 1 on, with natural log-probabilities.

    `top` alternatives come with each, likeliest first. Raises `BackendError` if the logits would not fit into memory.
    """
    if len(whole) * model.config.vocab_size * 4 > MOST_BYTES:
        raise BackendError("The text is too long to compute all its probabilities at once; generate the reply again.")
    if start >= len(whole):
        return []
    logits = model.logits(list(whole))[start - 1 : len(whole) - 1]
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    stream = model.codec.stream(after=list(whole[:start]))
    count = min(top, logits.shape[1])
    found = []
    for row, token in zip(logits, whole[start:], strict=True):
        best = np.argpartition(row, -count)[-count:]
        best = best[np.argsort(-row[best], kind="stable")]
        alternatives = tuple((int(i), model.codec.decode([int(i)]), float(row[i])) for i in best)
        found.append(Token(stream.feed(token), token, float(row[token]), alternatives))
    return found
