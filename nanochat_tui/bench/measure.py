"""Measuring a model's speed on this machine, alone or side by side with another engine, in one run.

Engines take turns run by run, so that a machine that slows down slows both; what counts is the median. Memory
bandwidth is measured in the same run with the same number of threads: decoding reads every weight once per token, so
its share of that bandwidth says how much faster any engine could be.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError

Kind = Literal["prompt", "decode"]
Say = Callable[[str], None]
READ_BYTES = 1 << 30
"""Beyond every cache."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `limit` is the most seconds that one run may take; what would take longer is left out."""

    threads: tuple[int, ...]
    prompts: tuple[int, ...] = (128,)
    contexts: tuple[int, ...] = (128,)
    tokens: int = 128
    """Tokens of a decoding run; a slow engine does fewer, enough for `seconds`."""
    repeats: int = 5
    seconds: float = 2.0
    limit: float = 20.0


@dataclass(frozen=True, slots=True)
class Engine:
    """One side of a comparison."""

    name: str
    path: Path
    kernel: str | None = None
    speculation: Literal["auto", "on", "off"] = "off"
    """Whether ours uses draft tokens; what they bring depends on the text."""
    kv: Literal["f16", "int8", "f32"] = "f16"
    activations: Literal["int8", "float"] = "int8"
    """Numbers in our key-value cache; the peer has its own."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured speed in tokens per second: the median of the runs, their least and their most.

    `context` is the number of positions filled at the end of a run. `bytes_per_token`: weights and the keys and values
    of half-way through that one decoded token reads; 0 for prompts, where a block of tokens shares the weights.
    `bandwidth_share`: of `bandwidth_gbps`, the reading speed with these threads; above 1 where the weights stay in the
    processor's caches.
    """

    engine: str
    kind: Kind
    tokens: int
    context: int
    threads: int
    tps: float
    tps_min: float
    tps_max: float
    runs: int
    bytes_per_token: int
    bandwidth_gbps: float
    bandwidth_share: float | None
    drafted: int = 0
    """Draft tokens of all runs together, and those that were accepted."""
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading cost one engine; seconds include starting kernels and four tokens, bytes are of its process."""

    engine: str
    model: str
    threads: int
    kernel: str
    load_seconds: float
    rss_bytes: int
    peak_rss_bytes: int


@dataclass(slots=True)
class Result:
    """All that `bench` reports."""

    model: str
    rows: list[Row] = field(default_factory=list)
    loaded: list[Loaded] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """What was left out and why, a sentence each."""

    @property
    def first(self) -> Loaded:
        """Our engine with the fewest threads."""
        return self.loaded[0]

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready object."""
        return {
            "model": self.model,
            "kernel": self.first.kernel,
            "load_seconds": self.first.load_seconds,
            "peak_rss_bytes": max(one.peak_rss_bytes for one in self.loaded if one.engine == self.first.engine),
            "bandwidth_gbps": max((row.bandwidth_gbps for row in self.rows), default=0.0),
            "rows": [asdict(row) for row in self.rows],
            "loaded": [asdict(one) for one in self.loaded],
            "skipped": self.skipped,
        }


