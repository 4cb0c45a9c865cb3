#!/usr/bin/env python3
"""Trials of the training recipe, one factor at a time, and their table.

    python scripts/recipe_trials.py DATA OUT --tokens 2500000 [--only NAME,...] [--seeds 1] [-- OPTION OF train ...]

Every trial is a run of `nanochat-train train` of so many tokens in a folder of OUT; those that have ended are not run
again and one that was stopped is resumed, so the command may be repeated. OUT/table.md compares the exact held-out loss
of each with that of `base` at equal tokens, with the time it took; OUT/trials.json holds the same for scripts. With
more seeds the spread of `base` over them says which differences mean something. Options after -- go to every trial.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.files import atomic_write_text
from nanochat_tui.runs.directory import RunDirectory

BASE = {
    "config": "d20",
    "batch-size": "8",
    "short-seq-len": "256",
    "short-fraction": "0.6",
    "ns-steps": "4",
    "warmup-steps": "100",
    "decay-fraction": "0.25",
    "eval-interval": "0",
    "checkpoint-interval": "100",
    "keep-last": "1",
    "final-eval-tokens": "262144",
    "sample-tokens": "0",
}
"""What all trials have in common: 4,096 tokens a step, and the defaults of the trainer."""

TRIALS: dict[str, dict[str, str]] = {
    "base": {},
    "lr 0.01": {"muon-lr": "0.01"},
    "lr 0.04": {"muon-lr": "0.04"},
    "8k tokens a step": {"batch-size": "16"},
    "8k, lr 0.03": {"batch-size": "16", "muon-lr": "0.03"},
    "16k tokens a step": {"batch-size": "32"},
    "16k, lr 0.04": {"batch-size": "32", "muon-lr": "0.04"},
    "beta2 0.95": {"adam-beta2": "0.95"},
    "half-life 7 M tokens": {"adam-half-life": "7000000"},
    "decay 10 %": {"decay-fraction": "0.1"},
    "decay 50 %": {"decay-fraction": "0.5"},
    "decay 100 %": {"decay-fraction": "1.0"},
    "decay sqrt": {"decay-shape": "sqrt"},
    "decay cosine": {"decay-shape": "cosine"},
    "no clipping": {"grad-clip": "0"},
    "momentum warm-up": {"momentum-warmup-steps": "150"},
    "weight decay 0.05": {"weight-decay": "0.05"},
    "cautious decay 0.05": {"weight-decay": "0.05", "cautious-decay": ""},
    "NorMuon": {"normuon": ""},
    "ternary with the decay": {"quantise-with-decay": ""},
    "least-squares scales": {"least-squares": ""},
    "z-loss 1e-4": {"z-loss": "0.0001"},
    "fill in the middle 25 %": {"fim-rate": "0.25"},
    "full precision": {"full-precision": ""},
}
"""Name and what differs from `base`; an empty value is a switch."""

BUDGET = 60_000_000
"""Tokens of all trials together that are allowed without --budget."""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to."""

    name: str
    seed: int
    tokens: int
    loss: float
    bits_per_byte: float | None
    seconds: float


def folder(out: Path, name: str, seed: int) -> Path:
    """Where a trial's run is."""
    plain = "".join(c if c.isalnum() or c in ".-" else "-" for c in name)
    return out / f"{plain}-seed{seed}"


def command(data: Path, run: Path, tokens: int, seed: int, options: dict[str, str], more: list[str]) -> list[str]:
    """The command that makes or continues a trial."""
    words = [sys.executable, "-m", "nanochat_tui.cli.train_entry", "train", "--checkpoint-dir", str(run)]
    words += ["--resume", "auto", "--data-path", str(data), "--tokens", str(tokens), "--seed", str(seed)]
    for name, value in (BASE | options).items():
        words += [f"--{name}", value] if value else [f"--{name}"]
    return [*words, *more]


def outcome(run: Path, name: str, seed: int) -> Outcome | None:
    """Read what a trial came to; None for one that has not ended."""
    directory = RunDirectory(run)
    try:
        if not (run / "status.json").is_file() or directory.status().get("state") != "finished":
            return None
        last = next((row for row in reversed(directory.metrics()) if "val_loss" in row), None)
    except UserError:
        return None
    if last is None:
        return None
    seconds = float(last["seconds"])
    return Outcome(name, seed, int(last["tokens"]), float(last["val_loss"]), last.get("val_bits_per_byte"), seconds)


