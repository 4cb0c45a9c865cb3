"""Servers that speak MCP, run in one thread with an event loop of its own.

Each is one task, which opens the connection, lists the tools and waits for the end. The client is the official package
`mcp`, imported by the first start. It ends a program in order: its input is closed, which also happens when this
process is killed, and then it is told to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import AsyncExitStack
from dataclasses import dataclass
from threading import Event as CancelEvent
from typing import TYPE_CHECKING, Any, Literal

from nanochat_tui.chat.tools.config import ServerEntry
from nanochat_tui.chat.tools.definitions import Tool, usable, with_functions
from nanochat_tui.chat.tools.results import result_text
from nanochat_tui.chat.tools.stderr_tail import Tail
from nanochat_tui.errors import UserError, reason_of
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from mcp import Client

START_SECONDS = 120.0
"""Until a server has to have listed its tools: npx and uvx fetch the program first."""
LIST_SECONDS = 10.0
CLOSE_SECONDS = 6.0
"""The package waits two seconds for a program to end by itself, and two more after a signal."""
POLL = 0.05
MAX_PAGES = 32
MAX_TOOLS = 256
"""Pages and tools of one server that are read."""
ServerState = Literal["off", "starting", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call: the result's text, and whether it is one. `cancelled`: the user ended it."""

    text: str
    failed: bool = False
    cancelled: bool = False


def missing_package() -> str | None:
    """Return what to install before servers can be used; None if it is here."""
    from importlib.util import find_spec

    if find_spec("mcp") is not None:
        return None
    return "Tools need one more package; install it with: pip install 'nanochat-tui[mcp]'"


class Server:
    """One server and its tools, as they were when last asked."""

    def __init__(self, entry: ServerEntry) -> None:
        self.entry = entry
        self.state: ServerState = "off"
        self.problem = ""
        """Why it failed, as a sentence."""
        self.was_ready = False
        """Whether it ran before it failed, so that it is worth another start."""
        self.tools: tuple[Tool, ...] = ()
        self.client: Client | None = None
        self.closing: asyncio.Event | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self.entry.name


class Servers:
    """All servers of a configuration. `changed` is called, in their thread, when the state of one changes."""

    def __init__(self, entries: Sequence[ServerEntry], changed: Callable[[], object] = lambda: None) -> None:
        self.all = [Server(entry) for entry in entries]
        self.changed = changed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    # Starting and ending

    def start(self, server: Server) -> None:
        """Begin to start a server that does not run; returns at once."""
        with self._lock:
            if self._closed or server.state in ("starting", "ready"):
                return
            server.state, server.problem, server.was_ready = "starting", "", False
        if (missing := missing_package()) is not None:
            self._fail(server, missing)
        else:
            self._submit(self._begin(server))

    def stop(self, server: Server) -> None:
        """End a server; its state is off at once."""
        closing, server.state, server.tools = server.closing, "off", ()
        if closing is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(closing.set)

    def wait(self, seconds: float, cancel: CancelEvent) -> None:
        """Wait until no server is starting any more."""
        end = time.monotonic() + seconds
        while any(s.state == "starting" for s in self.all) and time.monotonic() < end and not cancel.is_set():
            cancel.wait(POLL)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """End all servers and the thread, waiting for them."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        ending = asyncio.run_coroutine_threadsafe(self._end_all(), loop)
        with contextlib.suppress(FutureTimeout, CancelledError):
            ending.result(seconds)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(1.0)

    async def _end_all(self) -> None:
        tasks = [server.task for server in self.all if server.task is not None]
        for server in self.all:
            if server.closing is not None:
                server.closing.set()
            if server.state == "starting" and server.task is not None:
                server.task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        with self._lock:
            if self._closed:
                work.close()
                raise UserError("the servers were ended")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                _silence()
                self._thread = threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _begin(self, server: Server) -> None:
        if server.task is not None and not server.task.done():
            await asyncio.wait([server.task])  # the one before still ends
        server.closing = asyncio.Event()
        server.task = asyncio.get_running_loop().create_task(self._serve(server, server.closing))

    async def _serve(self, server: Server, closing: asyncio.Event) -> None:
        tail = Tail() if server.entry.transport == "stdio" else None
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(START_SECONDS):
                    client = await stack.enter_async_context(await _client(server.entry, tail, stack))
                    if tail is not None:
                        tail.handed_over()
                    tools = await _listed(client, server.entry)
                server.client = client
                if not closing.is_set():
                    server.tools, server.state, server.was_ready = tools, "ready", True
                    self.changed()
                await closing.wait()
                server.client = None
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            if not closing.is_set():
                self._fail(server, f"{_reason(error, server.entry)}{_told(tail)}")
        finally:
            server.client = None
            if tail is not None:
                tail.handed_over()

    def _fail(self, server: Server, reason: str) -> None:
        name = display_safe(server.name, 60)
        whole = reason.startswith("Tools need")
        server.problem = reason if whole else f"The tools of {name} are missing: {reason.rstrip('.')}."
        server.state, server.tools = "failed", ()
        self.changed()

    # Tools

    def tools(self) -> list[Tool]:
        """Return the tools of all servers that are ready."""
        return with_functions(tool for server in self.all if server.state == "ready" for tool in server.tools)

    def refresh(self, cancel: CancelEvent) -> None:
        """Ask every server for its tools again, since definitions may change; one that does not answer has failed."""
        ready = [server for server in self.all if server.state == "ready"]
        asked = [(server, self._submit(self._relist(server))) for server in ready]
        for server, future in asked:
            if _waited(future, LIST_SECONDS + 1, cancel) == "late":
                self._fail(server, "it does not answer; restart it with /tools")

    async def _relist(self, server: Server) -> None:
        client, closing = server.client, server.closing
        try:
            if client is None:
                raise ConnectionError("it exited unexpectedly")
            async with asyncio.timeout(LIST_SECONDS):
                tools = await _listed(client, server.entry)
            if server.state == "ready" and tools != server.tools:
                server.tools = tools
                self.changed()
        except Exception as error:
            if server.state == "ready":
                self._fail(server, _reason(error, server.entry))
                if closing is not None:
                    closing.set()

    def call(self, tool: Tool, arguments: dict[str, Any], seconds: float, cancel: CancelEvent) -> Outcome:
        """Call a tool and wait for its result, at most `seconds`, or until `cancel` is set."""
        server = next((s for s in self.all if s.name == tool.server and s.state == "ready"), None)
        if server is None:
            return Outcome(f"The server {tool.server} does not run any more.", failed=True)
        future = self._submit(self._call(server, tool.name, arguments))
        ended = _waited(future, seconds, cancel)
        if ended == "cancelled":
            return Outcome("The user stopped the call.", failed=True, cancelled=True)
        if ended == "late":
            return Outcome(f"The tool gave no result within {seconds:g} seconds.", failed=True)
        try:
            result = future.result()
        except BaseException as error:
            return Outcome(f"The call failed: {_reason(error, server.entry)}.", failed=True)
        text = result_text(result.content, result.structured_content)
        return Outcome(text or "(an empty result)", failed=bool(result.is_error))

    async def _call(self, server: Server, name: str, arguments: dict[str, Any]) -> Any:
        if server.client is None:
            raise ConnectionError("the server exited unexpectedly")
        return await server.client.call_tool(name, arguments)


def _silence() -> None:
    """Keep what the package logs off the terminal, where Python writes the warnings of packages without a handler."""
    for name in ("mcp", "httpx2"):
        logging.getLogger(name).addHandler(logging.NullHandler())


def _waited(future: Future[Any], seconds: float, cancel: CancelEvent) -> Literal["done", "late", "cancelled"]:
    """Wait for a future; one that is late or not wanted any more is cancelled, of which the server is told."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(FutureTimeout, Exception, CancelledError):
            future.exception(POLL)
        if future.done():
            return "done"
        late = time.monotonic() >= end
        if late or cancel.is_set():
            future.cancel()
            return "late" if late else "cancelled"


