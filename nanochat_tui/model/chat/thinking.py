"""Telling what a model thinks from what it answers, while the text still arrives.

Reasoning models write their thoughts between two tags. The tags themselves are never shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nanochat_tui.model.text import overlap
from nanochat_tui.request import Token

Tags = tuple[str, str]
"""The opening and the closing one; `families` knows which a model uses."""


class ThinkingSplitter:
    """Marks the tokens of a reply that are thinking and removes the tags. `tags` None passes everything on.

    `inside` says that the text begins within the thinking, because the prompt ends with the opening tag; `begun` that
    it goes on in the middle, where blank lines count.
    """

    def __init__(self, tags: Tags | None, *, inside: bool = False, begun: bool = False) -> None:
        self._tags = tags
        self.inside = inside and tags is not None
        self._held = ""
        self._begun = begun

    def token(self, token: Token) -> Iterator[Token]:
        """Yield the pieces of one token; the first carries its id, even when its text is held back."""
        if self._tags is None:
            yield token
            return
        pieces = list(self._feed(token.text, self._tags)) or [("", self.inside)]
        for index, (text, thinking) in enumerate(pieces):
            if index == 0:
                yield replace(token, text=text, thinking=thinking)
            elif text:
                yield Token(text, thinking=thinking)

    def rest(self) -> Iterator[Token]:
        """Yield what was held back, at the end of the reply."""
        if self._held:
            yield Token(self._held, thinking=self.inside)
            self._held = ""

    def _feed(self, text: str, tags: Tags) -> Iterator[tuple[str, bool]]:
        self._held += text
        while self._held:
            tag = tags[1] if self.inside else tags[0]
            at = self._held.find(tag)
            if at >= 0:
                before = self._held[:at]
                self._held = self._held[at + len(tag) :]
                yield before if self._begun else before.lstrip("\n"), self.inside
                self.inside = not self.inside
                self._begun = False
                continue
            keep = overlap(self._held, tag)
            ready = self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
            if not self._begun:  # the blank lines around tags belong to neither side
                ready = ready.lstrip("\n")
            if ready:
                self._begun = True
                yield ready, self.inside
            return
