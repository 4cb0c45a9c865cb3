"""From the blocks of quantised types to the kernels' layouts, without passing through floats.

The 32-bit words of a row's codes stay as they are in the file (Q5_0 and Q5_1 excepted, whose fifth bits lie apart);
16 rows are interleaved word by word, and so are their scales (see `layout.kinds.BlockLayout`):

- float16 scales: [row block][block][d, then m if the type has one][16 rows];
- nested scales: [row block][256 columns], then float16 d [16 rows], d of the minima if any, and bytes
  [block][16 rows] of scales, then of minima.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout.memory import lasting, round_up
from nanochat_tui.engine.layout.slots import ROW_BLOCK
from nanochat_tui.engine.weights.pack import Packed

Bytes = NDArray[np.uint8]
KIND_OF_TYPE = {
    "Q8_0": k.Q8,
    "Q5_0": k.Q8,
    "Q4_0": k.Q4_0,
    "Q4_1": k.Q4_1,
    "Q5_1": k.Q5_1,
    "Q4_K": k.Q4_K,
    "Q5_K": k.Q5_K,
    "Q6_K": k.Q6_K,
}
"""The kind of matrix that each type of a file's blocks is packed as."""
CHUNK_BYTES = 1 << 19
"""Bytes of a file's blocks that are rearranged together: few, so that they stay in a core's cache."""
EXPONENT = 0x7C00
"""The bits of a float16 that are all set in infinities and what is no number, and in nothing else."""


def _five_bits(high: Bytes, low: Bytes) -> Bytes:
    """Join 32 fifth bits [..., 4] and 16 bytes of two nibbles each [..., 16] to codes 0..31 [..., 32]."""
    bits = np.unpackbits(high, axis=-1, bitorder="little")
    nibbles = np.concatenate([low & 15, low >> 4], axis=-1)
    codes: Bytes = nibbles | bits << 4
    return codes


def _six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Return the eight scales and minima of the 12 bytes [..., 12] that Q4_K and Q5_K keep them in."""
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return scales, minima


def _split(name: str, blocks: Bytes, bias: int) -> tuple[Bytes, list[Bytes], list[Bytes]]:
    """Return a type's codes in words' order, its float16 scales (as bytes), and its 8-bit scales."""
    if name == "Q8_0":
        return blocks[..., 2:] ^ np.uint8(bias), [blocks[..., :2]], []
    if name == "Q5_0":
        codes = _five_bits(blocks[..., 2:6], blocks[..., 6:]) - np.uint8(16) ^ np.uint8(bias)
        return codes, [blocks[..., :2]], []
    if name == "Q4_0":
        return blocks[..., 2:], [blocks[..., :2]], []
    if name == "Q4_1":
        return blocks[..., 4:], [blocks[..., :2], blocks[..., 2:4]], []
    if name == "Q5_1":
        return _five_bits(blocks[..., 4:8], blocks[..., 8:]), [blocks[..., :2], blocks[..., 2:4]], []
    if name == "Q6_K":
        return blocks[..., :192], [blocks[..., 208:]], [blocks[..., 192:208]]
    return blocks[..., 16:], [blocks[..., :2], blocks[..., 2:4]], list(_six_bit_scales(blocks[..., 4:16]))


def _lanes(values: Bytes, size: int) -> Bytes:
    """Reorder [rows, n · size bytes] to [row block, n, 16 rows, size bytes]."""
    words = np.ascontiguousarray(values).view(f"<u{size}").reshape(len(values) // ROW_BLOCK, ROW_BLOCK, -1)
    moved: Bytes = np.ascontiguousarray(words.transpose(0, 2, 1)).view(np.uint8)
    return moved


def packed_bytes(name: str, rows: int, columns: int) -> int:
    """Return the bytes that `pack_blocks` makes of so many rows (filled up) of a type in `KIND_OF_TYPE`."""
    layout = k.LAYOUTS[KIND_OF_TYPE[name]]
    return rows // ROW_BLOCK * (columns // layout.columns) * (4 * layout.words * ROW_BLOCK + layout.scale_bytes)


def pack_blocks(
    name: str,
    blocks: Bytes,
    columns: int,
    *,
    bias: int,
    multiple: int = ROW_BLOCK,
    after: Callable[[int], object] | None = None,
) -> Packed:
    """Pack a matrix of a type in `KIND_OF_TYPE`.

    blocks: uint8 [n_blocks, block_bytes], row after row. bias: `Isa.q8_bias`, added to int8 codes. multiple: rows are
    filled up to it with zeros. after: called after every piece with its bytes, which are not needed again. The scales
    are bytes in the form of float16. Raises ValueError if a float16 scale is not finite.
    """
    layout = k.LAYOUTS[KIND_OF_TYPE[name]]
    parts = columns // layout.columns
    rows = blocks.reshape(-1, parts, blocks.shape[1])
    count, filled = len(rows), round_up(len(rows), multiple)
    weights = lasting((filled // ROW_BLOCK, parts * layout.words, ROW_BLOCK), np.uint32)
    scales = lasting((filled // ROW_BLOCK, parts, layout.scale_bytes), np.uint8)
    done = round_up(count, ROW_BLOCK) // ROW_BLOCK
    weights[done:], scales[done:] = 0, 0
    step = max(1, CHUNK_BYTES // (parts * blocks.shape[1] * ROW_BLOCK)) * ROW_BLOCK
    for start in range(0, count, step):
        chunk = rows[start : start + step]
        if missing := -len(chunk) % ROW_BLOCK:
            chunk = np.concatenate([chunk, np.zeros((missing, *chunk.shape[1:]), np.uint8)])
        codes, halves, small = _split(name, chunk, bias)
        halves = [np.ascontiguousarray(half) for half in halves]
        if any((half.view("<u2") & EXPONENT == EXPONENT).any() for half in halves):
            raise ValueError("a scale is not finite")
        place = slice(start // ROW_BLOCK, (start + len(chunk)) // ROW_BLOCK)
        words = np.ascontiguousarray(codes.reshape(len(chunk), -1)).view("<u4")
        weights[place] = words.reshape(-1, ROW_BLOCK, words.shape[1]).transpose(0, 2, 1)
        # per 256 columns or per block: all float16 scales, then the bytes, 16 rows together
        pieces = [_lanes(half.reshape(len(chunk), -1), 2).reshape(-1, parts, 1, 2 * ROW_BLOCK) for half in halves]
        pieces += [
            _lanes(part.reshape(len(chunk), -1), 1).reshape(-1, parts, layout.blocks, ROW_BLOCK) for part in small
        ]
        flat = [piece.reshape(len(chunk) // ROW_BLOCK, parts, -1) for piece in pieces]
        scales[place] = np.concatenate(flat, axis=-1)
        if after is not None:
            after(chunk.nbytes)
    return Packed(weights, scales.view(np.float16), count, columns)
