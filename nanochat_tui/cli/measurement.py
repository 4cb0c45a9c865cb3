"""Measuring a model's speed on this machine, through the same session that chat uses."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nanochat_tui.engine.model import Model, load
from nanochat_tui.engine.session import Session
from nanochat_tui.errors import UserError

PROMPT = 'fn main() {\n    let values: Vec<u32> = (0..10).collect();\n    println!("{:?}", values);\n}\n'
REPEATS = 3
"""Runs per row; the fastest counts, because whatever disturbs a run only makes it slower."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured speed, in tokens per second. `context` is the number of positions filled at the end."""

    kind: Literal["prompt", "decode"]
    tokens: int
    context: int
    threads: int
    tps: float
    bytes_per_token: int
    """Bytes of weights that one token of decoding must read; 0 for prompts, where a block of tokens shares them."""
    bandwidth_share: float | None
    """Of the measured copying speed; above 1 where the weights stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Result:
    """All that `bench` reports."""

    model: str
    kernel: str
    load_seconds: float
    peak_rss_bytes: int
    bandwidth_gbps: float
    rows: list[Row]

    def as_json(self) -> dict[str, object]:
        """Return a JSON-ready object."""
        return asdict(self)


def measure(path: Path, threads: int | None, tokens: int, say: Callable[[str], None]) -> Result:
    """Load `path` and measure it with `threads`, or with one, two, four … threads up to all."""
    began = time.perf_counter()
    model = load(path, threads=threads, progress=say)
    seconds = time.perf_counter() - began
    speeds: list[_Speeds] = []
    for count in [threads] if threads is not None else thread_counts(model.threads):
        if count != model.threads:
            model = load(path, threads=count)
        say(f"measuring with {count} thread{'s' if count > 1 else ''}")
        speeds.append(_run(model, count, tokens))
    memory = peak_rss()  # before the buffers that are copied next
    say("measuring how fast memory is copied")
    bandwidth = copy_bandwidth()
    rows: list[Row] = []
    for speed in speeds:
        share = speed.decode_tps * model.bytes_per_token / bandwidth
        rows.append(Row("prompt", speed.prompt_tokens, speed.prompt_tokens, speed.threads, speed.prompt_tps, 0, None))
        rows.append(
            Row(
                "decode",
                speed.decode_tokens,
                speed.context,
                speed.threads,
                speed.decode_tps,
                model.bytes_per_token,
                share,
            )
        )
    return Result(path.name, model.kernel, seconds, memory, bandwidth / 1e9, rows)


def thread_counts(most: int) -> list[int]:
    """Return 1, 2, 4 … and `most` itself."""
    counts = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*counts, most]


@dataclass(slots=True)
class _Speeds:
    """The best of several runs."""

    threads: int
    prompt_tokens: int
    prompt_tps: float = 0.0
    decode_tokens: int = 0
    decode_tps: float = 0.0
    context: int = 0


def _run(model: Model, threads: int, tokens: int) -> _Speeds:
    tokens = max(1, min(tokens, model.config.context_length // 2))
    ids = model.encode(PROMPT)
    if not ids:
        raise UserError("The tokenizer makes nothing of the text that bench reads; check it with inspect.")
    ids = (ids * (tokens // len(ids) + 1))[:tokens]
    session = Session(model)
    best = _Speeds(threads, tokens)
    for repeat in range(REPEATS):
        # Another first token each time, so that nothing of the cache can be used again.
        for _ in session.generate([ids[repeat % len(ids)], *ids[1:]], max_tokens=tokens, temperature=1.0, seed=repeat):
            pass
        stats = session.stats
        if stats.prompt_seconds > 0:
            best.prompt_tps = max(best.prompt_tps, stats.prompt_tokens / stats.prompt_seconds)
        if stats.decode_seconds > 0 and stats.generated_tokens / stats.decode_seconds > best.decode_tps:
            best.decode_tps = stats.generated_tokens / stats.decode_seconds
            best.decode_tokens, best.context = stats.generated_tokens, session.position
    return best


def copy_bandwidth(megabytes: int = 128) -> float:
    """Return bytes per second that one thread moves when it copies memory; each byte counts as read and as written."""
    source = np.ones(megabytes << 20, np.uint8)
    target = np.zeros_like(source)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


def peak_rss() -> int:
    """Return the most memory this process ever held, in bytes."""
    if os.name == "posix":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    import psutil

    return int(psutil.Process().memory_info().peak_wset)