def measure(engines: Sequence[Engine], plan: Plan, say: Say) -> Result:
    """Measure engines side by side. Raises UserError if one cannot load its model or a run fails."""
    result = Result(engines[0].path.name)
    room = -(-max(*plan.prompts, *(context + plan.tokens + 2 for context in plan.contexts), 32) // 256) * 256
    for threads in plan.threads:
        with ExitStack() as stack:
            workers = []
            for engine in engines:
                say(f"loading {engine.path.name} in {engine.name}, {_threads(threads)}")
                worker = _worker(engine, threads, room)
                if worker.ready["compiled"]:  # the first start on a machine, which is not what loading costs
                    worker.close()
                    worker = _worker(engine, threads, room)
                stack.enter_context(worker)
                workers.append(worker)
            bandwidth = read_bandwidth(threads)
            cases: list[tuple[Kind, int]] = [("decode", context) for context in plan.contexts]
            cases = [("prompt", tokens) for tokens in plan.prompts] + cases
            for kind, size in cases:
                say(f"{kind} {size}, {_threads(threads)}")
                _case(result, workers, plan, kind, size, bandwidth)
            result.loaded += [_loaded(worker) for worker in workers]
    return result


def _worker(engine: Engine, threads: int, room: int) -> Any:
    from nanochat_tui.bench.worker import Worker

    return Worker(
        engine.name,
        engine.path,
        threads,
        engine.kernel,
        positions=room,
        speculation=engine.speculation,
        kv=engine.kv,
        activations=engine.activations,
    )


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _loaded(worker: Any) -> Loaded:
    ready = worker.ready
    return Loaded(
        worker.engine,
        worker.path.name,
        worker.threads,
        ready["kernel"],
        ready["load_seconds"],
        ready["rss_bytes"],
        max(ready["peak_rss_bytes"], getattr(worker, "peak", 0)),
    )


def _case(result: Result, workers: Sequence[Any], plan: Plan, kind: Kind, size: int, bandwidth: float) -> None:
    """Let every worker do one kind of run in turns, and add a row for each."""
    vocabulary = min(worker.ready["vocabulary"] for worker in workers)
    amounts: dict[Any, int] = {}
    for worker in workers:
        probe = 1.0 if kind == "prompt" else _probe(worker, kind, vocabulary, min(size, 4))
        wanted = size if kind == "prompt" else plan.tokens
        # to decode behind a context, the context must be read first, and a prompt's speed tells how long that takes
        preparing = size / _reading(worker, vocabulary, size, plan.limit)
        if preparing > plan.limit:
            result.skipped.append(
                f"{worker.engine}, {kind} {size} with {_threads(worker.threads)}: reading {size} tokens would take "
                f"{preparing:.0f} s, and a run may take {plan.limit:.0f} s (--limit)"
            )
            continue
        amounts[worker] = wanted if kind == "prompt" else max(4, min(wanted, int(plan.seconds * probe)))
        if kind == "decode":
            worker.run(kind, size, tokens=2, seed=1, vocabulary=vocabulary)  # fills the context, once
    rates: dict[Any, list[float]] = {worker: [] for worker in amounts}
    counts: dict[Any, int] = dict.fromkeys(amounts, 0)
    drafts = {worker: np.zeros(2, np.int64) for worker in amounts}
    for repeat in range(plan.repeats):
        for worker, amount in amounts.items():
            # a prompt must be new to the engine; what is decoded behind may be the same
            seed = 100 + repeat if kind == "prompt" else 1
            found = worker.run(kind, size, tokens=amount, seed=seed, vocabulary=vocabulary)
            worker.peak = found["peak_rss_bytes"]
            drafts[worker] += (found["drafted"], found["accepted"])
            if found["tokens"] and found["seconds"] > 0:
                rates[worker].append(found["tokens"] / found["seconds"])
                counts[worker] = max(counts[worker], found["tokens"])
    for worker, found_rates in rates.items():
        if not found_rates:
            raise UserError(f"{worker.engine} wrote nothing behind {size} tokens; try another --context")
        result.rows.append(_row(worker, kind, size, counts[worker], found_rates, bandwidth, drafts[worker]))


def _reading(worker: Any, vocabulary: int, size: int, limit: float) -> float:
    """Return a first estimate of the tokens that are read per second, from few of them where that is slow."""
    rate = _probe(worker, "prompt", vocabulary, min(size, 4))
    if size / rate > limit > 32 / rate:  # few tokens make poor use of an engine that reads many together
        rate = _probe(worker, "prompt", vocabulary, min(size, 32))
    return rate


def _probe(worker: Any, kind: Kind, vocabulary: int, size: int) -> float:
    """Return a first estimate of tokens per second."""
    found = worker.run(kind, size, tokens=4, seed=7 if kind == "decode" else 8, vocabulary=vocabulary)
    return float(max(found["tokens"], 1) / max(found["seconds"], 1e-6))


def _row(
    worker: Any,
    kind: Kind,
    size: int,
    tokens: int,
    rates: list[float],
    bandwidth: float,
    drafts: NDArray[np.int64],
) -> Row:
    median = statistics.median(rates)
    moved = 0
    if kind == "decode":
        moved = worker.ready["bytes_per_token"] + worker.ready["kv_bytes"] * (size + tokens // 2)
    return Row(
        engine=worker.engine,
        kind=kind,
        tokens=tokens,
        context=size if kind == "prompt" else size + tokens,
        threads=worker.threads,
        tps=median,
        tps_min=min(rates),
        tps_max=max(rates),
        runs=len(rates),
        bytes_per_token=moved,
        bandwidth_gbps=bandwidth / 1e9,
        bandwidth_share=median * moved / bandwidth if moved else None,
        drafted=int(drafts[0]),
        accepted=int(drafts[1]),
    )


def thread_counts(most: int) -> list[int]:
    """Return 1, 2, 4 … and `most` itself."""
    counts = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*counts, most]


def read_bandwidth(threads: int, nbytes: int = READ_BYTES) -> float:
    """Return bytes per second that so many threads read together from memory, each its own part, once."""
    parts = np.array_split(np.ones(nbytes, np.uint8), threads)
    best = float("inf")
    for _ in range(4):
        start = threading.Barrier(threads + 1)
        done = threading.Barrier(threads + 1)

        def read(part: Any, start: threading.Barrier = start, done: threading.Barrier = done) -> None:
            start.wait()
            part.max()  # one vector instruction per 64 bytes, and no lock held
            done.wait()

        workers = [threading.Thread(target=read, args=(part,)) for part in parts]
        for worker in workers:
            worker.start()
        start.wait()
        began = time.perf_counter()
        done.wait()
        best = min(best, time.perf_counter() - began)
        for worker in workers:
            worker.join()
    return nbytes / best
