"""The model behind the routes: loaded in the background, one batcher or several, and honest about its state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from nanochat_tui.engine.generate.reading import Reading
from nanochat_tui.engine.generate.scheduler import Batcher, BatcherStats, QueueFull, Stream
from nanochat_tui.errors import UserError
from nanochat_tui.request import GenerationRequest
from nanochat_tui.serve.errors import ApiError, unavailable
from nanochat_tui.serve.loading import Loader
from nanochat_tui.serve.metrics import Metrics
from nanochat_tui.serve.settings import Settings

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

State = Literal["loading", "ok", "failed", "stopping"]
STICKY_TOKENS = 64
"""Beginning of a prompt that decides between replicas with equal load, so that a conversation finds its cache."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and what is wanted of its reply; reading: takes what is computed for the prompt's tokens."""

    ids: Sequence[int]
    request: GenerationRequest
    reading: Reading | None = None


class Service:
    """Loads, answers `submit`, ends. Its state is "loading", then "ok" or "failed"; at the end "stopping"."""

    def __init__(
        self,
        load: Loader,
        settings: Settings,
        on_failure: Callable[[str], None] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """metrics: counters that outlive this model's time in memory; None makes those of a server with one model."""
        self.settings = settings
        self.metrics = metrics or Metrics(settings.name, self.snapshot)
        self.created = int(time.time())
        """When the server began, in seconds since 1970: what /v1/models says of the model."""
        self.message: str | None = None
        """Why the state is "failed"."""
        self._state: State = "loading"
        self._load = load
        self._on_failure = on_failure
        self._batchers: Sequence[Batcher] = ()
        self._streams: set[Stream] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loading, name="nanochat-load", daemon=True)

    @property
    def state(self) -> State:
        """What /health says."""
        return self._state

    @property
    def loading(self) -> bool:
        """Whether the loading thread is still at work."""
        return self._thread.is_alive()

    @property
    def model(self) -> Model:
        """The model. Raises ApiError (503) unless one is there."""
        self._demand_ready()
        return self._batchers[0].model

    @property
    def context(self) -> int:
        """Tokens that a prompt and its reply may have together. Raises ApiError (503) unless a model is there."""
        self._demand_ready()
        return self._batchers[0].context

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until the model is loaded, or loading failed."""
        self._thread.join()

    def _loading(self) -> None:
        began = time.monotonic()
        try:
            batchers = self._load(self.settings.log)
        except UserError as error:
            self._fail(str(error))
        except BaseException as error:
            self._fail(f"loading failed unexpectedly ({type(error).__name__}: {error})")
        else:
            with self._lock:
                self._batchers = batchers
                late = self._state == "stopping"
                if not late:
                    self._state = "ok"
            if late:  # the client has left
                self._close_batchers()
                return
            seconds = time.monotonic() - began
            self.metrics.load_seconds.set(seconds)
            self.metrics.loaded.set(1)
            model = batchers[0].model
            config = model.config
            self.settings.log(
                f"{self.settings.name} is ready after {seconds:.1f} s: {config.parameters:,} parameters, context "
                f"{config.context_length}, kernel {model.kernel}, {model.threads} threads"
                + (f", {len(batchers)} replicas" if len(batchers) > 1 else "")
            )

    def _fail(self, reason: str) -> None:
        with self._lock:
            self.message = reason
            if self._state != "stopping":
                self._state = "failed"
        if self._on_failure:
            self._on_failure(reason)
        else:
            self.settings.log(f"error: {reason}")

    def _demand_ready(self) -> None:
        if self._state == "loading":
            raise unavailable("the model is still being loaded; come again in a moment", "loading")
        if self._state == "failed":
            raise unavailable("the model cannot be used; the server's log says why", "failed")
        if self._state == "stopping":
            raise unavailable("the server is being stopped", "stopping")

    def snapshot(self) -> BatcherStats | None:
        """Return what all replicas do together; None before the model is loaded."""
        parts = [batcher.snapshot() for batcher in self._batchers]
        if not parts:
            return None
        return BatcherStats(**{f.name: sum(getattr(part, f.name) for part in parts) for f in fields(BatcherStats)})

    def submit(self, asked: Asked, salt: str | None, owner: Hashable) -> Stream:
        """Queue a prompt with the least busy replica. Raises ApiError, UserError or QueueFull."""
        self._demand_ready()
        batcher = self._batchers[0] if len(self._batchers) == 1 else self._choose(asked.ids)
        stream = batcher.submit(asked.ids, asked.request, cache_salt=salt, owner=owner, reading=asked.reading)
        with self._lock:
            self._streams.add(stream)
        return stream

    def submit_all(self, requests: Sequence[Asked], salt: str | None) -> list[Stream]:
        """Queue several prompts or none: if one is refused, those before it are cancelled. Raises as `submit`.

        salt: with whom they share the cache, see `Batcher.submit`.
        """
        streams: list[Stream] = []
        owner = object()
        try:
            for asked in requests:
                streams.append(self.submit(asked, salt, owner))
        except BaseException as error:
            for stream in streams:
                stream.cancel()
                self.ended(stream)
            if isinstance(error, QueueFull) and len(requests) > self.settings.max_sequences + self.settings.max_waiting:
                raise ApiError(
                    400, f"a request for {len(requests)} replies can never be served; ask for fewer"
                ) from error
            raise
        return streams

    def _choose(self, ids: Sequence[int]) -> Batcher:
        def load(batcher: Batcher) -> int:
            now = batcher.snapshot()
            return now.running + now.waiting

        loads = [load(batcher) for batcher in self._batchers]
        free = [batcher for batcher, each in zip(self._batchers, loads, strict=True) if each == min(loads)]
        return free[hash(tuple(ids[:STICKY_TOKENS])) % len(free)]

    def ended(self, stream: Stream) -> None:
        """Forget a stream that is not read any more."""
        with self._lock:
            self._streams.discard(stream)

    def broken(self, error: BaseException) -> None:
        """Learn that a reply failed for a reason of ours: log it, and find out whether the engine still works."""
        self.settings.log(f"error: a reply failed ({type(error).__name__}: {error})")
        threading.Thread(target=self._probe, name="nanochat-probe", daemon=True).start()

    def _probe(self) -> None:
        for batcher in self._batchers:
            try:
                for _ in batcher.submit([0], max_tokens=1, temperature=0.0):
                    pass
            except QueueFull:
                continue  # it is at work
            except BaseException as error:
                if self._state == "ok":
                    self._fail(f"the engine no longer works ({type(error).__name__})")
                return

    def stop(self) -> None:
        """Take no more requests."""
        with self._lock:
            self._state = "stopping"

    def cut(self) -> None:
        """End all replies at their next token."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()

    def close(self) -> None:
        """End everything; blocks until the engine's threads are gone."""
        self.stop()
        self.cut()
        self._close_batchers()

    def forget(self) -> None:
        """Let go of the model's memory; only after `close`."""
        self._batchers = ()

    def _close_batchers(self) -> None:
        for batcher in self._batchers:
            batcher.close()
            batcher.model.close()
