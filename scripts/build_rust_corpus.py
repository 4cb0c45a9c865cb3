#!/usr/bin/env python3
"""Rebuild the Rust corpus of the shipped model from package registries, with one command:

    pip install unearth && python scripts/build_rust_corpus.py WORK_FOLDER

On a Debian machine (bookworm with its security archive, where `rust-web-src` lives) the Debian packages and source
distributions that the lists next to this file pin are downloaded (about 200 MB), checked, and unpacked into
WORK_FOLDER; nothing is installed or built. Their Rust files are filtered, de-duplicated, split by crate and tokenised
into WORK_FOLDER/tokens, with REPORT.md. Needs no root. What is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rust_corpus_report import write_report
from rust_corpus_sources import (
    COMPILERS,
    benchmark_texts,
    debian_sources,
    fetch_debian,
    fetch_python,
    fetch_wheels,
    python_sources,
    read_lines,
    read_packages,
    unpack,
)

from nanochat_tui.errors import UserError
from nanochat_tui.train.data_preparation import PrepareOptions, prepare_data
from nanochat_tui.train.data_preparation import Progress as Step
from nanochat_tui.train.data_preparation.split import path_fraction

# Generated bindings and register maps; inputs of the compilers' own tests, which are wrong on purpose and tiny; and
# programs made to be slow to compile, which repeat one line thousands of times.
SKIP_FOLDERS = (
    *("stdarch", "core_arch", "stm32f4*", "winapi*", "windows-*", "windows_*", "generated", "bindings", "tests/spec"),
    *("src/test/*", "tests/ui*", "tests/compile-fail*", "test_data", "tests/codegen*", "tests/mir-opt*"),
    *("tests/assembly*", "tests/run-make*", "tests/rustdoc*", "tests/debuginfo", "tests/incremental", "tests/pretty"),
    *("tests/crashes", "tests/coverage*", "tests/auxiliary"),
    *(
        f"compile-benchmarks/{name}"
        for name in (
            *("await-call-tree", "coercions", "ctfe-stress-*", "deep-vector", "deeply-nested-multi", "derive", "ucd"),
            *("externs", "helloworld*", "include-blob", "issue-*", "large-workspace", "many-assoc-items"),
            *("match-stress", "projection-caching", "regression-*", "token-stream-stress", "tt-muncher"),
            *("tuple-stress", "unify-linearly", "unused-warnings", "wf-projection-*", "wg-grammar", "encoding"),
            *("*-new-solver", "*-threads4", "*-tiny"),
        )
    ),
)

HERE = Path(__file__).resolve().parent
MAX_CRATE_SHARE = 0.02
MAX_COMPILER_SHARE = 0.25
BY_FILE_FRACTION = 0.02


def main() -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description="Build the Rust corpus from package registries.")
    parser.add_argument("work", type=Path, help="folder for packages, sources and tokens (needs about 4 GB)")
    parser.add_argument("--lists", type=Path, default=HERE, help="folder of the rust_*.txt lists")
    parser.add_argument("--tokenizer", type=Path, default=HERE.parent / "exported_models" / "gpt2-tokenizer.json")
    parser.add_argument("--output", type=Path, help="folder of the token files (default: WORK/tokens)")
    parser.add_argument("--indentation", type=int, default=4, help="spaces to a tab; 0 leaves indentation alone")
    parser.add_argument("--workers", type=int, help="processes (default: one per CPU)")
    parser.add_argument("--overwrite", action="store_true", help="replace token files that are there")
    parser.add_argument("--whole-crates", action="store_true", help="do not limit the shares of crates and compiler")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    try:
        lists, downloads, unpacked = arguments.lists, arguments.work / "downloads", arguments.work / "src"
        debian = read_packages(lists / "rust_corpus_packages.txt")
        python = read_packages(lists / "rust_corpus_sdists.txt")
        problems = read_packages(lists / "rust_corpus_benchmarks.txt")
        hold_out = tuple(read_lines(lists / "rust_held_out_crates.txt"))
        by_file = frozenset(read_lines(lists / "rust_corpus_by_file.txt"))
        unpack(fetch_python(python, downloads / "sdists"), python, unpacked)
        unpack(fetch_debian(debian, downloads / "debs"), debian, unpacked)
        benchmarks = benchmark_texts(fetch_wheels(problems, downloads / "wheels").values()) if problems else []
        # The newest code wins: source distributions, the new compiler, single crates, the old compiler.
        debian.sort(key=lambda package: package.name == COMPILERS[1])
        options = PrepareOptions(
            sources=(*python_sources(python, unpacked), *debian_sources(debian, unpacked)),
            tokenizer=arguments.tokenizer,
            output=arguments.output or arguments.work / "tokens",
            indentation=arguments.indentation,
            # The same files with and without tabs, so that the two can be compared.
            tabs_filter=4,
            require_licence=True,
            skip_folders=SKIP_FOLDERS,
            hold_out=hold_out,
            one_version=True,
            max_crate_share=1.0 if arguments.whole_crates else MAX_CRATE_SHARE,
            max_group_share=1.0 if arguments.whole_crates else MAX_COMPILER_SHARE,
            benchmarks=tuple(benchmarks),
            reserved=lambda key: (
                key.partition("/")[0] in by_file and path_fraction(key, "validation-1") < BY_FILE_FRACTION
            ),
            workers=arguments.workers,
            overwrite=arguments.overwrite,
        )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bars:
            tasks: dict[str, TaskID] = {}

            def show(step: Step) -> None:
                if step.stage not in tasks:
                    tasks[step.stage] = bars.add_task(step.stage, total=step.total)
                bars.update(tasks[step.stage], completed=step.done)

            report = prepare_data(options, show)
        text = write_report(report, [*python, *debian])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
