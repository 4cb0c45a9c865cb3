"""What fits into the context, and what is dropped when it does not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nanochat_tui.chat.backend import BackendError, Message
from nanochat_tui.chat.context import fit_messages, fit_text, reply_room


def words(messages: Sequence[Message]) -> list[int]:
    """A tokenizer of words, one extra token per message as a template would add."""
    return [n for m in messages for n in range(1 + len(m.content.split()))]


def conversation(turns: int) -> list[Message]:
    return [Message("user" if i % 2 == 0 else "assistant", f"a b c {i}") for i in range(2 * turns - 1)]


def test_room_is_at_most_a_quarter() -> None:
    assert reply_room(512, 256) == 128
    assert reply_room(512, 10) == 10
    assert reply_room(512, None) == 128
    assert reply_room(2, None) == 1


def test_text_that_fits_is_untouched() -> None:
    assert fit_text([9, 1, 2, 3], 8, 4, keep_first=True).ids == [9, 1, 2, 3]


def test_text_keeps_its_mark_and_its_end() -> None:
    fitted = fit_text([99, *range(20)], 10, 4, keep_first=True)
    assert fitted.ids == [99, 15, 16, 17, 18, 19]
    assert fitted.dropped_tokens == 15


def test_text_without_mark() -> None:
    assert fit_text(list(range(20)), 10, 4, keep_first=False).ids == [14, 15, 16, 17, 18, 19]


def test_cut_moves_to_the_next_line_when_near() -> None:
    newline = {81}
    fitted = fit_text(list(range(100)), 30, 10, keep_first=False, ends_line=newline.__contains__)
    assert fitted.ids == list(range(82, 100))
    assert fitted.dropped_tokens == 82
    far = fit_text(list(range(100)), 30, 10, keep_first=False, ends_line={95}.__contains__)
    assert far.ids == list(range(80, 100)), "most of what fits must not be thrown away for a line border"


def test_oldest_turns_go_first_and_a_user_begins() -> None:
    messages = [Message("system", "be brief"), *conversation(6)]
    seen: list[list[Message]] = []

    def encode(some: Sequence[Message]) -> list[int]:
        seen.append(list(some))
        return words(some)

    fitted = fit_messages(messages, encode, 40, 10)
    kept = seen[-1]
    assert len(fitted.ids) <= 30
    assert kept[0] == Message("system", "be brief")
    assert kept[1].role == "user"
    assert kept[-1] == messages[-1]
    assert fitted.dropped_messages == len(messages) - len(kept) > 0
    # one turn more would not have fitted
    index = messages.index(kept[1])
    assert len(words([messages[0], *messages[index - 2 :]])) > 30


def test_last_message_may_use_the_room_for_the_reply() -> None:
    fitted = fit_messages([Message("user", "a " * 33)], words, 40, 10)
    assert len(fitted.ids) == 34
    assert fitted.dropped_messages == 0


def test_message_larger_than_the_context_is_refused_in_words() -> None:
    with pytest.raises(BackendError, match=r"needs 51 tokens but the model's context holds 40; shorten"):
        fit_messages([*conversation(2)[:2], Message("user", "a " * 50)], words, 40, 10)
