"""A model's card: figures of real evaluations, samples that were not picked, and what the corpus is made of."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.baselines import Baseline
from nanochat_tui.evaluate.copies import COPY, SHORT, Overlap, WithoutCopies
from nanochat_tui.evaluate.functions import judge
from nanochat_tui.evaluate.held_out import HeldOut
from nanochat_tui.evaluate.measured import Measured, figure_text, markdown_table, render_measured
from nanochat_tui.evaluate.summary import Summary
from nanochat_tui.formats.ngrams import ngram_cover
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

SAMPLE_PROMPT = "fn main() {"
SEEDS = range(10)
COPIED = 0.5
"""Share of a sample's tokens in runs of `COPY` training tokens from which it counts as nearly copied."""


@dataclass(frozen=True)
class Sample:
    """One reply: `parses` if the function that the prompt begins was ended and is without error; shares of its tokens
    in n-grams of `SHORT` and `COPY` that training text holds."""

    seed: int
    text: str
    tokens: int
    closed: bool
    parses: bool
    short: float
    copied: float


@dataclass(frozen=True)
class Licence:
    """Training text under one licence; a crate with files under several counts for each."""

    name: str
    crates: int
    files: int
    tokens: int


@dataclass(frozen=True)
class Card:
    """All that a card says; what was not measured is empty."""

    name: str
    facts: Sequence[tuple[str, str]]
    held_out: Summary
    without: WithoutCopies
    crates_in_all: int
    by_file: Summary | None
    others: Mapping[str, Summary]
    baselines: Sequence[Baseline]
    overlaps: Sequence[Overlap]
    measured: Measured
    samples: Sequence[Sample]
    sampling: str
    licences: Sequence[Licence]
    training: Sequence[tuple[str, str]] = field(default_factory=tuple)


def draw_samples(model: Model, held_out: HeldOut, max_tokens: int) -> list[Sample]:
    """Continue `SAMPLE_PROMPT` with each of `SEEDS` and the model's default sampling. Raises UserError."""
    replies = [list(model.generate(SAMPLE_PROMPT, max_tokens=max_tokens, seed=seed)) for seed in SEEDS]
    prompt = model.encode(SAMPLE_PROMPT)
    whole = [np.array([*prompt, *(int(t.id or 0) for t in tokens)], np.int64) for tokens in replies]
    train = held_out.train
    if train is None:
        raise UserError("the folder has no train.bin to compare with; give the whole folder that prepare-data wrote")
    flat = np.concatenate(whole)
    borders = np.cumsum([len(ids) for ids in whole])[:-1]
    short, copied = (np.split(ngram_cover(flat, train, n), borders) for n in (SHORT, COPY))
    found = []
    for seed, tokens, low, high in zip(SEEDS, replies, short, copied, strict=True):
        text = "".join(token.text for token in tokens)
        verdict = judge(SAMPLE_PROMPT, text)
        shares = (float(low.mean()), float(high.mean()))
        found.append(Sample(seed, text, len(tokens), verdict.closed, verdict.valid, *shares))
    return found


def count_licences(folder: Path) -> list[Licence]:
    """Licences of the training files and their crates, the commonest first. Raises UserError without files.tsv."""
    crates: dict[str, set[str]] = {}
    files: dict[str, int] = {}
    tokens: dict[str, int] = {}
    try:
        with (folder / "files.tsv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                if row["split"] == "train":
                    name = row["licence"]
                    crates.setdefault(name, set()).add(row["crate"] or row["source"])
                    files[name] = files.get(name, 0) + 1
                    tokens[name] = tokens.get(name, 0) + int(row["tokens"])
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{display_safe(str(folder))} has no files.tsv that can be read; prepare the data again"
        ) from None
    return sorted((Licence(n, len(crates[n]), files[n], tokens[n]) for n in files), key=lambda one: -one.crates)


def _facts(rows: Sequence[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), ""]


def render_without_corpus(name: str, facts: Sequence[tuple[str, str]], measured: Measured) -> str:
    """A card of what can be measured without a corpus, as Markdown."""
    return "\n".join([f"# {name}", "", *_facts(facts), *render_measured(measured), ""])


def render(card: Card) -> str:
    """The card as Markdown."""
    lines = [f"# {card.name}", "", *_facts(card.facts)]
    if card.training:
        lines += ["## Training", "", *_facts(card.training)]
    lines += [*_held_out(card), *render_measured(card.measured), "", *_samples(card), "## Corpus", ""]
    lines += [
        "Training text by licence; a crate with files under several counts for each. The text is not shipped.",
        "",
    ]
    rows = [(one.name, f"{one.crates:,}", f"{one.files:,}", f"{one.tokens:,}") for one in card.licences]
    return "\n".join([*lines, *markdown_table(("licence", "crates", "files", "tokens"), rows)])


