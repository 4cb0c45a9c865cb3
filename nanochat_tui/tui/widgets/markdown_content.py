"""A finished Markdown text as one piece of `Content`.

A `Markdown` widget is a tree of widgets, and a screen of them makes every focus change slow; a `Static` with this
content is one. It covers what models write: headings, paragraphs, emphasis, code, lists, quotes, rules. Tables stay as
they were typed. No text is ever read as markup, and links show where they lead.
"""

from __future__ import annotations

from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual.content import Content

from nanochat_tui.tui.widgets.highlighting import highlight_code

_STYLES = {"strong_open": "bold", "em_open": "italic", "s_open": "strike"}
_CODE = "$text-accent on $surface-lighten-1"
_parser = MarkdownIt("commonmark").enable("strikethrough")


def markdown_content(text: str) -> Content:
    """Return `text` (already `printable`) laid out and styled."""
    lines: list[Content] = []
    prefix: list[str] = []  # one entry per open list item or quote
    bullets: list[str] = []  # what the next line begins with instead of blanks, once
    counters: list[int | None] = []
    tight_gap = False

    def put(content: Content, style: str = "") -> None:
        for line in content.split("\n", allow_blank=True):
            lead = "".join(prefix[:-1]) + bullets.pop() if bullets else "".join(prefix)
            lines.append(Content.styled(lead, "$text 60%") + (line.stylize(style) if style else line))

    def gap() -> None:
        if lines and not bullets and lines[-1].plain.strip():
            lines.append(Content("".join(prefix).rstrip()))

    tokens = _parser.parse(text)
    heading = ""
    for token in tokens:
        match token.type:
            case "heading_open":
                heading = "bold underline $text-primary" if token.tag == "h1" else "bold $text-primary"
                gap()
            case "heading_close":
                heading = ""
            case "paragraph_open":
                tight_gap = token.hidden
                if not token.hidden:
                    gap()
            case "inline":
                put(_inline(token.children or []), heading)
            case "fence" | "code_block":
                gap()
                language = (token.info.split() or ["text"])[0]
                code = highlight_code(token.content.rstrip("\n"), language)
                for line in code.split("\n", allow_blank=True):
                    put(Content("  ") + line)
            case "bullet_list_open" | "ordered_list_open":
                if not prefix or not tight_gap:
                    gap()
                counters.append(int(token.attrGet("start") or 1) if token.type == "ordered_list_open" else None)
            case "bullet_list_close" | "ordered_list_close":
                counters.pop()
            case "list_item_open":
                number = counters[-1]
                mark = "• " if number is None else f"{number}. "
                if number is not None:
                    counters[-1] = number + 1
                prefix.append(" " * len(mark))
                bullets.append(mark)
            case "list_item_close":
                prefix.pop()
                bullets.clear()
            case "blockquote_open":
                gap()
                prefix.append("▌ ")
            case "blockquote_close":
                prefix.pop()
            case "hr":
                gap()
                put(Content.styled("─" * 24, "$text 60%"))
            case "html_block":
                gap()
                put(Content(token.content.rstrip("\n")))
            case _:
                pass
    return Content("\n").join(lines)


def _inline(children: list[Token]) -> Content:
    return Content("").join(_pieces(children))


def _pieces(children: list[Token]) -> Iterator[Content]:
    styles: list[str] = []
    targets: list[str] = []
    for child in children:
        match child.type:
            case "text" | "html_inline":
                yield Content.styled(child.content, " ".join(styles))
            case "code_inline":
                yield Content.styled(child.content, " ".join([*styles, _CODE]))
            case "softbreak" | "hardbreak":
                yield Content("\n")
            case "link_open" | "image":
                if child.type == "image":
                    yield Content(f"[{child.content}]")
                else:
                    styles.append("underline")
                    targets.append(str(child.attrGet("href") or ""))
            case "link_close":
                styles.pop()
                yield Content.styled(f" ({targets.pop()})", "$text 60%")
            case kind if kind in _STYLES:
                styles.append(_STYLES[kind])
            case kind if kind.endswith("_close") and styles:
                styles.pop()
            case _:
                pass
