"""Averages over documents, with the spread that a choice of other documents or crates would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.evaluate.scoring import Scored


@dataclass(frozen=True)
class Figure:
    """A ratio of sums and its standard error over the units it was summed over."""

    value: float
    error: float


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Figure:
    """Ratio of sums with the standard error of a ratio estimate over units (Cochran, Sampling Techniques, 6.3).

    The error is NaN for a single unit.
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    value = float(top.sum() / max(bottom.sum(), 1e-300))
    n = len(top)
    if n < 2:
        return Figure(value, math.nan)
    rest = top - value * bottom
    return Figure(value, float(math.sqrt(n * (rest**2).sum() / (n - 1)) / max(bottom.sum(), 1e-300)))


@dataclass(frozen=True)
class CrateRow:
    """One crate's figures."""

    crate: str
    documents: int
    tokens: int
    bytes: int
    nats: float
    bits_per_byte: float
    accuracy: float


@dataclass(frozen=True)
class Summary:
    """What `eval perplexity` and `eval accuracy` say."""

    windows: str
    documents: int
    tokens: int
    bytes: int
    nats: Figure
    """Per token; errors are over crates."""
    perplexity: float
    bits_per_byte: Figure
    accuracy: Figure
    accuracy_no_whitespace: Figure
    """Over targets that are not white space alone."""
    crates: tuple[CrateRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; a NaN error (one crate only) is null."""
        return plain(asdict(self))  # type: ignore[no-any-return]


def plain(value: Any) -> Any:
    """Return a value whose tuples are lists and whose NaN are None, as JSON has it."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def summarise(scored: Sequence[Scored], windows: str, whitespace: NDArray[np.bool_]) -> Summary:
    """Sum up by crate and over all; `whitespace` bool [vocab] marks ids that are white space alone."""
    by_crate: dict[str, list[Scored]] = {}
    for one in scored:
        by_crate.setdefault(one.document.crate, []).append(one)
    columns: dict[str, list[float]] = {key: [] for key in ("nats", "tokens", "bits", "bytes", "hits", "seen", "right")}
    rows = []
    for crate, members in sorted(by_crate.items()):
        nats = sum(float(one.nats.sum()) for one in members)
        tokens = sum(len(one.nats) for one in members)
        size = sum(one.document.size for one in members)
        hits = sum(int(one.hits.sum()) for one in members)
        visible = [~whitespace[one.targets] for one in members]
        right = sum(int((one.hits & seen).sum()) for one, seen in zip(members, visible, strict=True))
        sums = (nats, tokens, nats / math.log(2), size, hits, sum(int(seen.sum()) for seen in visible), right)
        for column, value in zip(columns.values(), sums, strict=True):
            column.append(value)
        per_token = nats / max(tokens, 1)
        rows.append(
            CrateRow(crate, len(members), tokens, size, per_token, sums[2] / max(size, 1), hits / max(tokens, 1))
        )
    nats_figure = ratio(columns["nats"], columns["tokens"])
    return Summary(
        windows,
        len(scored),
        int(sum(columns["tokens"])),
        int(sum(columns["bytes"])),
        nats_figure,
        math.exp(min(nats_figure.value, 80.0)),
        ratio(columns["bits"], columns["bytes"]),
        ratio(columns["hits"], columns["tokens"]),
        ratio(columns["right"], columns["seen"]),
        tuple(rows),
    )


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a rate (Wilson 1927), 95 % by default; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
