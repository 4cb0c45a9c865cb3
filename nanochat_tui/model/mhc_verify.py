"""Verification of mHC records: are the mixing matrices doubly stochastic, one by one and composed, and what
do the records really do to the size of the residual state?

That a product of doubly stochastic matrices keeps the size is true by construction, so a "gain" of H alone
is 1.0 for every file and measures nothing. The gain here includes reading and writing. See `MhcReport.gains`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanochat_tui.model.mhc import (
    CURRENT_VERSION,
    MhcError,
    StreamMatrices,
    mixes_before_write,
    stream_matrices,
)

RECORD_TOLERANCE = 1e-6
"""Largest deviation from 1 of a row or column sum of one matrix (float32 rounding is 10 times smaller)."""
COMPOSED_TOLERANCE = 1e-5
"""The same for the product over depth, where the roundings of every factor add up."""
ALIVE_TOLERANCE = 1e-6
"""Write weights closer together than this keep equal streams equal."""


@dataclass(frozen=True)
class MhcReport:
    """What verification found. Sizes: n records over N streams; all arrays float64."""

    n_streams: int
    version: int
    n_records: int
    errors: tuple[str, ...] = ()
    """One sentence per violation; empty = verified."""
    matrices: StreamMatrices | None = None
    """The weights, unless the records could not be read at all."""
    max_row_error: float = 0.0
    """Largest |row sum - 1| over the mixing matrices; likewise for columns."""
    max_column_error: float = 0.0
    min_entry: float = 0.0
    """Smallest entry of any mixing matrix."""
    composed: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    """Product of all mixing matrices, last · ... · first [N, N]."""
    composed_row_error: float = 0.0
    composed_column_error: float = 0.0
    stream_memory: float = 0.0
    """How much of a difference between streams survives the mixing of the whole stack: spectral norm of
    `composed` minus the averaging matrix; 1 = no mixing, 0 = the streams end as their mean."""
    gains: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Real gain per record [n]: the spectral norm of M = H (I + q pᵀ) (version 1 with 4 streams: H + q pᵀ),
    the map of the streams when the sub-layer passes on what it reads at unit gain. It is the most that one
    sub-layer can grow the state's norm; the plain residual x + x has 2."""
    log2_total_gain: float = 0.0
    """log2 of the spectral norm of the product of all M: the same over the whole stack, where directions that
    one record amplifies another may not. A plain residual has n."""
    alive: bool = False
    """Whether the streams can differ. They start as copies and stay equal for ever, which makes every mixing
    matrix meaningless, unless some record writes differently to them (H q not constant)."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.errors

    @property
    def error(self) -> str | None:
        """The first violation, for a report of one line."""
        return self.errors[0] if self.errors else None

    @property
    def gain_per_sublayer(self) -> float:
        """Geometric mean of the total gain over the records; a plain residual has 2."""
        return float(2.0 ** (self.log2_total_gain / self.n_records)) if self.n_records else 1.0


def _sums_error(matrices: NDArray[np.float64], axis: int) -> float:
    return float(np.abs(matrices.sum(axis=axis) - 1.0).max(initial=0.0))


def _log2_gain(maps: NDArray[np.float64]) -> float:
    """Return log2 of the spectral norm of maps[-1] · ... · maps[0], rescaled against overflow."""
    product, exponent = np.eye(maps.shape[-1]), 0.0
    for step in maps:
        product = step @ product
        size = float(np.linalg.norm(product, 2))
        if size == 0.0:
            return float("-inf")
        product, exponent = product / size, exponent + float(np.log2(size))
    return exponent


def verify(
    records: ArrayLike, n_streams: int, version: int = CURRENT_VERSION, expected_records: int | None = None
) -> MhcReport:
    """Check records and measure what they do; never raises for bad records, it reports them.

    Parameters: records [n, 9|40], as for `stream_matrices`; `expected_records` is 2 per block of the model.
    """
    values = np.asarray(records, dtype=np.float32)
    count = len(values) if values.ndim else 0
    try:
        matrices = stream_matrices(values, n_streams, version)
    except MhcError as exc:
        return MhcReport(n_streams, version, count, (str(exc),))
    errors: list[str] = []
    if expected_records is not None and count != expected_records:
        errors.append(f"there are {count} mHC records but the model needs {expected_records} (2 per block)")
    p, h, q = (part.astype(np.float64) for part in matrices)
    rows, columns = _sums_error(h, -1), _sums_error(h, -2)
    smallest = float(h.min(initial=1.0))
    composed = np.eye(n_streams)
    for step in h:
        composed = step @ composed
    composed_rows, composed_columns = _sums_error(composed, -1), _sums_error(composed, -2)
    # written so that a NaN counts as a violation
    if not (rows <= RECORD_TOLERANCE and columns <= RECORD_TOLERANCE and smallest >= 0.0):
        errors.append(
            f"a mixing matrix is not doubly stochastic: rows are off by {rows:.2g}, columns by {columns:.2g}"
            f", the smallest entry is {smallest:.2g}"
        )
    if not (composed_rows <= COMPOSED_TOLERANCE and composed_columns <= COMPOSED_TOLERANCE):
        errors.append(
            f"the product of the mixing matrices is not doubly stochastic: rows are off by "
            f"{composed_rows:.2g}, columns by {composed_columns:.2g}"
        )
    outer = q[:, :, None] * p[:, None, :]
    mix_first = mixes_before_write(n_streams, version)
    maps = h + outer if mix_first else h @ (np.eye(n_streams) + outer)
    written = q if mix_first else np.einsum("nij,nj->ni", h, q)
    return MhcReport(
        n_streams=n_streams,
        version=version,
        n_records=count,
        errors=tuple(errors),
        matrices=matrices,
        max_row_error=rows,
        max_column_error=columns,
        min_entry=smallest,
        composed=composed,
        composed_row_error=composed_rows,
        composed_column_error=composed_columns,
        stream_memory=float(np.linalg.norm(composed - 1.0 / n_streams, 2)),
        gains=np.linalg.norm(maps, 2, axis=(-2, -1)) if count else np.zeros(0),
        log2_total_gain=_log2_gain(maps),
        alive=bool(np.ptp(written, axis=1).max(initial=0.0) > ALIVE_TOLERANCE),
    )
