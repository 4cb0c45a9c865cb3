"""Responses that are kept in memory, so that a client can go on from one by its id.

Bounded by count, by bytes and by age. A response belongs to the API key that made it: to any other it does not exist.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.settings import Limits

_OVERHEAD = 1024
"""Bytes of an entry apart from its texts."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A response as it was answered, its input items, and the conversation up to its end, without instructions."""

    key: str
    body: dict[str, Any]
    items: tuple[dict[str, Any], ...]
    messages: tuple[dict[str, Any], ...]
    size: int
    at: float


class Responses:
    """The responses of a server; used on its event loop."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._bytes, self._seconds = limits.stored_responses, limits.stored_bytes, limits.stored_seconds
        self._clock = clock
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self.size = 0
        """Bytes of all, about: a conversation counts in each response of it."""

    def __len__(self) -> int:
        return len(self._kept)

    def put(
        self,
        key: str,
        body: dict[str, Any],
        items: Sequence[dict[str, Any]],
        messages: Sequence[dict[str, Any]],
    ) -> None:
        """Keep a response; the oldest make room. One that is larger than all room is not kept."""
        # Python has up to 4 bytes a character
        size = 4 * sum(len(json.dumps(each)) for each in (list(messages), body, list(items))) + _OVERHEAD
        self._expire()
        if size > self._bytes:
            return
        self._kept[str(body["id"])] = Stored(key, body, tuple(items), tuple(messages), size, self._clock())
        self.size += size
        while len(self._kept) > self._most or self.size > self._bytes:
            self._drop(next(iter(self._kept)))

    def get(self, key: str, name: str, param: str = "response_id") -> Stored:
        """Return a response. Raises ApiError (404) if there is none of that id for this key."""
        self._expire()
        found = self._kept.get(name)
        if found is None or found.key != key:
            raise ApiError(
                404 if param == "response_id" else 400,
                "there is no such response here; this server keeps the latest ones in memory, for a while",
                param=param,
                code="response_not_found" if param == "response_id" else "previous_response_not_found",
            )
        return found

    def delete(self, key: str, name: str) -> None:
        """Forget a response. Raises as `get`."""
        self.get(key, name)
        self._drop(name)

    def _drop(self, name: str) -> None:
        self.size -= self._kept.pop(name).size

    def _expire(self) -> None:
        since = self._clock() - self._seconds
        while self._kept:
            name, oldest = next(iter(self._kept.items()))
            if oldest.at >= since:
                return
            self._drop(name)
