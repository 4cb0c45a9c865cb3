"""What several replies at once bring, in the engine alone: tokens per second of 1, 4 and 16 sequences in one batcher.

    python benchmarks/batch.py [--shapes d20,2b4t] [--model FILE] [--sequences 1,4,16] [--threads 1,2] [--json FILE]

The numbers of sequences take turns, round by round, so that a machine that slows down slows all of them; what counts
is the median of the rounds' ratios to one sequence. Only decoding is timed: from when every sequence has its first
token, drafts off, and no token ends a reply. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from engine import model_file

from nanochat_tui.bench.worker import random_ids
from nanochat_tui.cli.bench import sizes
from nanochat_tui.engine.generate.model import Model, load
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.engine.layout.slots import HEAD_ROWS
from nanochat_tui.errors import UserError
from nanochat_tui.model.tokenizer import TextCodec


@dataclass(frozen=True, slots=True)
class Row:
    """Median tokens per second of all sequences together, their least and most, and the median ratio to the first."""

    model: str
    kernel: str
    threads: int
    sequences: int
    tps: float
    tps_min: float
    tps_max: float
    ratio: float


def decode(batcher: Batcher, prompts: list[list[int]], tokens: int) -> float:
    """Return the tokens per second that replies to all prompts at once are written with.

    Raises UserError if they were over before that could be timed.
    """
    streams = [batcher.submit(prompt, max_tokens=tokens + 1, temperature=0.0) for prompt in prompts]
    for stream in streams:
        next(stream)
    before, began = batcher.snapshot().generated_tokens, time.perf_counter()
    for stream in streams:
        for _ in stream:
            pass
    written = batcher.snapshot().generated_tokens - before
    if written == 0:
        raise UserError(f"{tokens} tokens are written too fast to be timed; give more with --tokens")
    return written / (time.perf_counter() - began)


def measure(model: Model, counts: list[int], tokens: int, context: int, rounds: int) -> list[Row]:
    """Measure every number of sequences in turns, after a round that warms up and fills the cache."""
    tokenizer = model.codec.tokenizer
    model.codec = TextCodec(tokenizer, bos=None, eos=None, add_bos=False, ends=frozenset())  # no token ends a reply
    vocabulary = min(tokenizer.get_vocab_size(), model.config.vocab_size)
    prompts = [random_ids(seed, context, vocabulary) for seed in range(max(counts))]
    batcher = Batcher(model, max_sequences=max(counts), kv_tokens=max(counts) * (context + tokens + 128))
    rates: dict[int, list[float]] = {count: [] for count in counts}
    try:
        for turn in range(rounds + 1):
            for count in counts:
                rate = decode(batcher, prompts[:count], tokens)
                if turn:
                    rates[count].append(rate)
    finally:
        batcher.close()
    first = rates[counts[0]]
    return [
        Row(
            model.path.name,
            model.kernel,
            model.threads,
            count,
            statistics.median(found),
            min(found),
            max(found),
            statistics.median(rate / one for rate, one in zip(found, first, strict=True)),
        )
        for count, found in rates.items()
    ]


def as_markdown(rows: list[Row]) -> str:
    lines = [
        f"| model | kernel | threads | sequences | tok/s | spread | against {rows[0].sequences} |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        spread = f"{(row.tps_max - row.tps_min) / row.tps:.0%}"
        lines.append(
            f"| {row.model} | {row.kernel} | {row.threads} | {row.sequences} | {row.tps:.1f} | {spread} | "
            f"{row.ratio:.2f} x |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="d20", help="synthetic models, see models.py")
    parser.add_argument("--model", type=Path, help="a file in place of them")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nanochat-benchmarks")
    parser.add_argument("--sequences", default="1,4,16", help="the first is what the others are compared with")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kernel")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    options = parser.parse_args()
    found: list[Row] = []
    print(f"load average {os.getloadavg()[0]:.1f}")
    try:
        counts = sizes(options.sequences, "--sequences", HEAD_ROWS)
        for shape in options.shapes.split(","):
            path = options.model or model_file(options.folder, shape, None, None)
            for threads in sizes(options.threads, "--threads"):
                model = load(path, threads=threads, kernel=options.kernel, speculation="off", progress=print)
                found += measure(model, counts, options.tokens, options.context, options.rounds)
                model.close()
            if options.model:
                break
    except UserError as error:
        parser.error(str(error))
    print("\n" + as_markdown(found))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=2))


if __name__ == "__main__":
    main()
