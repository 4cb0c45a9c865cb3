"""From a file's blocks to the layouts the kernels read: 16 output rows interleaved.

Ternary: block of 16 rows, then steps of 16 columns, then 16 rows x 4 bytes; byte j of a row holds the 2-bit codes
of columns j, 4 + j, 8 + j and 12 + j, lowest bits first. Scales float16 [block][group][16].
Table: block of 16 rows, then quads of 4 columns, then 16 rows x 4 bytes; scales float16 [block][columns / 32][16].
Dense: block of 16 rows, then columns, then 16 floats.
Rows that fill up the last block are zero. Ternary codes and scales never become floats on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout.memory import aligned, lasting, round_up
from nanochat_tui.engine.layout.slots import Q8_BLOCK, ROW_BLOCK


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed matrix: `weights` and `scales` as described in this module (no scales if dense)."""

    weights: NDArray[Any]
    scales: NDArray[Any]
    rows: int
    columns: int


def _pad_rows(a: NDArray[Any], multiple: int, value: int = 0) -> NDArray[Any]:
    missing = -len(a) % multiple
    if not missing:
        return a
    return np.concatenate([a, np.full((missing, *a.shape[1:]), value, a.dtype)])


def needs_small_groups(scales: NDArray[np.float16], block: int) -> bool:
    """Return whether 64-weight blocks carry scales that two neighbours do not share (or cannot be paired)."""
    if block >= 128:
        return False
    return bool(scales.shape[1] % 2 or (scales[:, 0::2] != scales[:, 1::2]).any())


def pack_ternary(codes: NDArray[np.uint8], scales: NDArray[np.float16], group: int) -> Packed:
    """Pack codes uint8 [rows, columns] (0..3 = value + 1) with scales float16 [rows, columns / block].

    `group` is 64 or 128 and at most the span over which scales are constant; columns are padded to it with
    zero weights. Scales of larger blocks are repeated.
    """
    rows, columns = codes.shape
    block = columns // scales.shape[1]
    padded = round_up(columns, group)
    if block < group:
        scales = scales[:, :: group // block]
    elif block > group:
        scales = np.repeat(scales, block // group, axis=1)
    codes = _pad_rows(codes, ROW_BLOCK, 1)
    if padded > columns:
        codes = np.pad(codes, ((0, 0), (0, padded - columns)), constant_values=1)
    scales = _pad_rows(scales, ROW_BLOCK)
    parts = codes.reshape(-1, ROW_BLOCK, padded // 16, 4, 4)
    packed = parts[:, :, :, 0] | parts[:, :, :, 1] << 2 | parts[:, :, :, 2] << 4 | parts[:, :, :, 3] << 6
    weights = aligned((len(codes) // ROW_BLOCK, padded // 16, ROW_BLOCK), np.uint32)
    weights[...] = packed.view(np.uint32)[..., 0].transpose(0, 2, 1)
    return Packed(weights, _interleave_scales(scales), rows, columns)


def _interleave_scales(scales: NDArray[np.float16]) -> NDArray[np.float16]:
    blocks = scales.reshape(-1, ROW_BLOCK, scales.shape[1]).transpose(0, 2, 1)
    out = aligned(blocks.shape, np.float16)
    out[...] = blocks
    return out


def pack_q8(quants: NDArray[np.int8], scales: NDArray[np.float16], bias: int, multiple: int) -> Packed:
    """Pack a table: quants int8 [rows, columns], scales float16 [rows, columns / 32].

    bias: added to every weight (128 for kernels that want unsigned bytes). multiple: rows are filled up to it.
    """
    rows, columns = quants.shape
    stored = (quants.view(np.uint8) ^ np.uint8(0x80)) if bias else quants.view(np.uint8)
    stored = _pad_rows(np.ascontiguousarray(stored), multiple, bias)
    weights = aligned((len(stored) // ROW_BLOCK, columns // 4, ROW_BLOCK), np.uint32)
    weights[...] = stored.view(np.uint32).reshape(-1, ROW_BLOCK, columns // 4).transpose(0, 2, 1)
    return Packed(weights, _interleave_scales(_pad_rows(scales, multiple)), rows, columns)


def pack_dense(values: NDArray[Any], multiple: int) -> Packed:
    """Pack float16 or float32 values [rows, columns] without scales."""
    rows, columns = values.shape
    padded = _pad_rows(values, multiple)
    weights = lasting((len(padded) // ROW_BLOCK, columns, ROW_BLOCK), values.dtype)
    weights[...] = padded.reshape(-1, ROW_BLOCK, columns).transpose(0, 2, 1)
    return Packed(weights, np.empty(0, np.float16), rows, columns)


def q8_parts(blocks: NDArray[np.uint8], columns: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Split Q8_0 blocks uint8 [n, 34] into quants int8 [rows, columns] and scales float16 [rows, columns / 32]."""
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float16, copy=False)
    quants = np.ascontiguousarray(blocks[:, 2:]).view(np.int8)
    return quants.reshape(-1, columns), scales.reshape(-1, columns // Q8_BLOCK)
