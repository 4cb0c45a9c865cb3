"""Products with matrices in a file's own blocks: Q8_0, Q4_0, Q4_1, Q5_1, Q4_K, Q5_K, Q6_K.

The integer part is exact: codes times int8 activations are summed in int32 over the columns that share one scale of
the activations (32 or 16), times their integer scales where the type has such. Floats enter once per such a unit and
once per float16 scale, in the same order for every number of tokens and every instruction set.
"""

from __future__ import annotations

from llvmlite import ir

from nanochat_tui.engine.kernels.tiles import PREFETCH_TOKENS, prefetch_weights, store_tile, token_scales
from nanochat_tui.engine.layout.kinds import (
    LAYOUTS,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8,
    TILES,
    scale_columns,
    sum_columns,
    sums_factor,
)
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


def _piece_dots(e, isa, layout, tokens, tile, base, x, columns, inits):
    """Return the integer dot products of some columns (a Python range) with each token, begun with `inits`."""
    dots = Dots(isa, e, inits, layout.largest) if layout.kind != Q8 else None
    for column in columns:
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


def _plain(e, layout, totals, scales, block, dots, x_scales, sums):
    """Add columns of a block with float16 scales to the float totals. sums: of the activations, times their scales."""
    at = block * 2 * LANES * (2 if layout.minimum else 1)
    scale = e.load_half(scales, at)
    totals = [e.fma(e.to_f32(n), e.b.fmul(scale, a), t) for n, a, t in zip(dots, x_scales, totals, strict=True)]
    if layout.minimum:
        m = e.load_half(scales, at + 2 * LANES)
        totals = [e.fma(s, m, total) for s, total in zip(sums, totals, strict=True)]
    return totals


def _nested(e, layout, totals, scales, parts, minima):
    """Add 256 columns, already summed times their integer scales and those of activations, to the float totals."""
    d = e.load_half(scales)
    totals = [e.fma(n, d, total) for n, total in zip(parts, totals, strict=True)]
    if layout.minimum:
        m = e.b.fsub(e.splat(0.0), e.load_half(scales, 2 * LANES))
        totals = [e.fma(s, m, total) for s, total in zip(minima, totals, strict=True)]
    return totals


def _table(e, target, layout, tokens, tile, weights, scales, x, sums, x_scale, y, first, last, columns, padded,
           y_stride, tiles):  # fmt: skip
    """Emit y[token, row] = row · token for row blocks first..last and some tiles of tokens.

    tokens: how many are worked on together; a tile of more (then an IR value) is taken in parts.
    """
    b, isa = e.b, target.isa
    zero, nothing = e.constant(VI32, 0), e.splat(0.0)
    parts = b.sdiv(columns, e.i64(layout.columns))
    integer_scales = 2 * LANES * (2 if layout.minimum else 1)
    needs_sums = bool(layout.minimum) or sums_factor(layout.kind, isa.q8_bias) != 0
    unit, piece = scale_columns(layout.kind), sum_columns(layout.kind, target.group)

    def some(block, index, start):
        row_weights = e.add(weights, e.mul(block, parts, layout.words * WORD))
        row_scales = e.add(scales, e.mul(block, parts, layout.scale_bytes))
        tile_x = e.add(x, e.mul(index, padded, tile), e.mul(start, 4))
        tile_sums = e.add(sums, e.mul(index, b.sdiv(padded, e.i64(piece)), tile, 4), e.mul(start, 4))
        tile_scale = e.add(x_scale, e.mul(index, b.sdiv(padded, e.i64(unit)), tile, 4), e.mul(start, 4))

        def part(p, *totals):
            base = e.add(row_weights, e.mul(p, layout.words * WORD))
            factors = e.add(row_scales, e.mul(p, layout.scale_bytes))
            xp = e.add(tile_x, e.mul(p, tile, layout.columns))
            sp = e.add(tile_sums, e.mul(p, tile, 4 * (layout.columns // piece)))
            ap = e.add(tile_scale, e.mul(p, tile, 4 * (layout.columns // unit)))
            if tokens <= PREFETCH_TOKENS:
                prefetch_weights(e, base, layout.words * WORD, factors, layout.scale_bytes)
            nested, minima = [nothing] * tokens, [nothing] * tokens
            integers = [zero] * tokens
            for first_column in range(0, layout.columns, piece):
                some_columns = range(first_column, first_column + piece, 4)
                k, ends_unit = first_column // layout.block, (first_column + piece) % unit == 0
                inits, piece_sums = [zero] * tokens, [nothing] * tokens
                place = e.add(sp, e.mul(tile, 4 * (first_column // piece)))
                if layout.minimum:
                    piece_sums = token_scales(e, place, tokens)
                elif needs_sums:
                    inits = [isa.broadcast(e, place, 4 * t) for t in range(tokens)]
                dots = _piece_dots(e, isa, layout, tokens, tile, base, xp, some_columns, inits)
                x_scales = token_scales(e, e.add(ap, e.mul(tile, 4 * (first_column // unit))), tokens)
                if not layout.nested:
                    totals = _plain(e, layout, totals, factors, k, dots, x_scales, piece_sums)
                    continue
                scale = bytes_to_i32(e, factors, integer_scales + k * LANES, signed=layout.kind == Q6_K)
                integers = [b.add(i, b.mul(n, scale)) for i, n in zip(integers, dots, strict=True)]
                if ends_unit:
                    zipped = zip(integers, x_scales, nested, strict=True)
                    nested, integers = [e.fma(e.to_f32(i), a, n) for i, a, n in zipped], [zero] * tokens
                if layout.minimum:
                    m = bytes_to_i32(e, factors, integer_scales + (layout.blocks + k) * LANES, signed=False)
                    minima = [e.fma(s, e.to_f32(m), i) for i, s in zip(minima, piece_sums, strict=True)]
            return _nested(e, layout, totals, factors, nested, minima) if layout.nested else totals

        totals = e.loop(0, parts, 1, [nothing] * tokens, part)
        store_tile(e, totals, e.add(e.mul(index, tile), start), None, y, y_stride, block)

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
