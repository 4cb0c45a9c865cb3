"""Speed next to programs that want the same processors: what `engine.py --busy` measures.

Every side is a process of its own that has loaded the model and waits for orders, so that sides take turns run by run
while the same competing processes run. Sides of another checkout show what a change brought.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 1.2
"""Seconds of runs that are not counted after the number of competing processes has changed."""
SETTLED = 2.0
"""Seconds of runs at the beginning, after which what is made next to the first replies (a screen) is there."""
SPIN = "while True:\n    pass"


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared: threads 0 is the default setting. tree: the checkout whose engine runs; None: llama.cpp."""

    name: str
    threads: int
    tree: Path | None
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens per second of every run of one side; kind is "decode" or "prompt"."""

    side: str
    kind: str
    busy: int
    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.runs)


class Runner:
    """A side's process. Raises RuntimeError if it ends before it has answered."""

    def __init__(self, side: Side, model: Path, prompt: int, tokens: int) -> None:
        self.side = side
        environment = dict(os.environ)
        if side.tree is not None:
            environment["PYTHONPATH"] = str(side.tree)
        orders = [str(model), str(side.threads), str(prompt), str(tokens), "peer" if side.tree is None else "ours"]
        self._process = subprocess.Popen(
            [side.python, "-P", __file__, *orders],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip

    def run(self, kind: str) -> dict[str, Any]:
        """Return {"tps": …} of one run, and what the engine counted."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(kind + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.side.name} ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


@contextmanager
def competing(count: int) -> Iterator[None]:
    """Let so many processes spin meanwhile."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def warm(runner: Runner, kind: str, seconds: float) -> None:
    """Run without counting, so that the engine meets the load before it is measured."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        runner.run(kind)


def compare(
    sides: Sequence[Side], model: Path, busy: Sequence[int], repeats: int, prompt: int, tokens: int
) -> list[Measured]:
    """Measure all sides in turns at each number of competing processes."""
    found = []
    with ExitStack() as stack:
        runners = [Runner(side, model, prompt, tokens) for side in sides]
        for runner in runners:
            stack.callback(runner.close)
        for runner in runners:
            warm(runner, "decode", SETTLED)
        for kind in ("decode", "prompt"):
            for runner in runners:
                runner.run(kind)
            for count in busy:
                with competing(count):
                    for runner in runners:
                        warm(runner, kind, WARM_UP if runner.side.threads == 0 else 0)
                    runs: dict[str, list[float]] = {side.name: [] for side in sides}
                    for _ in range(repeats):
                        for runner in runners:
                            runs[runner.side.name].append(runner.run(kind)["tps"])
                found += [Measured(name, kind, count, tuple(values)) for name, values in runs.items()]
                for one in found[-len(sides) :]:
                    print(f"{kind}, {count} competing, {one.side}: {one.median:.4g} tok/s", file=sys.stderr, flush=True)
    return found


def recovery_seconds(side: Side, model: Path, prompt: int, tokens: int) -> list[tuple[float, float]]:
    """Return (seconds since the load ended, tokens per second) of decoding runs after one process competed."""
    runner = Runner(side, model, prompt, tokens)
    try:
        with competing(1):
            warm(runner, "decode", 2 * WARM_UP)
        began, found = time.perf_counter(), []
        while time.perf_counter() - began < 2 * WARM_UP:
            tps = runner.run("decode")["tps"]
            found.append((time.perf_counter() - began, tps))
    finally:
        runner.close()
    return found


def as_markdown(found: Sequence[Measured], default: str, fixed: Sequence[str]) -> str:
    """Return a table of medians and runs; the last column is the default's share of the best of `fixed`."""
    lines = ["| competing | what | side | tok/s | runs | default / best fixed |", "|---:|---|---|---:|---|---:|"]
    for one in found:
        rivals = [o.median for o in found if (o.kind, o.busy) == (one.kind, one.busy) and o.side in fixed]
        share = f"{one.median / max(rivals):.2f}" if one.side == default and rivals else ""
        runs = " ".join(f"{value:.4g}" for value in one.runs)
        lines.append(f"| {one.busy} | {one.kind} | {one.side} | {one.median:.4g} | {runs} | {share} |")
    return "\n".join(lines)


def serve_ours(path: str, threads: int, prompt: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Answer orders with this engine, whichever checkout it is of."""
    from nanochat_tui import load  # what every checkout has

    model = load(path, threads=threads or None, speculation="off")
    vocab = model.config.vocab_size
    for turn, order in enumerate(sys.stdin):
        length = prompt if order.strip() == "prompt" else 16
        ids = [(turn * 31 + n * 7919) % (vocab - 300) + 200 for n in range(length)]
        began = time.perf_counter()
        reply = model.generate(ids, max_tokens=1 if length == prompt else tokens, temperature=0, logprobs=False)
        next(reply)
        first = time.perf_counter()
        if length == prompt:
            yield {"tps": length / (first - began)}
        else:
            count = sum(1 for _ in reply)
            yield {"tps": count / (time.perf_counter() - first)}


def serve_peer(path: str, threads: int, prompt: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Answer orders with llama.cpp."""
    from llama_cpp import Llama

    count = threads or (os.cpu_count() or 1)
    peer = Llama(path, n_ctx=max(512, prompt + tokens), n_threads=count, n_threads_batch=count, verbose=False)
    vocab = peer.n_vocab()
    for turn, order in enumerate(sys.stdin):
        length = prompt if order.strip() == "prompt" else 16
        ids = [(turn * 31 + n * 7919) % (vocab - 300) + 200 for n in range(length)]
        peer.reset()
        began = time.perf_counter()
        peer.eval(ids)
        if length == prompt:
            yield {"tps": length / (time.perf_counter() - began)}
            continue
        began = time.perf_counter()
        for _ in range(tokens):
            peer.eval([peer.sample(temp=0.0)])
        yield {"tps": tokens / (time.perf_counter() - began)}


if __name__ == "__main__":
    model_path, *numbers, who = sys.argv[1:]
    answer = serve_ours if who == "ours" else serve_peer
    for row in answer(model_path, *map(int, numbers)):
        print(json.dumps(row), flush=True)
