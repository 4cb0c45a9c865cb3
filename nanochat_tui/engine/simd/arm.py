"""AArch64 with the dot-product extension (ARMv8.2 and every later core, Apple's included)."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from nanochat_tui.engine.simd.base import NO_LIMIT, Isa
from nanochat_tui.engine.simd.emitter import I32, VI8x64

VI32x4 = ir.VectorType(I32, 4)


@dataclass(frozen=True)
class NeonDot(Isa):
    """Four `sdot` on 128 bits per 64 products: codes stay below 128, so that they are signed bytes as well."""

    name: str = "neon-dotprod"
    tile: int = 4
    queries: int = 4
    hardware_half: bool = True

    def _dot(self, e, acc, weights, activations):
        b = e.b
        bytes_ = [b.bitcast(v, VI8x64) for v in (weights, activations)]
        parts = []
        for i in range(4):
            lanes = e.shuffle(acc, acc, range(4 * i, 4 * i + 4))
            w, x = (e.shuffle(v, v, range(16 * i, 16 * i + 16)) for v in bytes_)
            parts.append(e.call("llvm.aarch64.neon.sdot.v4i32.v16i8", VI32x4, [lanes, w, x]))
        return e.concatenate(e.concatenate(parts[0], parts[1]), e.concatenate(parts[2], parts[3]))

    def room(self, largest):
        """No limit: products are summed in int32."""
        return NO_LIMIT

    def begin(self, e, init):
        """Start from init."""
        return init

    def step(self, e, state, codes, activations):
        """Add 16 x 4 products."""
        return self._dot(e, state, codes, activations)

    def end(self, e, state, init):
        """Return the sum, which began with init."""
        return state

    def q8_step(self, e, acc, weights, activations):
        """Both sides are signed."""
        return self._dot(e, acc, weights, activations)
