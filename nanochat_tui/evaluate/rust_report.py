"""What `eval rust` found, by part and temperature: rates with intervals, similarities with standard errors."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nanochat_tui.evaluate.pass_at_k import pass_rate
from nanochat_tui.evaluate.rust_items import PARTS, Item, Part
from nanochat_tui.evaluate.solving import Row
from nanochat_tui.evaluate.summary import Figure, wilson


@dataclass(frozen=True)
class Rate:
    """A share of completions with its 95 % interval: Wilson's for one sample of each item, else a bootstrap over the
    items, because the samples of one item are not independent.
    """

    count: int
    total: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PartReport:
    """One part at one temperature. Rates that a part does not have are None."""

    part: Part
    temperature: float
    items: int
    samples: int
    passed: Rate
    exact: Rate
    compiles: Rate | None
    constant: Rate | None
    similarity: Figure
    """Mean over items with its standard error."""
    verdicts: dict[str, int]


def part_reports(
    rows: Sequence[Row], items: Sequence[Item], samples: Mapping[float, int]
) -> tuple[list[PartReport], int]:
    """Sum up by part and temperature (`samples` has those of each), and say how many completions are still missing.

    Items without all their samples count in no figure.
    """
    part_of = {item.name: item.part for item in items}
    groups: dict[tuple[Part, float], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        temperature = row.temperature or 0.0
        if row.problem in part_of and row.sample < samples.get(temperature, 0):
            groups[part_of[row.problem], temperature][row.problem].append(row)
    found = []
    missing = sum(samples.values()) * len(items)
    for part in PARTS:
        for temperature, wanted in samples.items():
            by_item = [own for own in groups[part, temperature].values() if len(own) == wanted]
            missing -= sum(len(own) for own in groups[part, temperature].values())
            if by_item:
                found.append(_report(part, temperature, wanted, by_item))
    return found, missing


def _report(part: Part, temperature: float, samples: int, by_item: Sequence[Sequence[Row]]) -> PartReport:
    def share(score: str) -> Rate | None:
        if score not in by_item[0][0].scores:
            return None
        return rate([[row.scores.get(score, 0.0) > 0 for row in rows] for rows in by_item])

    means = np.array([np.mean([row.scores.get("similarity", 0.0) for row in rows]) for rows in by_item])
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan
    exact = share("exact")
    passed = rate([[row.verdict == "passed" for row in rows] for rows in by_item])
    verdicts = Counter(row.verdict for rows in by_item for row in rows)
    return PartReport(
        part,
        temperature,
        len(by_item),
        samples,
        passed,
        exact or rate([[False]]),
        share("compiles"),
        share("constant"),
        Figure(float(means.mean()), error),
        dict(verdicts.most_common()),
    )


def rate(outcomes: Sequence[Sequence[bool]]) -> Rate:
    """Return the share of completions that are true, given those of each item, all of the same number."""
    count, samples = sum(map(sum, outcomes)), len(outcomes[0])
    total = samples * len(outcomes)
    if samples == 1:
        return Rate(count, total, count / total, *wilson(count, total))
    found = pass_rate([(len(own), sum(own)) for own in outcomes], 1)
    return Rate(count, total, found.value, found.low, found.high)


def rate_text(one: Rate) -> str:
    """Say a rate with its interval; of none or all the bound on the other side alone."""
    if one.count == 0:
        return f"0 of {one.total:,} (at most {one.high:.1%})"
    if one.count == one.total:
        return f"{one.count:,} of {one.total:,} (at least {one.low:.1%})"
    return f"{one.count:,} of {one.total:,}, {one.value:.1%} ({one.low:.1%} to {one.high:.1%})"


def report_lines(reports: Sequence[PartReport]) -> list[str]:
    """Say what was found: a line for each part, and one for each temperature below it."""
    lines: list[str] = []
    for at, one in enumerate(reports):
        if at == 0 or reports[at - 1].part != one.part:
            lines.append(PARTS[one.part])
        of = f"{one.items} items" + (f", {one.samples} samples of each" if one.samples > 1 else "")
        figures = [f"passed {rate_text(one.passed)}"]
        if one.part == "tests" and one.compiles is not None:
            figures.append(f"compile {rate_text(one.compiles)}")
        if one.part not in ("infill", "lines"):
            figures.append(f"exact {rate_text(one.exact)}")
        figures.append(f"edit similarity {_mean(one.similarity)}")
        if one.constant is not None:
            figures.append(f"constant {rate_text(one.constant)}")
        lines += [f"  temperature {one.temperature:g}, {of}", *(f"    {figure}" for figure in figures)]
    return lines


def _mean(figure: Figure) -> str:
    return f"{figure.value:.3f}" + ("" if math.isnan(figure.error) else f" ± {figure.error:.3f}")


HEAD = ("Rust", "temperature", "n", "passed", "compile", "edit similarity", "constant")


def table_rows(reports: Sequence[PartReport]) -> list[tuple[str, ...]]:
    """Return the figures as cells under `HEAD`, for a card."""
    return [
        (
            PARTS[one.part],
            f"{one.temperature:g}",
            f"{one.items} × {one.samples}" if one.samples > 1 else f"{one.items}",
            rate_text(one.passed),
            rate_text(one.compiles) if one.part == "tests" and one.compiles is not None else "",
            _mean(one.similarity),
            rate_text(one.constant) if one.constant is not None else "",
        )
        for one in reports
    ]
