"""Kinds of matrices the kernels multiply by, their layouts, and the slots that describe one matrix.

Nothing here imports Numba. Every layout interleaves 16 output rows: a 32-bit word of row 0, the same word of
row 1 … of row 15, so that one vector lane is one row. Types of a file's blocks keep the words' own bits (`LAYOUTS`),
so loading transposes and never recodes.
"""

from __future__ import annotations

from dataclasses import dataclass

Q8, F32, F16, BF16, Q4_0, Q4_1, Q5_1, Q4_K, Q5_K, Q6_K, TERNARY, TERNARY_ROW = range(12)
"""TERNARY: a float16 scale per group of the target. TERNARY_ROW: one float32
scale per row (types with a scale per tensor, which may be stacked)."""

DENSE = frozenset({F32, F16, BF16})
ALL = frozenset(range(12))

KIND, WEIGHTS, SCALES, COLUMNS, PADDED = range(5)
"""Slots (int64) of a matrix: its kind, the addresses of weights and scales, columns, and columns as the int8
activations are padded (a multiple of the ternary group)."""
MATRIX_SLOTS = 5

TILES = (1, 2, 4, 8, 16)
"""Tokens that a kernel may work on at a time; each target has those up to its own `Isa.tile`."""

TOGETHER = 8
"""Tiles of 16 tokens that a kernel with tile registers multiplies together: those of a whole job (`plan.CHUNK`)."""
SCRATCH_FIXED = 24576


def tile_scratch(padded: int) -> int:
    """Return the bytes that a kernel with tile registers works in: activations of `padded` columns and 24 KB more."""
    return SCRATCH_FIXED + TOGETHER * 16 * padded


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How `columns` columns of one row lie in a file: w = d · (code - offset) or d · code ∓ m, per `block` columns.

    words: 32-bit words of codes. offset: subtracted from every code. minimum: 0 without m, 1 where m is added
    (Q4_1), -1 where it is subtracted (Q4_K). nested: the scales of blocks are 8-bit integers and d (and m's) is
    float16 per `columns`; else d (and m) is float16 per block.
    """

    kind: int
    columns: int
    words: int
    block: int
    largest: int
    offset: int = 0
    minimum: int = 0
    nested: bool = False

    @property
    def blocks(self) -> int:
        """Blocks in `columns`."""
        return self.columns // self.block

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales of 16 rows and `columns` columns."""
        parts = 2 if self.minimum else 1
        return 16 * parts * (2 + self.blocks if self.nested else 2 * self.blocks)


LAYOUTS = {
    layout.kind: layout
    for layout in (
        BlockLayout(Q8, 32, 8, 32, 255),
        BlockLayout(Q4_0, 32, 4, 32, 15, offset=8),
        BlockLayout(Q4_1, 32, 4, 32, 15, minimum=1),
        BlockLayout(Q5_1, 32, 8, 32, 31, minimum=1),
        BlockLayout(Q4_K, 256, 32, 32, 15, minimum=-1, nested=True),
        BlockLayout(Q5_K, 256, 40, 32, 31, minimum=-1, nested=True),
        BlockLayout(Q6_K, 256, 48, 16, 63, offset=32, nested=True),
    )
}
"""Q5_0 becomes Q8 (the same scales, codes less 16), and Q5_1 has its fifth bits moved to the codes' bytes."""


def sums_factor(layout: BlockLayout, bias: int) -> int:
    """Return what the activations' sum of each block is multiplied by for this layout's kernel.

    bias: `Isa.q8_bias`.
    """
    if layout.minimum:
        return 1
    return -bias if layout.kind == Q8 else -layout.offset
