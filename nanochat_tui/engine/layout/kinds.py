"""Kinds of matrices the kernels multiply by, and their layouts.

Nothing here imports Numba. Every layout interleaves 16 output rows: a 32-bit word of row 0, the same word of
row 1 … of row 15, so that one vector lane is one row. Types of a file's blocks keep the words' own bits (`LAYOUTS`),
so loading transposes and never recodes.
"""

from __future__ import annotations

from dataclasses import dataclass

Q8, F32, F16, BF16, Q4_0, Q4_1, Q5_1, Q4_K, Q5_K, Q6_K, TERNARY, TERNARY_ROW, TERNARY_FINE = range(13)
"""TERNARY: a float16 scale per group of the target. TERNARY_ROW: one float32
scale per row (types with a scale per tensor, which may be stacked). TERNARY_FINE: as TERNARY, for activations that have
several scales per token."""

DENSE = frozenset({F32, F16, BF16})
ALL = frozenset(range(13))

TERNARY_NAMES = {TERNARY: "ternary", TERNARY_ROW: "ternary_row", TERNARY_FINE: "ternary_fine"}
"""What the kernels of ternary kinds are called, without the size of their tiles."""
PER_TOKEN = frozenset({TERNARY, TERNARY_ROW})
"""Kinds that are multiplied by activations with one scale per token."""
ACTIVATION_BLOCK = 32
"""Columns per scale of the activations of most other integer kinds (`model.activations.BLOCK`)."""
FINE_SPAN = 64
"""Columns whose products TERNARY_FINE adds up before it multiplies them by their scale of weights."""
HALF_BLOCKS = frozenset({Q4_0, Q4_1, Q5_1})
"""Kinds with a scale per 16 columns: their codes lie in two halves, and their models were trained with floats."""
LEAST_UNIT = 16
"""The fewest columns per scale or sum of activations."""

TILES = (1, 2, 4, 8, 16)
"""Tokens that a kernel may work on at a time; each target has those up to its own `Isa.tile`."""

TOGETHER = 8
"""Tiles of 16 tokens that a kernel with tile registers multiplies together: those of a whole job (`plan.CHUNK`)."""
SCRATCH_FIXED = 36864


def tile_scratch(padded: int) -> int:
    """Return the bytes that a kernel with tile registers works in: activations of `padded` columns and 36 KB more."""
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


def scale_columns(kind: int) -> int:
    """Return the columns per scale of activations of an integer kind that has several per token."""
    return LEAST_UNIT if kind in HALF_BLOCKS else ACTIVATION_BLOCK


def sum_columns(kind: int, group: int) -> int:
    """Return the columns per sum of activations that an integer kind's kernels read; group: the target's."""
    if kind in PER_TOKEN:
        return group
    return min(scale_columns(kind), LAYOUTS[kind].block) if kind in LAYOUTS else scale_columns(kind)


def sums_factor(kind: int, bias: int) -> int:
    """Return what the activations' sum of each block is multiplied by for an integer kind's kernels.

    bias: `Isa.q8_bias`. 0: sums are not integers, but multiplied by the scale of their activations.
    """
    if kind not in LAYOUTS:
        return -1
    layout = LAYOUTS[kind]
    if layout.minimum:
        return 0
    return -bias if kind == Q8 else -layout.offset
