"""Rows of a ternary tensor: codes, scales and how often each code occurs, read in pieces from the mapped file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.formats.tensor_types import ternary_codes
from nanochat_tui.formats.ternary_blocks import BASE3_PARTS, split_i2_s
from nanochat_tui.text import display_safe

Tick = Callable[[int], None]
"""Called with the number of bytes that were just read. It may raise, and that ends the work."""

CHUNK_WEIGHTS = 1 << 22
"""Weights looked at together, so that a large tensor needs little memory."""

_LOW = np.uint64(0x5555_5555_5555_5555)

Counts = NDArray[np.int32]


def ternary_tensors(file: GGUFFile) -> list[str]:
    """Return the names of the tensors stored as trits and scales, in the order of the file."""
    return [name for name, info in file.tensors.items() if info.type.has_trits]


class TritReader:
    """One ternary tensor as a matrix of `rows` x `columns`; a tensor of experts is one matrix below the other.

    Everything is read when it is asked for. Raises FormatError if the tensor is absent or not ternary.
    """

    def __init__(self, file: GGUFFile, name: str) -> None:
        info = file.tensor(name)
        if not info.type.has_trits:
            raise FormatError(f"tensor {display_safe(name)} is of type {info.type.name}, which is not ternary")
        self.info = info
        self.kind = info.type
        self.columns = info.shape[-1]
        self.rows = info.elements // self.columns
        self.group = info.type.block_elements
        """Weights that share a scale on disk."""
        self.groups = self.columns // self.group
        """Blocks of a row."""
        self._blocks = file.blocks(name)
        self._tail = file.tail(name)

    @property
    def tensor_scale(self) -> float | None:
        """The one scale of the tensor; None where every block has its own."""
        return float(self.kind.tensor_scale(self._tail)) if self.kind.has_tensor_scale else None

    def steps(self, weights: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield row ranges of about `weights` weights (by default `CHUNK_WEIGHTS`) that cover the tensor."""
        step = max(1, (weights or CHUNK_WEIGHTS) // self.columns)
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)

    def blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the blocks of rows from `start` to before `stop`, uint8 [n, block_bytes]: a view of the map."""
        return self._blocks[start * self.groups : stop * self.groups]

    def codes(self, start: int, stop: int, first: int = 0, last: int | None = None) -> NDArray[np.uint8]:
        """Return codes 0 to 3 (a weight is (code - 1) times its scale), uint8 [stop - start, columns].

        `first` and `last` take only the groups of that range, so that a part of wide rows costs little.
        """
        end = self.groups if last is None else min(last, self.groups)
        chosen = self.blocks(start, stop).reshape(-1, self.groups, self.kind.block_bytes)[:, first:end]
        flat = np.ascontiguousarray(chosen).reshape(-1, self.kind.block_bytes)
        return self.split(flat)[0].reshape(-1, (end - first) * self.group)

    def scales(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the scale of every group, float32 [stop - start, groups]."""
        single = self.tensor_scale
        if single is not None:
            return np.full((stop - start, self.groups), single, np.float32)
        return self.half_scales(self.blocks(start, stop)).astype(np.float32).reshape(-1, self.groups)

    def half_scales(self, blocks: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return the scale of each block as stored, float16 [n], without splitting the codes."""
        at = self.kind.scales_at[0]
        return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0]

    def split(self, blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float16] | None]:
        """Return the codes of blocks, uint8 [n, group], and their scales unless the tensor has a single one."""
        if self.kind.has_tensor_scale:
            return split_i2_s(blocks, self._tail)[0], None
        return ternary_codes(self.kind, blocks)

    @property
    def order(self) -> str | None:
        """In which order the type packs codes of two bits, for `packed`; None if it does not."""
        return None if self.kind.has_tensor_scale else self.kind.code_order or None

    def packed(self, start: int, stop: int) -> NDArray[np.uint64] | None:
        """Return codes as they are packed, uint64 [rows * columns / 32], or None where they are not two bits each.

        Equal positions of two tensors of the same `order` and shape are the same weights, whatever their groups.
        """
        if self.order is None or self.columns % 32:
            return None
        return np.ascontiguousarray(self.blocks(start, stop)[:, slice(*self.kind.codes_at)]).reshape(-1).view("<u8")

    def counts(self, blocks: NDArray[np.uint8]) -> Counts:
        """Return how often each code occurs in each block, int32 [n, 4].

        Types of two bits and of base 3 are counted as they are packed, which is many times faster than unpacking.
        """
        name = self.kind.name
        if self.kind.code_order:
            found = _count_pairs(blocks[:, slice(*self.kind.codes_at)], self.group)
            if self.kind.max_code < 3:  # code 3 reads as 0
                found[:, 1] += found[:, 3]
                found[:, 3] = 0
            return found
        if name in BASE3_PARTS:
            (*_, (fives, fours, _trits)) = BASE3_PARTS[name]
            return _count_base3(blocks, fives, fours, self.group)
        if name in ("Q1_0", "Q1_0_g32"):
            plus = np.bitwise_count(blocks[:, 2:]).sum(axis=1, dtype=np.int32)
            none = np.zeros_like(plus)
            return np.stack([self.group - plus, none, plus, none], axis=1)
        codes = self.split(blocks)[0]
        return np.stack([(codes == code).sum(axis=1, dtype=np.int32) for code in range(4)], axis=1)


def _count_pairs(packed: NDArray[np.uint8], group: int) -> Counts:
    words = np.ascontiguousarray(packed).view("<u8")
    low, high = words & _LOW, (words >> np.uint64(1)) & _LOW

    def ones(bits: NDArray[np.uint64]) -> NDArray[np.int32]:
        found: NDArray[np.int32] = np.bitwise_count(bits).sum(axis=1, dtype=np.int32)
        return found

    three, odd, upper = ones(low & high), ones(low), ones(high)
    return np.stack([group - odd - upper + three, odd - three, upper - three, three], axis=1)


@cache
def _base3_counts(trits: int) -> NDArray[np.uint8]:
    """Return for each byte how many of its first `trits` trits are zero, and how many are plus, uint8 [2, 256]."""
    byte = np.arange(256)[:, None]
    codes = ((byte * 3 ** np.arange(trits)) % 256 * 3) >> 8
    return np.stack([(codes == 1).sum(axis=1), (codes == 2).sum(axis=1)]).astype(np.uint8)


def _count_base3(blocks: NDArray[np.uint8], fives: int, fours: int, group: int) -> Counts:
    zero, plus = (
        _base3_counts(5)[which][blocks[:, :fives]].sum(axis=1, dtype=np.int32)
        + _base3_counts(4)[which][blocks[:, fives:fours]].sum(axis=1, dtype=np.int32)
        for which in (0, 1)
    )
    return np.stack([group - zero - plus, zero, plus, np.zeros_like(zero)], axis=1)
