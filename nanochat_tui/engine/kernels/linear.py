"""Matrix products with ternary weights.

All weights lie in blocks of 16 output rows, interleaved so that one lane is one row (see `engine.packing`):
no horizontal sums, and the scales of 16 rows are one vector. Activations lie in tiles of T tokens,
int8 [columns / 4][T][4]; T = 1 is a plain row. Every (row, token) result is computed by the same operations in
the same order whatever the tile, so decode and prefill agree bit for bit.
"""

from __future__ import annotations

from functools import reduce

from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.kernels.dense import dense_f16, dense_f32, dequantise
from nanochat_tui.engine.kernels.kinds import TERNARY, TERNARY_ROW, TILES
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.tables import q8
from nanochat_tui.engine.kernels.tiles import PREFETCH_TOKENS, by_tile, prefetch_weights, store_tile
from nanochat_tui.engine.simd.base import STEP_BYTES, STEP_COLUMNS, Dots
from nanochat_tui.engine.simd.emitter import LANES, VF32, VI32
from nanochat_tui.engine.simd.intrinsics import get, kernel

__all__ = ["dense_f16", "dense_f32", "dequantise", "q8", "ternary", "tile_of"]

CACHED_BYTES = 1 << 18
"""Weights that are multiplied by all tiles of tokens before the next ones are read."""


def _group_dots(e, isa, tokens, weights, x, inits, steps):
    """Return the integer dot products of one group of columns with each token of a tile."""
    if tokens == 1:
        return [isa.ternary_group(e, weights, x, inits[0], steps)]
    # few tokens have few sums, each of which would wait for its own last product
    chains = max(1, min(4, isa.sums // tokens))
    zero = e.constant(VI32, 0)
    dots = [Dots(isa, e, [zero] * tokens if chain else inits, 3) for chain in range(chains)]
    for step in range(steps):
        codes = isa.unpack(e, e.load(VI32, weights, step * STEP_BYTES))
        for pair in range(4):
            at = (step * 4 + pair) * tokens * 4
            dots[pair % chains].step(codes[pair], [isa.broadcast(e, x, at + 4 * t) for t in range(tokens)])
    return [reduce(e.b.add, each) for each in zip(*(d.end() for d in dots), strict=True)]


def _ternary(e, target, tokens, weights, scales, x, init, x_scale, y, y_stride, blocks, tiles, by_row=False):
    """Emit y[token, row] = x_scale[token] · sum over groups of scale[row, group] · integer dot product.

    by_row: scales are one float32 per row, and the integers are summed over the whole row.
    """
    b, isa = e.b, target.isa
    first, last, groups = blocks
    steps = target.group // STEP_COLUMNS
    group_bytes = steps * STEP_BYTES

    def one(block, index):
        block_weights = e.add(weights, e.mul(block, groups, group_bytes))
        block_scales = e.add(scales, e.mul(block, 4 * LANES) if by_row else e.mul(block, groups, 2 * LANES))
        tile_x = e.add(x, e.mul(index, groups, target.group * tokens))
        tile_init = e.add(init, e.mul(index, groups, 4 * tokens))

        def group(g, *sums):
            q = e.add(block_weights, e.mul(g, group_bytes))
            xg = e.add(tile_x, e.mul(g, target.group * tokens))
            ig = e.add(tile_init, e.mul(g, 4 * tokens))
            group_scales = e.add(block_scales, e.mul(g, 2 * LANES))
            if tokens <= PREFETCH_TOKENS:
                prefetch_weights(e, q, group_bytes, group_scales, 0 if by_row else 2 * LANES)
            inits = [isa.broadcast(e, ig, 4 * t) for t in range(tokens)]
            if by_row:
                inits = [b.add(i, s) for i, s in zip(inits, sums, strict=True)]
            totals = _group_dots(e, isa, tokens, q, xg, inits, steps)
            if by_row:
                return totals
            scale = e.load_half(group_scales)
            return [e.fma(e.to_f32(n), scale, s) for n, s in zip(totals, sums, strict=True)]

        zero = e.constant(VI32, 0) if by_row else e.splat(0.0)
        sums = e.loop(0, groups, 1, [zero] * tokens, group)
        if by_row:
            sums = [b.fmul(e.to_f32(n), e.load(VF32, block_scales)) for n in sums]
        store_tile(e, sums, e.mul(index, tokens), x_scale, y, y_stride, block)

    if tokens <= PREFETCH_TOKENS:
        e.loop(first, last, 1, [], lambda block: e.loop(*tiles, [], lambda index: one(block, index)))
        return
    # what one tile of tokens reads and writes stays in the first cache, the weights of some blocks in the second
    some = b.sdiv(e.i64(CACHED_BYTES), e.mul(groups, group_bytes))
    some = b.select(b.icmp_signed(">", some, e.i64(1)), some, e.i64(1))

    def blocks_together(start):
        end = e.add(start, some)
        end = b.select(b.icmp_signed("<", end, last), end, last)
        e.loop(*tiles, [], lambda index: e.loop(start, end, 1, [], lambda block: one(block, index)))

    e.loop(first, last, some, [], blocks_together)


def _register(name, kind, by_row):
    """Make the kernels of one kind for every size of tile, all with the same arguments."""

    def variant(tokens):
        def emit(e, target, weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, t1, step):
            blocks, tiles = (first, last, groups), (t0, t1, step)
            _ternary(e, target, tokens, weights, scales, x, init, x_scale, y, y_stride, blocks, tiles, by_row)

        emit.__name__ = f"{name}_{tokens}"
        emit.__doc__ = f"Tiles t0, t0 + step … below t1 of {tokens} tokens; strides in bytes, groups per row."
        kernel("v:" + "i" * 13, kind=kind, tokens=tokens)(emit)

    for tokens in TILES:
        variant(tokens)


_register("ternary", TERNARY, by_row=False)
_register("ternary_row", TERNARY_ROW, by_row=True)


@kernel("v:iiiiiiiiiiiiiii")
def ternary(e, target, model, tile, weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, t1, step):
    """Multiply tiles t0, t0 + step … below t1 of `tile` tokens, as `tile_of` says; one token is tile 0 of 1."""
    arguments = (weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, t1, step)
    by_tile(e, tile, "ternary", arguments)


@compiled("i:ii")
def tile_of(model, count):
    """Return the tokens per tile for a batch: 1, 2, 4 … up to the kernel's own, the smallest that takes all."""
    tile = 1
    while tile < count and tile < get(model, s.TILE):
        tile *= 2
    return tile
