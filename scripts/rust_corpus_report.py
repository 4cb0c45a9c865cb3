"""REPORT.md of the Rust corpus: what was kept and why, crates, licences, versions, overlap with training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rust_corpus_sources import COMPILERS, Package

from nanochat_tui.formats.ngrams import ngram_cover
from nanochat_tui.formats.tokens import DTYPES
from nanochat_tui.train.data_preparation import PrepareReport
from nanochat_tui.train.data_preparation.options import Count

NGRAMS = (13, 20, 32)
LARGEST = 30


def _table(heading: str, counts: Mapping[str, Count], total: int = 0) -> list[str]:
    share = " share |" if total else ""
    lines = [f"| {heading} | files | MB | tokens |{share}", "|---|---:|---:|---:|" + ("---:|" if total else "")]
    for name, count in counts.items():
        cells = f"| {name} | {count.documents:,} | {count.bytes / 1e6:.2f} | {count.tokens:,} |"
        lines.append(cells + (f" {count.tokens / total:.2%} |" if total else ""))
    return [*lines, ""]


def write_report(report: PrepareReport, packages: Sequence[Package]) -> str:
    """Write REPORT.md next to the token files and return its text."""
    train, held = (np.memmap(report.output / f"{split}.bin", DTYPES[report.dtype], "r") for split in ("train", "val"))
    total = report.splits["train"].tokens
    crates = report.crates["train"]
    largest = dict(sorted(crates.items(), key=lambda item: -item[1].tokens)[:LARGEST])
    lines = ["# The Rust corpus", "", "Made by `python scripts/build_rust_corpus.py`.", ""]
    lines += _table("split", report.splits)
    lines += [f"{len(crates):,} crates to train on, {len(report.crates['val']):,} held out.", ""]
    lines += [
        "## Overlap of held-out crates with training text",
        "",
        "| n | tokens in an n-gram of training |",
        "|---|---:|",
    ]
    lines += [f"| {n} | {ngram_cover(np.asarray(held), train, n).mean():.1%} |" for n in NGRAMS]
    lines += ["", "By crate, common phrases and copies told apart: `nanochat-tui eval overlap FOLDER`."]
    lines += ["", "## Files left out, in the order of the filters", "", "| reason | files | MB |", "|---|---:|---:|"]
    lines += [f"| found | {report.found.documents:,} | {report.found.bytes / 1e6:.1f} |"]
    lines += [f"| {r} | {c.documents:,} | {c.bytes / 1e6:.1f} |" for r, c in report.left_out.items() if c.documents]
    lines += ["", "## Sources", ""]
    kinds = {"compiler trees": Count(), "Debian crates": Count(), "source distributions": Count()}
    for name, count in report.sources.items():
        kind = "compiler trees" if name in COMPILERS else "Debian crates"
        kind = kind if name.startswith(("librust-", "rust-")) else "source distributions"
        for field in ("documents", "bytes", "tokens"):
            setattr(kinds[kind], field, getattr(kinds[kind], field) + getattr(count, field))
    lines += _table("kind (both splits)", kinds)
    lines += ["## Largest crates of training", "", *_table("crate", largest, total)]
    lines += ["## Held-out crates", "", *_table("crate", dict(sorted(report.crates["val"].items())))]
    lines += ["## Licences", "", *_table("licence", report.licences)]
    versions = [f"{p.name} {p.version}" for p in packages if p.name in report.sources or p.tree in report.sources]
    lines += ["## Packages with files in it", "", ", ".join(versions), ""]
    text = "\n".join(lines)
    (report.output / "REPORT.md").write_text(text, encoding="utf-8")
    return text
