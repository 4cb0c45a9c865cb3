"""From the 2-bit words of a file to those of the ternary kernels, sixteen weights at a time.

A kernel's word holds the codes of 16 columns; byte j has those of columns j, 4 + j, 8 + j and 12 + j, lowest bits first
(see `packing`). Two orders are found in files, and each is a transposition of it:

- Q2_0 and PQ2_0 keep columns in order, four to a byte: fields (byte, pair) of a word change places.
- TQ2_0 and I2_S keep 128 columns in eight words, pair l of byte m being column 32 l + m: fields (word, pair) of four
  words change places.

A 4 x 4 matrix of fields is transposed by exchanging its 2 x 2 quarters, then within them (H. S. Warren, Hacker's
Delight, 7-3). Other types go through their codes. Everything happens in place, in pieces that stay in a cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.tensor_types import TensorType, ternary_codes

Words = NDArray[np.uint32]
Scales = NDArray[np.float16]
ZEROS = 0x55555555
"""Sixteen codes of the weight 0."""
_IN_ORDER = frozenset({"Q2_0", "Q2_0_g128", "PQ2_0"})


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


def words_of_codes(codes: NDArray[np.uint8]) -> Words:
    """Return the words [rows, columns / 16] of codes uint8 [rows, columns]."""
    parts = codes.reshape(len(codes), -1, 4, 4)
    packed = parts[:, :, 0] | parts[:, :, 1] << 2 | parts[:, :, 2] << 4 | parts[:, :, 3] << 6
    return np.ascontiguousarray(packed).view(np.uint32)[..., 0]


def words_and_scales(kind: TensorType, blocks: NDArray[np.uint8]) -> tuple[Words, Scales]:
    """Return the words [n, elements / 16] and the scales [n] of blocks uint8 [n, block_bytes] of a ternary type.

    I2_S, whose scale belongs to the tensor, gets ones; its code 3 means 0, as its decoder has it.
    """
    if kind.name in _IN_ORDER:
        words = np.array(blocks[:, 2:], order="C").view("<u4")
        transpose_bytes(words)
        return words, _halves(blocks[:, :2])
    if kind.name == "TQ2_0":
        return _strided(blocks[:, :64], highest_first=False).reshape(len(blocks), 16), _halves(blocks[:, 64:])
    if kind.name == "I2_S":
        words = _strided(blocks, highest_first=True)
        threes = words >> np.uint32(1)
        threes &= words
        threes &= np.uint32(ZEROS)
        threes <<= np.uint32(1)
        words ^= threes
        return words, np.ones(len(blocks), np.float16)
    codes, scales = ternary_codes(kind, blocks)
    return words_of_codes(codes), scales


def _halves(data: NDArray[np.uint8]) -> Scales:
    return np.ascontiguousarray(data).view("<f2")[:, 0].astype(np.float16, copy=False)
