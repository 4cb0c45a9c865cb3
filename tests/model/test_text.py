from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nanochat_tui.model.text import TabExpander, spaces_to_tabs, tabs_to_spaces

LINES = st.lists(
    st.tuples(st.integers(0, 20), st.text(alphabet="ab \t{é🙂", max_size=6)).map(
        lambda part: " " * part[0] + part[1].lstrip("\t")
    )
).map("\n".join)


def test_only_whole_groups_at_line_starts_change() -> None:
    assert spaces_to_tabs("fn a() {\n    if b {\n          c    d\n", 4) == "fn a() {\n\tif b {\n\t\t  c    d\n"
    assert spaces_to_tabs("        x", 4) == "\t\tx"
    assert spaces_to_tabs("   x\r\n    y", 4) == "   x\r\n\ty"


def test_tabs_inside_a_line_stay() -> None:
    assert tabs_to_spaces("\ta\tb\n\t\tc", 4) == "    a\tb\n        c"


def test_width_zero_changes_nothing() -> None:
    assert spaces_to_tabs("    x", 0) == "    x"
    assert tabs_to_spaces("\tx", 0) == "\tx"


@given(LINES.filter(lambda text: not any(line.lstrip(" ").startswith("\t") for line in text.split("\n"))))
def test_text_without_leading_tabs_round_trips(text: str) -> None:
    assert tabs_to_spaces(spaces_to_tabs(text, 4), 4) == text


@given(st.text(alphabet="a\t\n é", max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_pieces_expand_like_the_whole(text: str, cuts: list[int]) -> None:
    expander = TabExpander(4)
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert "".join(expander.feed(piece) for piece in pieces) == tabs_to_spaces(text, 4)
