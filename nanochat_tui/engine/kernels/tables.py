"""Products with matrices in a file's own blocks: Q8_0, Q4_0, Q4_1, Q5_1, Q4_K, Q5_K, Q6_K.

The integer part is exact: codes times int8 activations are summed in int32 over a block, and over the blocks of 256
columns times their integer scales where the type has such (at most 16 · 128 · 65,024 < 2^31). Floats enter once per
float16 scale, in the same order for every number of tokens and every instruction set.
"""

from __future__ import annotations

from llvmlite import ir

from nanochat_tui.engine.kernels.kinds import LAYOUTS, Q4_0, Q4_1, Q4_K, Q5_1, Q5_K, Q6_K, Q8, TILES, sums_factor
from nanochat_tui.engine.kernels.tiles import PREFETCH_TOKENS, by_tile, prefetch_weights, store_tile
from nanochat_tui.engine.simd.base import Dots
from nanochat_tui.engine.simd.emitter import I8, I32, LANES, VI32
from nanochat_tui.engine.simd.intrinsics import kernel

VI8 = ir.VectorType(I8, LANES)
WORD = 4 * LANES
"""Bytes of one word of 16 rows."""
NESTED_TOKENS = 4
"""Most tokens that the kernels of types with nested scales work on at a time."""


def _field(e, packed, right, bits, left=0):
    """Return `bits` bits of every byte from bit `right` on, moved up by `left`."""
    b = e.b
    constant = (lambda value: e.constant(VI32, value)) if packed.type == VI32 else I32
    mask = ((1 << bits) - 1 << left) * 0x01010101
    if right > left:
        packed = b.lshr(packed, constant(right - left))
    elif left > right:
        packed = b.shl(packed, constant(left - right))
    return b.and_(packed, constant(mask - (mask >> 31 << 32)))


