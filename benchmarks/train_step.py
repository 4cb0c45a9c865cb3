"""Time of a training step of d20 on this CPU, this checkout against others, step by step in turn; medians.

python benchmarks/train_step.py [--against CHECKOUT] [--steps 5] [--profile]

Each contender is a process of its own that has compiled and warmed up before the first measured step. Without
--against the exact softmax of this checkout is compared with its default. Tokens are drawn from a Zipf distribution
over the whole vocabulary, about that of source code.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
COMMON = {"dataset": "tokens", "token_dtype": "u16", "steps": 100_000, "eval_interval": 0, "checkpoint_interval": 0}
BEST_BEFORE = {"head_frequent": 6144, "dtype": "bfloat16"}
"""The fastest flags of a checkout that does not choose them itself."""


def tokens_file(folder: Path) -> Path:
    import numpy as np

    rng = np.random.default_rng(0)
    weights = 1 / (np.arange(50_257) + 3.0) ** 1.05
    ids = rng.permutation(50_257)[rng.choice(50_257, 1_500_000, p=weights / weights.sum())]
    ids.astype(np.uint16).tofile(folder / "tokens.bin")
    return folder / "tokens.bin"


def worker(options: dict[str, object], profile: bool) -> None:
    """Answer each line of stdin with the seconds of one step."""
    from nanochat_tui.runs.config import parse_config
    from nanochat_tui.train.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(parse_config(options), Path(folder) / "run")

        def step() -> float:
            began = time.perf_counter()
            trainer._optimise(0.1)
            trainer.step += 1
            return time.perf_counter() - began

        for _ in range(2):
            step()
        environment = {**trainer.environment.to_json(), "tokens_per_step": trainer.config.tokens_per_step}
        print(json.dumps(environment), flush=True)
        for _ in sys.stdin:
            print(step(), flush=True)
        if profile:
            from torch.profiler import ProfilerActivity
            from torch.profiler import profile as record

            with record(activities=[ProfilerActivity.CPU]) as found:
                step()
            print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25), file=sys.stderr)


class Contender:
    """A process that makes steps when asked."""

    def __init__(self, name: str, checkout: Path, options: dict[str, object], profile: bool) -> None:
        from nanochat_tui.train.environment import allocator_environment

        self.name, self.seconds = name, []  # type: ignore[var-annotated]
        environment = {**(allocator_environment() or os.environ), "PYTHONPATH": str(checkout)}
        command = [sys.executable, "-P", __file__, "--worker", json.dumps(options), *(["--profile"] if profile else [])]
        self.process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self.process.wait()}")
        return line

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.seconds.append(float(self.read()))

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", type=Path, help="another checkout: its defaults and its best flags are measured")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="show where this checkout's step spends its time")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(json.loads(arguments.worker), arguments.profile)
        return
    with tempfile.TemporaryDirectory() as folder:
        common = {**COMMON, "data_path": str(tokens_file(Path(folder)))}
        contenders = [("default", HERE, common)]
        if arguments.against:
            other = arguments.against.resolve()
            contenders += [("other, default", other, common), ("other, best flags", other, {**common, **BEST_BEFORE})]
        else:
            contenders.append(("exact softmax", HERE, {**common, "head_frequent": 0}))
        running = [Contender(name, c, o, arguments.profile and name == "default") for name, c, o in contenders]
        environments = [json.loads(contender.read()) for contender in running]
        for _ in range(arguments.steps):
            for contender in running:
                contender.step()
        for contender in running:
            contender.end()
    rows = {
        contender.name: {
            "tokens_per_second": round(environment["tokens_per_step"] / statistics.median(contender.seconds)),
            "fastest": round(environment["tokens_per_step"] / min(contender.seconds)),
            "tokens_per_step": environment["tokens_per_step"],
            "dtype": environment["dtype"],
        }
        for contender, environment in zip(running, environments, strict=True)
    }
    first = rows["default"]["tokens_per_second"]
    ratios = {name: round(first / row["tokens_per_second"], 2) for name, row in rows.items() if name != "default"}
    print(json.dumps({"rows": rows, "default_is_faster_by": ratios, "environment": environments[0]}, indent=1))


if __name__ == "__main__":
    main()
