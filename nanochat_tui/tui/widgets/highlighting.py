"""Code in colours of the theme."""

from __future__ import annotations

from pygments.token import Token  # type: ignore[import-untyped]
from textual.content import Content
from textual.highlight import HighlightTheme, highlight

TAB = 4


class CodeTheme(HighlightTheme):
    """Quieter than Textual's own: names stay in the colour of the text, so that keywords and literals stand out."""

    STYLES = {  # noqa: RUF012 - typed by Textual
        Token.Comment: "$text 60% italic",
        Token.Comment.Preproc: "$text-secondary",
        Token.Error: "$text",
        Token.Keyword: "$text-primary",
        Token.Keyword.Constant: "$text-warning",
        Token.Keyword.Type: "$text-accent",
        Token.Literal.Number: "$text-warning",
        Token.Literal.String: "$text-success",
        Token.Name.Attribute: "$text-secondary",
        Token.Name.Builtin: "$text-accent",
        Token.Name.Class: "$text-accent bold",
        Token.Name.Decorator: "$text-secondary",
        Token.Name.Function: "$text-secondary bold",
        Token.Name.Function.Magic: "$text-secondary",
        Token.Name.Namespace: "$text",
        Token.Operator.Word: "$text-primary",
        Token.Whitespace: "",
    }


def highlight_code(code: str, language: str) -> Content:
    """Return `code` (already `printable`) coloured as `language`, a lexer's name; an unknown one leaves it plain.

    Tabs become spaces first: the lexer counts them differently from the terminal, which would shift every colour.
    """
    return highlight(code.expandtabs(TAB), language=language, theme=CodeTheme, tab_size=TAB)
