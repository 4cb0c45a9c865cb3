"""Hours of use in minutes: replies begun, cancelled, edited and branched at random from several threads at once.

    python benchmarks/soak.py [MODEL.gguf] [--minutes 10] [--workers 4] [--threads N] [--seed 0]

The key-value cache is of 16-bit floats or of int8, at random. Replies are cancelled behind some token, and by a timer
at any moment, as in the middle of a prompt. Every reply is compared, token and probability, with that of a fresh
session of a second engine with one thread without drafts. At the end memory has to be what it was after the first
minute, and nothing may be left in use. Exit code 1 if anything was wrong.
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

from nanochat_tui.engine.generate.model import Model, load
from nanochat_tui.engine.generate.scheduler import Batcher, QueueFull
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.engine.run.kv_cache import CacheType
from nanochat_tui.request import Token

DEFAULT = Path(__file__).parents[1] / "exported_models" / "d20-rust.gguf"
LEAK_BYTES = 64 << 20
"""Growth of memory that is still no leak: allocators keep some, and the longest context comes at random."""
TEXTS = 4
USES = ("start", "edit", "branch", "cancel", "interrupt", "abandon")
"""What is done with a session."""
KINDS_OF_CACHE: tuple[CacheType, ...] = ("f16", "int8")
Found = list[tuple[int | None, float | None]]


@dataclass
class Engines:
    """One file loaded twice with one kind of key-value cache: to be used by many, and to compare with."""

    model: Model
    reference: Model
    batcher: Batcher


@dataclass
class Soak:
    """What all workers share. pairs: an engine for each kind of cache."""

    pairs: list[Engines]
    deadline: float
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    longest: float = 0.05
    """Seconds that a whole reply takes, about: when it may be interrupted."""
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
    chosen["logprobs"] = rng.random() < 0.5
    if rng.random() < 0.3:
        chosen |= {"top_k": 0, "top_p": 1.0}
    if rng.random() < 0.2:
        chosen["repeat_penalty"] = 1.2
    if rng.random() < 0.2:
        chosen |= {"presence_penalty": 0.5, "frequency_penalty": 0.3}
    return chosen


def told(token: Token, chosen: dict[str, Any]) -> tuple[int | None, float | None]:
    """Return a token's id, and its log-probability if that is asked for."""
    return token.id, token.logprob if chosen["logprobs"] else None


def check(
    soak: Soak, pair: Engines, what: str, prompt: list[int], chosen: dict[str, Any], found: Found, whole: bool
) -> None:
    """Compare a reply, or the beginning of a cancelled one, with that of a fresh session."""
    fresh = Session(pair.reference, speculation="off")
    # the reference computes all logits, which replies that tell no probabilities need not
    wanted = [told(t, chosen) for t in fresh.generate(prompt, **{**chosen, "logprobs": True})]
    if found != (wanted if whole else wanted[: len(found)]):
        soak.fail(f"{what}, {pair.model.kv}: prompt of {len(prompt)}, {chosen}: {found[:5]} … is not {wanted[:5]} …")
    soak.count(replies=1, tokens=len(found), **{what: 1, pair.model.kv: 1})


