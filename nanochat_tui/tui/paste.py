"""Pastes as one piece of text, whatever they hold.

Textual 8.2 looks for escape sequences inside a bracketed paste too: those it knows become keys in the middle of the
text, and what follows one it does not know is typed, so that a line end sends it. Here a paste is taken out of the
input before that parser sees it. Bytes that are no UTF-8, which would end Textual's input thread, become U+FFFD.
"""

from __future__ import annotations

import codecs
import re
import sys
import time
from collections.abc import Callable, Generator, Iterable
from functools import partial

from textual import constants, events
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.driver import Driver
from textual.message import Message

SILENCE = 1.0
"""Seconds without input after which a paste whose end has not come is delivered as far as it came."""
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement
    r"|[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC, DCS, SOS, PM, APC up to their terminator
    r"|[ -/]*[0-~])"  # two and three character sequences
)
_CONTROLS = dict.fromkeys([*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)])
_KEYS = re.compile(r"[\s\S]|(?:\x1b(?:O?.|\[[0-9;<]*[A-Za-z~]))+", re.DOTALL)
"""One character, or escape sequences: what a keyboard or a mouse sends at once."""


def pasted_text(text: str) -> str:
    """Return pasted text as it is inserted: line ends as newlines, without escape sequences and control characters,
    which mean something to a terminal and nothing to a reader. Tabs and newlines stay.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii() and text.isprintable():
        return text
    return _ESCAPES.sub("", text).translate(_CONTROLS)


def _begun(marker: str, data: str) -> int:
    """Return how many characters at the end of `data` may be the beginning of `marker`."""
    return next((size for size in range(len(marker) - 1, 0, -1) if data.endswith(marker[:size])), 0)


class PasteParser(XTermParser):
    """Textual's parser of terminal input, with pastes taken out of its stream.

    `clock` returns seconds. A paste ends at its end marker, also where that is split over several reads. If the marker
    does not come, the text is delivered after `SILENCE`; from then on input that looks like one key ends the paste and
    is a key, so that a lost marker does not lock the user out, while more text is more of the paste.
    """

    def __init__(self, debug: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held = ""
        self._pasted: list[str] | None = None
        self._tail = ""
        self._overdue = False
        self._heard = 0.0
        super().__init__(debug)

    def feed(self, data: str) -> Iterable[Message]:
        """Yield the events of `data`; see `Parser.feed`."""
        if not data:  # the end of the input
            yield from self._release()
            yield from self._deliver()
            yield from super().feed(data)
            return
        self._heard = self._clock()
        if self._overdue and _KEYS.fullmatch(data):
            yield from self._deliver()
            self._pasted, self._overdue = None, False
        if self._pasted is None:
            data, self._held = self._held + data, ""
        while data:
            data = yield from self._keys(data) if self._pasted is None else self._paste(self._pasted, data)

    def _keys(self, data: str) -> Generator[Message, None, str]:
        """Yield the events before the next paste; returns what follows its start."""
        before, start, rest = data.partition(BRACKETED_PASTE_START)
        if start:
            self._pasted, self._tail = [], ""
        else:
            size = _begun(BRACKETED_PASTE_START, before)
            before, self._held = before[: len(before) - size], before[len(before) - size :]
        escape = bool(start) and before.endswith("\x1b")  # the key, right before a paste
        before = before[: len(before) - escape]
        if before:
            yield from super().feed(before)
        if escape:
            yield events.Key("escape", "\x1b")
        return rest

    def _paste(self, pasted: list[str], data: str) -> Generator[Message, None, str]:
        """Take in what belongs to the paste; returns what follows its end."""
        data, self._tail = self._tail + data, ""
        end = data.find(BRACKETED_PASTE_END)
        if end < 0:
            size = _begun(BRACKETED_PASTE_END, data)
            pasted.append(data[: len(data) - size])
            self._tail = data[len(data) - size :]
            return ""
        following = data.find(BRACKETED_PASTE_START, end)
        # the text may hold the marker too: what stands between it and another one is text, not keys
        end = data.rfind(BRACKETED_PASTE_END, end, following if following >= 0 else len(data))
        pasted.append(data[:end])
        yield from self._deliver()
        self._pasted, self._overdue = None, False
        return data[end + len(BRACKETED_PASTE_END) :]

    def _deliver(self) -> Iterable[Message]:
        """Yield what was pasted so far, if anything was."""
        if self._pasted is not None:
            text = pasted_text("".join(self._pasted))
            self._pasted.clear()
            if text:
                yield events.Paste(text)

    def _release(self) -> Iterable[Message]:
        """Yield what was held back as the keys that it is."""
        held, self._held = self._held, ""
        if held == "\x1b":
            yield events.Key("escape", "\x1b")
        elif held:
            yield from super().feed(held)

    def tick(self) -> Iterable[Message]:
        """Yield what timed out; called several times a second."""
        quiet = self._clock() - self._heard
        if self._held and quiet >= constants.ESCAPE_DELAY:
            yield from self._release()
        if self._pasted is not None and quiet >= SILENCE:
            self._overdue = True
            yield from self._deliver()
        yield from super().tick()


def with_paste_parser(driver: type[Driver]) -> type[Driver]:
    """Return `driver`, made to read its input with `PasteParser` and a patient decoder: Textual's drivers make both
    from names of their module.
    """
    module = sys.modules[driver.__module__]
    if getattr(module, "XTermParser", None) is XTermParser:
        module.XTermParser = PasteParser  # type: ignore[attr-defined]
    if getattr(module, "getincrementaldecoder", None) is codecs.getincrementaldecoder:
        module.getincrementaldecoder = _patient_decoder  # type: ignore[attr-defined]
    return driver


def _patient_decoder(encoding: str) -> Callable[[], codecs.IncrementalDecoder]:
    return partial(codecs.getincrementaldecoder(encoding), errors="replace")
