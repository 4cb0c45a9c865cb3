"""The blocks of code in a Markdown text."""

from __future__ import annotations

from dataclasses import dataclass

from markdown_it import MarkdownIt

_parser = MarkdownIt("commonmark")


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """One fenced or indented block; `language` is '' if the text names none."""

    code: str
    language: str

    @property
    def summary(self) -> str:
        """Language and length in words."""
        lines = len(self.code.splitlines())
        return f"{self.language or 'text'}, {lines} {'line' if lines == 1 else 'lines'}"


def code_blocks(text: str) -> list[CodeBlock]:
    """Return the blocks of code in `text`, in order, one that is still being written included."""
    return [
        CodeBlock(token.content, (token.info.split() or [""])[0])
        for token in _parser.parse(text)
        if token.type in ("fence", "code_block")
    ]
