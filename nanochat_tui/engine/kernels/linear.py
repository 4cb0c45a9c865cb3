"""Matrix products: ternary weights, the Q8_0 table, and plain floats.

All weights lie in blocks of 16 output rows, interleaved so that one lane is one row (see `engine.packing`):
no horizontal sums, and the scales of 16 rows are one vector. Activations lie in tiles of T tokens,
int8 [columns / 4][T][4]; T = 1 is a plain row. Every (row, token) result is computed by the same operations in
the same order whatever the tile, so decode and prefill agree bit for bit.
"""

from __future__ import annotations

from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.slots import Q8_BLOCK
from nanochat_tui.engine.simd.emitter import F32, I32, LANES, VF32, VI32
from nanochat_tui.engine.simd.intrinsics import get, kernel
from nanochat_tui.engine.simd.isa import STEP_BYTES, STEP_COLUMNS


def _ternary(e, target, tokens, weights, scales, x, init, x_scale, y, y_stride, blocks, tiles):
    """Emit y[token, row] = x_scale[token] · sum over groups of scale[row, group] · integer dot product."""
    b, isa = e.b, target.isa
    first, last, groups = blocks
    steps = target.group // STEP_COLUMNS
    group_bytes = steps * STEP_BYTES

    def row_block(block):
        block_weights = e.add(weights, e.mul(block, groups, group_bytes))
        block_scales = e.add(scales, e.mul(block, groups, 2 * LANES))

        def tile(index):
            tile_x = e.add(x, e.mul(index, groups, target.group * tokens))
            tile_init = e.add(init, e.mul(index, groups, 4 * tokens))

            def group(g, *sums):
                q = e.add(block_weights, e.mul(g, group_bytes))
                xg = e.add(tile_x, e.mul(g, target.group * tokens))
                ig = e.add(tile_init, e.mul(g, 4 * tokens))
                inits = [isa.broadcast(e, ig, 4 * t) for t in range(tokens)]
                if tokens == 1:
                    totals = [isa.ternary_group(e, q, xg, inits[0], steps)]
                else:
                    states = [isa.ternary_begin(e, i) for i in inits]
                    for step in range(steps):
                        codes = isa.unpack(e, e.load(VI32, q, step * STEP_BYTES))
                        for pair in range(4):
                            for t in range(tokens):
                                at = ((step * 4 + pair) * tokens + t) * 4
                                states[t] = isa.ternary_step(e, states[t], codes[pair], isa.broadcast(e, xg, at))
                    totals = [isa.ternary_end(e, s, i) for s, i in zip(states, inits, strict=True)]
                scale = e.load_half(e.add(block_scales, e.mul(g, 2 * LANES)))
                return [e.fma(e.to_f32(n), scale, s) for n, s in zip(totals, sums, strict=True)]

            sums = e.loop(0, groups, 1, [e.splat(0.0)] * tokens, group)
            _store_tile(e, sums, index, tokens, x_scale, y, y_stride, block)

        e.loop(*tiles, [], tile)

    e.loop(first, last, 1, [], row_block)
    return b


def _store_tile(e, sums, index, tokens, x_scale, y, y_stride, block):
    """Store the 16 outputs of each token of tile `index`, times the token's activation scale."""
    row = e.add(y, e.mul(index, tokens, y_stride), e.mul(block, 4 * LANES))
    for t, total in enumerate(sums):
        scale = e.splat(e.load(F32, x_scale, e.add(e.mul(index, 4 * tokens), 4 * t)))
        e.store(e.b.fmul(total, scale), row, e.mul(y_stride, t))