def table(outcomes: list[Outcome], asked_for: str) -> str:
    """The comparison as Markdown, the best first."""
    by_name: dict[str, list[Outcome]] = {}
    for one in outcomes:
        by_name.setdefault(one.name, []).append(one)
    means = {name: statistics.mean(one.loss for one in found) for name, found in by_name.items()}
    base = means.get("base")
    lines = ["# Recipe trials", "", f"`{asked_for}`", ""]
    if len(by_name.get("base", ())) > 1:
        spread = statistics.stdev(one.loss for one in by_name["base"])
        lines += [f"Standard deviation of `base` over seeds: {spread:.4f} nats.", ""]
    lines += ["| trial | tokens | seeds | nats | to base | bits per byte | minutes |", "|---|" + "---:|" * 6]
    for name, loss in sorted(means.items(), key=lambda item: item[1]):
        found = by_name[name]
        change = "" if base is None or name == "base" else f"{loss - base:+.4f} ({loss / base - 1:+.2%})"
        bits = [one.bits_per_byte for one in found if one.bits_per_byte is not None]
        shown = f"{statistics.mean(bits):.4f}" if bits else ""
        minutes = statistics.mean(one.seconds for one in found) / 60
        lines.append(
            f"| {name} | {found[0].tokens:,} | {len(found)} | {loss:.4f} | {change} | {shown} | {minutes:.1f} |"
        )
    return "\n".join(lines) + "\n"


def chosen(only: str | None) -> dict[str, dict[str, str]]:
    """The trials of a list of names; `base` is always one. Raises UserError for an unknown name."""
    if only is None:
        return TRIALS
    names = [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in TRIALS]
    if unknown:
        raise UserError(f"there is no trial {unknown[0]!r}; choose among: {', '.join(TRIALS)}")
    return {name: TRIALS[name] for name in dict.fromkeys(["base", *names])}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 a trial failed, 2 bad input."""
    given = sys.argv[1:] if arguments is None else arguments
    own, more = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(description="Trials of the training recipe, one factor at a time.")
    parser.add_argument("data", type=Path, help="folder made by prepare-data")
    parser.add_argument("out", type=Path, help="folder of the runs and the table")
    parser.add_argument("--tokens", type=int, default=2_500_000, help="of each trial")
    parser.add_argument("--only", help="names of trials, with commas between; base comes along")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each trial")
    parser.add_argument("--budget", type=int, default=BUDGET, help="most tokens of all trials together")
    asked: Any = parser.parse_args(own)
    try:
        trials = chosen(asked.only)
        total = len(trials) * asked.seeds * asked.tokens
        if total > asked.budget:
            raise UserError(
                f"{len(trials)} trials of {asked.seeds} x {asked.tokens:,} tokens are {total:,}, more than the budget "
                f"of {asked.budget:,}; choose some with --only, or raise --budget"
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    asked.out.mkdir(parents=True, exist_ok=True)
    outcomes, failed = [], 0
    rest = shlex.join([*own[2:], *(["--", *more] if more else [])])
    asked_for = f"python scripts/recipe_trials.py DATA OUT {rest}"
    for seed in range(asked.seeds):
        for name, options in trials.items():
            run = folder(asked.out, name, seed)
            found = outcome(run, name, seed)
            if found is None:
                print(f"{name}, seed {seed}", flush=True)
                words = command(asked.data, run, asked.tokens, seed, options, more)
                ended = subprocess.run(words, check=False, stdout=subprocess.DEVNULL)
                found = outcome(run, name, seed)
                failed += ended.returncode != 0 or found is None
            if found is not None:
                outcomes.append(found)
                atomic_write_text(asked.out / "table.md", table(outcomes, asked_for))
                rows = [vars(one) for one in outcomes]
                atomic_write_text(asked.out / "trials.json", json.dumps(rows, indent=1) + "\n")
    if outcomes:
        print(table(outcomes, asked_for))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