def codes_of(e, kind, base, column, lanes=VI32):
    """Return the codes of four columns as they lie in the words at `base`: of 16 rows, or of one if lanes is I32."""

    def word(index):
        return e.load(lanes, base, index * WORD)

    if kind in (Q8, Q5_1):
        return word(column // 4)
    if kind in (Q4_0, Q4_1):
        return _field(e, word(column % 16 // 4), column // 16 * 4, 4)
    if kind == Q4_K:
        return _field(e, word(column // 64 * 8 + column % 32 // 4), column // 32 % 2 * 4, 4)
    if kind == Q5_K:
        low = _field(e, word(8 + column // 64 * 8 + column % 32 // 4), column // 32 % 2 * 4, 4)
        return e.b.or_(low, _field(e, word(column % 32 // 4), column // 32, 1, left=4))
    half, part, at = column // 128, column // 32 % 4, column % 32 // 4
    low = _field(e, word(half * 16 + part % 2 * 8 + at), part // 2 * 4, 4)
    return e.b.or_(low, _field(e, word(32 + half * 8 + at), 2 * part, 2, left=4))


def _block_dots(e, isa, layout, tokens, tile, base, x, block, inits):
    """Return the integer dot products of block `block` (a Python int) with each token, begun with `inits`."""
    dots = Dots(isa, e, inits, layout.largest) if layout.kind != Q8 else None
    for column in range(block * layout.block, (block + 1) * layout.block, 4):
        codes = codes_of(e, layout.kind, base, column)
        quad = e.add(x, e.mul(tile, column))
        activations = [isa.broadcast(e, quad, 4 * t) for t in range(tokens)]
        if dots is not None:
            dots.step(codes, activations)
        else:
            inits = [isa.q8_step(e, total, codes, a) for total, a in zip(inits, activations, strict=True)]
    return inits if dots is None else dots.end()


def bytes_to_i32(e, address, offset, signed):
    """Load 16 bytes as int32 lanes."""
    values = e.load(VI8, address, offset)
    return e.b.sext(values, VI32) if signed else e.b.zext(values, VI32)


def _plain(e, layout, totals, scales, block, dots, sums):
    """Add one block with float16 scales to the float totals."""
    at = block * 2 * LANES * (2 if layout.minimum else 1)
    scale = e.load_half(scales, at)
    totals = [e.fma(e.to_f32(n), scale, total) for n, total in zip(dots, totals, strict=True)]
    if layout.minimum:
        m = e.load_half(scales, at + 2 * LANES)
        totals = [e.fma(e.to_f32(s), m, total) for s, total in zip(sums, totals, strict=True)]
    return totals


def _nested(e, layout, totals, scales, integers, minima):
    """Add 256 columns, already summed times their integer scales, to the float totals."""
    d = e.load_half(scales)
    totals = [e.fma(e.to_f32(n), d, total) for n, total in zip(integers, totals, strict=True)]
    if layout.minimum:
        m = e.b.fsub(e.splat(0.0), e.load_half(scales, 2 * LANES))
        totals = [e.fma(e.to_f32(s), m, total) for s, total in zip(minima, totals, strict=True)]
    return totals


def _table(e, target, layout, tokens, tile, weights, scales, x, sums, x_scale, y, first, last, columns, padded,
           y_stride, tiles):  # fmt: skip
    """Emit y[token, row] = x_scale[token] · (row · token) for row blocks first..last and some tiles of tokens.

    tokens: how many are worked on together; a tile of more (then an IR value) is taken in parts.
    """
    b, isa = e.b, target.isa
    zero = e.constant(VI32, 0)
    parts = b.sdiv(columns, e.i64(layout.columns))
    integer_scales = 2 * LANES * (2 if layout.minimum else 1)
    needs_sums = sums_factor(layout, isa.q8_bias) != 0

    def some(block, index, start):
        row_weights = e.add(weights, e.mul(block, parts, layout.words * WORD))
        row_scales = e.add(scales, e.mul(block, parts, layout.scale_bytes))
        tile_x = e.add(x, e.mul(index, padded, tile), e.mul(start, 4))
        tile_sums = e.add(sums, e.mul(index, parts, tile, 4 * layout.blocks), e.mul(start, 4))

        def part(p, *totals):
            base = e.add(row_weights, e.mul(p, layout.words * WORD))
            factors = e.add(row_scales, e.mul(p, layout.scale_bytes))
            xp = e.add(tile_x, e.mul(p, tile, layout.columns))
            sp = e.add(tile_sums, e.mul(p, tile, 4 * layout.blocks))
            if tokens <= PREFETCH_TOKENS:
                prefetch_weights(e, base, layout.words * WORD, factors, layout.scale_bytes)
            integers, minima = [zero] * tokens, [zero] * tokens
            for k in range(layout.blocks):
                block_sums = [zero] * tokens
                if needs_sums:
                    place = e.add(sp, e.mul(tile, 4 * k))
                    block_sums = [isa.broadcast(e, place, 4 * t) for t in range(tokens)]
                inits = [zero] * tokens if layout.minimum else block_sums
                dots = _block_dots(e, isa, layout, tokens, tile, base, xp, k, inits)
                if not layout.nested:
                    totals = _plain(e, layout, totals, factors, k, dots, block_sums)
                    continue
                scale = bytes_to_i32(e, factors, integer_scales + k * LANES, signed=layout.kind == Q6_K)
                integers = [b.add(i, b.mul(n, scale)) for i, n in zip(integers, dots, strict=True)]
                if layout.minimum:
                    m = bytes_to_i32(e, factors, integer_scales + (layout.blocks + k) * LANES, signed=False)
                    minima = [b.add(i, b.mul(s, m)) for i, s in zip(minima, block_sums, strict=True)]
            return _nested(e, layout, totals, factors, integers, minima) if layout.nested else totals

        totals = e.loop(0, parts, 1, [e.splat(0.0)] * tokens, part)
        store_tile(e, totals, e.add(e.mul(index, tile), start), x_scale, y, y_stride, block)

    def row_block(block):
        def whole_tile(index):
            if tile is tokens:
                some(block, index, e.i64(0))
            else:
                e.loop(0, tile, tokens, [], lambda start: some(block, index, start))

        e.loop(*tiles, [], whole_tile)

    e.loop(first, last, 1, [], row_block)


def _register(name, kind):
    """Make the kernels of one kind for every size of tile, all with the same arguments.

    The widest of nested kinds takes larger tiles in parts: unrolled over 256 columns and 16 tokens they would take
    seconds to compile.
    """
    layout = LAYOUTS[kind]
    sizes = [tokens for tokens in TILES if tokens <= NESTED_TOKENS or not layout.nested]

    def variant(tokens):
        def emit(e, target, tile, weights, scales, x, sums, x_scale, y, first, last, columns, padded, y_stride,
                 t0, t1, step):  # fmt: skip
            stride = tile if layout.nested and tokens == NESTED_TOKENS else tokens
            _table(e, target, layout, tokens, stride, weights, scales, x, sums, x_scale, y, first, last, columns,
                   padded, y_stride, (t0, t1, step))  # fmt: skip

        emit.__name__ = f"{name}_{tokens}"
        emit.__doc__ = f"Tiles t0, t0 + step … below t1 of {tokens} tokens times a {name} matrix; strides in bytes."
        kernel("v:" + "i" * 15, kind=kind, tokens=tokens)(emit)

    for tokens in sizes:
        variant(tokens)


TABLE_NAMES = {Q8: "q8", Q4_0: "q4_0", Q4_1: "q4_1", Q5_1: "q5_1", Q4_K: "q4_k", Q5_K: "q5_k", Q6_K: "q6_k"}
for _kind, _name in TABLE_NAMES.items():
    _register(_name, _kind)


@kernel("v:iiiiiiiiiiiii")
def q8(e, target, model, tile, weights, scales, x, init, x_scale, y, first, last, groups, y_stride, tiles):
    """Multiply tiles 0 … tiles - 1 by an int8 table; groups of 32 columns per row, `init` as `quantise` left it."""
    columns = e.mul(groups, LAYOUTS[Q8].columns)
    arguments = (tile, weights, scales, x, init, x_scale, y, first, last, columns, columns, y_stride)
    by_tile(e, tile, TABLE_NAMES[Q8], (*arguments, e.i64(0), tiles, e.i64(1)))


@kernel("v:iiiiii")
def block_sums(e, target, x, tile, columns, block, factor, out):
    """Write factor times the sums of each block's int8 activations of one tile: int32 [columns / block][tile].

    x: int8 quads [columns / 4][tile][4].
    """
    b = e.b
    factor = b.trunc(factor, I32)
    quads = b.sdiv(block, e.i64(4))

    def one(index):
        # index = block number · tile + token
        start = e.add(e.mul(b.sdiv(index, tile), quads, tile, 4), e.mul(b.srem(index, tile), 4))

        def quad(k, total):
            packed = e.load(I32, start, e.add(x, e.mul(k, tile, 4)))
            for i in range(4):
                total = b.add(total, b.ashr(b.shl(packed, I32(24 - 8 * i)), I32(24)))
            return [total]

        total = e.loop(0, quads, 1, [I32(0)], quad)[0]
        e.store(b.mul(total, factor), out, e.mul(index, 4))

    e.loop(0, e.mul(b.sdiv(columns, block), tile), 1, [], one)