def _q8(e, target, tokens, weights, scales, x, init, x_scale, y, y_stride, blocks, tiles):
    """Emit the same for the int8 table: one scale per 32 columns."""
    isa = target.isa
    first, last, groups = blocks
    block_bytes = Q8_BLOCK * LANES
    quads = Q8_BLOCK // 4

    def row_block(block):
        block_weights = e.add(weights, e.mul(block, groups, block_bytes))
        block_scales = e.add(scales, e.mul(block, groups, 2 * LANES))

        def tile(index):
            tile_x = e.add(x, e.mul(index, groups, Q8_BLOCK * tokens))
            tile_init = e.add(init, e.mul(index, groups, 4 * tokens))

            def group(g, *sums):
                q = e.add(block_weights, e.mul(g, block_bytes))
                xg = e.add(tile_x, e.mul(g, Q8_BLOCK * tokens))
                ig = e.add(tile_init, e.mul(g, 4 * tokens))
                totals = [isa.broadcast(e, ig, 4 * t) for t in range(tokens)]
                for quad in range(quads):
                    w = e.load(VI32, q, quad * 4 * LANES)
                    for t in range(tokens):
                        activations = isa.broadcast(e, xg, (quad * tokens + t) * 4)
                        totals[t] = isa.q8_step(e, totals[t], w, activations)
                scale = e.load_half(e.add(block_scales, e.mul(g, 2 * LANES)))
                return [e.fma(e.to_f32(n), scale, s) for n, s in zip(totals, sums, strict=True)]

            sums = e.loop(0, groups, 1, [e.splat(0.0)] * tokens, group)
            _store_tile(e, sums, index, tokens, x_scale, y, y_stride, block)

        e.loop(*tiles, [], tile)

    e.loop(first, last, 1, [], row_block)


@kernel("v:iiiiiiiiii")
def ternary_one(e, target, weights, scales, x, init, x_scale, y, first, last, groups, y_stride):
    """One token: y float32 [rows] for row blocks first..last. Addresses; groups per row; strides in bytes."""
    _ternary(e, target, 1, weights, scales, x, init, x_scale, y, y_stride, (first, last, groups), (0, 1, 1))


@kernel("v:iiiiiiiiiiiii")
def ternary_tiles(e, target, weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, t1, step):
    """Tiles t0, t0 + step, … below t1 of `target.isa.tile` tokens each."""
    tiles = (t0, t1, step)
    tokens = target.isa.tile
    _ternary(e, target, tokens, weights, scales, x, init, x_scale, y, y_stride, (first, last, groups), tiles)


def _fewer(emit, tokens, what):
    """Return a kernel for tiles of `tokens`: for batches between one token and a whole tile, where it is smaller."""

    def few(e, target, weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, t1, step):
        if tokens < target.isa.tile:
            blocks, tiles = (first, last, groups), (t0, t1, step)
            emit(e, target, tokens, weights, scales, x, init, x_scale, y, y_stride, blocks, tiles)

    few.__name__, few.__doc__ = f"{what}_tiles_{tokens}", f"Tiles of {tokens} tokens, if that is less than a whole one."
    return kernel("v:iiiiiiiiiiiii")(few)


ternary_tiles_2, ternary_tiles_4, ternary_tiles_8 = (_fewer(_ternary, n, "ternary") for n in (2, 4, 8))
q8_tiles_2, q8_tiles_4, q8_tiles_8 = (_fewer(_q8, n, "q8") for n in (2, 4, 8))


@kernel("v:iiiiiiiiii")
def q8_one(e, target, weights, scales, x, init, x_scale, y, first, last, groups, y_stride):
    """One token times the int8 table; groups = columns / 32."""
    _q8(e, target, 1, weights, scales, x, init, x_scale, y, y_stride, (first, last, groups), (0, 1, 1))


@kernel("v:iiiiiiiiiiiii")
def q8_tiles(e, target, weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, t1, step):
    """Tiles of tokens times the int8 table."""
    tiles = (t0, t1, step)
    tokens = target.isa.tile
    _q8(e, target, tokens, weights, scales, x, init, x_scale, y, y_stride, (first, last, groups), tiles)


