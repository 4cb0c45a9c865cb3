"""Hours of use in minutes: replies begun, cancelled, edited and branched at random from several threads at once.

    python benchmarks/soak.py [MODEL.gguf] [--minutes 10] [--workers 4] [--threads N] [--seed 0]

Every reply is compared, token and probability, with that of a fresh session of a second engine with one thread that
guesses nothing. At the end memory has to be what it was after the first minute, and nothing may be left in use.
Exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nanochat_tui.engine.batching import Batcher, QueueFull
from nanochat_tui.engine.model import Model, load
from nanochat_tui.engine.session import Session

DEFAULT = Path(__file__).parents[1] / "exported_models" / "d20-rust.gguf"
LEAK_BYTES = 64 << 20
"""Growth of memory that is still no leak: allocators keep some, and the longest context comes at random."""
TEXTS = 4
Found = list[tuple[int, float]]


@dataclass
class Soak:
    """What all workers share."""

    model: Model
    reference: Model
    batcher: Batcher
    deadline: float
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, **what: int) -> None:
        with self.lock:
            self.counts.update(what)

    def fail(self, text: str) -> None:
        with self.lock:
            self.errors.append(text)


def texts(model: Model) -> list[list[int]]:
    """Return a few long token sequences, repetitive in places, that all prompts begin with."""
    made, context, vocab = [], model.config.context_length, model.config.vocab_size
    for seed in range(TEXTS):
        rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
        ids: list[int] = []
        while len(ids) < context:
            part = [rng.randrange(vocab) for _ in range(rng.randint(3, 40))]
            ids += part * rng.randint(1, 4)
        made.append(ids[:context])
    return made


def settings(rng: random.Random) -> dict[str, Any]:
    """Return random settings of a reply."""
    chosen: dict[str, Any] = {"max_tokens": rng.randint(0, 60), "seed": rng.randrange(1000)}
    chosen["temperature"] = rng.choice([0.0, 0.0, 0.7, 1.5])
    if rng.random() < 0.3:
        chosen |= {"top_k": 0, "top_p": 1.0}
    if rng.random() < 0.2:
        chosen["repeat_penalty"] = 1.2
    if rng.random() < 0.2:
        chosen |= {"presence_penalty": 0.5, "frequency_penalty": 0.3}
    return chosen


def check(soak: Soak, what: str, prompt: list[int], chosen: dict[str, Any], found: Found, whole: bool) -> None:
    """Compare a reply, or the beginning of a cancelled one, with that of a fresh session."""
    fresh = Session(soak.reference, speculation="off")
    wanted = [(t.id, t.logprob) for t in fresh.generate(prompt, **chosen)]
    if found != (wanted if whole else wanted[: len(found)]):
        soak.fail(f"{what}: prompt of {len(prompt)}, {chosen}: {found[:5]} … is not {wanted[:5]} …")
    soak.count(replies=1, tokens=len(found), **{what: 1})


def use_session(soak: Soak, rng: random.Random, session: Session, prompts: list[list[int]]) -> Session:
    """Do one random thing with a session; return the session to go on with."""
    what = rng.choice(["start", "edit", "branch", "cancel", "abandon"])
    text = rng.choice(prompts)
    prompt = text[: rng.randint(1, len(text) - 10)]
    if what == "edit":
        prompt = prompt[: rng.randint(0, len(prompt))] + [rng.randrange(100) for _ in range(rng.randint(1, 9))]
    if what == "branch":
        session = session.fork()
    if what == "start" and rng.random() < 0.2:
        session = Session(soak.model)
    chosen, stop_at = settings(rng), rng.randint(0, 20)
    cancel, found = threading.Event(), []
    for token in session.generate(prompt, cancel=cancel, **chosen):
        found.append((token.id, token.logprob))
        if what == "cancel" and len(found) >= stop_at:
            cancel.set()
        if what == "abandon" and len(found) >= stop_at:
            break
    check(soak, what, prompt, chosen, found, what not in ("cancel", "abandon"))
    return session


def use_batcher(soak: Soak, rng: random.Random, prompts: list[list[int]]) -> None:
    """Send a few requests at once, cancel some of them."""
    requests = []
    for _ in range(rng.randint(1, 5)):
        text = rng.choice(prompts)
        prompt, chosen = text[: rng.randint(1, len(text) - 10)], settings(rng)
        try:
            requests.append((prompt, chosen, soak.batcher.submit(prompt, **chosen)))
        except QueueFull:
            soak.count(full=1)
    for prompt, chosen, stream in requests:
        stop_at = rng.randint(0, 30) if rng.random() < 0.3 else None
        found: Found = []
        if stop_at == 0:
            stream.cancel()
        for token in stream:
            found.append((token.id, token.logprob))
            if len(found) == stop_at:
                stream.cancel()
        check(soak, "batched", prompt, chosen, found, stream.finish_reason != "cancelled")


def worker(soak: Soak, number: int, seed: int) -> None:
    """Use sessions and the batcher until time is over."""
    rng, prompts = random.Random(seed * 1000 + number), texts(soak.model)  # noqa: S311
    session = Session(soak.model)
    try:
        while time.monotonic() < soak.deadline and not soak.errors:
            if rng.random() < 0.5:
                session = use_session(soak, rng, session, prompts)
            else:
                use_batcher(soak, rng, prompts)
    except BaseException:
        soak.fail(traceback.format_exc())


def run(path: Path, minutes: float, workers: int, threads: int | None, seed: int) -> dict[str, Any]:
    """Return what was done, and the errors."""
    seconds, process = minutes * 60, psutil.Process()
    model, reference = load(path, threads=threads, speculation="on"), load(path, threads=1)
    batcher = Batcher(model, max_sequences=6, max_waiting=4)
    began = time.monotonic()
    soak = Soak(model, reference, batcher, began + seconds)
    running = [threading.Thread(target=worker, args=(soak, n, seed), daemon=True) for n in range(workers)]
    for thread in running:
        thread.start()
    time.sleep(min(60.0, seconds / 3))
    warm = process.memory_info().rss
    for thread in running:
        thread.join(seconds + 300)
        if thread.is_alive():
            soak.fail("a worker hangs")
    gc.collect()
    end, state = process.memory_info().rss, batcher.snapshot()
    if end - warm > LEAK_BYTES:
        soak.fail(f"memory grew from {warm >> 20} to {end >> 20} MiB")
    batcher.close(drain_seconds=10)
    if batcher.snapshot().kv_used_tokens or state.running or state.waiting:
        soak.fail(f"something is left in use: {state}")
    return {
        "seconds": time.monotonic() - began,
        "warm_mib": warm >> 20,
        "end_mib": end >> 20,
        "reused_tokens": state.reused_tokens,
        **soak.counts,
        "errors": soak.errors,
    }


def main() -> None:
    """Parse the command line, print a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = run(options.model, options.minutes, options.workers, options.threads, options.seed)
    print(json.dumps(result, indent=2))
    sys.exit(1 if result["errors"] else 0)


if __name__ == "__main__":
    main()
