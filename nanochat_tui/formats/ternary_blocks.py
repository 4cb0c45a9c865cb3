"""Splitting ternary blocks into codes and scales without passing through floats, and putting them together.

A code is 0, 1, 2 (or 3, which 2-bit types can hold) and means code − 1; a weight is that times the block's
float16 scale (I2_S: the tensor's float32 scale). A join stores codes exactly or raises FormatError. Layouts:
ggml-common.h for TQ1_0, TQ2_0, Q1_0 and Q2_0; PrismML's fork for Q2_0 in groups of 128, PQ2_0 and PTQ1_0;
llama.cpp's pull request 22836 for STQ1_0 (Sherry); microsoft/BitNet for I2_S as its x86 builds write it.
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


Base3Parts = tuple[tuple[int, int, int], ...]
"""Bytes from, to and the trits of each: trit n of the m-th byte is element n·(bytes of the part) + m of the part."""
BASE3_PARTS: dict[str, Base3Parts] = {
    "TQ1_0": ((0, 32, 5), (32, 48, 5), (48, 52, 4)),
    "PTQ1_0": ((0, 16, 5), (16, 24, 5), (24, 26, 4)),
}
"""The parts of a block of the types packed to base 3, in order of their elements; f16 d follows."""


def _split_base3(blocks: Blocks, parts: Base3Parts) -> tuple[Codes, Scales]:
    trits, _ = _base3()
    n = len(blocks)
    codes = [
        trits[blocks[:, start:stop]][..., :count].swapaxes(1, 2).reshape(n, count * (stop - start))
        for start, stop, count in parts
    ]
    return np.concatenate(codes, axis=1), view(blocks[:, parts[-1][1] :], "<f2")[:, 0]


def _join_base3(codes: Codes, scales: Scales, parts: Base3Parts) -> Blocks:
    _, packed = _base3()
    powers = np.array([81, 27, 9, 3, 1])
    out = []
    first = 0
    for start, stop, count in parts:
        last = first + count * (stop - start)
        lanes = codes[:, first:last].reshape(len(codes), count, stop - start).astype(np.int64)
        out.append(packed[(lanes * powers[:count, None]).sum(axis=1)])
        first = last
    return np.concatenate([*out, _scale_bytes(scales)], axis=1)


def split_tq1_0(blocks: Blocks) -> tuple[Codes, Scales]:
    """Split TQ1_0: 32 and 16 bytes of five trits, 4 of four, each a stride of its part apart; f16 d."""
    return _split_base3(blocks, BASE3_PARTS["TQ1_0"])


def join_tq1_0(codes: Codes, scales: Scales) -> Blocks:
    """Inverse of `split_tq1_0` for codes 0 to 2."""
    return _join_base3(codes, scales, BASE3_PARTS["TQ1_0"])


def split_ptq1_0(blocks: Blocks) -> tuple[Codes, Scales]:
    """Split PTQ1_0, half a TQ1_0: 16 and 8 bytes of five trits, 2 of four; f16 d."""
    return _split_base3(blocks, BASE3_PARTS["PTQ1_0"])


def join_ptq1_0(codes: Codes, scales: Scales) -> Blocks:
    """Inverse of `split_ptq1_0` for codes 0 to 2."""
    return _join_base3(codes, scales, BASE3_PARTS["PTQ1_0"])


def split_q1(blocks: Blocks) -> tuple[Codes, Scales]:
    """Split Q1_0: f16 d, then one bit per element, the lowest first; 1 is +d, 0 is −d, and there is no zero."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, 2:]), axis=1, bitorder="little")
    return bits << np.uint8(1), view(blocks[:, :2], "<f2")[:, 0]


def join_q1(codes: Codes, scales: Scales) -> Blocks:
    """Inverse of `split_q1`. Raises FormatError for a code other than 0 and 2."""
    if (codes & 1).any():
        raise FormatError("a weight is 0, which Q1_0 cannot hold; choose a ternary type")
    return np.concatenate([_scale_bytes(scales), np.packbits(codes >> np.uint8(1), axis=1, bitorder="little")], axis=1)


_SHERRY = bytes.fromhex("A9892909A68626069A921A126A624A42 012181A1042484A41018909840486068")
"""STQ1_0's codebook by 16·sign + slot: four codes to a byte, lane p in bits 2p and 2p + 1."""


@cache
def _sherry() -> tuple[Codes, NDArray[np.uint8]]:
    """Return codes uint8 [32, 4] of an entry, and the entry uint8 [256] of four packed codes (255: there is none)."""
    packed = np.frombuffer(_SHERRY, np.uint8)
    entry = np.full(256, 255, np.uint8)
    entry[packed] = np.arange(32)
    return (packed[:, None] >> _SHIFTS) & _LOW_BITS, entry


def split_stq1_0(blocks: Blocks) -> tuple[Codes, Scales]:
    """Split STQ1_0: 64 slots of 4 bits, the low half first, 64 sign bits, the lowest first; f16 d.

    Slot and sign of group g choose four codes, one of them zero; lane p is element 64·(g / 16) + g % 16 + 16·p.
    """
    slots = np.stack([blocks[:, :32] & 15, blocks[:, :32] >> 4], axis=2).reshape(len(blocks), 64)
    signs = np.unpackbits(np.ascontiguousarray(blocks[:, 32:40]), axis=1, bitorder="little")
    lanes = _sherry()[0][(signs << 4) | slots].reshape(-1, 4, 16, 4)
    return lanes.swapaxes(2, 3).reshape(len(blocks), 256), view(blocks[:, 40:], "<f2")[:, 0]


