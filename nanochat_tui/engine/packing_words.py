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

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.tensor_types import TensorType, ternary_codes

Words = NDArray[np.uint32]
Scales = NDArray[np.float16]
ZEROS = 0x55555555
"""Sixteen codes of the weight 0."""
_IN_ORDER = frozenset({"Q2_0", "Q2_0_g128", "PQ2_0"})


def _exchange(words: Words, other: Words, shift: int, mask: int) -> None:
    """Exchange the fields of `words` above `shift` bits that `mask` chooses with those of `other`, in place."""
    moved = words >> np.uint32(shift)
    moved ^= other
    moved &= np.uint32(mask)
    other ^= moved
    moved <<= np.uint32(shift)
    words ^= moved


def transpose_bytes(words: Words) -> None:
    """Exchange fields (byte i, pair j) and (byte j, pair i) of every word, in place."""
    for shift, mask in ((12, 0x0000F0F0), (6, 0x00CC00CC)):
        moved = words >> np.uint32(shift)
        moved ^= words
        moved &= np.uint32(mask)
        words ^= moved
        moved <<= np.uint32(shift)
        words ^= moved


def transpose_words(words: Words) -> None:
    """Exchange pairs l of words p and pairs p of words l, in place: uint32 [4, n], each byte for itself."""
    _exchange(words[:2], words[2:], 4, 0x0F0F0F0F)
    _exchange(words[0::2], words[1::2], 2, 0x33333333)


def _strided(quants: NDArray[np.uint8], *, highest_first: bool) -> Words:
    """Return the kernels' words [n, 8] of 128 columns in 32 bytes each, uint8 [n, 32]."""
    source = np.ascontiguousarray(quants).view(np.uint32)
    # words 4 h + p of a block become the rows p of a matrix
    fields = np.ascontiguousarray(source.reshape(-1, 2, 4).transpose(2, 0, 1)).reshape(4, -1)
    transpose_words(fields)
    # row l then holds columns 32 l + 16 h and on
    found = fields.reshape(4, -1, 2)[::-1] if highest_first else fields.reshape(4, -1, 2)
    return np.ascontiguousarray(found.transpose(1, 0, 2)).reshape(-1, 8)


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
        words = np.ascontiguousarray(blocks[:, 2:]).view(np.uint32)
        transpose_bytes(words)
        return words, _halves(blocks[:, :2])
    if kind.name == "TQ2_0":
        quants = np.ascontiguousarray(blocks[:, :64]).reshape(-1, 32)
        return _strided(quants, highest_first=False).reshape(len(blocks), 16), _halves(blocks[:, 64:])
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
