#!/usr/bin/env python3
"""Training methods on and off at equal steps and at equal time, over several seeds, as a table.

    python scripts/method_trials.py DATA OUT [--steps 150] [--seeds 3] [--only NAME,...] [--set KEY=VALUE ...]

DATA is a folder of prepare-data. Every trial is a run of the shape `tiny` in a folder of OUT; those that have finished
are not run again. At equal time a method gets as many steps as it does in the seconds that `off` takes: its steps times
its speed over that of `off`, both the median over rows and seeds of the runs at equal steps, which are made by turns so
that what else the machine does falls on all alike. Shown are means over the seeds; ± is half the range of `off`.
OUT/methods.md holds the table.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.files import atomic_write_text
from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.train.trainer import Trainer

BASE: dict[str, Any] = {
    "config": "tiny",
    "seq_len": 128,
    "batch_size": 16,
    "warmup_steps": 15,
    "log_interval": 5,
    "eval_interval": 0,
    "checkpoint_interval": 0,
    "sample_tokens": 0,
    "final_eval_tokens": 32_768,
    "compile": False,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
}
"""What all trials have in common: two mHC streams, 2,048 tokens a step."""

OFF = "off"
TRIALS: dict[str, dict[str, Any]] = {
    OFF: {},
    "MTP, 1 further token": {"mtp_depth": 1},
    "MTP, 3 further tokens": {"mtp_depth": 3},
    "Collider, 40 % filtered by own loss": {"collider_ratio": 0.4},
    "FIRE at half of the run": {"fire": True},
    "plain residual (N = 1)": {"n_streams": 1},
    "mHC, N = 4": {"n_streams": 4},
    "mHC analysis at every row": {"mhc_analysis": True},
}
"""Name and what differs from `off`."""


def folder(out: Path, name: str, steps: int, seed: int) -> Path:
    """Where a trial's run is."""
    plain = "".join(c if c.isalnum() else "-" for c in name)
    return out / f"{plain}-{steps}-seed{seed}"


def run(data: Path, out: Path, name: str, steps: int, seed: int, more: dict[str, Any]) -> tuple[float, list[float]]:
    """Make a trial unless it has finished; returns its held-out loss (nats) and the tokens/s of its rows."""
    place = folder(out, name, steps, seed)
    directory = RunDirectory(place)
    if not (place / "final" / "state.json").is_file():
        options = {**BASE, **TRIALS[name], **more, "data_path": data, "steps": steps, "seed": seed}
        if options.get("fire"):
            options["fire_step"] = steps // 2
        place.mkdir(parents=True, exist_ok=True)
        with (place / "output.txt").open("w") as output, contextlib.redirect_stdout(output):
            Trainer(parse_config(options), place).run()
    rows = directory.metrics()
    return rows[-1]["val_loss"], [row["tok_per_s"] for row in rows[1:]]


def table(data: Path, out: Path, steps: int, seeds: int, names: list[str], more: dict[str, Any]) -> str:
    """Make all trials and return their table."""
    losses: dict[str, list[float]] = {name: [] for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(seeds):
        for name in names:
            loss, rates = run(data, out, name, steps, seed, more)
            losses[name].append(loss)
            speeds[name] += rates
            print(f"{name}, {steps} steps, seed {seed}: {loss:.4f}", file=sys.stderr, flush=True)
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    off, spread = statistics.mean(losses[OFF]), (max(losses[OFF]) - min(losses[OFF])) / 2
    lines = [
        f"| | loss, {steps} steps | against off | tokens/s | of off | steps in equal time | loss | against off |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        loss = statistics.mean(losses[name])
        share = speed[name] / speed[OFF]
        row = f"| {name} | {loss:.4f}{f' ± {spread:.4f}' if name == OFF else ''} | {loss - off:+.4f} "
        row += f"| {speed[name]:,.0f} | {share:.0%} "
        equal = steps if name == OFF else max(1, round(steps * share))
        timed = [run(data, out, name, equal, seed, more)[0] for seed in range(seeds)]
        late = statistics.mean(timed)
        lines.append(f"{row}| {equal} | {late:.4f} | {late - off:+.4f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, make the trials and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="names of trials, separated by commas; off is always among them")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all trials")
    options = parser.parse_args()
    wanted = set(TRIALS) if options.only is None else {OFF, *(name.strip() for name in options.only.split(","))}
    unknown = sorted(wanted - set(TRIALS))
    if unknown:
        parser.error(f"there is no trial {unknown[0]!r}; choose among {', '.join(TRIALS)}")
    more: dict[str, Any] = dict(item.split("=", 1) for item in options.set)
    try:
        found = table(
            options.data, options.out, options.steps, options.seeds, [name for name in TRIALS if name in wanted], more
        )
    except UserError as error:
        parser.exit(1, f"{error}\n")
    atomic_write_text(options.out / "methods.md", found)
    print(found)


if __name__ == "__main__":
    main()