def join_stq1_0(codes: Codes, scales: Scales) -> Blocks:
    """Inverse of `split_stq1_0`. Raises FormatError unless exactly one of each group's four codes is zero."""
    lanes = codes.reshape(-1, 4, 4, 16).swapaxes(2, 3).reshape(len(codes), 64, 4)
    entries = _sherry()[1][np.bitwise_or.reduce(lanes << _SHIFTS, axis=2)]
    if (entries == 255).any():
        raise FormatError("STQ1_0 holds exactly one zero in every group of four weights, and these have another number")
    pairs = (entries & 15).reshape(len(codes), 32, 2)
    signs = np.packbits(entries >> 4, axis=1, bitorder="little")
    return np.concatenate([pairs[..., 0] | (pairs[..., 1] << 4), signs, _scale_bytes(scales)], axis=1)


I2_S_TAIL = 32
"""Bytes behind the blocks of an I2_S tensor: its float32 scale and padding."""


def split_i2_s(blocks: Blocks, tail: Blocks) -> tuple[Codes, np.float32]:
    """Split a whole I2_S tensor: codes uint8 [n_blocks, 128] and its one scale.

    Byte m of 32 has elements m, 32 + m, 64 + m and 96 + m, the first in the highest bits; code 3 reads as 0.
    ARM builds of the same program write groups of 64 under the same id, and nothing in a file tells the two apart; all
    published files are of this kind.
    """
    codes = ((blocks[:, None, :] >> _SHIFTS[::-1, None]) & _LOW_BITS).reshape(len(blocks), 128)
    codes[codes == 3] = 1
    return codes, np.float32(view(tail[:4], "<f4")[0])


def join_i2_s(codes: Codes, scale: np.float32) -> Blocks:
    """Inverse of `split_i2_s` for codes uint8 [n_blocks, 128] of 0 to 2: uint8 [32·n_blocks + 32], padded with zeros.

    Raises FormatError for another shape or code.
    """
    if codes.ndim != 2 or codes.shape[1] != 128 or (codes.size and int(codes.max()) > 2):
        raise FormatError("I2_S takes blocks of 128 codes of 0 to 2")
    packed = np.bitwise_or.reduce(codes.reshape(-1, 4, 32) << _SHIFTS[::-1, None], axis=1)
    tail = np.zeros(I2_S_TAIL, np.uint8)
    tail[:4] = np.array([scale], "<f4").view(np.uint8)
    return np.concatenate([packed.reshape(-1), tail])


def decode_i2_s(blocks: Blocks, tail: Blocks) -> Values:
    """Return (code − 1) times the tensor's scale as float32."""
    codes, scale = split_i2_s(blocks, tail)
    return (codes.astype(np.float32) - np.float32(1)) * scale


def encode_i2_s(values: Values) -> Blocks:
    """Quantise a whole tensor, float32 [n_blocks, 128]: scale = max |w|, trit = w / scale rounded.

    Exact when every non-zero weight has the same magnitude. Raises FormatError if a value is not finite.
    """
    demand_finite(values)
    scale = np.float32(np.abs(values).max(initial=0))
    ratio = values / (scale or np.float32(1))
    return join_i2_s((np.clip(np.rint(ratio), -1, 1) + 1).astype(np.uint8), scale)


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
    scales = _float16(np.abs(values).max(axis=1), values)
    wide = scales.astype(np.float32)[:, None]
    ratio = values / np.where(wide == 0, np.float32(1), wide)
    return (np.clip(np.rint(ratio), -1, 1) + 1).astype(np.uint8), scales


def sign_codes(values: Values) -> tuple[Codes, Scales]:
    """Quantise floats as ggml does for Q1_0: d = f16(mean |w|), and every weight becomes d with its sign.

    Exact when every weight of a block has the same magnitude and that is a float16. Raises as `absmax_codes`.
    """
    scales = _float16(np.abs(values).mean(axis=1, dtype=np.float64), values)
    return np.where(values >= 0, 2, 0).astype(np.uint8), scales


def sherry_codes(values: Values) -> tuple[Codes, Scales]:
    """Quantise floats for STQ1_0: d = f16(max |w|); of each group of four the smallest is 0, the others are ±d.

    Exact when every group has one zero and the other magnitudes are one float16. Raises as `absmax_codes`.
    """
    scales = _float16(np.abs(values).max(axis=1), values)
    lanes = values.reshape(-1, 4, 4, 16)
    codes = np.where(lanes >= 0, 2, 0).astype(np.uint8)
    np.put_along_axis(codes, np.abs(lanes).argmin(axis=2, keepdims=True), np.uint8(1), axis=2)
    return codes.reshape(values.shape), scales


def _float16(magnitudes: NDArray[np.floating], values: Values) -> Scales:
    demand_finite(values)
    with np.errstate(over="ignore"):
        scales = magnitudes.astype(np.float32).astype(np.float16)
    if np.isinf(scales).any():
        raise FormatError("a weight is beyond the range of a float16 scale (65504)")
    return scales
