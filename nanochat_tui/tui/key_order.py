"""Keys take effect in the order in which they were pressed, however fast they come.

Textual inserts a character as soon as the field has it, but runs a key's binding only after the key has bubbled up
through every container to the application. Keys that arrive together, from a paste that a terminal types, from tmux or
from quick fingers, overtake each other then: Ctrl+A, Ctrl+K, "ssh host" inserted the text first and deleted it after,
and characters behind a Tab went into the field before. Here what follows a key with a binding waits until that was run.
"""

from __future__ import annotations

import asyncio
from collections import deque

from textual import events
from textual.app import App
from textual.message import Message
from textual.widget import Widget

CHECK_SECONDS = 0.05
MOST_CHECKS = 40
"""Checks after which a key that nothing came back from, as its widget has gone, no longer holds up the others."""


class KeyPassed(Message):
    """Bubbles up behind a key, through the same queues: when it is at the top, the key has had its effect."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class KeysInOrder(App[None]):
    """Hands nothing to the focused widget while a key with a binding is under way."""

    def __init__(self) -> None:
        super().__init__()
        self._keys_waiting: deque[events.Key | events.Paste] = deque()
        self._keys_passed = 0
        self._key_under_way: Widget | None = None

    async def on_event(self, event: events.Event) -> None:
        """Let a key wait while the one before is under way; everything else goes its usual way."""
        if not isinstance(event, (events.Key, events.Paste)) or event.is_forwarded:
            await super().on_event(event)
        elif self._key_under_way is not None:
            self._keys_waiting.append(event)
        else:
            await self._hand_on(event)

    async def _hand_on(self, event: events.Key | events.Paste) -> None:
        target = self.focused or self.screen
        await super().on_event(event)
        if not event.is_forwarded or isinstance(event, events.Paste):
            return  # a binding of the application took it, at once; or the field will, as soon as it has it
        if target.check_consume_key(event.key, event.character):
            return  # a character: what comes after it waits in the same queue
        self._keys_passed += 1
        self._key_under_way = target
        if target.post_message(KeyPassed(self._keys_passed).set_sender(target)):
            self._check_later(self._keys_passed, 1)
        else:
            self._key_under_way = None

    def _check_later(self, number: int, checks: int) -> None:
        def check() -> None:
            if self._key_under_way is None or number != self._keys_passed:
                return
            if checks >= MOST_CHECKS or not self._key_under_way.is_attached:
                self.post_message(KeyPassed(number))
            else:
                self._check_later(number, checks + 1)

        asyncio.get_running_loop().call_later(CHECK_SECONDS, check)

    async def on_key_passed(self, event: KeyPassed) -> None:
        """Take the keys that waited, up to the next that goes to a widget."""
        event.stop()
        if event.number != self._keys_passed:
            return
        self._key_under_way = None
        while self._keys_waiting and self._key_under_way is None:
            await self._hand_on(self._keys_waiting.popleft())
