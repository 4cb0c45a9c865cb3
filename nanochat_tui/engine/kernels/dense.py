"""Products with float weights: float32, float16 and bfloat16, in 16-row blocks [columns][16]."""

from __future__ import annotations

from nanochat_tui.engine.kernels.tiles import prefetch_weights
from nanochat_tui.engine.layout.kinds import BF16, F16
from nanochat_tui.engine.layout.kinds import F32 as KIND_F32
from nanochat_tui.engine.simd.emitter import F32, LANES, VF32, VI16, VI32
from nanochat_tui.engine.simd.intrinsics import kernel

FEW = 4
"""Rows of activations that share a pass over the weights."""


def _load(e, kind, address):
    """Load 16 weights as float32."""
    if kind == F16:
        return e.load_half(address)
    if kind == BF16:
        wide = e.b.zext(e.load(VI16, address), VI32)
        return e.b.bitcast(e.b.shl(wide, e.constant(VI32, 16)), VF32)
    return e.load(VF32, address)


def _dense(e, kind, tokens, weights, x, x_stride, y, y_stride, first, last, columns, tiles):
    """Emit y = W x in float32 for tiles of tokens, four columns' products at a time in separate sums."""
    width = (4 if kind == KIND_F32 else 2) * LANES

    def row_block(block):
        base = e.add(weights, e.mul(block, columns, width))

        def tile(index):
            tile_x = e.add(x, e.mul(index, tokens, x_stride))
            rows = [e.add(tile_x, e.mul(x_stride, t)) for t in range(tokens)]

            def quad(k, *sums):
                at, out = e.mul(k, width), list(sums)
                prefetch_weights(e, e.add(base, at), 4 * width)
                for i in range(4):
                    w = _load(e, kind, e.add(base, at, i * width))
                    for t in range(tokens):
                        value = e.splat(e.load(F32, rows[t], e.add(e.mul(k, 4), 4 * i)))
                        out[4 * t + i] = e.fma(value, w, out[4 * t + i])
                return out

            sums = e.loop(0, columns, 4, [e.splat(0.0)] * (4 * tokens), quad)
            out = e.add(y, e.mul(index, tokens, y_stride), e.mul(block, 4 * LANES))
            for t in range(tokens):
                a, b, c, d = sums[4 * t : 4 * t + 4]
                e.store(e.b.fadd(e.b.fadd(a, b), e.b.fadd(c, d)), out, e.mul(y_stride, t))

        e.loop(*tiles, [], tile)

    e.loop(first, last, 1, [], row_block)


@kernel("v:iiiiii")
def dense_f32(e, target, weights, x, y, first, last, columns):
    """One token: y = W x, W float32; columns a multiple of 4."""
    _dense(e, KIND_F32, 1, weights, x, 0, y, 0, first, last, columns, (0, 1, 1))


@kernel("v:iiiiii")
def dense_f16(e, target, weights, x, y, first, last, columns):
    """The same with W float16."""
    _dense(e, F16, 1, weights, x, 0, y, 0, first, last, columns, (0, 1, 1))


def _register(name, kind):
    def variant(tokens):
        def emit(e, target, weights, x, x_stride, y, y_stride, first, last, columns, t0, t1, step):
            _dense(e, kind, tokens, weights, x, x_stride, y, y_stride, first, last, columns, (t0, t1, step))

        emit.__name__ = f"{name}_{tokens}"
        emit.__doc__ = f"Tiles t0, t0 + step … below t1 of {tokens} rows of x times a {name} matrix; strides in bytes."
        kernel("v:" + "i" * 11, kind=kind)(emit)

    for tokens in (1, FEW):
        variant(tokens)


DENSE_NAMES = {KIND_F32: "f32", F16: "f16", BF16: "bf16"}
for _kind, _name in DENSE_NAMES.items():
    _register(_name, _kind)
