"""Requests and settings refuse what makes no sense, in one sentence."""

from __future__ import annotations

import pytest

from nanochat_tui.chat.backend import Message, Request, Started
from nanochat_tui.errors import UserError
from nanochat_tui.request import SamplingParams


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=rf"^{named} (must be|is a fraction)") as caught:
        SamplingParams(**changes)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_extremes_are_allowed() -> None:
    SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=1.0, repeat_penalty=0.5, seed=0)


def test_request_needs_one_of_messages_and_prompt() -> None:
    with pytest.raises(UserError):
        Request()
    with pytest.raises(UserError):
        Request(messages=(Message("user", "a"),), prompt="a")
    assert Request(prompt="").prompt == ""


@pytest.mark.parametrize("changes", [{"max_tokens": 0}, {"stop": ("",)}, {"top_logprobs": -1}])
def test_bad_requests(changes: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Request(prompt="a", **changes)  # type: ignore[arg-type]


def test_note_says_what_was_left_out() -> None:
    assert Started(3).note is None
    assert "oldest 2 messages no longer reach the" in (Started(3, dropped_messages=2).note or "")
    assert "oldest 1 message no longer reaches the" in (Started(3, dropped_messages=1).note or "")
    assert "oldest 7 tokens" in (Started(3, dropped_tokens=7).note or "")
