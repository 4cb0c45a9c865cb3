#!/usr/bin/env python3
"""Train on a GPU for a few minutes from one packed file; a checkpoint a minute, so that nothing is lost.

    python scripts/train_gpu.py tokens.pack RUN --minutes 8 [OPTION OF nanochat-train train ...]

Unpacks the data next to RUN, runs `nanochat-train train` in a process of its own (compiled, bfloat16, exact softmax,
131,072 tokens a micro-batch), asks it for a checkpoint every minute through its control file, and prints tokens per
second with the share of the device's peak that they are (MFU: 6 FLOPs per weight and token, the head
included, and attention). Run again with the same arguments it resumes from the newest checkpoint.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.estimate import flops_per_token
from nanochat_tui.train.data_preparation.packing import unpack

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "L4": 121e12, "A10": 125e12, "4090": 165e12}
"""Dense bfloat16 FLOP/s of devices, by a part of their names (makers' data sheets)."""
DEFAULTS = {
    "config": "d20",
    "device": "cuda",
    "dtype": "bfloat16",
    "batch-size": "256",
    "head-frequent": "0",
    "warmup-steps": "100",
    "log-interval": "20",
    "eval-interval": "0",
    "checkpoint-interval": "0",
    "final-eval-tokens": "1000000",
    "keep-last": "0",
}


def peak_flops(device: str) -> float | None:
    """FLOP/s of a device by its name, or None for one that is not listed."""
    return next((peak for part, peak in PEAKS.items() if part in device), None)


def utilisation(tokens_per_second: float, flops: float, device: str) -> str:
    """Say the share of the peak, or that it is not known."""
    peak = peak_flops(device)
    return "MFU unknown" if peak is None else f"MFU {tokens_per_second * flops / peak:.1%}"


def command(data: Path, run: Path, minutes: float, more: list[str]) -> list[str]:
    """Return the command that trains, or that resumes what is in `run`."""
    given = {word.removeprefix("--") for word in more if word.startswith("--")}
    words = [sys.executable, "-m", "nanochat_tui.cli.train_entry", "train", "--checkpoint-dir", str(run)]
    checkpoints = RunDirectory(run).checkpoints() if run.is_dir() else []
    if checkpoints:
        return [*words, "--resume", str(checkpoints[-1]), "--minutes", str(minutes), *more]
    for name, value in DEFAULTS.items():
        if name not in given:
            words += [f"--{name}", value]
    return [*words, "--data-path", str(data), "--minutes", str(minutes), *more]


def watch(process: subprocess.Popen[bytes], run: RunDirectory, interval: float, seconds: float = 2.0) -> None:
    """Until the trainer ends, print new rows with their utilisation and ask for a checkpoint every `interval` s."""
    seen = 0
    asked = time.monotonic()
    flops = device = None
    while True:
        ended = process.poll() is not None
        try:
            rows, record = run.metrics(), run.config()
            flops = flops or flops_per_token(TrainConfig.model_validate(record["config"]))
            device = device or str(record["environment"]["device_name"])
            for row in rows:
                if row["step"] > seen and device and flops:
                    print(
                        f"step {row['step']}: {row['tokens']:,} tokens, loss {row['loss']:.4f}, "
                        f"{row['tok_per_s']:,.0f} tokens/s, {utilisation(row['tok_per_s'], flops, device)}",
                        flush=True,
                    )
                    seen = row["step"]
            if seen and not ended and time.monotonic() - asked > interval:
                run.send("checkpoint")
                asked = time.monotonic()
        except UserError:
            pass  # the run has not begun to write
        if ended:
            return
        time.sleep(seconds)


def main() -> int:
    """Run the command; the trainer's exit code, 2 for bad input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pack", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--checkpoint-seconds", type=float, default=60)
    arguments, more = parser.parse_known_args()
    data = arguments.run.with_name(arguments.run.name + "-data")
    try:
        if not data.exists():
            unpack(arguments.pack, data)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    process = subprocess.Popen(command(data, arguments.run, arguments.minutes, more), stdout=subprocess.DEVNULL)
    watch(process, RunDirectory(arguments.run), arguments.checkpoint_seconds)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
