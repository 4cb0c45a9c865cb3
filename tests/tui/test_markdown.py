"""Markdown in the transcript: the same while it is written and afterwards, aligned, wrapped, and copied as written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from scripted import ScriptedBackend
from test_app import say, state, until
from textual.app import App, ComposeResult
from textual.geometry import Offset
from textual.selection import Selection

from nanochat_tui.text import printable
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.widgets.markdown_content import markdown_rows, text_between
from nanochat_tui.tui.widgets.markdown_text import MarkdownText
from nanochat_tui.tui.widgets.selecting import word_at

TEXT = """# A title

Some **bold** text that is long enough to be wrapped somewhere, with `code` and
a line of its own.

- one
- two, which is long enough to be wrapped as well
  1. deep

```rust
fn main() { println!("a line of code that is too long for the screen"); }

let x = 1;
```

> quoted words, wrapped behind the mark of the quote
> - with an item

| Name | 数量 | price |
|:-----|:----:|------:|
| apple | 五 | 1.5 |
| a *long* name | 12 | 22 |

---

The end.
"""


def plain(text: str, width: int) -> list[str]:
    return [row.content.plain.rstrip() for row in markdown_rows(text, width)]


def test_every_part_is_laid_out_within_the_width() -> None:
    assert plain(TEXT, 40) == [
        "A title",
        "",
        "Some bold text that is long enough to be",
        "wrapped somewhere, with code and",
        "a line of its own.",
        "",
        "• one",
        "• two, which is long enough to be",
        "  wrapped as well",
        "  1. deep",
        "",
        " rust",
        ' fn main() { println!("a line of code',
        ' that is too long for the screen"); }',
        "",
        " let x = 1;",
        "",
        "▌ quoted words, wrapped behind the mark",
        "▌ of the quote",
        "▌",
        "▌ • with an item",
        "",
        "Name        │ 数量 │ price",
        "────────────┼──────┼──────",
        "apple       │  五  │   1.5",
        "a long name │  12  │    22",
        "",
        "────────────────────────",
        "",
        "The end.",
    ]
    assert all(row.content.cell_length <= 40 for row in markdown_rows(TEXT, 40))
    code = [row for row in markdown_rows(TEXT, 40) if "let x" in row.content.plain or "rust" in row.content.plain]
    assert [row.content.cell_length for row in code] == [40, 40], "the ground of code has a straight edge"
    assert all(any("surface" in str(span.style) for span in row.content.spans) for row in code)


def test_a_table_that_is_too_wide_wraps_its_cells() -> None:
    text = "| a | b |\n|---|---|\n| one two three four | short |\n"
    assert plain(text, 16) == ["a         │ b", "──────────┼─────", "one two   │ short", "three four│"] or all(
        cell_len(row) <= 18 for row in plain(text, 16)
    )
    assert "four" in "\n".join(plain(text, 16))
    for width in range(1, 30):
        assert "".join("".join(plain(text, width)).split()).count("f") >= 1, "nothing is cut off"


PARTS = st.sampled_from(
    ["a", "word ", "\n", "\n\n", "# ", "- ", "1. ", "> ", "```\n", "```rust\n", "|", "| a | b |\n|---|---|\n", "**",
     "`", "    ", "---\n", "[x](y)", "<b>", "数", "👍🏽", "\t", "* * *\n", "=====\n", "2", ". ", " "]
)  # fmt: skip


@given(st.lists(PARTS, max_size=30), st.integers(1, 60))
def test_written_in_pieces_it_is_what_it_is_as_a_whole(parts: list[str], width: int) -> None:
    text = printable("".join(parts))
    live = MarkdownText()
    for part in parts:
        live._take(printable(part))
    assert [r.content.plain for r in live.rows(width)] == [r.content.plain for r in markdown_rows(text, width)]
    whole = MarkdownText(text)
    assert [r.content for r in whole.rows(width)] == [r.content for r in markdown_rows(text, width)]


@given(st.lists(PARTS, max_size=30), st.integers(8, 60))
def test_no_letter_is_lost_at_any_width(parts: list[str], width: int) -> None:
    text = printable("".join(parts))
    wide, narrow = (
        "".join("".join(row.content.plain[row.start : row.end] for row in markdown_rows(text, size)).split())
        for size in (10_000, width)
    )
    assert sorted(wide.replace("─", "").replace("│", "").replace("┼", "")) == sorted(
        narrow.replace("─", "").replace("│", "").replace("┼", "")
    )


@pytest.mark.parametrize("text", ["", "[red]no[/red]", "[link=file:///etc]x", "*", "| a | b |", "<b>x</b>"])
def test_odd_text_is_neither_lost_nor_obeyed(text: str) -> None:
    rows = plain(text, 80)
    if text.startswith(("[", "|", "<")):
        assert rows == [text]


def test_links_show_where_they_lead() -> None:
    assert plain("[safe](https://evil.example)", 80) == ["safe (https://evil.example)"]


def test_what_is_copied_is_what_was_written() -> None:
    for width in (20, 40, 200):
        copied = text_between(markdown_rows(TEXT, width), None, None)
        assert "Some bold text that is long enough to be wrapped somewhere, with code and\na line of its own." in copied
        assert '\nfn main() { println!("a line of code that is too long for the screen"); }\n\nlet x = 1;\n' in copied
        assert "\nquoted words, wrapped behind the mark of the quote\n" in copied
        assert "rust" not in copied, "the label is the application's own"


class Page(App[None]):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        yield MarkdownText(self.text)


async def test_a_double_click_takes_a_word_and_a_triple_click_a_paragraph() -> None:
    app = Page("one two-three four\n\n" + "word " * 30 + "\n\nlast")
    async with app.run_test(size=(40, 20)) as pilot:
        await pilot.click(MarkdownText, offset=(5, 0), times=2)
        assert app.screen.get_selected_text() == "two"
        await pilot.click(MarkdownText, offset=(5, 3), times=3)
        assert app.screen.get_selected_text() == ("word " * 30).strip()
        (text,) = app.query(MarkdownText)
        app.screen.selections = {text: Selection(Offset(4, 0), Offset(7, 0))}
        assert app.screen.get_selected_text() == "two"


def test_words() -> None:
    assert word_at("it's a.b", 1) == (0, 4)
    assert word_at("it's a.b", 6) == (6, 7)
    assert word_at("数量 x", 0) == (0, 2)
    assert word_at("x", 9) == (9, 9)


async def test_copying_says_how_much_and_leaves_out_what_the_application_says(monkeypatch: pytest.MonkeyPatch) -> None:
    app = NanochatApp(ScriptedBackend("an answer of five words", is_chat=True))
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "question")
        await pilot.pause()
        (answer,) = app.chat.query(MarkdownText)
        assert "[length limit]" in str(answer.render())
        app.chat.selections = {widget: Selection(None, None) for widget in app.chat.query(".message, .answer")}
        app.chat.transcript.focus()
        await pilot.press("ctrl+c")
        await until(pilot, lambda: bool(app._notifications))
        assert app.clipboard == "question\nan answer of five words"
        assert any("32 characters" in n.message for n in app._notifications)
        await pilot.double_click(answer, offset=(3, 0))
        assert app.chat.get_selected_text() == "an"


async def test_the_screen_does_not_jump_at_the_last_token() -> None:
    backend = ScriptedBackend("x " + TEXT, is_chat=True)
    app = NanochatApp(backend)
    async with app.run_test(size=(60, 50)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        before: list[list[str]] = []
        finish = app.chat.transcript.finish

        async def finished() -> None:
            view = app.chat.transcript.views[-1]
            (answer,) = view.query(MarkdownText)
            view._show_unseen(answer)  # type: ignore[union-attr]
            before.append([row.content.plain for row in answer.rows(56)])
            await finish()

        app.chat.transcript.finish = finished  # type: ignore[method-assign]
        await say(pilot, app, "hello")
        (answer,) = app.chat.query(MarkdownText)
        rows = [row.content.plain for row in answer.rows(56)]
        assert rows[: len(before[0])] == before[0]
        assert rows[len(before[0]) :] == ["[length limit]"]
