"""The only instruction-set specific part: integer dot products of four bytes per 32-bit lane.

Each class offers the same arithmetic on 16 lanes (one lane = one output row), integers exactly:

- `ternary_*`: codes 0..3 (unsigned bytes) times int8 activations, summed over one group of weights;
- `q8_step`: int8 weights times int8 activations.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from nanochat_tui.engine.simd.emitter import I8, I16, I32, VI32, VI8x64

VI16x16, VI16x64, VI32x8, VI32x64 = (
    ir.VectorType(I16, 16),
    ir.VectorType(I16, 64),
    ir.VectorType(I32, 8),
    ir.VectorType(I32, 64),
)
VI8x32 = ir.VectorType(I8, 32)
CODE_MASK = 0x03030303
STEP_COLUMNS, STEP_BYTES = 16, 64
"""One 64-byte load of a ternary matrix: 16 rows x 16 columns of 2 bits."""


@dataclass(frozen=True)
class Isa:
    """Base and portable implementation: generic IR that any LLVM target can lower."""

    name: str = "portable"
    tile: int = 4
    """Tokens a prefill kernel works on at a time (limited by the register file)."""
    queries: int = 2
    """Query positions the attention kernel works on at a time."""
    q8_bias: int = 0
    """Added to stored int8 table weights; unsigned dot products want them as 0..255."""
    hardware_half: bool = False
    """Whether float16 conversion may be left to the target (F16C)."""

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
        state = self.ternary_begin(e, init)
        for step in range(steps):
            codes = self.unpack(e, e.load(VI32, weights, step * STEP_BYTES))
            for pair in range(4):
                activations = self.broadcast(e, x, step * STEP_COLUMNS + pair * 4)
                state = self.ternary_step(e, state, codes[pair], activations)
        return self.ternary_end(e, state, init)

    def ternary_begin(self, e, init):
        """Return the accumulator of a group; int16 is enough: 128 columns / 4 x 3 x 127 = 12,192 per lane."""
        return e.constant(VI16x64, 0)

    def ternary_step(self, e, state, codes, activations):
        """Add 16 x 4 products to the accumulator."""
        b = e.b
        wide_codes = b.zext(b.bitcast(codes, VI8x64), VI16x64)
        wide_x = b.sext(b.bitcast(activations, VI8x64), VI16x64)
        return b.add(state, b.mul(wide_codes, wide_x))

    def ternary_end(self, e, state, init):
        """Return init + the accumulator's sums as int32 lanes."""
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


@dataclass(frozen=True)
class Avx512Vnni(Isa):
    """One `vpdpbusd` on 512 bits per 64 products."""

    name: str = "avx512-vnni"
    tile: int = 16
    queries: int = 8
    q8_bias: int = 128
    hardware_half: bool = True

    def _dot(self, e, acc, unsigned, signed):
        b = e.b
        arguments = [acc, b.bitcast(unsigned, VI8x64), b.bitcast(signed, VI8x64)]
        return e.call("llvm.x86.avx512.vpdpbusd.512", VI32, arguments)

    def ternary_group(self, e, weights, x, init, steps):
        """Mask instead of shifting: pair p of the codes counts 4^p-fold and is shifted back once per group."""
        b = e.b
        sums = [init, *(e.constant(VI32, 0) for _ in range(3))]
        for step in range(steps):
            packed = e.load(VI32, weights, step * STEP_BYTES)
            for pair in range(4):
                mask = CODE_MASK << (2 * pair)
                codes = b.and_(packed, e.constant(VI32, mask - (mask >> 31 << 32)))
                activations = self.broadcast(e, x, step * STEP_COLUMNS + pair * 4)
                sums[pair] = self._dot(e, sums[pair], codes, activations)
        back = [b.ashr(sums[pair], e.constant(VI32, 2 * pair)) for pair in (1, 2, 3)]
        return b.add(b.add(sums[0], back[0]), b.add(back[1], back[2]))

    def ternary_begin(self, e, init):
        """Start from init: the products of codes minus the sum of the activations is the trits' dot product."""
        return init

    def ternary_step(self, e, state, codes, activations):
        """Add 16 x 4 products."""
        return self._dot(e, state, codes, activations)

    def ternary_end(self, e, state, init):
        """Return the accumulator, which began with init."""
        return state

    def q8_step(self, e, acc, weights, activations):
        """Weights are stored as w + 128; the caller's init holds -128 times the activations' sum."""
        return self._dot(e, acc, weights, activations)


@dataclass(frozen=True)
class Avx2(Isa):
    """Pairs of 256-bit `vpmaddubsw`, widened once per group."""

    name: str = "avx2"
    tile: int = 4
    queries: int = 2
    hardware_half: bool = True

    def _maddubs(self, e, unsigned, signed):
        return e.call("llvm.x86.avx2.pmadd.ub.sw", VI16x16, [unsigned, signed])

    def _pairs(self, e, sums):
        ones = e.constant(VI16x16, 1)
        return e.call("llvm.x86.avx2.pmadd.wd", VI32x8, [sums, ones])

    def ternary_begin(self, e, init):
        """Two int16 accumulators; the largest sum is 32 steps x 2 x 3 x 127 = 24,384 for a group of 128."""
        return (e.constant(VI16x16, 0), e.constant(VI16x16, 0))

    def ternary_step(self, e, state, codes, activations):
        """Add 16 x 4 products."""
        b = e.b
        u, s = b.bitcast(codes, VI8x64), b.bitcast(activations, VI8x64)
        return tuple(b.add(state[high], self._maddubs(e, e.half_of(u, high), e.half_of(s, high))) for high in (0, 1))

    def ternary_end(self, e, state, init):
        """Widen and add init."""
        return e.b.add(init, e.concatenate(self._pairs(e, state[0]), self._pairs(e, state[1])))

    def q8_step(self, e, acc, weights, activations):
        """|x| times (w with the sign of x): 127·127·2 fits int16, where unsigned weights up to 255 would not."""
        b = e.b
        w, x = b.bitcast(weights, VI8x64), b.bitcast(activations, VI8x64)
        zero = e.constant(VI8x32, 0)
        halves = []
        for high in (0, 1):
            wh, xh = e.half_of(w, high), e.half_of(x, high)
            size = b.select(b.icmp_signed("<", xh, zero), b.sub(zero, xh), xh)
            signed = e.call("llvm.x86.avx2.psign.b", VI8x32, [wh, xh])
            halves.append(self._pairs(e, self._maddubs(e, size, signed)))
        return b.add(acc, e.concatenate(halves[0], halves[1]))


ISAS: dict[str, Isa] = {isa.name: isa for isa in (Avx512Vnni(), Avx2(), Isa())}
"""Kernels by name, fastest first."""
