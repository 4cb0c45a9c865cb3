"""The only instruction-set specific part: integer dot products of four bytes per 32-bit lane.

Each class offers the same arithmetic on 16 lanes (one lane = one output row), integers exactly:

- `begin`, `step`, `end`: unsigned codes times int8 activations, summed over columns. A sum may take `room(largest)`
  steps before it has to be widened by `end`; `Dots` counts them;
- `q8_step`: int8 weights times int8 activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llvmlite import ir

from nanochat_tui.engine.simd.emitter import I16, I32, VI32, VI8x64

if TYPE_CHECKING:
    from nanochat_tui.engine.simd.amx import TileRegisters

VI16x64, VI32x64 = ir.VectorType(I16, 64), ir.VectorType(I32, 64)
CODE_MASK = 0x03030303
STEP_COLUMNS, STEP_BYTES = 16, 64
"""One 64-byte load of a ternary matrix: 16 rows x 16 columns of 2 bits."""
INT16_MAX = 32767
NO_LIMIT = 1 << 20
"""Steps that no row of a model reaches: sums of int32 do not overflow before."""


@dataclass(frozen=True)
class Isa:
    """Base and portable implementation: generic IR that any LLVM target can lower."""

    name: str = "portable"
    tile: int = 4
    """Tokens a prefill kernel works on at a time (limited by the register file)."""
    queries: int = 2
    """Query positions the attention kernel works on at a time."""
    sums: int = 1
    """Integer sums that are worth keeping apart: as many as the dot product takes cycles, times those begun in each."""
    q8_bias: int = 0
    """Added to stored int8 table weights; unsigned dot products want them as 0..255."""
    hardware_half: bool = False
    """Whether float16 conversion may be left to the target (F16C, NEON)."""
    tiles: type[TileRegisters] | None = None
    """Operations on tile registers, where there are such (see `simd.amx`)."""

    def unpack(self, e, packed):
        """Return the four vectors of 2-bit codes (as bytes) of one 64-byte load."""
        b = e.b
        mask = e.constant(VI32, CODE_MASK)
        shifted = [packed, *(b.lshr(packed, e.constant(VI32, 2 * pair)) for pair in (1, 2, 3))]
        return [b.and_(codes, mask) for codes in shifted]

    def broadcast(self, e, address, offset=0):
        """Load four bytes and repeat them in every 32-bit lane."""
        return e.splat(e.load(I32, address, offset))

    def ternary_group(self, e, weights, x, init, steps):
        """Return init + the dot products of one group with one token: int32 lanes.

        weights: address of `steps` 64-byte blocks; x: address of the token's int8 values, contiguous.
        """
        dots = Dots(self, e, [init], 3)
        for step in range(steps):
            codes = self.unpack(e, e.load(VI32, weights, step * STEP_BYTES))
            for pair in range(4):
                dots.step(codes[pair], [self.broadcast(e, x, step * STEP_COLUMNS + pair * 4)])
        return dots.end()[0]

    def room(self, largest):
        """Return how many steps of codes up to `largest` a sum can take: here int16 lanes of one product each."""
        return INT16_MAX // (largest * 127)

    def begin(self, e, init):
        """Return a new sum that is to end as init + products."""
        return e.constant(VI16x64, 0)

    def step(self, e, state, codes, activations):
        """Add 16 x 4 products to a sum."""
        b = e.b
        wide_codes = b.zext(b.bitcast(codes, VI8x64), VI16x64)
        wide_x = b.sext(b.bitcast(activations, VI8x64), VI16x64)
        return b.add(state, b.mul(wide_codes, wide_x))

    def end(self, e, state, init):
        """Return init + the sum as int32 lanes."""
        return e.b.add(init, _sum_of_four(e, e.b.sext(state, VI32x64)))

    def q8_step(self, e, acc, weights, activations):
        """Return acc + 16 x 4 products of stored table weights (int8 + q8_bias) and activations."""
        b = e.b
        wide_w = b.sext(b.bitcast(weights, VI8x64), VI32x64)
        wide_x = b.sext(b.bitcast(activations, VI8x64), VI32x64)
        return b.add(acc, _sum_of_four(e, b.mul(wide_w, wide_x)))


def _sum_of_four(e, products):
    """Sum each four neighbouring lanes of 64."""
    parts = [e.shuffle(products, products, range(i, 64, 4)) for i in range(4)]
    return e.b.add(e.b.add(parts[0], parts[1]), e.b.add(parts[2], parts[3]))


class Dots:
    """Sums of unsigned codes (up to `largest`) times activations for some tokens, begun with int32 `inits`."""

    def __init__(self, isa, e, inits, largest):
        self._isa, self._e, self._inits = isa, e, list(inits)
        self._room, self._used = isa.room(largest), 0
        self._states = [isa.begin(e, init) for init in self._inits]

    def step(self, codes, activations):
        """Add one vector of codes times each token's activations."""
        if self._used == self._room:
            self._inits = self.end()
            self._states = [self._isa.begin(self._e, init) for init in self._inits]
            self._used = 0
        self._used += 1
        pairs = zip(self._states, activations, strict=True)
        self._states = [self._isa.step(self._e, state, codes, x) for state, x in pairs]

    def end(self):
        """Return the sums as int32 lanes, one vector per token."""
        pairs = zip(self._states, self._inits, strict=True)
        return [self._isa.end(self._e, state, init) for state, init in pairs]
