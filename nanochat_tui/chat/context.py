"""Fitting a conversation into the context the model has.

Pure functions on tokens and messages; they know neither model nor file. When something must go, the oldest goes
first, and enough of it to leave the reply some room: dropping a token per token would re-read the prompt each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat_tui.chat.backend import Message, TooLongError


@dataclass(frozen=True, slots=True)
class Fitted:
    """Token ids that leave room for a reply, and what was left out to get there."""

    ids: list[int]
    dropped_messages: int = 0
    dropped_tokens: int = 0


def reply_room(context_size: int, max_tokens: int | None) -> int:
    """Tokens kept free for the reply: what it may use, but no more than a quarter of the context."""
    quarter = max(1, context_size // 4)
    return quarter if max_tokens is None else min(max_tokens, quarter)


def fit_text(
    ids: Sequence[int],
    context_size: int,
    room: int,
    *,
    keep_first: bool,
    ends_line: Callable[[int], bool] = lambda _: False,
) -> Fitted:
    """Keep the end of a raw prompt, and its first token (the begin-of-text mark) if `keep_first`.

    `ids` has any length; the result has at most `context_size - room` tokens. What is kept begins after a token that
    `ends_line` where one is near: half a line is a poor beginning for a model of code.
    """
    limit = max(1, context_size - room)
    if len(ids) <= limit:
        return Fitted(list(ids))
    head = list(ids[:1]) if keep_first and limit > 1 else []
    tail = list(ids[len(ids) - (limit - len(head)) :])
    border = next((i for i, token in enumerate(tail[: len(tail) // 4]) if ends_line(token)), -1)
    tail = tail[border + 1 :]
    return Fitted(head + tail, dropped_tokens=len(ids) - len(head) - len(tail))


def fit_messages(
    messages: Sequence[Message], encode: Callable[[Sequence[Message]], list[int]], context_size: int, room: int
) -> Fitted:
    """Drop the oldest turns until the rendered conversation fits; system messages and the last message always stay.

    `encode` renders messages to token ids. Turns are dropped up to the next user message, because templates expect the
    conversation to begin with one. Raises `TooLongError` if what must stay does not fit.
    """
    system = [m for m in messages if m.role == "system"]
    turns = [m for m in messages if m.role != "system"]
    total = len(turns)
    while True:
        ids = encode([*system, *turns])
        if len(ids) <= context_size - room:
            return Fitted(ids, dropped_messages=total - len(turns))
        following = next((i for i, m in enumerate(turns[1:], 1) if m.role == "user"), None)
        if following is None:
            break
        turns = turns[following:]
    if len(ids) < context_size:  # Less room than we like, but the message itself does fit.
        return Fitted(ids, dropped_messages=total - len(turns))
    raise TooLongError(
        f"The message needs {len(ids)} tokens but the model's context holds {context_size}; shorten the message."
    )
