"""The backend of a program that has no model: it loads nothing and says why."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event as CancelEvent

from nanochat_tui.chat.backend import BackendError, Event, Progress, Request, Stats, estimated_tokens


class MissingBackend:
    """Stands where a model would; `reason` says what is missing and what to do."""

    name = "no model"
    kernel = ""
    threads = 0
    context_size = 0
    is_chat = False
    path = None
    scorer = None

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def can_continue(self, *, chat: bool) -> bool:
        """Nothing can."""
        return False

    def reading(self) -> Stats | None:
        """Nothing is read."""
        return None

    def count(self, text: str) -> int:
        """Return an estimate."""
        return estimated_tokens(text)

    def close(self) -> None:
        """Nothing is connected."""

    def load(self, progress: Progress | None = None) -> None:
        """Say what is missing."""
        raise BackendError(self._reason)

    def chat(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
        """Say what is missing."""
        raise BackendError(self._reason)
