"""Activations as int8: rounding rows of floats into the tiles that the matrix kernels read.

A tile of T tokens is int8 [columns / 4][T][4]. Next to it lie scales, float32 [columns / unit][T] (or [T], for kinds
with one per token), and sums of each block of columns, [columns / block][T], as the matrix's kernels want them: int32,
or float32 where a minimum is multiplied by them.
"""

from __future__ import annotations

from functools import reduce

from llvmlite import ir

from nanochat_tui.engine.kernels.tiles import call_kernel
from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.table import MATRIX
from nanochat_tui.engine.simd.emitter import F32, I8, I32, LANES, VF32, VI32
from nanochat_tui.engine.simd.intrinsics import kernel

MIN_ABSMAX = 1e-8
"""Smallest absolute maximum of what shares a scale, so that zeros have one."""
WIDTH = 4 * LANES
VI8, VI32x4 = ir.VectorType(I8, LANES), ir.VectorType(I32, 4)


def _scale_of(e, largest):
    """Return the scale of values of which the lanes of `largest` are the absolute maxima."""
    return e.b.fdiv(e.maximum(e.max_lanes(largest), e.f32(MIN_ABSMAX)), e.f32(127.0))


def _rounded(e, a):
    """Return a function from 16 floats to rint(x / a) as int32."""
    b = e.b
    divisor, reciprocal = e.splat(b.fneg(a)), e.splat(b.fdiv(e.f32(1.0), a))

    def nearest(value):
        # corrected once, a product with the rounded reciprocal is the rounded quotient (Markstein 1990), in a tenth of
        # a division's time
        first = b.fmul(value, reciprocal)
        return e.to_i32(e.fma(e.fma(divisor, first, value), reciprocal, first))

    return nearest


def _store_quads(e, integers, out, column, stride):
    """Store the int8 values of 16 columns: four quads, which lie apart when several tokens share a tile."""
    packed = e.b.bitcast(e.b.trunc(integers, VI8), VI32x4)
    for i in range(4):
        quad = e.b.extract_element(packed, I32(i))
        e.store(quad, out, e.mul(e.add(e.b.sdiv(column, e.i64(4)), i), stride))


def _absmax(e, x, n):
    """Return the absolute maxima of n floats, in 16 lanes."""

    def vector(column, largest):
        return [e.maximum(e.fabs(e.load(VF32, x, e.mul(column, 4))), largest)]

    return e.loop(0, n, LANES, [e.splat(0.0)], vector)[0]


@kernel("v:iiiiiiiiii")
def quantise(e, target, x, n, padded, out, lane_stride, sums, sums_stride, factor, scale_out, block):
    """Round a row of activations to int8 with one scale: a = max(|x|) / 127, q = rint(x / a).

    x: n floats (a multiple of 16); `out`: quads of int8 `lane_stride` bytes apart, zero up to `padded` columns;
    `sums`: int32 per `block` columns, factor times the block's sum of q; `scale_out`: address of a (float32).
    """
    b = e.b
    a = _scale_of(e, _absmax(e, x, n))
    e.store(a, scale_out)
    rounded = _rounded(e, a)

    def group(g):
        start = e.mul(g, block)
        end = e.add(start, block)
        end = b.select(b.icmp_signed("<", end, n), end, n)

        def vector(column, total):
            integers = rounded(e.load(VF32, x, e.mul(column, 4)))
            _store_quads(e, integers, out, column, lane_stride)
            return [b.add(total, integers)]

        total = e.sum_lanes(e.loop(start, end, LANES, [e.constant(VI32, 0)], vector)[0])
        e.store(b.mul(total, b.trunc(factor, I32)), sums, e.mul(g, sums_stride))

    e.loop(0, b.sdiv(padded, block), 1, [], group)
    e.loop(n, padded, LANES, [], lambda column: _store_quads(e, e.constant(VI32, 0), out, column, lane_stride))


