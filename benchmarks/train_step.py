"""Time of a training step of d20 on this CPU: exact softmax against the estimated one, alternating, medians.

python benchmarks/train_step.py [--steps 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from nanochat_tui.runs.config import parse_config
from nanochat_tui.train.environment import allocator_environment


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    environment = allocator_environment()
    if environment:
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606
    from nanochat_tui.train.trainer import Trainer

    trainers = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, frequent in (("exact", 0), ("estimated", 6144)):
            config = parse_config(
                {"dataset": "synthetic", "head_frequent": frequent, "steps": 100, "seq_len": 256, "batch_size": 16}
            )
            trainers[name] = Trainer(config, Path(folder) / name)
            trainers[name]._optimise(0.1)  # compiles
        times: dict[str, list[float]] = {name: [] for name in trainers}
        for _ in range(arguments.steps):
            for name, trainer in trainers.items():
                began = time.perf_counter()
                trainer._optimise(0.1)
                times[name].append(time.perf_counter() - began)
        tokens = trainers["exact"].config.tokens_per_step
        speed = {name: tokens / statistics.median(values) for name, values in times.items()}
        print(
            json.dumps(
                {
                    "tokens_per_step": tokens,
                    "tokens_per_second": {k: round(v) for k, v in speed.items()},
                    "ratio": round(speed["estimated"] / speed["exact"], 2),
                    "environment": trainers["exact"].environment.to_json(),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
