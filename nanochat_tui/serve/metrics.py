"""What the server counts, in Prometheus form.

The names after the prefix are vLLM's where it has one for the same thing, so that its dashboards need only another
prefix. All times are seconds; counters end in `_total`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from nanochat_tui.engine.generate.scheduler import BatcherStats

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter, which is never plotted

PREFIX = "nanochat"
RATE_WINDOW = 10.0
"""Seconds over which `tokens_per_second` is a mean."""
RATE_STEP = 0.1
"""Tokens that come within so many seconds are noted together: one by one they would take megabytes."""

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_WHOLE = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

Snapshot = Callable[[], BatcherStats | None]


class Metrics:
    """The counters of one server; `snapshot` tells what the engine is doing, None before it is loaded."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"
    """The oldest version, which every scraper reads; newer ones differ in names that we do not have."""

    def __init__(self, model_name: str, snapshot: Snapshot = lambda: None) -> None:
        self.registry = CollectorRegistry()
        self._recent: deque[list[float]] = deque()
        self._lock = threading.Lock()
        model, names = {"model_name": model_name}, ("model_name",)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, (*names, *labels), registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"{PREFIX}_{name}", text, names, buckets=buckets, registry=self.registry)
            return made.labels(**model)

        self._model = model
        self._http = Counter(
            f"{PREFIX}_http_requests", "HTTP requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self._finished = counter("request_success", "Replies by the reason they ended.", "finished_reason")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of replies that began.").labels(**model)
        self.generation_tokens = counter("generation_tokens", "Tokens generated.").labels(**model)
        self.cache_queries = counter("prefix_cache_queries", "Prompt tokens looked up.").labels(**model)
        self.cache_hits = counter("prefix_cache_hits", "Prompt tokens found in the cache.").labels(**model)
        self.drafted = counter("spec_decode_num_draft_tokens", "Draft tokens.").labels(**model)
        self.accepted = counter("spec_decode_num_accepted_tokens", "Accepted draft tokens.").labels(**model)
        self.first = histogram("time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST)
        self.between = histogram("inter_token_latency_seconds", "Between two tokens of a reply.", _BETWEEN)
        self.whole = histogram("e2e_request_latency_seconds", "From a request's arrival to its end.", _WHOLE)
        self.prompt_sizes = histogram("request_prompt_tokens", "Prompt tokens per reply.", _COUNTS)
        self.reply_sizes = histogram("request_generation_tokens", "Tokens generated per reply.", _COUNTS)
        self.load_seconds = Gauge(
            f"{PREFIX}_model_load_time_seconds", "How long loading took.", names, registry=self.registry
        ).labels(**model)
        self.registry.register(_Engine(model_name, snapshot, self.rate))
        ProcessCollector(registry=self.registry)  # resident memory, processor time, open files
        PlatformCollector(registry=self.registry)

    def answered(self, route: str, method: str, status: int) -> None:
        """Count an HTTP answer."""
        self._http.labels(route, method, str(status)).inc()

    def finished(self, reason: str) -> None:
        """Count a reply that ended: stop, length, abort (the client left) or error."""
        self._finished.labels(**self._model, finished_reason=reason).inc()

    def generated(self, count: int) -> None:
        """Count tokens as they arrive."""
        self.generation_tokens.inc(count)
        with self._lock:  # each reply is counted by a thread of its own
            now = time.monotonic()
            if self._recent and now - self._recent[-1][0] < RATE_STEP:
                self._recent[-1][1] += count
            else:
                self._recent.append([now, count])
            while self._recent[0][0] < now - RATE_WINDOW:
                self._recent.popleft()

    def rate(self) -> float:
        """Tokens per second of all replies together, over the last seconds."""
        since = time.monotonic() - RATE_WINDOW
        with self._lock:
            return sum(count for at, count in self._recent if at >= since) / RATE_WINDOW

    def exposition(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self.registry)


class _Engine(Collector):
    """Gauges that are computed on request."""

    def __init__(self, model_name: str, snapshot: Snapshot, rate: Callable[[], float]) -> None:
        self._name, self._snapshot, self._rate = model_name, snapshot, rate

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily]:
        """Yield the families."""
        now = self._snapshot()
        share = now.kv_used_tokens / max(1, now.kv_total_tokens) if now else 0.0
        rows = (
            ("num_requests_running", "Replies being computed.", now.running if now else 0),
            ("num_requests_waiting", "Requests waiting for a place.", now.waiting if now else 0),
            ("kv_cache_usage_perc", "Share of the key-value cache in use, 0 to 1.", share),
            ("kv_cache_tokens", "Positions of the key-value cache in use.", now.kv_used_tokens if now else 0),
            ("engine_threads", "Threads that the latest pass ran with.", now.threads if now else 0),
            ("tokens_per_second", f"Mean over the last {RATE_WINDOW:g} seconds.", self._rate()),
        )
        for name, text, value in rows:
            family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["model_name"])
            family.add_metric([self._name], value)
            yield family
        counts = (
            ("engine_stolen_pieces", "Pieces of work done for a late thread.", now.stolen_pieces if now else 0),
            ("engine_thread_naps", "Waits within a pass that became sleep.", now.thread_naps if now else 0),
        )
        for name, text, count in counts:
            total = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["model_name"])
            total.add_metric([self._name], count)
            yield total
