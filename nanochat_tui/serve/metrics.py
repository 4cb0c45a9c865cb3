"""What the server counts, in Prometheus form.

The names after the prefix are vLLM's where it has one for the same thing, so that its dashboards need only another
prefix. All times are seconds; counters end in `_total`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

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


class ServerMetrics:
    """The counters of a server: of its answers, and the families in which each of its models has its own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"
    """The oldest version, which every scraper reads; newer ones differ in names that we do not have."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.models: dict[str, Metrics] = {}
        """The counters of each model, by its name."""
        names = ("model_name",)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, (*names, *labels), registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, names, buckets=buckets, registry=self.registry)

        self._http = Counter(
            f"{PREFIX}_http_requests", "HTTP requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self.finished = counter("request_success", "Replies by the reason they ended.", "finished_reason")
        self.counters = {
            "prompt_tokens": counter("prompt_tokens", "Prompt tokens of replies that began."),
            "generation_tokens": counter("generation_tokens", "Tokens generated."),
            "cache_queries": counter("prefix_cache_queries", "Prompt tokens looked up."),
            "cache_hits": counter("prefix_cache_hits", "Prompt tokens found in the cache."),
            "drafted": counter("spec_decode_num_draft_tokens", "Draft tokens."),
            "accepted": counter("spec_decode_num_accepted_tokens", "Accepted draft tokens."),
            "loads": counter("model_loads", "Times that the model was loaded."),
            "load_failures": counter("model_load_failures", "Times that loading the model failed."),
        }
        self.histograms = {
            "first": histogram("time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST),
            "between": histogram("inter_token_latency_seconds", "Between two tokens of a reply.", _BETWEEN),
            "whole": histogram("e2e_request_latency_seconds", "From a request's arrival to its end.", _WHOLE),
            "prompt_sizes": histogram("request_prompt_tokens", "Prompt tokens per reply.", _COUNTS),
            "reply_sizes": histogram("request_generation_tokens", "Tokens generated per reply.", _COUNTS),
        }
        self.load_seconds = Gauge(
            f"{PREFIX}_model_load_time_seconds", "How long loading took.", names, registry=self.registry
        )
        self.loaded = Gauge(f"{PREFIX}_model_loaded", "1 while the model is in memory.", names, registry=self.registry)
        self.registry.register(_Engine(self.models))
        ProcessCollector(registry=self.registry)  # resident memory, processor time, open files
        PlatformCollector(registry=self.registry)

    def answered(self, route: str, method: str, status: int) -> None:
        """Count an HTTP answer."""
        self._http.labels(route, method, str(status)).inc()

    def exposition(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self.registry)


class Metrics:
    """The counters of one model; `snapshot` tells what its engine is doing, None while it is not loaded."""

    def __init__(self, model_name: str, snapshot: Snapshot = lambda: None, server: ServerMetrics | None = None) -> None:
        self.server = server or ServerMetrics()
        """Those of the server that the model belongs to."""
        self.snapshot = snapshot
        self._recent: deque[list[float]] = deque()
        self._lock = threading.Lock()
        self._name = model_name
        counters, histograms = self.server.counters, self.server.histograms
        self.prompt_tokens = counters["prompt_tokens"].labels(model_name)
        self.generation_tokens = counters["generation_tokens"].labels(model_name)
        self.cache_queries = counters["cache_queries"].labels(model_name)
        self.cache_hits = counters["cache_hits"].labels(model_name)
        self.drafted = counters["drafted"].labels(model_name)
        self.accepted = counters["accepted"].labels(model_name)
        self.loads = counters["loads"].labels(model_name)
        self.load_failures = counters["load_failures"].labels(model_name)
        self.first = histograms["first"].labels(model_name)
        self.between = histograms["between"].labels(model_name)
        self.whole = histograms["whole"].labels(model_name)
        self.prompt_sizes = histograms["prompt_sizes"].labels(model_name)
        self.reply_sizes = histograms["reply_sizes"].labels(model_name)
        self.load_seconds = self.server.load_seconds.labels(model_name)
        self.loaded = self.server.loaded.labels(model_name)
        self.server.models[model_name] = self

    def finished(self, reason: str) -> None:
        """Count a reply that ended: stop, length, abort (the client left) or error."""
        self.server.finished.labels(self._name, reason).inc()

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


class _Engine(Collector):
    """Gauges that are computed on request, of every model."""

    def __init__(self, models: Mapping[str, Metrics]) -> None:
        self._models = models

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily]:
        """Yield the families."""
        now = {name: (metrics.snapshot(), metrics.rate()) for name, metrics in list(self._models.items())}
        gauges: tuple[tuple[str, str, Callable[[BatcherStats], float]], ...] = (
            ("num_requests_running", "Replies being computed.", lambda s: s.running),
            ("num_requests_waiting", "Requests waiting for a place.", lambda s: s.waiting),
            (
                "kv_cache_usage_perc",
                "Share of the key-value cache in use, 0 to 1.",
                lambda s: s.kv_used_tokens / max(1, s.kv_total_tokens),
            ),
            ("kv_cache_tokens", "Positions of the key-value cache in use.", lambda s: s.kv_used_tokens),
            ("engine_threads", "Threads that the latest pass ran with.", lambda s: s.threads),
        )
        for name, text, value in gauges:
            family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["model_name"])
            for model, (stats, _) in now.items():
                family.add_metric([model], value(stats) if stats else 0)
            yield family
        family = GaugeMetricFamily(
            f"{PREFIX}_tokens_per_second", f"Mean over the last {RATE_WINDOW:g} seconds.", labels=["model_name"]
        )
        for model, (_, rate) in now.items():
            family.add_metric([model], rate)
        yield family
        counts: tuple[tuple[str, str, Callable[[BatcherStats], float]], ...] = (
            ("engine_stolen_pieces", "Pieces of work done for a late thread.", lambda s: s.stolen_pieces),
            ("engine_thread_naps", "Waits within a pass that became sleep.", lambda s: s.thread_naps),
        )
        for name, text, value in counts:
            total = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["model_name"])
            for model, (stats, _) in now.items():
                total.add_metric([model], value(stats) if stats else 0)
            yield total
