"""No text of a model may act on the terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from nanochat_tui.text import display_safe, printable


def test_plain_text_is_untouched() -> None:
    text = 'fn main() {\n\tprintln!("grüße, 世界 👩\u200d💻");\n}'
    assert printable(text) == text


def test_escape_sequences_become_visible() -> None:
    assert printable("a\x1b]0;title\x07b") == "a\\x1b]0;title\\x07b"
    assert printable("\x9b31m") == "\\x9b31m"
    assert printable("over\rwrite") == "over\\rwrite"
    assert printable("user\u202egnp.exe") == "user\\u202egnp.exe"
    assert printable("half \ud83d") == "half \\ud83d"


@given(st.text(st.characters()))
def test_nothing_that_controls_is_left(text: str) -> None:
    safe = printable(text)
    assert not [c for c in safe if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    safe.encode()


@given(st.lists(st.text(st.characters())))
def test_pieces_of_a_stream_join_to_the_whole(pieces: list[str]) -> None:
    assert "".join(map(printable, pieces)) == printable("".join(pieces))


KEPT = {
    0x200C,
    0x200D,
    *range(0x600, 0x606),
    0x6DD,
    0x70F,
    0x890,
    0x891,
    0x8E2,
    0x110BD,
    0x110CD,
    *range(0x13430, 0x13440),
}
"""Format characters that writing needs: joiners, and signs of several scripts that are seen."""


def test_the_rule_is_that_of_the_categories() -> None:
    for code in range(0x110000):
        if code in KEPT:
            continue
        character = chr(code)
        unsafe = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        assert (display_safe(character) != character) is unsafe, hex(code)
        assert (printable(character) != character) is (unsafe and character not in "\n\t"), hex(code)
    assert all(printable(chr(code)) == chr(code) for code in KEPT)


def test_names_and_running_text_follow_one_rule() -> None:
    hidden = "a\u200bb\u2028c\U000e0041d\u202ee\x1b[31m"
    assert display_safe(hidden) == printable(hidden)
    assert display_safe("a\nb\tc") == "a\\nb\\tc"
    assert display_safe("x" * 300, 5) == "xxxxx…"
