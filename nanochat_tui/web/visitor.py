"""One visitor: a process of the application, which draws for a page as Textual's web driver does.

Packets in both directions are a letter, four bytes of length (big endian) and a payload: `D` is what a terminal would
get or send, `M` a JSON object, `P` a part of a file that the application hands out. The driver's end is
`nanochat_tui.tui.browser_driver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence

from nanochat_tui.text import display_safe

PRELUDE = b"__GANGLION__\n"
"""The line with which Textual's driver begins."""
SMALLEST, LARGEST = (20, 6), (640, 320)
"""Columns and rows of a terminal that is believed; an 8K screen in small type has fewer."""
LARGEST_PACKET = 64 << 20
QUIT_SECONDS, TERMINATE_SECONDS = 5.0, 2.0
"""Time to save and leave when asked to, then when told to; after that the process is killed."""
_STDERR_KEPT = 4096


def bounded(width: object, height: object) -> tuple[int, int]:
    """Return columns and rows within what a terminal can have; what is no number counts as 80 and 24."""
    made = []
    for value, usual, least, most in zip((width, height), (80, 24), SMALLEST, LARGEST, strict=True):
        try:
            number = int(value)  # type: ignore[call-overload]
        except (TypeError, ValueError, OverflowError):
            number = usual
        made.append(min(max(number, least), most))
    return made[0], made[1]


class Visitor:
    """A running application. `start` makes one; `packets` must be read, and `end` must be called."""

    def __init__(self, process: Process, stdin: StreamWriter, stdout: StreamReader, stderr: StreamReader) -> None:
        self._process, self._stdin, self._stdout = process, stdin, stdout
        self._said = b""
        self._listening = asyncio.create_task(self._hear_errors(stderr))

    @classmethod
    async def start(
        cls, command: Sequence[str], size: tuple[int, int], environment: Mapping[str, str] | None = None
    ) -> Visitor:
        """Start `command` on a terminal of columns and rows, in a process group of its own."""
        variables = {**(os.environ if environment is None else environment)}
        variables |= {
            "TEXTUAL_DRIVER": "nanochat_tui.tui.browser_driver:BrowserDriver",
            "TEXTUAL_FPS": "60",
            "TEXTUAL_COLOR_SYSTEM": "truecolor",
            "TERM_PROGRAM": "textual",
            "COLUMNS": str(size[0]),
            "ROWS": str(size[1]),
        }
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=variables, start_new_session=True
        )
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise OSError("the process has no pipes")
        return cls(process, process.stdin, process.stdout, process.stderr)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The last line the process wrote to stderr: why it could not start; '' if it said nothing."""
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        return display_safe(lines[-1].removeprefix("error: ")) if lines else ""

    async def _hear_errors(self, stderr: StreamReader) -> None:
        while piece := await stderr.read(_STDERR_KEPT):
            self._said = (self._said + piece)[-_STDERR_KEPT:]

    # to the application

    async def _send(self, kind: bytes, payload: bytes) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # it has gone; `packets` ends
            self._stdin.write(kind + len(payload).to_bytes(4, "big") + payload)
            await self._stdin.drain()

    async def type(self, text: str) -> None:
        """Send what was typed."""
        await self._send(b"D", text.encode("utf-8", "replace"))

    async def tell(self, **message: object) -> None:
        """Send a message to the driver, such as `type="focus"`."""
        await self._send(b"M", json.dumps(message).encode())

    async def resize(self, width: object, height: object) -> None:
        """Give the terminal another size, within bounds."""
        columns, rows = bounded(width, height)
        await self.tell(type="resize", width=columns, height=rows)

    # from the application

    async def packets(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield (kind, payload) until the process ends; kind is `D`, `M` or `P`."""
        try:
            while True:  # whatever a library prints before the driver begins is not for the page
                line = await self._stdout.readline()
                if line == PRELUDE:
                    break
                if not line:
                    return
            while True:
                head = await self._stdout.readexactly(5)
                size = int.from_bytes(head[1:], "big")
                if size > LARGEST_PACKET:
                    return
                yield head[:1].decode("latin-1"), await self._stdout.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            return

    async def end(self) -> None:
        """See that the process is gone when this returns; one that must be killed takes its group along."""
        ending = asyncio.create_task(self._end())
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:  # the page's connection is taken down meanwhile
            await ending
            raise

    async def _end(self) -> None:
        asking = asyncio.create_task(self.tell(type="quit"))  # a process that reads nothing would make it wait
        emptying = asyncio.create_task(self._read_away())  # one that cannot write could not leave
        try:
            if not await self._gone(QUIT_SECONDS):
                self._signal(signal.SIGTERM)
                if not await self._gone(TERMINATE_SECONDS):
                    self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
                    await self._process.wait()
        finally:
            for task in (asking, emptying, self._listening):
                task.cancel()
            await asyncio.gather(asking, emptying, self._listening, return_exceptions=True)
            self._stdin.close()

    async def _read_away(self) -> None:
        with contextlib.suppress(Exception):
            while await self._stdout.read(1 << 16):
                pass

    async def _gone(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self._process.send_signal(number)
            else:
                os.killpg(self._process.pid, number)
