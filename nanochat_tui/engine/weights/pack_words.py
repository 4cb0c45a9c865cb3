"""From the 2-bit words of a file to those of the ternary kernels, sixteen weights at a time.

A kernel's word holds the codes of 16 columns; byte j has those of columns j, 4 + j, 8 + j and 12 + j, lowest bits first
(see `pack`). Two orders are found in files, and each is a transposition of it:

- Q2_0 and PQ2_0 keep columns in order, four to a byte: fields (byte, pair) of a word change places.
- TQ2_0 and I2_S keep 128 columns in eight words, pair l of byte m being column 32 l + m: fields (word, pair) of four
  words change places.

A 4 x 4 matrix of fields is transposed by exchanging its 2 x 2 quarters, then within them (H. S. Warren, Hacker's
Delight, 7-3). Everything happens in place, in pieces that stay in a cache.

TQ1_0 and PTQ1_0 pack trits to base 3. Their bytes are taken four at a time, as the kernels' words are built of: what is
left of a byte after its first n trits is byte·3ⁿ mod 256, and its next trit is how many of 1/3 and 2/3 of 256 that
reaches, so every trit costs two comparisons, an addition and a multiplication of bytes; NumPy does many at a time.
Other types go through their codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.tensor_types import TensorType, ternary_codes
from nanochat_tui.formats.ternary_blocks import BASE3_PARTS, Base3Parts

Words = NDArray[np.uint32]
Scales = NDArray[np.float16]
ZEROS = 0x55555555
"""Sixteen codes of the weight 0."""
_THIRD, _TWO_THIRDS = np.uint8(86), np.uint8(171)
"""The least bytes that reach 1/3 and 2/3 of 256: the top of byte·3 is then 1 and 2."""


def _exchange(words: NDArray[Any], shift: int, mask: int) -> None:
    """Exchange the fields of every word that `mask` chooses with those `shift` bits above them, in place."""
    kind = words.dtype.type
    moved = words >> kind(shift)
    moved ^= words
    moved &= kind(mask)
    words ^= moved
    moved <<= kind(shift)
    words ^= moved


def transpose_bytes(words: Words) -> None:
    """Exchange fields (byte i, pair j) and (byte j, pair i) of every word, in place."""
    _exchange(words, 12, 0x0000F0F0)
    _exchange(words, 6, 0x00CC00CC)


def transpose_words(words: Words) -> None:
    """Exchange pairs l of words p and pairs p of words l, in place: uint32 [n, 4], each byte for itself.

    Two neighbours are taken as one of 64 bits, the first of them as its lower half.
    """
    pairs = words.view("<u8")
    first, second = pairs[:, 0], pairs[:, 1]
    moved = first >> np.uint64(4)
    moved ^= second
    moved &= np.uint64(0x0F0F0F0F0F0F0F0F)
    second ^= moved
    moved <<= np.uint64(4)
    first ^= moved
    _exchange(pairs.reshape(-1), 30, 0x00000000CCCCCCCC)


def _strided(quants: NDArray[np.uint8], *, highest_first: bool) -> Words:
    """Return the kernels' words [n, 8] of 128 columns in 32 bytes each, uint8 [n, 32·any]."""
    fields = np.array(quants, order="C").view("<u4").reshape(-1, 4)
    transpose_words(fields)
    # word l of a block's half h then holds columns 32 l + 16 h and on
    halves = fields.reshape(-1, 8)
    found = np.empty_like(halves)
    for half in range(2):
        for pair in range(4):
            found[:, 2 * pair + half] = halves[:, 4 * half + (3 - pair if highest_first else pair)]
    return found


def _base3_codes(quants: NDArray[np.uint8], parts: Base3Parts) -> NDArray[np.uint8]:
    """Return the codes uint8 [columns / 4, n, 4] of blocks: every four columns of all blocks lie together.

    quants: uint8 [n, bytes], contiguous along its last axis. parts: see `formats.ternary_blocks.BASE3_PARTS`.
    """
    quads = sum((stop - start) * count for start, stop, count in parts) // 4
    codes = np.empty((quads, len(quants), 4), np.uint8)
    first = 0
    for start, stop, count in parts:
        left, factor, trits = quants[:, start:stop], np.uint8(3), count
        while left.shape[1] < 4:  # too few bytes for four columns: the next trits of the same bytes join them
            left = np.concatenate([left, left * factor], axis=1)
            factor, trits = factor * factor, trits // 2
        # a copy even where the order is that of the file already, whose pages must not be written to
        left = np.array(left.view("<u4").T, order="C").view(np.uint8).reshape(-1, len(quants), 4)
        for trit in range(trits):
            if trit:
                left *= factor
            found = codes[first : first + len(left)]
            np.greater_equal(left, _THIRD, out=found.view(np.bool_))
            found += (left >= _TWO_THIRDS).view(np.uint8)
            first += len(left)
    return codes


def _base3(quants: NDArray[np.uint8], parts: Base3Parts) -> Words:
    """Return the words [n, columns / 16] of blocks of base-3 bytes, see `_base3_codes`."""
    fields = _base3_codes(quants, parts).view("<u4").reshape(-1, 4, len(quants))
    words = fields[:, 3].copy()
    for pair in (2, 1, 0):
        words <<= np.uint32(2)
        words |= fields[:, pair]
    return np.ascontiguousarray(words.T)


def words_of_codes(codes: NDArray[np.uint8]) -> Words:
    """Return the words [rows, columns / 16] of codes uint8 [rows, columns]."""
    parts = codes.reshape(len(codes), -1, 4, 4)
    packed = parts[:, :, 0] | parts[:, :, 1] << 2 | parts[:, :, 2] << 4 | parts[:, :, 3] << 6
    return np.ascontiguousarray(packed).view(np.uint32)[..., 0]


def words_and_scales(kind: TensorType, blocks: NDArray[np.uint8]) -> tuple[Words, Scales]:
    """Return the words [n, elements / 16] and the scales [n] of blocks uint8 [n, block_bytes] of a ternary type.

    I2_S, whose scale belongs to the tensor, gets ones; its code 3 means 0, as its decoder has it.
    """
    codes_at = slice(*kind.codes_at)
    if kind.code_order == "sequential":
        words = np.array(blocks[:, codes_at], order="C").view("<u4")
        transpose_bytes(words)
        return words, _halves(blocks, kind)
    if kind.code_order == "strided":
        words = _strided(blocks[:, codes_at], highest_first=False).reshape(len(blocks), kind.block_elements // 16)
        return words, _halves(blocks, kind)
    if kind.code_order == "strided, highest first":
        words = _strided(blocks[:, codes_at], highest_first=True)
        threes = words >> np.uint32(1)
        threes &= words
        threes &= np.uint32(ZEROS)
        threes <<= np.uint32(1)
        words ^= threes
        return words, np.ones(len(blocks), np.float16)
    if kind.name in BASE3_PARTS:
        parts = BASE3_PARTS[kind.name]
        return _base3(np.ascontiguousarray(blocks), parts), _halves(blocks, kind)
    codes, scales = ternary_codes(kind, blocks)
    return words_of_codes(codes), scales


def _halves(blocks: NDArray[np.uint8], kind: TensorType) -> Scales:
    at = kind.scales_at[0]
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0].astype(np.float16, copy=False)
