"""Statistics of ternary matrices: how trits and scales are distributed, and which rows are dead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.inspection.mapped import forget
from nanochat_tui.inspection.trits import Tick, TritReader, ternary_tensors

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Points of a scale distribution that are reported, from the smallest scale to the largest."""
SCALE_BINS = 32
ZERO_BINS = 32
SAMPLE_BYTES = 1 << 26
"""What is read of a file to say how its trits are distributed, without being asked for all of them."""
LISTED_ROWS = 8
"""Dead rows that are named, of all that are counted."""


@dataclass(frozen=True, slots=True)
class TernaryStatistics:
    """Statistics of one ternary tensor, or of several together."""

    name: str
    weights: int
    counts: tuple[int, int, int, int]
    """Weights of value -1, 0, +1 and +2 (which the 2-bit layouts can hold) times the scale."""
    rows: int
    dead_rows: int
    """Rows without any non-zero weight: outputs that are always 0."""
    scales: int
    """Number of scales; one per block of the tensor's type, so a group's scale may be counted more than once."""
    scale_quantiles: tuple[float, ...]
    """Scales at `QUANTILES`, of those that are finite."""
    bad_scales: int
    """Scales that are not finite, or negative."""
    dead_groups: int = 0
    """Blocks of zeros, or with a scale of 0."""
    listed_dead_rows: tuple[int, ...] = ()
    """The first `LISTED_ROWS` dead rows."""
    scale_edges: tuple[float, ...] = ()
    """Borders of the bins below, equal steps of the logarithm from the smallest positive scale to the largest."""
    scale_histogram: tuple[int, ...] = ()
    """Positive scales per bin."""
    zero_histogram: tuple[int, ...] = ()
    """Blocks by their share of zeros, in `ZERO_BINS` equal bins from none to all."""

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """The counts as shares of all weights."""
        a, b, c, d = (count / self.weights if self.weights else 0.0 for count in self.counts)
        return a, b, c, d

    @property
    def entropy(self) -> float:
        """Bits per weight that trits of these shares need at least; log2(3) = 1.585 at most for true trits."""
        shares = np.array([share for share in self.shares if share > 0])
        return max(0.0, float(-(shares * np.log2(shares)).sum())) if shares.size else 0.0

    @property
    def balance(self) -> float:
        """(positive - negative) / non-zero: 0 for a matrix without bias, ±1 for one of a single sign."""
        minus, _, plus, two = self.counts
        used = minus + plus + two
        return (plus + two - minus) / used if used else 0.0

    @property
    def median_scale(self) -> float | None:
        """The scale in the middle, or None if there is no finite one."""
        return self.scale_quantiles[QUANTILES.index(0.5)] if self.scale_quantiles else None

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as JSON values."""
        minus, zero, plus, two = self.shares
        return {
            "name": self.name,
            "weights": self.weights,
            "minus": minus,
            "zero": zero,
            "plus": plus,
            "plus_two": two,
            "entropy_bits": self.entropy,
            "balance": self.balance,
            "rows": self.rows,
            "dead_rows": self.dead_rows,
            "dead_groups": self.dead_groups,
            "scale_quantiles": dict(zip(map(str, QUANTILES), self.scale_quantiles, strict=False)),
            "bad_scales": self.bad_scales,
            "scale_edges": list(self.scale_edges),
            "scale_histogram": list(self.scale_histogram),
            "zero_histogram": list(self.zero_histogram),
        }


def ternary_statistics(
    file: GGUFFile,
    names: Iterable[str] | None = None,
    progress: Callable[[str], None] | None = None,
    tick: Tick | None = None,
) -> list[TernaryStatistics]:
    """Return the statistics of ternary tensors (by default all), calling `progress` with each name.

    Reads every byte of them, in pieces that need a few megabytes. Raises FormatError if a tensor is not ternary, and
    whatever `tick` raises.
    """
    found = []
    for name in ternary_tensors(file) if names is None else names:
        if progress is not None:
            progress(name)
        found.append(tensor_statistics(file, name, tick))
    return found


def sample(file: GGUFFile, nbytes: int = SAMPLE_BYTES) -> list[str]:
    """Return names of ternary tensors that together take at most `nbytes`, in the order of the file."""
    names = []
    for name in ternary_tensors(file):
        if file.tensor(name).nbytes <= nbytes:
            nbytes -= file.tensor(name).nbytes
            names.append(name)
    return names


def total(parts: Iterable[TernaryStatistics]) -> TernaryStatistics:
    """Return several tensors' statistics as one. What is said of scales is left out: quantiles do not add up."""
    items = list(parts)
    counts = np.array([item.counts for item in items], dtype=np.int64).reshape(-1, 4).sum(axis=0)
    a, b, c, d = counts.tolist()
    return TernaryStatistics(
        name="total",
        weights=sum(item.weights for item in items),
        counts=(a, b, c, d),
        rows=sum(item.rows for item in items),
        dead_rows=sum(item.dead_rows for item in items),
        scales=sum(item.scales for item in items),
        scale_quantiles=(),
        bad_scales=sum(item.bad_scales for item in items),
        dead_groups=sum(item.dead_groups for item in items),
    )


