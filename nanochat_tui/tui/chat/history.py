"""What was typed before, walked with the arrow keys as in a shell."""

from __future__ import annotations


class History:
    """Past inputs, oldest first, and the unfinished one that walking back must not lose."""

    def __init__(self, entries: list[str] | None = None) -> None:
        self.entries = list(entries or [])
        self._at = len(self.entries)
        self._draft = ""

    def add(self, text: str) -> None:
        """Remember `text` and stand behind it again; a repetition of the last entry is not stored twice."""
        if text.strip() and (not self.entries or self.entries[-1] != text):
            self.entries.append(text)
        self._at = len(self.entries)
        self._draft = ""

    def older(self, current: str) -> str | None:
        """Return the entry before this one, keeping `current` if it is the unfinished input; None at the oldest."""
        if self._at == 0:
            return None
        if self._at == len(self.entries):
            self._draft = current
        self._at -= 1
        return self.entries[self._at]

    def newer(self) -> str | None:
        """Return the entry after this one, at last the unfinished input; None when already there."""
        if self._at == len(self.entries):
            return None
        self._at += 1
        return self._draft if self._at == len(self.entries) else self.entries[self._at]
