"""Long replies of the d20 shape (or another) to the last bit, whatever the number of threads and the way of running.

    python benchmarks/identity.py [--tokens 10000] [--threads 1,2,3] [--shape NAME] [--folder DIR]

A seeded reply is drawn in ordinary bursts with each number of threads, and once more with draft tokens, which may never
change it: ids and log probabilities have to agree. Then the whole text is a prompt, in chunks with each number of
threads and its last tokens one by one, and the last logits have to agree. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from models import SHAPES, write_model
from numpy.typing import NDArray

from nanochat_tui.engine.generate.model import Model, load
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.generate.speculation import Mode
from nanochat_tui.engine.run.executor import CHUNK
from nanochat_tui.engine.run.kv_cache import KVCache

PROMPT = [1, 2, 3]
Reply = tuple[list[int], list[float]]


def draw(model: Model, tokens: int, speculation: Mode, *, screened: bool = False) -> Reply:
    """Return ids and log probabilities of a seeded reply; without the latter the output table may be screened."""
    session = Session(model, speculation=speculation)
    drawn = list(session.generate(PROMPT, max_tokens=tokens, temperature=1.0, top_k=40, seed=1, logprobs=not screened))
    return [token.id for token in drawn], [token.logprob for token in drawn]


def check_screened(threads: int, path: Path, wanted: list[int]) -> bool:
    """Return whether a reply without log probabilities differs."""
    model = load(path, threads=threads)
    found, _ = draw(model, len(wanted), "off", screened=True)
    screen = model.executor.screening
    used = "screened" if screen is not None and screen.screen is not None else "not screened"
    print(f"{threads} threads, output table {used}: {'same' if found == wanted else 'DIFFERENT'}", flush=True)
    model.close()
    return found != wanted


def last_logits(model: Model, ids: list[int], sizes: list[int]) -> NDArray[np.float32]:
    """Run a text in parts of these sizes; return the logits after the last part's tokens, float32 [size, vocab]."""
    cache, start = KVCache(model.config, len(ids), model.kv), 0
    for size in sizes[:-1]:
        model.executor.run(cache, np.array(ids[start : start + size]), start)
        start += size
    return model.executor.logits(cache, np.array(ids[start:]), start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--threads", default="1,2,3")
    parser.add_argument("--shape", choices=SHAPES, default="d20")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    shape = replace(SHAPES[options.shape], context=options.tokens + len(PROMPT) + 1)
    path = write_model(options.folder / f"{options.shape}-context-{shape.context}.gguf", shape)
    threads = [int(part) for part in options.threads.split(",")]
    wanted: Reply | None = None
    failures = 0
    runs: list[tuple[int, Mode]] = [*((count, "off") for count in threads), (threads[-1], "on")]
    for count, speculation in runs:
        model = load(path, threads=count)
        began = time.perf_counter()
        found = draw(model, options.tokens, speculation)
        seconds = time.perf_counter() - began
        model.close()
        wanted = wanted or found
        digest = hashlib.sha256(np.array(found[0]).tobytes() + np.array(found[1]).tobytes()).hexdigest()[:16]
        same = found == wanted and len(found[0]) == options.tokens
        failures += not same
        print(
            f"{count} threads, guesses {speculation}: {len(found[0]):,} tokens in {seconds:.0f} s, {digest} "
            f"{'same' if same else 'DIFFERENT'}",
            flush=True,
        )
        if speculation == "off":
            failures += check_screened(count, path, wanted[0])
    assert wanted is not None
    ids = PROMPT + wanted[0]
    rest = len(ids) % CHUNK or CHUNK
    whole = [CHUNK] * ((len(ids) - rest) // CHUNK)
    one = load(path, threads=1)
    reference = last_logits(one, ids, [*whole, *[1] * (rest - 1), 1])
    for count in threads:
        model = load(path, threads=count)
        same = np.array_equal(last_logits(model, ids, [*whole, rest])[-1:], reference)
        failures += not same
        print(f"{count} threads, as a prompt: the last logits are {'the same' if same else 'DIFFERENT'}", flush=True)
        model.close()
    one.close()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
