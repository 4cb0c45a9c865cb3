"""Short prompts and running replies next to a long prompt, on the wire: what `server.py --long` measures."""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

SHORT, REPLY = 64, 96
"""Tokens of a short prompt, and of the reply that runs next to the long one."""
IDS = (1000, 40_000)
"""Ids from which prompts are drawn: any vocabulary that is measured has them."""
BETWEEN = 0.35
"""Seconds between short prompts."""


@dataclass
class Mixed:
    """Seconds, and tokens per second of everything together."""

    server: str
    short_alone: list[float] = field(default_factory=list)
    short_next_to_long: list[float] = field(default_factory=list)
    gaps_alone: list[float] = field(default_factory=list)
    gaps_next_to_long: list[float] = field(default_factory=list)
    long_alone: float = 0.0
    total: list[float] = field(default_factory=list)


class Wire:
    """One client, with prompts of its own, the same in every run: nothing is found in the server's cache."""

    def __init__(self, url: str, seed: int) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=200)
        self._random = np.random.default_rng(seed)

    def ask(self, tokens: int, reply: int) -> list[float]:
        """Return when the request was sent and when each token came. Raises SystemExit if the server refuses."""
        body = {
            "prompt": self._random.integers(*IDS, tokens).tolist(), "max_tokens": reply, "stream": True,
            "temperature": 1.0, "seed": int(self._random.integers(1 << 30)), "logprobs": 0,
        }  # fmt: skip
        times = [time.perf_counter()]
        self._connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"the server refused: {answer.read(300)!r}")
        for line in answer:
            if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                times.append(time.perf_counter())
        return times


def gaps(times: Sequence[float], begin: float, end: float) -> list[float]:
    """Return the seconds between tokens that came after `begin` and before `end`; the first one has none."""
    came = [at for at in times[1:] if begin <= at <= end]
    return [b - a for a, b in itertools.pairwise(came)]


def measure_mixed(url: str, name: str, long: int, repeats: int) -> Mixed:
    """Measure everything `repeats` times, alone and next to a prompt of `long` tokens."""
    found, wire = Mixed(name), Wire(url, 1)
    wire.ask(SHORT, 8)
    for _ in range(2 * repeats):
        times = wire.ask(SHORT, 1)
        found.short_alone.append(times[1] - times[0])
    times = wire.ask(SHORT, REPLY)
    found.gaps_alone = gaps(times, 0.0, float("inf"))
    times = wire.ask(long, 1)
    found.long_alone = times[1] - times[0]
    for turn in range(repeats):
        _shorts_next_to_long(url, long, turn, found)
        _reply_next_to_long(url, long, turn, found)
        found.total.append(_everything(url, long, turn))
    return found


def _shorts_next_to_long(url: str, long: int, turn: int, found: Mixed) -> None:
    over = threading.Event()

    def read() -> None:
        Wire(url, 100 + turn).ask(long, 1)
        over.set()

    reader = threading.Thread(target=read)
    reader.start()
    wire, phase = Wire(url, 200 + turn), np.random.default_rng(turn)
    while not over.wait(BETWEEN + phase.random() * BETWEEN):
        times = wire.ask(SHORT, 1)
        if not over.is_set():
            found.short_next_to_long.append(times[1] - times[0])
    reader.join()


def _reply_next_to_long(url: str, long: int, turn: int, found: Mixed) -> None:
    written: list[float] = []
    writer = threading.Thread(target=lambda: written.extend(Wire(url, 300 + turn).ask(SHORT, 4 * REPLY)))
    writer.start()
    time.sleep(0.5)
    times = Wire(url, 400 + turn).ask(long, 1)
    writer.join()
    found.gaps_next_to_long += gaps(written, times[0], times[1])


def _everything(url: str, long: int, turn: int) -> float:
    """Return tokens per second, of prompts and replies, of a long prompt, a reply and shorts that come together."""
    work = [(long, 1), (SHORT, REPLY), *[(SHORT, 8)] * 4]
    threads = [
        threading.Thread(target=Wire(url, 1000 * (turn + 1) + number).ask, args=asked)
        for number, asked in enumerate(work)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(map(sum, work)) / (time.perf_counter() - began)


def as_text(one: Mixed) -> str:
    """Return what was found, with every run."""

    def line(what: str, values: Sequence[float]) -> str:
        runs = " ".join(f"{value * 1e3:.0f}" for value in values[:20])
        return (
            f"  {what:<32} median {statistics.median(values) * 1e3:7.1f} ms  max {max(values) * 1e3:7.1f} ms  ({runs})"
        )

    alone, mixed = statistics.median(one.short_alone), statistics.median(one.short_next_to_long)
    calm, stirred = statistics.median(one.gaps_alone), statistics.median(one.gaps_next_to_long)
    totals = " ".join(f"{value:.0f}" for value in one.total)
    return "\n".join([
        one.server,
        line("first token of a short, alone", one.short_alone),
        line("the same next to a long prompt", one.short_next_to_long) + f"  {mixed / alone:.1f} times",
        line("gap of a running reply, alone", one.gaps_alone),
        line("the same next to a long prompt", one.gaps_next_to_long) + f"  {stirred / calm:.1f} times",
        f"  long prompt alone {one.long_alone:.2f} s; all together {statistics.median(one.total):.0f} tok/s ({totals})",
    ])  # fmt: skip
