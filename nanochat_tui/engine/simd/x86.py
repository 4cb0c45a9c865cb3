"""x86-64: VNNI on 512 and 256 bits, and AVX2."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from nanochat_tui.engine.simd.base import CODE_MASK, INT16_MAX, NO_LIMIT, STEP_BYTES, STEP_COLUMNS, Isa
from nanochat_tui.engine.simd.emitter import I8, I16, I32, VI32, VI8x64

VI8x32, VI16x16, VI32x8 = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)


@dataclass(frozen=True)
class Vnni(Isa):
    """`vpdpbusd`: one on 512 bits, or two on 256 (VEX-coded with AVX-VNNI, else EVEX-coded with AVX512-VL)."""

    name: str = "avx512-vnni"
    tile: int = 16
    queries: int = 8
    sums: int = 16
    q8_bias: int = 128
    hardware_half: bool = True
    bits: int = 512

    def _dot(self, e, acc, unsigned, signed):
        b = e.b
        u, s = b.bitcast(unsigned, VI8x64), b.bitcast(signed, VI8x64)
        if self.bits == 512:
            return e.call("llvm.x86.avx512.vpdpbusd.512", VI32, [acc, u, s])
        halves = (
            e.call("llvm.x86.avx512.vpdpbusd.256", VI32x8, [e.half_of(v, high) for v in (acc, u, s)]) for high in (0, 1)
        )
        return e.concatenate(*halves)

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

    def room(self, largest):
        """No limit: products are summed in int32."""
        return NO_LIMIT

    def begin(self, e, init):
        """Start from init: the products of codes minus the sum of the activations is the trits' dot product."""
        return init

    def step(self, e, state, codes, activations):
        """Add 16 x 4 products."""
        return self._dot(e, state, codes, activations)

    def end(self, e, state, init):
        """Return the sum, which began with init."""
        return state

    def q8_step(self, e, acc, weights, activations):
        """Weights are stored as w + 128; the caller's init holds -128 times the activations' sum."""
        return self._dot(e, acc, weights, activations)


@dataclass(frozen=True)
class Avx2(Isa):
    """Pairs of 256-bit `vpmaddubsw`, widened before int16 could overflow."""

    name: str = "avx2"
    tile: int = 4
    queries: int = 2
    hardware_half: bool = True

    def _maddubs(self, e, unsigned, signed):
        return e.call("llvm.x86.avx2.pmadd.ub.sw", VI16x16, [unsigned, signed])

    def _pairs(self, e, sums):
        ones = e.constant(VI16x16, 1)
        return e.call("llvm.x86.avx2.pmadd.wd", VI32x8, [sums, ones])

    def room(self, largest):
        """An int16 takes two products per step: 43 steps of ternary codes, 2 of 6-bit codes."""
        return INT16_MAX // (2 * largest * 127)

    def begin(self, e, init):
        """Two int16 accumulators."""
        return (e.constant(VI16x16, 0), e.constant(VI16x16, 0))

    def step(self, e, state, codes, activations):
        """Add 16 x 4 products."""
        b = e.b
        u, s = b.bitcast(codes, VI8x64), b.bitcast(activations, VI8x64)
        return tuple(b.add(state[high], self._maddubs(e, e.half_of(u, high), e.half_of(s, high))) for high in (0, 1))

    def end(self, e, state, init):
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
