"""Text as the model saw it in training: leading groups of spaces written as tabs.

GPT-2's vocabulary spends one token on every space of indentation. A model trained with
`nanochat.text.indentation = n` saw each leading group of n spaces as one tab, the way rustfmt's
`hard_tabs` writes it. Both directions act at line starts only.
"""

from __future__ import annotations

import re


def spaces_to_tabs(text: str, width: int) -> str:
    """Replace each leading group of `width` spaces of every line by one tab; width 0 changes nothing."""
    if width <= 0:
        return text
    return re.sub(rf"(?m)^(?: {{{width}}})+", lambda run: "\t" * (len(run.group()) // width), text)


class TabExpander:
    """Undo `spaces_to_tabs` on text that arrives in pieces: leading tabs become `width` spaces.

    Holds one bit of state, whether the next character still belongs to a line's indentation.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.at_line_start = True

    def feed(self, piece: str) -> str:
        """Return `piece` with the tabs of every line's indentation expanded."""
        if self.width <= 0 or not piece:
            return piece
        out: list[str] = []
        for index, line in enumerate(piece.split("\n")):
            if index:
                out.append("\n")
                self.at_line_start = True
            if not line:
                continue
            if self.at_line_start:
                body = line.lstrip("\t")
                out.append(" " * (self.width * (len(line) - len(body))))
                self.at_line_start = not body
                out.append(body)
            else:
                out.append(line)
        return "".join(out)


def tabs_to_spaces(text: str, width: int) -> str:
    """Expand the leading tabs of every line of a whole text; the inverse of `spaces_to_tabs`."""
    return TabExpander(width).feed(text)


def overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `mark`, fewer than all of it."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
