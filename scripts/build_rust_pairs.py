#!/usr/bin/env python3
"""Make the instruction pairs of the shipped chat model from the Debian packages of the Rust corpus:

    python scripts/build_rust_pairs.py WORK_FOLDER

The packages are those of build_rust_corpus.py, which fetches and unpacks them into WORK_FOLDER/src; what is there
already is used as it is. Writes WORK_FOLDER/pairs: train.jsonl, val.jsonl (the held-out crates) and pairs.json, and
WORK_FOLDER/bare.jsonl for a short second training: each short function once, two in five of them asked for without a
name. Needs rustc on the path.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from build_rust_corpus import HERE, SKIP_FOLDERS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rust_corpus_sources import COMPILERS, debian_sources, fetch_debian, read_lines, read_packages, unpack

from nanochat_tui.errors import UserError
from nanochat_tui.train.data_preparation import PrepareOptions
from nanochat_tui.train.data_preparation import Progress as Step
from nanochat_tui.train.data_preparation.pairs import prepare_pairs

BARE = (
    "Write a Rust function",
    "Write a Rust function.",
    "Write a Rust function",
    "Write a function in Rust",
    "Write some Rust code",
    "Show me a Rust function",
)
SHORT = 320


def bare_requests(train: Path) -> str:
    """The lines of bare.jsonl, of those of train.jsonl."""
    draw = random.Random(0)  # noqa: S311
    ways: dict[str, list[dict[str, str]]] = {}
    for line in train.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ways.setdefault(row["completion"], []).append(row)
    answers = [answer for answer in ways if len(answer) < SHORT]
    draw.shuffle(answers)
    rows = []
    for number, answer in enumerate(answers):
        row = dict(draw.choice(ways[answer]))
        if number % 5 < 2 and not answer.startswith("use"):
            row["prompt"] = draw.choice(BARE)
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(rows)


def main() -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description="Make Rust instruction pairs from Debian packages.")
    parser.add_argument("work", type=Path, help="folder for packages, sources and pairs (needs about 4 GB)")
    parser.add_argument("--lists", type=Path, default=HERE, help="folder of the rust_*.txt lists")
    parser.add_argument("--overwrite", action="store_true", help="replace pairs that are there")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    try:
        packages = read_packages(arguments.lists / "rust_corpus_packages.txt")
        packages = [package for package in packages if package.name != COMPILERS[1]]  # the newer one's code, older
        unpacked = arguments.work / "src"
        unpack(fetch_debian(packages, arguments.work / "downloads" / "debs"), packages, unpacked)
        options = PrepareOptions(
            sources=tuple(debian_sources(packages, unpacked)),
            tokenizer=HERE.parent / "exported_models" / "gpt2-tokenizer.json",
            output=arguments.work / "pairs",
            require_licence=True,
            skip_folders=SKIP_FOLDERS,
            hold_out=tuple(
                crate
                for name in ("crates", "pairs")
                for crate in read_lines(arguments.lists / f"rust_held_out_{name}.txt")
            ),
            overwrite=arguments.overwrite,
        )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console) as bars:
            tasks: dict[str, TaskID] = {}

            def show(step: Step) -> None:
                if step.stage not in tasks:
                    tasks[step.stage] = bars.add_task(step.stage, total=step.total)
                bars.update(tasks[step.stage], completed=step.done)

            report = prepare_pairs(options, show)
        lines = bare_requests(options.output / "train.jsonl")
        (arguments.work / "bare.jsonl").write_text(lines, encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