def _held_out(card: Card) -> list[str]:
    found = card.held_out
    bits = [row.bits_per_byte for row in found.crates]
    quartiles = statistics.quantiles(bits, n=4) if len(bits) > 1 else [bits[0]] * 3
    lines = [
        "## Held-out crates",
        "",
        f"Whole crates of which no version or copy was trained on: {len(found.crates)} of {card.crates_in_all}, "
        f"{found.documents:,} files, {found.tokens:,} tokens, {found.bytes:,} bytes of original text; windows "
        f"{found.windows}. Errors are over crates.",
        "",
    ]
    lines += _facts(
        [
            ("bits per byte", f"**{figure_text(found.bits_per_byte)}**"),
            (
                f"without copies (runs of {COPY} tokens that training holds: {card.without.copied:.1%} of tokens)",
                figure_text(card.without.bits_per_byte),
            ),
            ("nats per token", figure_text(found.nats)),
            ("perplexity per token", f"{found.perplexity:.3f}"),
            ("next token right", figure_text(found.accuracy)),
            ("without white space", figure_text(found.accuracy_no_whitespace)),
            (
                "bits per byte of single crates",
                f"{min(bits):.3f} to {max(bits):.3f}, quartiles {', '.join(f'{q:.3f}' for q in quartiles)}",
            ),
        ]
    )
    rows = [("this model", figure_text(found.bits_per_byte), "")]
    rows += [(name, figure_text(other.bits_per_byte), "") for name, other in card.others.items()]
    rows += [(b.name, f"{b.bits_per_byte:.4f}", b.primed) for b in card.baselines]
    rows.sort(key=lambda row: float(row[1].split()[0]))
    lines += ["The same files by other means:", "", *markdown_table(("method", "bits per byte", "has read"), rows)]
    if card.by_file is not None:
        old = card.by_file
        lines += [
            f"Held out by file, as earlier cards had it (other files of the same crates were trained on; "
            f"{old.tokens:,} tokens): {figure_text(old.bits_per_byte)} bits per byte, next token right "
            f"{figure_text(old.accuracy)}.",
            "",
        ]
    covered = {row.crate: row for row in card.overlaps}
    table = [
        (
            row.crate,
            f"{row.tokens:,}",
            f"{row.bits_per_byte:.3f}",
            f"{row.accuracy:.3f}",
            f"{covered[row.crate].covered:.0%}" if row.crate in covered else "",
            f"{covered[row.crate].copied:.0%}" if row.crate in covered else "",
        )
        for row in found.crates
    ]
    head = ("crate", "tokens", "bits per byte", "accuracy", f"in {SHORT}-grams", f"in {COPY}-grams")
    return [*lines, "By crate, with the share of its tokens in n-grams of training:", "", *markdown_table(head, table)]


def _samples(card: Card) -> list[str]:
    samples = card.samples
    parse, near = sum(s.parses for s in samples), sum(s.copied >= COPIED for s in samples)
    tokens = sum(s.tokens for s in samples)
    short = sum(s.short * s.tokens for s in samples) / max(tokens, 1)
    copied = sum(s.copied * s.tokens for s in samples) / max(tokens, 1)
    lines = [
        "## Samples",
        "",
        f"`{SAMPLE_PROMPT}` with seeds {SEEDS[0]} to {SEEDS[-1]}, none picked ({card.sampling}). "
        f"{parse} of {len(samples)} end the function and parse; {near} are nearly copied (half of their tokens in runs "
        f"of {COPY} that training text holds). Of all tokens {short:.1%} are in {SHORT}-grams of training text, "
        f"{copied:.1%} in {COPY}-grams.",
        "",
    ]
    for one in samples:
        state = "parses" if one.parses else "ends, does not parse" if one.closed else "does not end"
        fence = "````" if "```" in one.text else "```"
        lines += [
            f"Seed {one.seed}: {state}; {one.short:.0%} in {SHORT}-grams, {one.copied:.0%} in {COPY}-grams.",
            "",
            f"{fence}rust",
            SAMPLE_PROMPT + one.text.rstrip("\n"),
            fence,
            "",
        ]
    return lines


def to_json(card: Card) -> dict[str, Any]:
    """The figures alone, for scripts."""
    return {
        **card.measured.to_json(),
        "held_out": card.held_out.to_json(),
        "without_copies": {"copied": card.without.copied, "bits_per_byte": card.without.bits_per_byte.value},
        "by_file": None if card.by_file is None else card.by_file.to_json(),
        "others": {name: other.to_json() for name, other in card.others.items()},
        "baselines": [{"name": b.name, "bits_per_byte": b.bits_per_byte, "primed": b.primed} for b in card.baselines],
        "samples_parse": sum(s.parses for s in card.samples),
        "samples_copied": sum(s.copied >= COPIED for s in card.samples),
    }
