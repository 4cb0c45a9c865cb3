"""Values of any tensor that can be decoded: the first ones, and their distribution, read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.inspection.mapped import forget
from nanochat_tui.inspection.trits import Tick
from nanochat_tui.text import display_safe

BINS = 64
_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Distribution of a tensor's values. Everything but the first three counts is of the finite ones."""

    name: str
    elements: int
    not_finite: int
    zeros: int
    smallest: float
    largest: float
    mean: float
    deviation: float
    edges: tuple[float, ...]
    histogram: tuple[int, ...]
    """Values in `BINS` equal bins from the smallest to the largest."""

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as JSON values."""
        return {
            "name": self.name,
            "elements": self.elements,
            "not_finite": self.not_finite,
            "zeros": self.zeros,
            "min": self.smallest,
            "max": self.largest,
            "mean": self.mean,
            "std": self.deviation,
            "edges": list(self.edges),
            "histogram": list(self.histogram),
        }


def decoded(file: GGUFFile, name: str, elements: int = _CHUNK_ELEMENTS) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Yield a tensor's values in order, float32 [about `elements`], with the bytes that each piece took.

    Raises FormatError if the tensor is absent or of a type that cannot be decoded.
    """
    kind = file.tensor(name).type
    if not kind.is_decodable:
        raise FormatError(f"tensor {display_safe(name)} is of {kind.refusal}")
    blocks, tail = file.blocks(name), file.tail(name)
    step = max(1, elements // kind.block_elements)
    for start in range(0, len(blocks), step):
        piece = blocks[start : start + step]
        yield kind.decode(piece, tail).reshape(-1), piece.nbytes
        forget(piece)


def first_values(file: GGUFFile, name: str, count: int = 64) -> NDArray[np.float32]:
    """Return the first values of a tensor, float32 [at most `count`]. Raises FormatError as `decoded` does."""
    kind = file.tensor(name).type
    for values, _ in decoded(file, name, max(count, kind.block_elements)):
        return values[:count]
    return np.zeros(0, np.float32)


def tensor_statistics(file: GGUFFile, name: str, tick: Tick | None = None) -> TensorStatistics:
    """Return the distribution of a tensor's values; reads it twice, once for the range.

    Raises FormatError as `decoded` does, and whatever `tick` raises.
    """
    elements = file.tensor(name).elements
    low, high, total, zeros, bad = np.inf, -np.inf, 0.0, 0, 0
    for values, size in decoded(file, name):
        good = values[np.isfinite(values)]
        bad += values.size - good.size
        zeros += int((good == 0).sum())
        if good.size:
            low, high = min(low, float(good.min())), max(high, float(good.max()))
            total += float(good.sum(dtype=np.float64))
        if tick is not None:
            tick(size)
    count = elements - bad
    if not count:
        return TensorStatistics(name, elements, bad, zeros, 0.0, 0.0, 0.0, 0.0, (), ())
    mean = total / count
    border = (low, high) if high > low else (low - 0.5, low + 0.5)
    histogram, squares = np.zeros(BINS, np.int64), 0.0
    edges = np.linspace(*border, BINS + 1)
    for values, size in decoded(file, name):
        good = values[np.isfinite(values)].astype(np.float64)
        histogram += np.histogram(good, BINS, border)[0]
        squares += float(((good - mean) ** 2).sum())
        if tick is not None:
            tick(size)
    return TensorStatistics(
        name=name,
        elements=elements,
        not_finite=bad,
        zeros=zeros,
        smallest=low,
        largest=high,
        mean=mean,
        deviation=float(np.sqrt(squares / count)),
        edges=tuple(edges.tolist()),
        histogram=tuple(histogram.tolist()),
    )
