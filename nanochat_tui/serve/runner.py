"""Running the application: a socket, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn

from nanochat_tui.errors import UserError
from nanochat_tui.serve.app import create_app
from nanochat_tui.serve.loading import Loader
from nanochat_tui.serve.models import Models, models_of
from nanochat_tui.serve.protocol import DeadlineProtocol, protocol
from nanochat_tui.serve.service import Service
from nanochat_tui.serve.settings import Log, Settings
from nanochat_tui.text import display_safe

BACKLOG = 2048
SEND_BUFFER = 1 << 17
"""Bytes the system may hold back per connection: left to itself it takes megabytes before a stalled reader shows."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_SECONDS = 1
"""After replies were cut, the time they have to say so."""


class _Errors(logging.Handler):
    """Hands uvicorn's and asyncio's errors to the server's own log, a line each.

    Their warnings are dropped: any client can cause them by the thousand, and they advise to install packages.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        what = f" ({type(error).__name__}: {error})" if error else ""
        self._log(f"error: {record.getMessage().strip()}{what}")


def collect_errors(log: Log) -> None:
    """Let the libraries below the application write to `log` and nowhere else."""
    for name in ("uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Errors(log)], False


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises UserError if the address cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, proto)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
        made.bind(address)
        made.listen(BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen on {display_safe(host)} port {port}: {reason}; choose another with --host and --port"
        ) from error
    return made


def allow_many_connections() -> None:
    """Raise the number of files this process may open to what the system grants: each connection is one."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server(uvicorn.Server):
    """uvicorn, told how to end: replies may finish for a while, then they are ended with a word of explanation."""

    def __init__(self, served: Service | Models) -> None:
        models = models_of(served)
        limits = models.settings.limits
        config = uvicorn.Config(
            create_app(models),
            http=protocol(limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(limits.idle_seconds),
            timeout_graceful_shutdown=math.ceil(limits.drain_seconds) + LAST_SECONDS,
            backlog=BACKLOG,
        )
        super().__init__(config)
        self._models = models

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, wait for the replies, cut those that take too long."""
        models, seconds = self._models, self._models.settings.limits.drain_seconds
        running = models.running()
        if running:
            models.settings.log(f"ending: {running} replies may go on for {seconds:g} s")
        models.stop()
        cut = asyncio.get_running_loop().call_later(seconds, self._cut)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()

    def _cut(self) -> None:
        """End all replies; a client that has not read what was sent so far will not read that either."""
        self._models.cut()
        for connection in list(self.server_state.connections):
            if isinstance(connection, DeadlineProtocol):
                connection.abort_stalled()


def run(load: Loader, settings: Settings, host: str, port: int, opened: Callable[[str], None] | None = None) -> int:
    """Serve until a signal comes; `opened` learns the address. Returns an exit code: 0, 130 after Ctrl+C.

    Raises UserError if the address cannot be had or the model cannot be loaded.
    """
    failed: list[str] = []

    def one(give_up: Callable[[], None]) -> Service:
        def on_failure(reason: str) -> None:
            failed.append(reason)
            give_up()

        return Service(load, settings, on_failure)

    code = run_models(one, settings, host, port, opened)
    if failed:
        raise UserError(failed[0])
    return code


def run_models(
    make: Callable[[Callable[[], None]], Service | Models],
    settings: Settings,
    host: str,
    port: int,
    opened: Callable[[str], None] | None = None,
) -> int:
    """Serve what `make` returns, which is given a function that ends the server; see `run`."""
    listening = bind(host, port)
    allow_many_connections()
    collect_errors(settings.log)

    def give_up() -> None:
        server.should_exit = True

    try:
        server = Server(make(give_up))
    except BaseException:
        listening.close()
        raise
    if opened:
        opened(_address(listening))
    # uvicorn raises the signal again when it has ended, and then these take it
    interrupted: list[int] = []
    previous = {number: signal.signal(number, lambda n, _: interrupted.append(n)) for number in SIGNALS}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        listening.close()
    return 130 if signal.SIGINT in interrupted else 0


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
