"""Text of a reply, token by token: whole characters, cut at stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat_tui.model.text import overlap
from nanochat_tui.model.tokenizer import StreamDecoder


class StopScanner:
    """Passes text on until one of the stop strings appears; text that may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found: str | None = None
        """The stop string that was found."""

    @property
    def stopped(self) -> bool:
        """Whether there was one."""
        return self.found is not None

    def feed(self, text: str) -> str:
        """Return the text that is certain to precede any stop string; sets `found` when there was one."""
        if not self._stops:
            return text
        held = self._held + text
        found = [(place, stop) for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            place, self.found = min(found, key=lambda each: each[0])
            self._held = ""
            return held[:place]
        keep = max(overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """Return what was held back; nothing more will come."""
        held, self._held = self._held, ""
        return held


class ReplyText:
    """Turns ids into text: the decoder's whole characters through the stop scanner."""

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str]) -> None:
        self._decoder = decoder
        self._scanner = StopScanner(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._scanner.stopped

    @property
    def stop(self) -> str | None:
        """The stop string that was found, or None."""
        return self._scanner.found

    def feed(self, token: int, *, early: bool = False) -> str:
        """Return the text that became certain with this token; an `early` one is no part of a stop string."""
        if early:
            return self._decoder.feed(token)
        return self._scanner.feed(self._decoder.feed(token))

    def finish(self) -> str:
        """Return the rest: an unfinished character as U+FFFD, and text that began no stop string after all."""
        rest = self._scanner.feed(self._decoder.flush())
        return rest if self.stopped else rest + self._scanner.flush()
