"""Several models in one process: loaded when they are first asked for, unloaded when others need their memory.

All of this happens on the event loop, so that nothing needs a lock; what takes time runs on threads. A model in use is
never closed but drained: requests that come wait, and it is closed after its last answer; then it is loaded again for
those that waited. One model is loaded at a time, so that memory can be counted.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from starlette.requests import Request

from nanochat_tui.engine.generate.memory_forecast import GIGA, RESERVE, available_memory
from nanochat_tui.engine.generate.scheduler import BatcherStats
from nanochat_tui.errors import UserError
from nanochat_tui.serve.errors import RETRY_SECONDS, ApiError, unavailable
from nanochat_tui.serve.listed import Peek, peek, with_cache, without_path
from nanochat_tui.serve.loading import ModelFiles, loader
from nanochat_tui.serve.metrics import Metrics, ServerMetrics
from nanochat_tui.serve.models import LOANS, meta_of, unknown_model
from nanochat_tui.serve.replies import Health, ModelCard, ModelStatus
from nanochat_tui.serve.service import Service
from nanochat_tui.serve.settings import Settings

State = Literal["unloaded", "loading", "loaded", "unloading"]
NEVER = float("-inf")
FAILED_SECONDS = 10.0
"""For so long a model that could not be loaded is not tried again, but by /models/load."""


@dataclass
class Entry:
    """A listed model."""

    name: str
    files: ModelFiles
    created: int
    metrics: Metrics
    service: Service | None = None
    state: State = "unloaded"
    message: str | None = None
    """Why the last try to load it failed."""
    failed_at: float = NEVER
    memory: int = 0
    """Bytes that it takes by the forecast while it is loaded, or about to be."""
    loans: int = 0
    """Requests that are using it."""
    used: float = 0.0
    """When it was last used, by the monotonic clock."""
    waiters: list[asyncio.Future[Service]] = field(default_factory=list)
    seen: Peek | None = None
    stamp: tuple[int, int] = (0, 0)
    """Size and time of change of the file that `seen` is about."""

    def snapshot(self) -> BatcherStats | None:
        """Return what its engine is doing."""
        return self.service.snapshot() if self.service is not None and self.state != "loading" else None


class SeveralModels:
    """The models of a folder, or of a list. `find` gives them by name and is asked again when the list is."""

    def __init__(
        self,
        find: Callable[[], dict[str, Path]],
        files: ModelFiles,
        settings: Settings,
        *,
        budget: int | None = None,
        most: int | None = None,
    ) -> None:
        """files: how each is run (its path is replaced). budget: bytes for all; None is what is free now, less a
        reserve. most: models in memory at a time, None for as many as the budget allows.
        """
        self.settings = settings
        self.metrics = ServerMetrics()
        self.budget = max(0, available_memory() - RESERVE) if budget is None else budget
        self._most = most
        self._find, self._files = find, files
        self._entries: dict[str, Entry] = {}
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._adopt(find())
        if not self._entries:
            raise UserError("There is no GGUF file of a language model to serve; put one into the folder.")

    def start(self) -> None:
        """Nothing is loaded before it is asked for."""
        names = list(self._entries)
        self.settings.log(
            f"{len(names)} models, {self.budget / GIGA:.2f} GB of memory for them: {', '.join(names[:20])}"
            + (" …" if len(names) > 20 else "")
        )

    # The list

    def _adopt(self, found: dict[str, Path]) -> None:
        for name, path in found.items():
            entry = self._entries.get(name)
            if entry is None:
                made = Entry(
                    name, replace(self._files, path=path), _changed_at(path), Metrics(name, server=self.metrics)
                )
                made.metrics.snapshot = made.snapshot
                self._entries[name] = made
            elif entry.state == "unloaded":
                entry.files = replace(entry.files, path=path)
        for name in [name for name, entry in self._entries.items() if name not in found]:
            if self._entries[name].state == "unloaded" and not self._entries[name].waiters:
                del self._entries[name]

    async def _look_again(self) -> None:
        try:
            found = await asyncio.to_thread(self._find)
        except UserError as error:
            self.settings.log(f"error: {error}")
            return
        self._adopt(found)

    async def _named(self, name: str | None) -> Entry:
        if name is None or name == "":
            loaded = [entry for entry in self._entries.values() if entry.state in ("loaded", "loading")]
            if loaded or self._entries:
                return max(loaded, key=lambda e: e.used) if loaded else next(iter(self._entries.values()))
        elif name not in self._entries:
            await self._look_again()
        if name is None or name not in self._entries:
            raise unknown_model(self._entries)
        return self._entries[name]

    async def cards(self) -> list[ModelCard]:
        """Return a card for every listed model, with its state."""
        await self._look_again()
        entries = list(self._entries.values())
        await asyncio.to_thread(self._peek_all, entries)
        return [_card(entry) for entry in entries]

    def _peek_all(self, entries: list[Entry]) -> None:
        for entry in entries:
            try:
                self._peeked(entry)
            except (UserError, OSError) as error:
                if entry.state == "unloaded":
                    entry.message = without_path(_reason(error), entry.files.path, entry.name)
                continue
            if entry.failed_at == NEVER:  # what was wrong with its header is not any more
                entry.message = None

    def _peeked(self, entry: Entry) -> Peek:
        status = entry.files.path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        if entry.seen is None or entry.stamp != stamp:
            entry.seen, entry.stamp = peek(entry.files, self.budget), stamp
        return entry.seen

    def health(self, *, names: bool) -> Health:
        """Return "ok" as long as requests are taken; what is not loaded is when it is asked for."""
        models = {entry.name: _value(entry) for entry in self._entries.values()} if names else None
        return Health(status="stopping" if self._stopping else "ok", models=models)

    # Lending

    async def use(self, request: Request, name: str | None) -> Service:
        """Return the model of a name, loaded if need be, and lend it to the request."""
        entry = await self._named(name)
        service = await self._lend(entry)
        request.scope[LOANS].append(lambda: self._give_back(entry))
        return service

    async def _lend(self, entry: Entry) -> Service:
        if self._stopping:
            raise unavailable("the server is being stopped", "stopping")
        service = entry.service
        if entry.state == "loaded" and service is not None and service.state == "ok":
            entry.loans += 1
            entry.used = time.monotonic()
            return service
        if entry.state == "loaded":  # its engine broke, and the log says how
            self._drain(entry)
        if entry.state == "unloaded" and entry.message and time.monotonic() - entry.failed_at < FAILED_SECONDS:
            raise _failure(entry)
        waiter: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        self._begin(entry)
        limit = self.settings.limits.load_seconds
        try:
            done, _ = await asyncio.wait([waiter], timeout=limit)
        except BaseException:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)
            elif waiter.exception() is None:
                self._give_back(entry)
            raise
        if not done:
            entry.waiters.remove(waiter)
            raise unavailable(f"{entry.name} could not be loaded within {limit:g} s; come again later", "loading")
        return waiter.result()

    def _give_back(self, entry: Entry) -> None:
        entry.loans -= 1
        entry.used = time.monotonic()
        if entry.state == "unloading" and not entry.loans:
            self._spawn(self._close(entry))
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Loading

    def _begin(self, entry: Entry) -> None:
        if entry.state == "unloaded":
            entry.state = "loading"
            self._spawn(self._load(entry))

    async def _load(self, entry: Entry) -> None:
        try:
            async with self._turn:
                service = await self._loaded(entry)
        except Exception as error:
            self._failed(entry, error)
        else:
            entry.state, entry.message = "loaded", None
            entry.metrics.loaded.set(1)
            entry.metrics.loads.inc()
            waiters = [waiter for waiter in entry.waiters if not waiter.done()]
            entry.waiters.clear()
            entry.loans += len(waiters)  # at once: another model may be waiting for this one's memory
            entry.used = time.monotonic()
            for waiter in waiters:
                waiter.set_result(service)
        self._tell()

    async def _loaded(self, entry: Entry) -> Service:
        seen = await asyncio.to_thread(self._peeked, entry)
        await self._make_room(entry, seen.memory.total)
        if self._stopping:
            raise unavailable("the server is being stopped", "stopping")
        entry.memory = seen.memory.total
        settings = replace(self.settings, name=entry.name, aliases=(), strict_model=True)
        service = Service(loader(with_cache(entry.files, seen)), settings, metrics=entry.metrics)
        entry.service = service
        service.start()
        await asyncio.to_thread(service.wait)
        if service.state != "ok":
            await asyncio.to_thread(service.close)
            raise UserError(service.message or "loading was interrupted")
        return service

    def _failed(self, entry: Entry, error: Exception) -> None:
        reason = _reason(error)
        if not isinstance(error, UserError | OSError | ApiError):
            reason = f"loading failed unexpectedly ({type(error).__name__})"
        if not self._stopping:
            self.settings.log(f"error: {entry.name} cannot be loaded: {reason}")
        entry.state, entry.service, entry.memory = "unloaded", None, 0
        entry.message = without_path(reason, entry.files.path, entry.name)
        entry.failed_at = time.monotonic()
        entry.metrics.load_failures.inc()
        said = error if isinstance(error, ApiError) else _failure(entry)
        for waiter in entry.waiters:
            if not waiter.done():
                waiter.set_exception(said)
        entry.waiters.clear()

    async def _make_room(self, entry: Entry, need: int) -> None:
        """Wait until a model fits, unloading those that were used least recently. Raises UserError if it never will."""
        if need > self.budget:
            raise UserError(
                f"the model needs {need / GIGA:.2f} GB, and the server has {self.budget / GIGA:.2f} GB for all models; "
                "ask for a smaller one"
            )
        while not self._stopping:
            there = [other for other in self._entries.values() if other is not entry and other.memory]
            used = sum(other.memory for other in there)
            few = self._most is None or len(there) < self._most
            if not there or (few and used + need <= self.budget and need + RESERVE <= available_memory()):
                return
            changed = self._changed
            if not any(other.state == "unloading" for other in there):
                # first what nobody is using; then the one that was, the longest ago, as soon as its replies are written
                self._drain(min(there, key=lambda other: (other.loans > 0, other.used)))
            if self._changed is changed:
                await changed.wait()

    # Unloading

    def _drain(self, entry: Entry) -> None:
        """Take no more requests for a model, and close it after its last answer."""
        entry.state = "unloading"
        if not entry.loans:
            self._spawn(self._close(entry))

    async def _close(self, entry: Entry) -> None:
        service, entry.service = entry.service, None
        if service is None:
            return
        await asyncio.to_thread(_closed, service)
        entry.state, entry.memory = "unloaded", 0
        entry.metrics.loaded.set(0)
        self.settings.log(f"{entry.name} is unloaded")
        if entry.waiters:
            self._begin(entry)
        self._tell()

    async def load(self, name: str) -> ModelCard:
        """Load a listed model, also one that could not be loaded a moment ago."""
        entry = await self._named(name)
        if entry.state == "unloaded":
            entry.failed_at = NEVER
        await self._lend(entry)
        self._give_back(entry)
        return _card(entry)

    async def unload(self, name: str) -> ModelCard:
        """Unload a listed model; with replies on their way its card says that it is "unloading"."""
        entry = await self._named(name)
        if entry.state != "loaded":
            raise ApiError(400, f"{entry.name} is not loaded", param="model", code="model_not_loaded")
        self._drain(entry)
        while _is_closing(entry):
            await self._changed.wait()
        return _card(entry)

    # The end

    def running(self) -> int:
        """Return how many replies are being written."""
        stats = [entry.snapshot() for entry in self._entries.values()]
        return sum(now.running for now in stats if now)

    def stop(self) -> None:
        """Take no more requests; those that wait for a model are told."""
        self._stopping = True
        for entry in self._entries.values():
            if entry.service is not None:
                entry.service.stop()
            for waiter in entry.waiters:
                if not waiter.done():
                    waiter.set_exception(unavailable("the server is being stopped", "stopping"))
            entry.waiters.clear()
        self._tell()

    def cut(self) -> None:
        """End all replies at their next token."""
        for entry in self._entries.values():
            if entry.service is not None:
                entry.service.cut()

    def close(self) -> None:
        """Close every model."""
        self._stopping = True
        for entry in self._entries.values():
            if entry.service is not None:
                entry.service.close()


def _closed(service: Service) -> None:
    service.close()
    service.forget()
    gc.collect()  # what refers to itself keeps its weights until then


def _changed_at(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the file cannot be read: {error.strerror or error}"
    return str(error)


def _is_closing(entry: Entry) -> bool:
    return entry.state == "unloading" and not entry.loans


def _value(entry: Entry) -> str:
    return "failed" if entry.state == "unloaded" and entry.message else entry.state


def _card(entry: Entry) -> ModelCard:
    service = entry.service
    loaded = entry.state in ("loaded", "unloading") and service is not None and service.state == "ok"
    meta = meta_of(service) if loaded and service is not None else entry.seen.meta if entry.seen else None
    failed = entry.state == "unloaded" and entry.message is not None
    status = ModelStatus(
        value=entry.state,
        failed=failed or None,
        message=entry.message if failed else None,
        memory=entry.seen.memory.total if entry.seen else None,
    )
    return ModelCard(id=entry.name, created=entry.created, meta=meta, status=status)


def _failure(entry: Entry) -> ApiError:
    """Return what a client is told whose model could not be loaded."""
    return ApiError(
        503,
        f"{entry.name} cannot be loaded: {entry.message}",
        kind="server_error",
        param="model",
        code="model_load_failed",
        retry_after=RETRY_SECONDS if entry.message and "memory" in entry.message else None,
    )
