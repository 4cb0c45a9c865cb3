"""Comparing two replies: known answers."""

from __future__ import annotations

import math

import pytest

from nanochat_tui.chat.backend import Token
from nanochat_tui.chat.parity import compare, divergence, in_words


def token(text: str, **shares: float) -> Token:
    top = tuple((-1, name, math.log(share)) for name, share in shares.items())
    return Token(text, None, -0.1, top)


def test_the_first_difference_is_found_and_what_follows_is_not_compared() -> None:
    left = [token("a", a=0.5, b=0.5), token("b", b=0.6, c=0.4), token("x", x=1.0)]
    right = [token("a", a=0.5, b=0.5), token("c", b=0.4, c=0.6), token("y", y=1.0)]
    found = compare(left, right)
    assert (found.first_difference, found.common, found.text_at, found.by_tokens) == (1, 1, 1, True)
    expected = 0.6 * math.log(0.6 / 0.4) + 0.4 * math.log(0.4 / 0.6)
    assert found.divergence == pytest.approx(expected / 2)
    assert "token 2" in in_words(found)
    assert "alternatives both returned" in in_words(found)


def test_equal_replies_of_different_length_have_no_difference() -> None:
    found = compare([token("a"), token("b")], [token("a")])
    assert found.same
    assert found.common == 1
    assert "No difference in 1 token" in in_words(found)


def test_without_probabilities_texts_are_compared() -> None:
    found = compare([token("hel"), token("lo")], [Token("help")])
    assert (found.first_difference, found.by_tokens, found.divergence) == (3, False, None)
    assert "texts were compared" in in_words(found)


def test_divergence_is_renormalised_over_what_both_have() -> None:
    left, right = token("a", a=0.4, b=0.4, c=0.2), token("a", a=0.2, b=0.2, z=0.6)
    assert divergence(left, right) == pytest.approx(0.0, abs=1e-12)
    assert divergence(token("a", a=1.0), token("a", a=1.0)) is None
    assert divergence(token("a", a=0.9, b=0.1), token("a", a=0.5, b=0.5)) == pytest.approx(
        0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    )
