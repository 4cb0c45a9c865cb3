#!/usr/bin/env python3
"""Time of a training step's forward and backward pass of d20 with token filtering, over that without.

    python benchmarks/token_filter.py [--head exact|estimated] [--compile] [--rounds 6] [--threads 2]

Each round times every ratio once, one after the other, so that what else the machine does falls on all alike; shown is
the median over the rounds of the time over that of ratio 0 in the same round. With --compile ratio 0 takes the compiled
trunk, as `nanochat-train train` does by default; filtered steps are never compiled.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from nanochat_tui.model.config import PRESETS
from nanochat_tui.train.collider import TokenFilter
from nanochat_tui.train.loss import VocabularySampler
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.step import exact_backward, sampled_backward

SEQUENCES, LENGTH = 8, 512
RATIOS = (0.0, 0.25, 0.4, 0.5, 0.6)


def steps(head: str, *, compiled: bool) -> Callable[[float], float]:
    """Return what runs one pass of d20 at a ratio and returns its seconds."""
    torch.manual_seed(0)
    model = NanochatModel(PRESETS["d20"])
    trunk = torch.compile(model.trunk, dynamic=False) if compiled else model.trunk
    vocabulary = model.config.vocab_size
    # a few tokens are most of a text
    tokens = (torch.rand(SEQUENCES, LENGTH + 1) ** 3 * vocabulary).long()
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)
    counts = torch.bincount(tokens.reshape(-1), minlength=vocabulary)
    sample = VocabularySampler(counts, 6144, 1024, 0).sample(inputs, targets, 0)

    def once(ratio: float) -> float:
        token_filter = TokenFilter(ratio) if ratio else None
        began = time.perf_counter()
        if head == "exact":
            exact_backward(model, trunk, inputs, targets, 1.0, token_filter=token_filter)
        else:
            sampled_backward(model, trunk, inputs, sample, 1.0, token_filter=token_filter)
        took = time.perf_counter() - began
        model.zero_grad(set_to_none=True)
        return took

    return once


def main() -> None:
    """Time the ratios and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", choices=["exact", "estimated"], default="estimated")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    once = steps(options.head, compiled=options.compile)
    for ratio in RATIOS:
        once(ratio)
    rounds = [{ratio: once(ratio) for ratio in RATIOS} for _ in range(options.rounds)]
    trunk = "compiled" if options.compile else "eager"
    print(f"d20, {SEQUENCES} x {LENGTH} tokens, {options.head} head, unfiltered trunk {trunk}, {options.rounds} rounds")
    print("filtered  seconds  of ratio 0")
    for ratio in RATIOS:
        seconds = statistics.median(row[ratio] for row in rounds)
        share = statistics.median(row[ratio] / row[0.0] for row in rounds)
        print(f"{ratio:8.0%}  {seconds:7.3f}  {share:9.1%}")


if __name__ == "__main__":
    main()
