"""What was typed before, walked with the arrow keys as in a shell."""

from __future__ import annotations


class History:
    """Past inputs, oldest first, and the unfinished one that walking back must not lose."""

    def __init__(self, entries: list[str] | None = None) -> None:
        self.entries = list(entries or [])
        self._at = len(self.entries)
        self._edited: dict[int, str] = {}
        """What was typed at a place while walking: at the last one the unfinished input."""

    def add(self, text: str) -> None:
        """Remember `text` and stand behind it again; a repetition of the last entry is not stored twice."""
        if text.strip() and (not self.entries or self.entries[-1] != text):
            self.entries.append(text)
        self._at = len(self.entries)
        self._edited.clear()

    def older(self, current: str) -> str | None:
        """Return the entry before this one, keeping `current` for the way back; None at the oldest."""
        return self._go(-1, current) if self._at > 0 else None

    def newer(self, current: str | None = None) -> str | None:
        """Return the entry after this one, at last the unfinished input; None when already there."""
        return self._go(1, current) if self._at < len(self.entries) else None

    def _go(self, step: int, current: str | None) -> str:
        if current is not None and (self._at == len(self.entries) or current != self.entries[self._at]):
            self._edited[self._at] = current
        self._at += step
        return self._edited.get(self._at) or (self.entries[self._at] if self._at < len(self.entries) else "")
