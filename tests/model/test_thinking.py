"""Thoughts and answers told apart, however the text was cut into tokens."""

from __future__ import annotations

import random

import pytest

from nanochat_tui.model.chat.families import thinking_tags
from nanochat_tui.model.chat.thinking import ThinkingSplitter
from nanochat_tui.request import Token

TAGS = ("<think>", "</think>")


def split(pieces: list[str], *, inside: bool = False) -> tuple[str, str]:
    splitter = ThinkingSplitter(TAGS, inside=inside)
    out = [t for i, piece in enumerate(pieces) for t in splitter.token(Token(piece, i, -0.5))]
    assert [t.id for t in out if t.id is not None] == list(range(len(pieces))), "every token is told of once"
    out += splitter.rest()
    return "".join(t.text for t in out if t.thinking), "".join(t.text for t in out if not t.thinking)


@pytest.mark.parametrize("seed", range(40))
def test_any_cut_gives_the_same(seed: int) -> None:
    text = "<think>\nwell < then </thin ok\n</think>\n\nThe answer is 3 < 4, a <b>, <thi"
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(1, len(text)), rng.randint(0, len(text) - 1)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces) == ("well < then </thin ok\n", "The answer is 3 < 4, a <b>, <thi")


def test_a_prompt_that_opened_the_tag() -> None:
    assert split(["hm", "m</th", "ink>", "yes"], inside=True) == ("hmm", "yes")


def test_never_closed_is_all_thinking() -> None:
    assert split(["<think>", "a", "b</thi"]) == ("ab</thi", "")


def test_without_tags_nothing_is_touched() -> None:
    splitter = ThinkingSplitter(None)
    token = Token("\n<think>", 3)
    assert list(splitter.token(token)) == [token]


def test_tags_are_found_in_templates() -> None:
    assert thinking_tags("{% if x %}{{ content.split('</think>')[-1] }}{% endif %}") == TAGS
    assert thinking_tags("{{ messages }}") is None
