"""Statistics of ternary matrices: how trits and scales are distributed, and which rows are dead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.formats.tensor_types import ternary_codes

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Points of a scale distribution that are reported, from the smallest scale to the largest."""
_CHUNK_WEIGHTS = 1 << 22
"""Weights looked at together, so that a large tensor needs little memory."""


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

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """The counts as shares of all weights."""
        a, b, c, d = (count / self.weights if self.weights else 0.0 for count in self.counts)
        return a, b, c, d

    @property
    def entropy(self) -> float:
        """Bits per weight that trits of these shares need at least; log2(3) = 1.585 at most for true trits."""
        shares = np.array([share for share in self.shares if share > 0])
        return float(-(shares * np.log2(shares)).sum()) if shares.size else 0.0

    @property
    def balance(self) -> float:
        """(positive - negative) / non-zero: 0 for a matrix without bias, ±1 for one of a single sign."""
        minus, _, plus, two = self.counts
        used = minus + plus + two
        return (plus + two - minus) / used if used else 0.0

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
            "scale_quantiles": dict(zip(map(str, QUANTILES), self.scale_quantiles, strict=False)),
            "bad_scales": self.bad_scales,
        }


def ternary_tensors(file: GGUFFile) -> list[str]:
    """Return the names of the tensors stored as trits and scales, in the order of the file."""
    return [name for name, info in file.tensors.items() if info.type.is_ternary]


def ternary_statistics(
    file: GGUFFile, names: Iterable[str] | None = None, progress: Callable[[str], None] | None = None
) -> list[TernaryStatistics]:
    """Return the statistics of ternary tensors (by default all), calling `progress` with each name.

    Reads every byte of them: about a second per gigabyte. Raises FormatError if a tensor is not ternary.
    """
    found = []
    for name in ternary_tensors(file) if names is None else names:
        if progress is not None:
            progress(name)
        found.append(_one(file, name))
    return found


def total(parts: Iterable[TernaryStatistics]) -> TernaryStatistics:
    """Return several tensors' statistics as one. Scale quantiles are left out: they do not add up."""
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
    )


def _one(file: GGUFFile, name: str) -> TernaryStatistics:
    info = file.tensor(name)
    blocks = file.blocks(name)
    columns = info.shape[-1]
    per_row = max(1, columns // max(1, info.type.block_elements))
    step = max(1, _CHUNK_WEIGHTS // columns) * per_row
    counts = np.zeros(4, dtype=np.int64)
    dead = 0
    parts: list[NDArray[np.float16]] = []
    for start in range(0, len(blocks), step):
        codes, scales = ternary_codes(info.type, blocks[start : start + step])
        counts += np.bincount(codes.reshape(-1), minlength=4)
        parts.append(scales)
        # a block whose scale is 0 is as dead as one of zeros
        silent = (codes == 1).all(axis=1) | (scales == 0)
        dead += int(silent.reshape(-1, per_row).all(axis=1).sum())
    scales = np.concatenate(parts).astype(np.float32)
    good = scales[np.isfinite(scales)]
    minus, zero, plus, two = counts.tolist()
    return TernaryStatistics(
        name=name,
        weights=info.elements,
        counts=(minus, zero, plus, two),
        rows=info.elements // columns,
        dead_rows=dead,
        scales=scales.size,
        scale_quantiles=tuple(np.quantile(good, QUANTILES).tolist()) if good.size else (),
        bad_scales=int(scales.size - good.size + (good < 0).sum()),
    )
