#!/usr/bin/env python3
"""Rebuild the Rust corpus of the shipped model from Debian packages, with one command:

    python scripts/build_rust_corpus.py WORK_FOLDER

On a Debian machine (bookworm with its security archive, where `rust-web-src` lives) the packages listed in
rust_corpus_packages.txt are downloaded (`apt-get download`, about 80 MB) and unpacked (`dpkg -x`; nothing is installed)
into WORK_FOLDER, then filtered, de-duplicated, split and tokenised into WORK_FOLDER/tokens. Needs no root.
Packages that are already there are not fetched again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from nanochat_tui.errors import UserError
from nanochat_tui.train.data_preparation import PrepareOptions, PrepareReport, Source, prepare_data
from nanochat_tui.train.data_preparation import Progress as Step

# Generated bindings and register maps; and the inputs of the compilers' own tests, which are wrong on purpose, tiny and
# a third of all files, so that they would be a third of what is measured on held-out files.
SKIP_FOLDERS = ("stdarch", "stm32f4*", "src/test/*", "tests/ui*", "tests/compile-fail*", "test_data")

HERE = Path(__file__).resolve().parent


def read_packages(path: Path) -> list[str]:
    """Return the package names of a list: one to a line, `#` begins a comment."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def download(packages: list[str], folder: Path) -> None:
    """Fetch the packages that `folder` does not hold yet.

    Raises:
        UserError: this is not a Debian machine, or the archive has not all of them.
    """
    missing = [package for package in packages if not list(folder.glob(f"{package}_*.deb"))]
    if not missing:
        return
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is missing; run this on a Debian machine or put the .deb files into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["apt-get", "download", "-q", *missing], cwd=folder, check=False).returncode:
        raise UserError("apt-get download failed; run apt-get update first, and see that deb.debian.org is reached")


def unpack(packages: list[str], archives: Path, folder: Path) -> None:
    """Unpack each package into a folder of its own name; one that is there already stays as it is."""
    for package in packages:
        target = folder / package
        if target.exists():
            continue
        archive = max(archives.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
        temporary = folder / f".{package}.unpacking"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if subprocess.run(["dpkg", "-x", str(archive), str(temporary)], check=False).returncode:
            raise UserError(f"dpkg could not unpack {archive}; delete it and start again")
        temporary.rename(target)


def package_sources(packages: list[str], folder: Path) -> Iterator[Source]:
    """Yield the source trees inside the unpacked packages, each with its package's copyright file."""
    for package in packages:
        copyright_file = folder / package / "usr/share/doc" / package / "copyright"
        roots = [
            *sorted((folder / package / "usr/src").glob("rustc-*")),
            *sorted((folder / package / "usr/share/cargo/registry").glob("*")),
        ]
        roots = [root for root in roots if root.is_dir() and not root.is_symlink()]
        if not roots:
            raise UserError(f"package {package} holds no Rust source; take it off the list")
        for root in roots:
            yield Source(root, package, copyright_file)


def print_report(report: PrepareReport, console: Console) -> None:
    """Print what came in, what stayed out and why, and under which licences."""
    table = Table("filter", "files", "MB", title="Files")
    table.add_row("found", f"{report.found.documents:,}", f"{report.found.bytes / 1e6:.1f}")
    for reason, count in report.left_out.items():
        if count.documents:
            table.add_row(reason, f"-{count.documents:,}", f"-{count.bytes / 1e6:.1f}")
    console.print(table)
    for title, counts in (("Splits", report.splits), ("Sources", report.sources), ("Licences", report.licences)):
        table = Table(title[:-1].lower(), "files", "MB", "tokens", title=title)
        for name, count in counts.items():
            table.add_row(name, f"{count.documents:,}", f"{count.bytes / 1e6:.2f}", f"{count.tokens:,}")
        console.print(table)
    console.print(
        f"validation: {report.validation_moved} candidates moved to training, the others share "
        f"{report.validation_shared:.1%} of their 5-line windows with other files"
    )


def main() -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description="Build the Rust corpus from Debian packages.")
    parser.add_argument("work", type=Path, help="folder for packages, sources and tokens (needs about 2 GB)")
    parser.add_argument("--packages", type=Path, default=HERE / "rust_corpus_packages.txt")
    parser.add_argument("--tokenizer", type=Path, default=HERE.parent / "exported_models" / "gpt2-tokenizer.json")
    parser.add_argument("--output", type=Path, help="folder of the token files (default: WORK/tokens)")
    parser.add_argument("--indentation", type=int, default=4, help="spaces to a tab; 0 leaves indentation alone")
    parser.add_argument("--workers", type=int, help="processes (default: one per CPU)")
    parser.add_argument("--overwrite", action="store_true", help="replace token files that are there")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    try:
        packages = read_packages(arguments.packages)
        archives, unpacked = arguments.work / "debs", arguments.work / "src"
        download(packages, archives)
        unpack(packages, archives, unpacked)
        options = PrepareOptions(
            sources=tuple(package_sources(packages, unpacked)),
            tokenizer=arguments.tokenizer,
            output=arguments.output or arguments.work / "tokens",
            indentation=arguments.indentation,
            # The same files with and without tabs, so that the two can be compared.
            tabs_filter=4,
            require_licence=True,
            skip_folders=SKIP_FOLDERS,
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
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_report(report, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
