"""The key-value cache of one sequence."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.packing import aligned, round_up
from nanochat_tui.errors import UserError
from nanochat_tui.model.config import ModelConfig

CacheType = Literal["f16", "f32"]
BLOCK = 16
"""Positions per block of keys."""


class KVCache:
    """Keys [layer][kv head][block of 16 positions][head_dim][16], values [layer][kv head][position][padded head_dim].

    `positions` is the capacity asked for; memory is reserved at once and used as it is written. Raises UserError
    if it cannot be reserved.
    """

    def __init__(self, config: ModelConfig, positions: int, kind: CacheType = "f16") -> None:
        self.positions = positions
        self.half = kind == "f16"
        dtype: Any = np.float16 if self.half else np.float32
        rows = round_up(positions, BLOCK)
        padded = round_up(config.head_dim, BLOCK)
        shape = (config.n_layers, config.n_kv_heads)
        try:
            self.keys: NDArray[Any] = aligned((*shape, rows // BLOCK, config.head_dim, BLOCK), dtype)
            self.values: NDArray[Any] = aligned((*shape, rows, padded), dtype)
        except MemoryError as error:
            raise UserError(
                f"there is not enough memory for a context of {positions} tokens; choose a smaller one"
            ) from error

    @property
    def rows(self) -> int:
        """Positions reserved: the capacity rounded up to whole blocks."""
        return int(self.values.shape[2])