@compiled("i:ii")
def tile_of(model, count):
    """Return the tokens per tile for a batch: 1, 2, 4 … up to the kernel's own, the smallest that takes all."""
    tile = 1
    while tile < count and tile < get(model, s.TILE):
        tile *= 2
    return tile


@compiled("v:iiiiiiiiiiiiiii")
def ternary(model, tile, weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, tiles, step):
    """Multiply tiles t0, t0 + step, … of `tile` tokens, as `tile_of` says; one token is tile 0 of 1."""
    if tile == 1:
        ternary_one(weights, scales, x, init, x_scale, y, first, last, groups, y_stride)
    elif tile == get(model, s.TILE):
        ternary_tiles(weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, tiles, step)
    elif tile == 2:
        ternary_tiles_2(weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, tiles, step)
    elif tile == 4:
        ternary_tiles_4(weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, tiles, step)
    else:
        ternary_tiles_8(weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, tiles, step)


@compiled("v:iiiiiiiiiiiii")
def q8(model, tile, weights, scales, x, init, x_scale, y, first, last, groups, y_stride, tiles):
    """Multiply tiles 0 … tiles - 1 by the int8 table."""
    if tile == 1:
        q8_one(weights, scales, x, init, x_scale, y, first, last, groups, y_stride)
    elif tile == get(model, s.TILE):
        q8_tiles(weights, scales, x, init, x_scale, y, first, last, groups, y_stride, 0, tiles, 1)
    elif tile == 2:
        q8_tiles_2(weights, scales, x, init, x_scale, y, first, last, groups, y_stride, 0, tiles, 1)
    elif tile == 4:
        q8_tiles_4(weights, scales, x, init, x_scale, y, first, last, groups, y_stride, 0, tiles, 1)
    else:
        q8_tiles_8(weights, scales, x, init, x_scale, y, first, last, groups, y_stride, 0, tiles, 1)


def _dense(e, weights, x, y, first, last, columns, half):
    """Emit y = W x in float32, four columns' products at a time in separate sums."""
    width = (2 if half else 4) * LANES

    def row_block(block):
        base = e.add(weights, e.mul(block, columns, width))

        def quad(k, *sums):
            out = []
            for i, total in enumerate(sums):
                at = e.add(base, e.mul(e.add(k, i), width))
                w = e.load_half(at) if half else e.load(VF32, at)
                out.append(e.fma(e.splat(e.load(F32, x, e.add(e.mul(k, 4), 4 * i))), w, total))
            return out

        sums = e.loop(0, columns, 4, [e.splat(0.0)] * 4, quad)
        total = e.b.fadd(e.b.fadd(sums[0], sums[1]), e.b.fadd(sums[2], sums[3]))
        e.store(total, y, e.mul(block, 4 * LANES))

    e.loop(first, last, 1, [], row_block)


@kernel("v:iiiiii")
def dense_f32(e, target, weights, x, y, first, last, columns):
    """One token: y = W x, W float32 in 16-row blocks [columns][16]; columns a multiple of 4."""
    _dense(e, weights, x, y, first, last, columns, half=False)


@kernel("v:iiiiii")
def dense_f16(e, target, weights, x, y, first, last, columns):
    """The same with W float16."""
    _dense(e, weights, x, y, first, last, columns, half=True)


@kernel("v:iiiii")
def dequantise(e, target, x, out, scale, columns, lane_stride):
    """Write int8 activations times their scale as float32: x int8 quads `lane_stride` bytes apart, scale's address."""
    b = e.b
    factor = e.load(F32, scale)

    def quad(k):
        packed = e.load(I32, x, e.mul(k, lane_stride))
        for i in range(4):
            value = b.ashr(b.shl(packed, I32(24 - 8 * i)), I32(24))
            e.store(b.fmul(b.sitofp(value, F32), factor), out, e.add(e.mul(k, 16), 4 * i))

    e.loop(0, b.sdiv(columns, e.i64(4)), 1, [], quad)
