"""The section of a card that needs no corpus: files that come along, Rust, programming problems, comparisons."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.comparing import Comparison
from nanochat_tui.evaluate.rust_report import HEAD, PartReport, table_rows
from nanochat_tui.evaluate.solving import Report
from nanochat_tui.evaluate.summary import Figure, Summary, plain

BEGIN, END = "<!-- begin: nanochat-tui eval card -->", "<!-- end: nanochat-tui eval card -->"
"""Marks in a card around what the command replaces; text outside them is people's."""


@dataclass(frozen=True)
class Problems:
    """One set of programming problems: its title, how many were asked, and what was found."""

    title: str
    asked: str
    found: Report


@dataclass(frozen=True)
class Compared:
    """Two models on the same problems of one set."""

    other: str
    what: str
    found: Comparison


@dataclass(frozen=True)
class Measured:
    """What was measured, when and with what."""

    model: str
    date: str
    conditions: str
    held_out: Summary
    rust: Sequence[PartReport]
    left_out: Mapping[str, str]
    problems: Sequence[Problems]
    others: Mapping[str, Summary]
    compared: Sequence[Compared]

    def to_json(self) -> dict[str, Any]:
        """The figures, for scripts."""
        return {
            "model": self.model,
            "date": self.date,
            "held_out_files": self.held_out.to_json(),
            "rust": [plain(asdict(one)) for one in self.rust],
            "left_out": dict(self.left_out),
            "problems": [{"title": one.title, "asked": one.asked, **plain(asdict(one.found))} for one in self.problems],
            "others": {name: other.to_json() for name, other in self.others.items()},
            "compared": [
                {"other": one.other, "what": one.what, "difference": one.found.difference, **plain(asdict(one.found))}
                for one in self.compared
            ],
        }


def render_measured(one: Measured) -> list[str]:
    """Return the section as lines of Markdown, between its marks."""
    held = one.held_out
    lines = [
        BEGIN,
        "## Measured without a corpus",
        "",
        f"By `nanochat-tui eval card`, {one.date}; {one.conditions}. Intervals are 95 %, ± is a standard error; where "
        "none or all passed, the bound on the other side is given.",
        "",
        f"Held-out files that come along ({held.documents} files, {held.tokens:,} tokens, {held.bytes:,} bytes, "
        f"windows {held.windows}; errors over files):",
        "",
    ]
    names = [one.model, *one.others]
    summaries = [held, *one.others.values()]
    lines += markdown_table(
        ("", *names),
        [
            ("bits per byte", *(figure_text(s.bits_per_byte) for s in summaries)),
            ("nats per token", *(figure_text(s.nats) for s in summaries)),
            ("perplexity per token", *(f"{s.perplexity:.3f}" for s in summaries)),
            ("next token right", *(figure_text(s.accuracy) for s in summaries)),
        ],
    )
    lines += markdown_table(HEAD, table_rows(one.rust))
    lines += [f"{part}: left out, {reason}." for part, reason in one.left_out.items()]
    lines += [""] if one.left_out else []
    lines += markdown_table(
        ("problems", "n", "pass@1", "verdicts"), [(p.title, p.asked, *_problem_cells(p.found)) for p in one.problems]
    )
    if one.compared:
        lines += [
            f"Compared with other models on the same problems (theirs less {one.model}'s; a model with a "
            "chat template is asked by it):",
            "",
        ]
        lines += markdown_table(
            ("other model", "on", "n", one.model, "other", "difference", "sign test"),
            [(c.other, c.what, *_comparison_cells(c.found)) for c in one.compared],
        )
    return [*lines, END]


def _problem_cells(found: Report) -> tuple[str, str]:
    rate = found.rates[0] if found.rates else None
    verdicts = ", ".join(f"{count:,} {name}" for name, count in found.verdicts.items())
    if rate is None or not rate.problems:
        return "–", verdicts
    if rate.value == 0:
        return f"0 of {rate.problems} (at most {rate.high:.1%})", verdicts
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})", verdicts


def _comparison_cells(found: Comparison) -> tuple[str, ...]:
    return (
        f"{found.problems}",
        f"{found.rates[0]:.1%}",
        f"{found.rates[1]:.1%}",
        f"{found.difference:+.1%} ({found.low:+.1%} to {found.high:+.1%})",
        f"p = {found.sign_test:.2g}",
    )


def figure_text(value: Figure) -> str:
    """Return a figure with its standard error where one is known."""
    return f"{value.value:.4f}" if math.isnan(value.error) else f"{value.value:.4f} ± {value.error:.4f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table, its first column left-aligned, and a blank line; none without rows."""
    if not rows:
        return []
    marks = ["---", *["---:"] * (len(head) - 1)]
    lines = [head, marks, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines] + [""]


def replace_section(text: str, section: Sequence[str]) -> str | None:
    """Return a card with new text between the marks; None if it has no marks.

    Raises UserError if the marks are not one pair.
    """
    begins, ends = ([found.start() for found in re.finditer(re.escape(mark), text)] for mark in (BEGIN, END))
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        raise UserError(f"the card's marks are damaged; it needs one {BEGIN} and one {END} after it")
    return text[: begins[0]] + "\n".join(section) + text[ends[0] + len(END) :]
