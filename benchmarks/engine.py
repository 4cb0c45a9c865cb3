"""Speed of the engine on one model: start, prompt and decode, by threads and kernels.

    python benchmarks/engine.py [MODEL] [--threads 1,2] [--kernels avx512-vnni,avx2] [--json]

Start times are of fresh processes, from the interpreter's start to the first token: cold with an empty
cache of compiled code, warm with a filled one. Rates are the best of several runs, because whatever else runs on the
machine only makes a run slower; the load average is printed so that a busy machine shows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nanochat_tui.engine.compile_cache import ENVIRONMENT
from nanochat_tui.engine.dispatch import available_kernels
from nanochat_tui.engine.model import load
from nanochat_tui.engine.session import Session
from nanochat_tui.model.shipped import shipped_model

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (16, 128, 512, 1024)
DECODED = 64
REPEATS = 7
START_SCRIPT = """
import sys
from nanochat_tui.engine.model import load
next(load(sys.argv[1], kernel=sys.argv[2], threads=1).generate("fn main() {", max_tokens=1))
"""


def first_token_seconds(path: Path, kernel: str) -> dict[str, float]:
    """Return seconds to the first token of a new process, cold and warm."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, ENVIRONMENT: cache, "PYTHONPATH": str(ROOT)}
        for kind in ("cold", "warm", "warm", "warm"):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", START_SCRIPT, str(path), kernel], env=environment, check=True)
            found[kind] = min(found.get(kind, float("inf")), time.perf_counter() - began)
    return found


def rates(path: Path, kernel: str, threads: int) -> list[dict[str, float]]:
    """Return prompt and decode tokens per second by prompt length."""
    model = load(path, kernel=kernel, threads=threads)
    session, rng, rows = Session(model), np.random.default_rng(0), []
    for length in PROMPTS:
        if length + DECODED > model.config.context_length:
            break
        prompt = decode = 0.0
        for repeat in range(REPEATS):
            ids = rng.integers(0, model.config.vocab_size, length).tolist()
            for _ in session.generate(ids, max_tokens=DECODED, temperature=1.0, seed=repeat):
                pass
            stats = session.stats
            prompt = max(prompt, stats.prompt_tokens / stats.prompt_seconds)
            if stats.generated_tokens > DECODED // 2:
                decode = max(decode, stats.generated_tokens / stats.decode_seconds)
        rows.append({"context": length, "prompt_tps": prompt, "decode_tps": decode})
    model.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=shipped_model())
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--kernels", default=available_kernels()[0].name)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.model is None:
        parser.error("there is no shipped model here; name a GGUF file")
    result: dict[str, object] = {"model": options.model.name, "load_average": os.getloadavg()[0], "kernels": {}}
    for kernel in options.kernels.split(","):
        start = first_token_seconds(options.model, kernel)
        rows = {int(t): rates(options.model, kernel, int(t)) for t in options.threads.split(",")}
        result["kernels"][kernel] = {"first_token_seconds": start, "rates": rows}  # type: ignore[index]
        if options.json:
            continue
        print(f"{options.model.name}, {kernel}, load average {result['load_average']:.1f}")
        print(f"  first token: {start['cold']:.2f} s cold, {start['warm']:.2f} s warm")
        for threads, found in rows.items():
            for row in found:
                shown = f"prompt {row['prompt_tps']:8.0f} tok/s   decode {row['decode_tps']:7.0f} tok/s"
                print(f"  {threads} threads, context {row['context']:5d}: {shown}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