def _quantise_units(e, number, factor, x, n, padded, out, sums, scales, stride, above):
    """Round a row with a scale per unit of columns, for one kind of matrix.

    above: 16 absolute maxima, of which the largest is in no unit exceeded. Strides between a token's quads, sums and
    scales are equal.
    """
    b, unit, block = e.b, k.scale_columns(number), k.sum_columns(number, 0)
    per_block = block // LANES

    def put_sum(index, total, a):
        value = b.mul(total, I32(factor)) if factor else b.bitcast(b.fmul(b.sitofp(total, F32), a), I32)
        e.store(value, sums, e.mul(index, stride))

    def one(g):
        start = e.mul(g, unit)
        values = [e.load(VF32, x, e.add(e.mul(start, 4), i * WIDTH)) for i in range(unit // LANES)]
        a = _scale_of(e, reduce(e.maximum, [above, *(e.fabs(v) for v in values)]))
        e.store(a, scales, e.mul(g, stride))
        rounded = _rounded(e, a)
        integers = [rounded(v) for v in values]
        for i, part in enumerate(integers):
            _store_quads(e, part, out, e.add(start, i * LANES), stride)
        for i in range(unit // block):
            total = e.sum_lanes(reduce(b.add, integers[i * per_block : (i + 1) * per_block]))
            put_sum(e.add(e.mul(g, unit // block), i), total, a)

    def empty(g):
        a = e.f32(MIN_ABSMAX / 127)
        e.store(a, scales, e.mul(g, stride))
        for i in range(unit // LANES):
            _store_quads(e, e.constant(VI32, 0), out, e.add(e.mul(g, unit), i * LANES), stride)
        for i in range(unit // block):
            put_sum(e.add(e.mul(g, unit // block), i), I32(0), a)

    full = b.sdiv(n, e.i64(unit))
    e.loop(0, full, 1, [], one)
    e.loop(full, b.sdiv(padded, e.i64(unit)), 1, [], empty)


@kernel("v:Xiiiiiii")
def quantise_for(e, target, matrix, x, tile, place, x8, sums, scales, whole):
    """Round a row of floats for a matrix of any integer kind, as token `place` of tiles of `tile` tokens.

    matrix: address of its slots; columns are a multiple of 32. x8, sums, scales: of the first tile. whole: 1 gives
    all the columns one scale, for models that were trained so.
    """
    b = e.b
    kind, columns, padded = e.read(MATRIX, matrix, s.MATRIX_KIND, s.MATRIX_COLUMNS, s.MATRIX_PADDED)
    index, lane = b.sdiv(place, tile), b.srem(place, tile)
    stride = e.mul(tile, 4)

    def lane_of(base, per_row):
        """Return the address of this token's first 32-bit value of `per_row` in its tile."""
        return e.add(base, e.mul(e.add(e.mul(index, tile, per_row), lane), 4))

    def put(number):
        factor, block = k.sums_factor(number, target.isa.q8_bias), k.sum_columns(number, target.group)
        x8_lane, sums_lane = lane_of(x8, b.sdiv(padded, e.i64(4))), lane_of(sums, b.sdiv(padded, e.i64(block)))
        if number in k.PER_TOKEN:
            scale = e.add(scales, e.mul(place, 4))
            row = (x, columns, padded, x8_lane, stride, sums_lane, stride, e.i64(factor), scale, e.i64(block))
            call_kernel(e, "quantise", row)
            return
        scale = lane_of(scales, b.sdiv(padded, e.i64(k.scale_columns(number))))
        above = _absmax(e, x, b.select(b.icmp_signed("!=", whole, e.i64(0)), columns, e.i64(0)))
        _quantise_units(e, number, factor, x, columns, padded, x8_lane, sums_lane, scale, stride, above)

    for number in sorted(target.kinds - k.DENSE):
        with b.if_then(b.icmp_signed("==", kind, e.i64(number))):
            put(number)


@kernel("v:ii")
def round_floats(e, target, x, n):
    """Replace each 32 of n floats by what they are as int8 with one scale, for matrices that take floats."""
    b = e.b

    def unit(start):
        places = [e.add(x, e.mul(start, 4), at * WIDTH) for at in range(k.ACTIVATION_BLOCK // LANES)]
        values = [e.load(VF32, place) for place in places]
        a = _scale_of(e, reduce(e.maximum, [e.fabs(v) for v in values]))
        rounded = _rounded(e, a)
        for value, place in zip(values, places, strict=True):
            e.store(b.fmul(e.to_f32(rounded(value)), e.splat(a)), place)

    e.loop(0, n, k.ACTIVATION_BLOCK, [], unit)
