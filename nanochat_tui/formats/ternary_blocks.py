"""Splitting ternary blocks into codes and scales without passing through floats, and putting them together.

A code is 0, 1, 2 (or 3, which 2-bit types can hold) and means code − 1; a weight is that times the block's
float16 scale. Layouts: ggml-common.h for TQ1_0, TQ2_0 and Q2_0; PrismML's fork for Q2_0 in groups of 128
and PQ2_0.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.plain_blocks import Blocks, Values, demand_finite, view

Codes = NDArray[np.uint8]
Scales = NDArray[np.float16]

_SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)
_LOW_BITS = np.uint8(3)


def split_q2(blocks: Blocks) -> tuple[Codes, Scales]:
    """Split Q2_0 or PQ2_0: f16 d, then elements in order, four to a byte, the lowest bits first."""
    codes = (blocks[:, 2:, None] >> _SHIFTS) & _LOW_BITS
    return codes.reshape(len(blocks), 4 * (blocks.shape[1] - 2)), view(blocks[:, :2], "<f2")[:, 0]


def join_q2(codes: Codes, scales: Scales) -> Blocks:
    """Inverse of `split_q2`."""
    packed = np.bitwise_or.reduce(codes.reshape(len(codes), codes.shape[1] // 4, 4) << _SHIFTS, axis=2)
    return np.concatenate([_scale_bytes(scales), packed], axis=1)


def split_tq2_0(blocks: Blocks) -> tuple[Codes, Scales]:
    """Split TQ2_0: two halves of 32 bytes, bit pair l of byte m being element 128·half + 32·l + m; f16 d."""
    quants = blocks[:, :64].reshape(-1, 2, 1, 32)
    codes = (quants >> _SHIFTS[:, None]) & _LOW_BITS
    return codes.reshape(len(blocks), 256), view(blocks[:, 64:], "<f2")[:, 0]


def join_tq2_0(codes: Codes, scales: Scales) -> Blocks:
    """Inverse of `split_tq2_0`."""
    lanes = codes.reshape(-1, 2, 4, 32) << _SHIFTS[:, None]
    packed = np.bitwise_or.reduce(lanes, axis=2).reshape(len(codes), 64)
    return np.concatenate([packed, _scale_bytes(scales)], axis=1)


@cache
def _base3() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the tables of base-3 packing: trits uint8 [256, 5] of a byte, byte uint8 [243] of a number.

    Five trits, the first most significant, make q < 243, stored as ceil(q·256 / 243); trit n of a byte is the
    top of (byte·3ⁿ mod 256)·3. Every byte decodes, also those that no encoder writes.
    """
    byte = np.arange(256)[:, None]
    trits = ((byte * 3 ** np.arange(5)) % 256 * 3) >> 8
    packed = (np.arange(243) * 256 + 242) // 243
    return trits.astype(np.uint8), packed.astype(np.uint8)


def split_tq1_0(blocks: Blocks) -> tuple[Codes, Scales]:
    """Split TQ1_0: 32 and 16 bytes of five trits, 4 of four, each a stride of its part apart; f16 d."""
    trits, _ = _base3()
    n = len(blocks)
    parts = [
        trits[blocks[:, start:stop]][..., :count].swapaxes(1, 2).reshape(n, count * (stop - start))
        for start, stop, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4))
    ]
    return np.concatenate(parts, axis=1), view(blocks[:, 52:], "<f2")[:, 0]


def join_tq1_0(codes: Codes, scales: Scales) -> Blocks:
    """Inverse of `split_tq1_0` for codes 0 to 2."""
    _, packed = _base3()
    powers = np.array([81, 27, 9, 3, 1])
    parts = []
    for start, stop, count in ((0, 160, 5), (160, 240, 5), (240, 256, 4)):
        lanes = codes[:, start:stop].reshape(len(codes), count, (stop - start) // count).astype(np.int64)
        number = (lanes * powers[:count, None]).sum(axis=1)
        parts.append(packed[number])
    return np.concatenate([*parts, _scale_bytes(scales)], axis=1)


def _scale_bytes(scales: Scales) -> Blocks:
    return np.ascontiguousarray(scales, dtype="<f2").reshape(-1, 1).view(np.uint8)


def weigh(codes: Codes, scales: Scales) -> Values:
    """Return (code − 1) times the block's scale as float32."""
    return (codes.astype(np.float32) - np.float32(1)) * scales.astype(np.float32)[:, None]


def absmax_codes(values: Values) -> tuple[Codes, Scales]:
    """Quantise floats as ggml does for its ternary types: d = f16(max |w|), trit = w / d rounded.

    Exact when every non-zero of a block has the same magnitude and that is a float16; a trained group-absmean
    model must be stored through codes and scales, not through this.
    Raises FormatError if a value is not finite or beyond float16.
    """
    demand_finite(values)
    with np.errstate(over="ignore"):
        scales = np.abs(values).max(axis=1).astype(np.float16)
    if np.isinf(scales).any():
        raise FormatError("a weight is beyond the range of a float16 scale (65504)")
    wide = scales.astype(np.float32)[:, None]
    ratio = values / np.where(wide == 0, np.float32(1), wide)
    return (np.clip(np.rint(ratio), -1, 1) + 1).astype(np.uint8), scales