def use_session(
    soak: Soak, pair: Engines, rng: random.Random, session: Session, prompts: list[list[int]], what: str
) -> tuple[Engines, Session]:
    """Do one of USES with a session of a pair; return the pair and the session to continue."""
    text = rng.choice(prompts)
    prompt = text[: rng.randint(1, len(text) - 10)]
    if what == "edit":
        prompt = prompt[: rng.randint(0, len(prompt))] + [rng.randrange(100) for _ in range(rng.randint(1, 9))]
    if what == "branch":
        session = session.fork()
    if what == "start" and rng.random() < 0.4:
        pair = rng.choice(soak.pairs)
        session = Session(pair.model)
    chosen, stop_at = settings(rng), rng.randint(0, 20)
    cancel, found = threading.Event(), []
    began = time.perf_counter()
    # at any moment: before the prompt, between two of its parts, in a job or between two tokens
    timer = threading.Timer(rng.uniform(0, soak.longest) if what == "interrupt" else 0, cancel.set)
    if what == "interrupt":
        timer.start()
    for token in session.generate(prompt, cancel=cancel, **chosen):
        found.append(told(token, chosen))
        if what == "cancel" and len(found) >= stop_at:
            cancel.set()
        if what == "abandon" and len(found) >= stop_at:
            break
    timer.cancel()
    if what == "interrupt":
        soak.count(**{f"interrupted_{'reply' if found else 'prompt'}": session.finish_reason == "cancelled"})
    elif what == "start":
        soak.longest = 0.9 * soak.longest + 0.1 * (time.perf_counter() - began)
    check(soak, pair, what, prompt, chosen, found, what not in ("cancel", "interrupt", "abandon"))
    return pair, session


def use_batcher(soak: Soak, rng: random.Random, prompts: list[list[int]]) -> None:
    """Send a few requests at once, cancel some of them."""
    requests = []
    pair = rng.choice(soak.pairs)
    for _ in range(rng.randint(1, 5)):
        text = rng.choice(prompts)
        prompt, chosen = text[: rng.randint(1, len(text) - 10)], settings(rng)
        try:
            requests.append((prompt, chosen, pair.batcher.submit(prompt, **chosen)))
        except QueueFull:
            soak.count(full=1)
    for prompt, chosen, stream in requests:
        stop_at = rng.randint(0, 30) if rng.random() < 0.3 else None
        if rng.random() < 0.2:
            threading.Timer(rng.uniform(0, soak.longest), stream.cancel).start()
        found: Found = []
        if stop_at == 0:
            stream.cancel()
        for token in stream:
            found.append(told(token, chosen))
            if len(found) == stop_at:
                stream.cancel()
        check(soak, pair, "batched", prompt, chosen, found, stream.finish_reason != "cancelled")


def worker(soak: Soak, number: int, seed: int) -> None:
    """Use sessions and the batcher until time is over."""
    rng = random.Random(seed * 1000 + number)  # noqa: S311
    pair = rng.choice(soak.pairs)
    session, prompts = Session(pair.model), texts(pair.model)
    waiting: list[str] = []
    try:
        while time.monotonic() < soak.deadline and not soak.errors:
            if rng.random() < 0.5:
                # in random order, and all of them before one comes again: a slow machine does few
                waiting = waiting or rng.sample(USES, len(USES))
                pair, session = use_session(soak, pair, rng, session, prompts, waiting.pop())
            else:
                use_batcher(soak, rng, prompts)
    except BaseException:
        soak.fail(traceback.format_exc())


def run(path: Path, minutes: float, workers: int, threads: int | None, seed: int) -> dict[str, Any]:
    """Return what was done, and the errors."""
    seconds, process = minutes * 60, psutil.Process()
    pairs = []
    for kv in KINDS_OF_CACHE:
        model, reference = load(path, threads=threads, speculation="on", kv=kv), load(path, threads=1, kv=kv)
        pairs.append(Engines(model, reference, Batcher(model, max_sequences=6, max_waiting=4)))
    began = time.monotonic()
    soak = Soak(pairs, began + seconds)
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
    end, states = process.memory_info().rss, [pair.batcher.snapshot() for pair in pairs]
    if end - warm > LEAK_BYTES:
        soak.fail(f"memory grew from {warm >> 20} to {end >> 20} MiB")
    for pair, state in zip(pairs, states, strict=True):
        pair.batcher.close(drain_seconds=10)
        if pair.batcher.snapshot().kv_used_tokens or state.running or state.waiting:
            soak.fail(f"something is left in use: {state}")
    return {
        "seconds": time.monotonic() - began,
        "warm_mib": warm >> 20,
        "end_mib": end >> 20,
        "reused_tokens": sum(state.reused_tokens for state in states),
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
