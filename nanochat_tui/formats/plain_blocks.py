"""Decoding and encoding of the tensor types that are plain numbers, and Q8_0.

Every function works on blocks: uint8 [n_blocks, block_bytes] on disk, float32 [n_blocks, block_elements] in
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.errors import FormatError

Blocks = NDArray[np.uint8]
Values = NDArray[np.float32]
Codec = Callable[[Any], Any]


def view(blocks: Blocks, dtype: str) -> NDArray[Any]:
    """See the bytes of each row as numbers, whatever the strides of the rows."""
    return np.ascontiguousarray(blocks).view(dtype)


def demand_finite(values: Values) -> None:
    """Raise FormatError if a value is NaN or infinite: no quantised type can hold it."""
    if not np.isfinite(values).all():
        raise FormatError("a weight is NaN or infinite, which this tensor type cannot hold; the model has diverged")


def decode_as(dtype: str) -> Callable[[Blocks], Values]:
    """Return a decoder for elements stored as `dtype`; float64 and wide integers are rounded to float32."""

    def decode(blocks: Blocks) -> Values:
        with np.errstate(over="ignore"):
            return view(blocks, dtype).astype(np.float32)

    return decode


def encode_f32(values: Values) -> Blocks:
    """Store float32 unchanged."""
    return values.astype("<f4", copy=False).view(np.uint8)


def encode_f16(values: Values) -> Blocks:
    """Round to float16. Raises FormatError if a finite value is beyond its range."""
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if (np.isinf(halves) & np.isfinite(values)).any():
        raise FormatError("a weight is beyond the range of F16 (65504); choose F32 or BF16")
    return halves.view(np.uint8)


def decode_bf16(blocks: Blocks) -> Values:
    """Widen bfloat16, the upper half of a float32."""
    return (view(blocks, "<u2").astype(np.uint32) << 16).view(np.float32)


def encode_bf16(values: Values) -> Blocks:
    """Round to bfloat16, half to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    quiet = ((bits >> 16) | 0x40).astype("<u2")  # rounding could turn a NaN into infinity
    return np.where(np.isnan(values), quiet, rounded).astype("<u2").view(np.uint8)


def decode_q8_0(blocks: Blocks) -> Values:
    """Decode f16 d, then 32 int8: q times d."""
    scales = view(blocks[:, :2], "<f2").astype(np.float32)
    return view(blocks[:, 2:], "i1").astype(np.float32) * scales


def encode_q8_0(values: Values) -> Blocks:
    """Quantise 32 values: d = f16(max |w| / 127), q = w / d rounded half to even and clipped to ±127.

    The division is by d as stored, not by its value before rounding, so that trainer and file agree.
    Raises FormatError if a value is not finite or d is beyond float16.
    """
    demand_finite(values)
    with np.errstate(over="ignore"):
        scales = (np.abs(values).max(axis=1, keepdims=True) / np.float32(127)).astype("<f2")
    if np.isinf(scales).any():
        raise FormatError("a weight is too large for Q8_0; choose F32 or BF16")
    wide = scales.astype(np.float32)
    safe = np.where(wide == 0, np.float32(1), wide)
    quants = np.where(wide == 0, np.float32(0), np.clip(np.rint(values / safe), -127, 127)).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), quants.view(np.uint8)], axis=1)
