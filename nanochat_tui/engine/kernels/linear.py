"""Matrix products with ternary weights.

All weights lie in blocks of 16 output rows, interleaved so that one lane is one row (see `weights.pack`):
no horizontal sums, and the scales of 16 rows are one vector. Activations lie in tiles of T tokens,
int8 [columns / 4][T][4]; T = 1 is a plain row. Every (row, token) result is computed by the same operations in
the same order whatever the tile, so decode and prefill agree bit for bit.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.tiles import PREFETCH_TOKENS, prefetch_weights, scaled, store_tile, token_scales
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.kinds import (
    ACTIVATION_BLOCK,
    FINE_SPAN,
    TERNARY_FINE,
    TERNARY_NAMES,
    TERNARY_ROW,
    TILES,
)
from nanochat_tui.engine.simd.base import STEP_BYTES, STEP_COLUMNS, Dots
from nanochat_tui.engine.simd.emitter import LANES, VF32, VI32
from nanochat_tui.engine.simd.intrinsics import get, kernel

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


def _ternary(e, target, kind, tokens, weights, scales, x, init, x_scale, y, y_stride, blocks, tiles):
    """Emit y[token, row] = sum over groups of scale[row, group] · dot product, by kind times scales of activations.

    TERNARY: integers are summed over a group, and the token has one scale. TERNARY_FINE: over 32 columns, which have
    one. TERNARY_ROW: over the whole row, which has one float32 scale, as has the token.
    """
    b, isa = e.b, target.isa
    first, last, groups = blocks
    by_row, fine = kind == TERNARY_ROW, kind == TERNARY_FINE
    steps = target.group // STEP_COLUMNS
    group_bytes = steps * STEP_BYTES
    unit = ACTIVATION_BLOCK if fine else target.group
    units, unit_steps = target.group // unit, unit // STEP_COLUMNS

    def one(block, index):
        block_weights = e.add(weights, e.mul(block, groups, group_bytes))
        block_scales = e.add(scales, e.mul(block, 4 * LANES) if by_row else e.mul(block, groups, 2 * LANES))
        tile_x = e.add(x, e.mul(index, groups, target.group * tokens))
        tile_init = e.add(init, e.mul(index, groups, 4 * tokens * units))
        tile_scale = e.add(x_scale, e.mul(index, groups, 4 * tokens * units))

        def dots(g, u, carried):
            """Return the dot products of unit u of a group, begun with `carried`."""
            q = e.add(block_weights, e.mul(g, group_bytes), u * unit_steps * STEP_BYTES)
            xg = e.add(tile_x, e.mul(g, target.group * tokens), u * unit * tokens)
            ig = e.add(tile_init, e.mul(g, 4 * tokens * units), 4 * tokens * u)
            inits = [b.add(isa.broadcast(e, ig, 4 * t), s) for t, s in enumerate(carried)]
            return _group_dots(e, isa, tokens, q, xg, inits, unit_steps)

        def group(g, *sums):
            group_scales = e.add(block_scales, e.mul(g, 2 * LANES))
            if tokens <= PREFETCH_TOKENS:
                q = e.add(block_weights, e.mul(g, group_bytes))
                prefetch_weights(e, q, group_bytes, group_scales, 0 if by_row else 2 * LANES)
            if by_row:
                return dots(g, 0, sums)
            totals: list[Any] = []
            for u in range(units):
                found = [e.to_f32(n) for n in dots(g, u, [e.constant(VI32, 0)] * tokens)]
                if fine:
                    place = e.add(tile_scale, e.mul(g, 4 * tokens * units), 4 * tokens * u)
                    found = scaled(e, found, token_scales(e, place, tokens), totals)
                totals = found
                if not fine or (u + 1) * unit % FINE_SPAN == 0:
                    scale = e.load_half(group_scales)
                    sums, totals = tuple(e.fma(n, scale, s) for n, s in zip(totals, sums, strict=True)), []
            return sums

        zero = e.constant(VI32, 0) if by_row else e.splat(0.0)
        sums = e.loop(0, groups, 1, [zero] * tokens, group)
        if by_row:
            sums = [b.fmul(e.to_f32(n), e.load(VF32, block_scales)) for n in sums]
        store_tile(e, sums, e.mul(index, tokens), None if fine else x_scale, y, y_stride, block)

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


def _register(name, kind):
    """Make the kernels of one kind for every size of tile, all with the same arguments."""

    def variant(tokens):
        def emit(e, target, weights, scales, x, init, x_scale, y, first, last, groups, y_stride, t0, t1, step):
            blocks, tiles = (first, last, groups), (t0, t1, step)
            _ternary(e, target, kind, tokens, weights, scales, x, init, x_scale, y, y_stride, blocks, tiles)

        emit.__name__ = f"{name}_{tokens}"
        emit.__doc__ = f"Tiles t0, t0 + step … below t1 of {tokens} tokens; strides in bytes, groups per row."
        kernel("v:" + "i" * 13, kind=kind, tokens=tokens)(emit)

    for tokens in TILES:
        variant(tokens)


for _kind, _name in TERNARY_NAMES.items():
    _register(_name, _kind)


@compiled("i:Mi")
def tile_of(model, count):
    """Return the tokens per tile for a batch: 1, 2, 4 … up to the kernel's own, the smallest that takes all."""
    tile = 1
    while tile < count and tile < get(model, s.TILE):
        tile *= 2
    return tile
