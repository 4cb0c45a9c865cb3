"""What the evaluate mode shows of an evaluation, a sample and a comparison. Pure: no widgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.content import Content

from nanochat_tui.evaluate.comparing import Comparison
from nanochat_tui.evaluate.kept import Kept, State
from nanochat_tui.evaluate.solving import Row
from nanochat_tui.text import display_safe, printable
from nanochat_tui.tui import numbers
from nanochat_tui.tui.widgets.bars import meter
from nanochat_tui.tui.widgets.highlighting import highlight_code

COLOURS: dict[State, str] = {
    "starting": "text-accent",
    "running": "text-success",
    "finished": "foreground",
    "stopped": "text-warning",
    "failed": "text-error",
}
PROMPT_LINES = 8
"""Lines of a prompt that are shown at first: the end is what the model continues."""
LONGEST = 20_000
"""Characters of one text that are shown."""
DIM, HEADING = "$foreground 60%", "bold $text-primary"


def rate_text(kept: Kept) -> str:
    """Return the share that passed so far with its interval; "" without a completion."""
    rate = kept.rate()
    if rate is None:
        return ""
    if len(kept.parts) > 1:  # a share of different things would mean nothing
        return f"{kept.passed:,} of {kept.done:,}"
    if kept.passed == 0:
        return f"0% (at most {rate[2]:.1%})"
    return f"{rate[0]:.1%} ({rate[1]:.1%} to {rate[2]:.1%})"


def done_text(kept: Kept) -> str:
    """Return how much is done, such as 12/60."""
    return f"{kept.done:,}/{kept.total:,}" if kept.total else f"{kept.done:,}"


def progress_content(kept: Kept | None, width: int) -> Content:
    """Return three lines on an evaluation: what it is, how far it is, and its newest sample or why it failed."""
    if kept is None:
        return Content("\n\n")
    first = Content.assemble(
        (kept.state, f"bold ${COLOURS[kept.state]}"),
        ("  ", ""),
        (display_safe(kept.title), "$foreground"),
        (f"  {display_safe(kept.model)}" if kept.model else "", DIM),
    )
    cells = max(8, min(30, width // 4))
    share = kept.done / kept.total if kept.total else 0.0
    parts = [Content.styled(meter(share, cells), "$text-success on $surface-lighten-2"), Content(f" {done_text(kept)}")]
    if kept.rate() is not None:
        parts.append(Content.assemble(("  passed ", DIM), (rate_text(kept), "bold $foreground")))
    if kept.seconds_left is not None:
        parts.append(Content.assemble(("  ", ""), (f"{numbers.duration(kept.seconds_left)} left", DIM)))
    last = Content("")
    if kept.failure and kept.state in ("failed", "stopped"):
        last = Content.styled(display_safe(kept.failure, 400), "$text-error" if kept.state == "failed" else DIM)
    elif len(kept.parts) > 1:
        last = Content("  ").join(_part(kept, part) for part in kept.parts)
    elif kept.rows:
        last = Content.assemble(("newest  ", DIM), sample_name(kept.rows[-1]), ("  ", ""), verdict(kept.rows[-1]))
    lines = [first, Content("").join(parts), last]
    return Content("\n").join(line.truncate(max(8, width), ellipsis=True) for line in lines)


def _part(kept: Kept, part: str) -> Content:
    rows = [row for row in kept.rows if row.problem.startswith(f"{part}/")]
    return Content.assemble(
        (f"{display_safe(part)} ", DIM), (f"{sum(row.verdict == 'passed' for row in rows)}/{len(rows)}", "$foreground")
    )


def sample_name(row: Row, *, short: bool = False) -> Content:
    """Return what a sample is of; `short`: the first and the last part of its name."""
    more = f" #{row.sample + 1}" if row.sample else ""
    if row.temperature is not None:
        more += f" @{row.temperature:g}"
    parts = row.problem.split("/")
    name = f"{parts[0]} {parts[-1]}" if short and len(parts) > 2 else row.problem
    return Content.assemble((display_safe(name), "$foreground"), (more, DIM))


def verdict(row: Row) -> Content:
    """Return a verdict in its colour."""
    colour = "$text-success" if row.verdict == "passed" else "$text-error"
    return Content.styled(display_safe(row.verdict), colour)


def sample_content(row: Row | None, problem: Mapping[str, Any] | None, *, whole: bool = False) -> Content:
    """Return one sample to read: verdict, prompt, completion, what compiler or tests said, and the author's text;
    with `whole` all of the prompt.
    """
    if row is None:
        return Content.styled("no sample here yet", DIM)
    asked = problem or {}
    language = asked.get("language")
    language = language if language in ("python", "rust") else "rust"
    scores = "   ".join(
        f"{display_safe(str(name))} {value:.3g}"
        for name, value in row.scores.items()
        if isinstance(value, (int, float))
    )
    parts = [Content.assemble(sample_name(row), ("   ", ""), verdict(row)), Content.styled(scores, DIM)]
    parts += _section("prompt", _prompt(_text(asked, "prompt"), whole=whole), language)
    if asked.get("suffix"):
        parts += _section("what follows", _first(_text(asked, "suffix")), language)
    parts += _section("completion", row.completion or " ", language)
    if row.detail:
        parts += [Content.styled("output", HEADING), Content(_safe(row.detail)), Content("")]
    if asked.get("reference"):
        parts += _section("the author's text", _text(asked, "reference"), language)
    if asked.get("test"):
        parts += _section("tests", _text(asked, "test"), language)
    return Content("\n").join(parts)


def _text(asked: Mapping[str, Any], key: str) -> str:
    return str(asked.get(key) or "")


def _safe(text: str) -> str:
    return printable(text[:LONGEST]) + (" …" if len(text) > LONGEST else "")


def _section(title: str, text: str, language: str) -> list[Content]:
    return [Content.styled(title, HEADING), highlight_code(_safe(text.strip("\n")), language), Content("")]


def _prompt(text: str, *, whole: bool) -> str:
    lines = text.rstrip("\n").split("\n")
    left_out = 0 if whole else len(lines) - PROMPT_LINES
    kept = "\n".join(lines[max(0, left_out) :])
    return f"… {left_out} lines before\n{kept}" if left_out > 0 else kept


def _first(text: str) -> str:
    lines = text.strip("\n").split("\n")
    return "\n".join(lines[:8]) + ("\n…" if len(lines) > 8 else "")


def comparison_content(
    names: Sequence[str],
    found: Comparison,
    parts: Sequence[tuple[str, Comparison]],
    different: Sequence[str],
    pairs: Sequence[tuple[Row, Row]],
) -> Content:
    """Return two evaluations next to each other: rates, the interval of the difference, that of each part where there
    are several, and where they differ.
    """
    said = "the difference is significant" if found.is_significant else "the difference may be chance"
    lines = [Content.styled(f"{found.problems} problems that both were given", HEADING), Content("")]
    for name, rate, better in zip(names, found.rates, found.better, strict=True):
        more = f"  passed {rate:.1%}   more often right on {better}"
        lines.append(Content.assemble((display_safe(name), "bold $foreground"), more))
    lines += [
        Content(""),
        Content.assemble(
            ("difference ", DIM),
            (f"{found.difference:+.1%}", "bold $foreground"),
            (f"   95 % interval {found.low:+.1%} to {found.high:+.1%}", "$foreground"),
            (f"   sign test p = {found.sign_test:.2g}", "$foreground"),
        ),
        Content.styled(said, "$text-success" if found.is_significant else "$text-warning"),
    ]
    if parts:
        lines += [Content(""), Content.styled("part by part", HEADING)]
    for part, one in parts:
        rates = f"{one.rates[0]:6.1%} {one.rates[1]:6.1%}"
        lines.append(
            Content(
                f"{display_safe(part):<8} n {one.problems:<4} {rates}   {one.difference:+.1%} "
                f"({one.low:+.1%} to {one.high:+.1%})  p = {one.sign_test:.2g}"
            )
        )
    if different:
        lines.append(Content.styled(f"also different: {', '.join(map(display_safe, different))}", "$text-warning"))
    if pairs:
        lines += [Content(""), Content.styled("different verdicts", HEADING)]
    lines += [
        Content.assemble(sample_name(first), ("  ", ""), verdict(first), ("  →  ", DIM), verdict(second))
        for first, second in pairs
    ]
    return Content("\n").join(lines)


def different_verdicts(first: Sequence[Row], second: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the samples of both that passed in one and not in the other."""
    others = {row.key: row for row in second}
    pairs = [(row, others[row.key]) for row in first if row.key in others]
    return [pair for pair in pairs if (pair[0].verdict == "passed") != (pair[1].verdict == "passed")]
