"""No text of a model may act on the terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from nanochat_tui.chat.printable import printable


def test_plain_text_is_untouched() -> None:
    text = 'fn main() {\n\tprintln!("grüße, 世界 👩\u200d💻");\n}'
    assert printable(text) == text


def test_escape_sequences_become_visible() -> None:
    assert printable("a\x1b]0;title\x07b") == "a\\x1b]0;title\\x07b"
    assert printable("\x9b31m") == "\\x9b31m"
    assert printable("over\rwrite") == "over\\rwrite"
    assert printable("user\u202egnp.exe") == "user\\u202egnp.exe"
    assert printable("half \ud83d") == "half \ufffd"


@given(st.text(st.characters()))
def test_nothing_that_controls_is_left(text: str) -> None:
    safe = printable(text)
    assert not [c for c in safe if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    safe.encode()


@given(st.lists(st.text(st.characters())))
def test_pieces_of_a_stream_join_to_the_whole(pieces: list[str]) -> None:
    assert "".join(map(printable, pieces)) == printable("".join(pieces))