async def _client(entry: ServerEntry, tail: Tail | None, stack: AsyncExitStack) -> Client:
    """Return the connection to a server, not yet open. Raises UserError for a variable that is not set."""
    import httpx2
    from mcp import Client, StdioServerParameters, stdio_client
    from mcp.client.sse import sse_client
    from mcp.client.streamable_http import streamable_http_client
    from mcp.types import Implementation

    from nanochat_tui.version import __version__

    say = entry.expanded
    transport: Any
    headers = {name: say(value) for name, value in entry.headers.items()}
    if entry.transport == "http":
        # the times that the package has without headers: a server may hold a stream open
        timeout = httpx2.Timeout(30.0, read=300.0)
        http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=timeout))
        transport = streamable_http_client(say(entry.url), http_client=http)
    elif entry.transport == "sse":
        transport = sse_client(say(entry.url), headers=headers)
    elif tail is not None:
        # the package adds HOME, LOGNAME, PATH, SHELL, TERM and USER, and nothing else of this process
        parameters = StdioServerParameters(
            command=say(entry.command),
            args=[say(arg) for arg in entry.args],
            env={name: say(value) for name, value in entry.env.items()},
            cwd=entry.folder,
            encoding_error_handler="replace",
        )
        transport = stdio_client(parameters, errlog=tail.file)
    return Client(transport, client_info=Implementation(name="nanochat-tui", version=__version__), cache=None)


async def _listed(client: Client, entry: ServerEntry) -> tuple[Tool, ...]:
    found: list[Tool] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += [Tool(entry.name, entry.digest, t.name, t.description or "", t.input_schema) for t in page.tools]
        cursor = page.next_cursor
        if not cursor or len(found) >= MAX_TOOLS:
            break
    return tuple(filter(usable, found[:MAX_TOOLS]))


def _reason(error: BaseException, entry: ServerEntry) -> str:
    """Put a failure into words, without the full stop."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError) and entry.transport == "stdio":
        what = entry.command if entry.folder.is_dir() else str(entry.folder)
        return f"{display_safe(what, 80)} cannot be started ({reason_of(error)})"
    said = display_safe(str(error).strip() or type(error).__name__, 200).rstrip(".")
    if "onnect" in said and entry.transport != "stdio":
        return f"{display_safe(entry.url, 80)} cannot be reached ({said})"
    return said


def _told(tail: Tail | None) -> str:
    if tail is None:
        return ""
    tail.handed_over()
    line = tail.last_line()
    return f" ({line})" if line else ""