def tensor_statistics(file: GGUFFile, name: str, tick: Tick | None = None) -> TernaryStatistics:
    """Return the statistics of one ternary tensor; see `ternary_statistics`."""
    reader = TritReader(file, name)
    counts = np.zeros(4, dtype=np.int64)
    zeros = np.zeros(reader.group + 1, dtype=np.int64)
    by_bits = np.zeros(1 << 16, dtype=np.int64)
    dead_rows = dead_groups = 0
    listed: list[int] = []
    single = reader.tensor_scale
    for start, stop in reader.steps():
        blocks = reader.blocks(start, stop)
        found = reader.counts(blocks)
        counts += found.sum(axis=0)
        zeros += np.bincount(found[:, 1], minlength=reader.group + 1)
        silent = found[:, 1] == reader.group
        if single is None:
            # a float16 has only 65,536 values, so counting them keeps the whole distribution in little memory
            half = reader.half_scales(blocks)
            by_bits += np.bincount(half.view("<u2"), minlength=1 << 16)
            silent |= half == 0
        elif single == 0:
            silent[:] = True
        dead_groups += int(silent.sum())
        dead = np.flatnonzero(silent.reshape(-1, reader.groups).all(axis=1))
        dead_rows += dead.size
        listed += (dead[: LISTED_ROWS - len(listed)] + start).tolist()
        forget(blocks)
        if tick is not None:
            tick(blocks.nbytes)
    if single is None:
        values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    else:
        values, by_bits = np.array([single]), np.array([1])
    scales = _Scales(values, by_bits)
    minus, zero, plus, two = counts.tolist()
    edges, histogram = scales.histogram()
    return TernaryStatistics(
        name=name,
        weights=reader.info.elements,
        counts=(minus, zero, plus, two),
        rows=reader.rows,
        dead_rows=dead_rows,
        scales=int(by_bits.sum()),
        scale_quantiles=scales.quantiles(),
        bad_scales=scales.bad,
        dead_groups=dead_groups,
        listed_dead_rows=tuple(listed),
        scale_edges=edges,
        scale_histogram=histogram,
        zero_histogram=_zero_bins(zeros),
    )


class _Scales:
    """A distribution given as how often each value occurs."""

    def __init__(self, values: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        present = counts > 0
        values, counts = values[present], counts[present]
        finite = np.isfinite(values)
        self.bad = int(counts[~finite].sum() + counts[finite & (values < 0)].sum())
        order = np.argsort(values[finite], kind="stable")
        self.values, self.counts = values[finite][order], counts[finite][order]

    def quantiles(self) -> tuple[float, ...]:
        """Return the values at `QUANTILES`, interpolated between neighbours as NumPy does by default."""
        if not self.values.size:
            return ()
        ends = np.cumsum(self.counts)
        places = np.array(QUANTILES) * (ends[-1] - 1)
        low = self.values[np.searchsorted(ends, np.floor(places), side="right")]
        high = self.values[np.searchsorted(ends, np.ceil(places), side="right")]
        mixed: NDArray[np.float64] = low + (high - low) * (places - np.floor(places))
        return tuple(mixed.tolist())

    def histogram(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Return edges and counts of the positive scales."""
        positive = self.values > 0
        if not positive.any():
            return (), ()
        logs = np.log2(self.values[positive])
        low, high = float(logs[0]), float(logs[-1])
        if high - low < 1e-6:  # one value: a bin around it
            low, high = low - 0.5, high + 0.5
        found, edges = np.histogram(logs, SCALE_BINS, (low, high), weights=self.counts[positive].astype(np.float64))
        return tuple(np.exp2(edges).tolist()), tuple(found.astype(np.int64).tolist())


def _zero_bins(zeros: NDArray[np.int64]) -> tuple[int, ...]:
    """Return blocks by number of zeros, [group + 1], as `ZERO_BINS` bins of their share."""
    group = len(zeros) - 1
    bins = np.minimum(np.arange(group + 1) * ZERO_BINS // group, ZERO_BINS - 1)
    return tuple(np.bincount(bins, weights=zeros, minlength=ZERO_BINS).astype(np.int64).tolist())
