"""Batches per second of the trainer's loader: in the loop, in threads, in processes; alone and next to a busy loop.

The loop stands for a training step: products in PyTorch, which release the interpreter's lock. Prints the share of the
time it waits for batches. Data are the package's source files; --fim rearranges a quarter of them for filling in.

    python benchmarks/loader.py [--tokens 20000000] [--batch 16] [--length 512] [--batches 200] [--fim]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nanochat_tui
from nanochat_tui.model.shipped import shipped_tokenizer
from nanochat_tui.model.tokenizer import load_tokenizer
from nanochat_tui.runs.config import parse_config
from nanochat_tui.train.data import BatchLoader
from nanochat_tui.train.infill import make_infill
from nanochat_tui.train.prefetch import PrefetchLoader

END = 50256
STATE: dict[str, BatchLoader] = {}


def write_tokens(path: Path, count: int) -> None:
    """The package's own source files as documents, again and again until there are `count` tokens."""
    tokenizer = load_tokenizer(shipped_tokenizer() or Path())
    sources = sorted(Path(nanochat_tui.__file__).parent.rglob("*.py"))
    texts = [source.read_text(encoding="utf-8") for source in sources]
    ids = [i for found in tokenizer.encode_batch_fast(texts) for i in (END, *found.ids)]
    np.resize(np.array(ids, "<u2"), count).tofile(path)


def make_loader(options: dict[str, Any]) -> BatchLoader:
    tokens = np.memmap(options["path"], "<u2", "r")
    config = parse_config({"dataset": "synthetic", "context_length": options["length"], "batch_size": options["batch"]})
    infill = None
    if options["fim"]:
        tokenizer = load_tokenizer(shipped_tokenizer() or Path())
        infill = make_infill(tokenizer, tokens, END, (0.25, 0.5, 0))
    return BatchLoader(tokens, config, END, infill)


def open_in_process(options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    STATE["loader"] = make_loader(options)
    STATE["loader"].plan(0)


def batch_in_process(index: int) -> tuple[Any, Any]:
    inputs, targets = STATE["loader"].batch_at(index)
    return inputs.numpy(), targets.numpy()


def measure(get: Callable[[int], object], count: int, step_seconds: float, work: torch.Tensor) -> dict[str, float]:
    """Seconds of the loop and of waiting in it; with `step_seconds`, products are computed between batches."""
    waited = 0.0
    began = time.perf_counter()
    for index in range(count):
        before = time.perf_counter()
        get(index)
        waited += time.perf_counter() - before
        until = time.perf_counter() + step_seconds
        while step_seconds and time.perf_counter() < until:
            work @ work
    return {"batches_per_s": count / (time.perf_counter() - began), "ms_waited": 1e3 * waited / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--step-ms", type=float, default=20.0, help="Time of a training step to imitate.")
    parser.add_argument("--ahead", type=int, default=12)
    parser.add_argument("--fim", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = torch.randn(256, 256)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        write_tokens(path, arguments.tokens)
        options = {"path": str(path), "length": arguments.length, "batch": arguments.batch, "fim": arguments.fim}
        for kind, workers in (("loop", 0), ("threads", 1), ("threads", 2), ("processes", 1), ("processes", 2)):
            for step in (0.0, arguments.step_ms / 1e3):
                rows.append({"kind": kind, "workers": workers, "step_ms": 1e3 * step})
                rows[-1] |= one(kind, workers, options, arguments, step, work)
                if not arguments.json:
                    print(
                        "{kind:<10} {workers} workers, step {step_ms:4.0f} ms: {batches_per_s:8.1f} batches/s, "
                        "waited {ms_waited:.3f} ms for each".format(**rows[-1])
                    )
    if arguments.json:
        print(json.dumps(rows, indent=1))


def one(
    kind: str, workers: int, options: dict[str, Any], arguments: Any, step: float, work: torch.Tensor
) -> dict[str, float]:
    if kind == "processes":
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, open_in_process, (options,)) as pool:
            waiting = deque(pool.submit(batch_in_process, n) for n in range(arguments.ahead))
            waiting[0].result()
            number = iter(range(arguments.ahead, 10**9))

            def get(_: int) -> object:
                waiting.append(pool.submit(batch_in_process, next(number)))
                return waiting.popleft().result()

            return measure(get, arguments.batches, step, work)
    loader = make_loader(options)
    loader.plan(0)
    if kind == "loop":
        return measure(loader.batch_at, arguments.batches, step, work)
    ahead = PrefetchLoader(loader, workers=workers, ahead=arguments.ahead)
    try:
        return measure(ahead.batch_at, arguments.batches, step, work)
    finally:
        ahead.close()


if __name__ == "__main__":
    main()
