"""Row-wise kernels: RMS norm, activation quantiser, SwiGLU's product, RoPE, mHC mixing."""

from __future__ import annotations

from llvmlite import ir

from nanochat_tui.engine.kernels.slots import MIX_MATRIX, MIX_READ, MIX_WRITE
from nanochat_tui.engine.simd.emitter import F32, I8, I32, LANES, VF32, VI32
from nanochat_tui.engine.simd.intrinsics import kernel

MIN_ABSMAX = 1e-8
"""Smallest absolute maximum of a row of activations, so that a row of zeros has a scale."""
WIDTH = 4 * LANES
VI8, VI32x4 = ir.VectorType(I8, LANES), ir.VectorType(I32, 4)


@kernel("v:iiiif")
def rms_norm(e, target, x, weight, out, n, epsilon):
    """Write x / sqrt(mean(x²) + epsilon) · weight; n floats, a multiple of 32. In place is allowed."""
    b = e.b

    def square(at, *sums):
        values = [e.load(VF32, x, e.add(at, i * WIDTH)) for i in (0, 1)]
        return [e.fma(v, v, s) for v, s in zip(values, sums, strict=True)]

    size = e.mul(n, 4)
    sums = e.loop(0, size, 2 * WIDTH, [e.splat(0.0)] * 2, square)
    mean = b.fdiv(e.sum_lanes(b.fadd(*sums)), b.sitofp(n, F32))
    root = e.splat(e.sqrt(b.fadd(mean, epsilon)))

    def scale(at):
        normed = b.fdiv(e.load(VF32, x, at), root)
        e.store(b.fmul(normed, e.load(VF32, weight, at)), out, at)

    e.loop(0, size, WIDTH, [], scale)


@kernel("v:iiiiiiiiii")
def quantise(e, target, x, n, padded, out, lane_stride, init, init_stride, factor, scale_out, block):
    """Round a row of activations to int8 with one scale: a = max(|x|) / 127, q = rint(x / a).

    x: n floats (a multiple of 16); `out`: quads of int8 `lane_stride` bytes apart, zero up to `padded` columns;
    `init`: int32 per `block` columns, -factor times the block's sum of q; `scale_out`: address of a (float32).
    """
    b = e.b
    size = e.mul(n, 4)

    def absmax(at, largest):
        return [e.maximum(e.fabs(e.load(VF32, x, at)), largest)]

    largest = e.max_lanes(e.loop(0, size, WIDTH, [e.splat(0.0)], absmax)[0])
    a = b.fdiv(e.maximum(largest, e.f32(MIN_ABSMAX)), e.f32(127.0))
    e.store(a, scale_out)
    divisor, reciprocal = e.splat(b.fneg(a)), e.splat(b.fdiv(e.f32(1.0), a))

    def quotient(value):
        # corrected once, a product with the rounded reciprocal is the rounded quotient (Markstein 1990), in a tenth of
        # a division's time
        first = b.fmul(value, reciprocal)
        return e.fma(e.fma(divisor, first, value), reciprocal, first)

    def store_quads(column, integers):
        # the int8 values of 16 columns are four quads, which lie apart when several tokens share a tile
        packed = b.bitcast(b.trunc(integers, VI8), VI32x4)
        for i in range(4):
            quad = b.extract_element(packed, I32(i))
            e.store(quad, out, e.mul(e.add(b.sdiv(column, e.i64(4)), i), lane_stride))

    def group(g):
        start = e.mul(g, block)
        end = e.add(start, block)
        end = b.select(b.icmp_signed("<", end, n), end, n)

        def vector(column, total):
            integers = e.to_i32(quotient(e.load(VF32, x, e.mul(column, 4))))
            store_quads(column, integers)
            return [b.add(total, integers)]

        total = e.sum_lanes(e.loop(start, end, LANES, [e.constant(VI32, 0)], vector)[0])
        negative = b.mul(total, b.sub(I32(0), b.trunc(factor, I32)))
        e.store(negative, init, e.mul(g, init_stride))

    e.loop(0, b.sdiv(padded, block), 1, [], group)
    e.loop(n, padded, LANES, [], lambda column: store_quads(column, e.constant(VI32, 0)))


@kernel("v:iiii")
def silu_multiply(e, target, gate, up, out, n):
    """Write gate / (1 + exp(-gate)) · up; n floats, a multiple of 16."""
    b = e.b

    def vector(at):
        g = e.load(VF32, gate, at)
        sigmoid_below = b.fadd(e.splat(1.0), e.exp(b.fsub(e.splat(0.0), g)))
        e.store(b.fmul(b.fdiv(g, sigmoid_below), e.load(VF32, up, at)), out, at)

    e.loop(0, e.mul(n, 4), WIDTH, [], vector)


@kernel("v:iii")
def rope(e, target, x, table, head_dim):
    """Rotate pairs (i, i + head_dim / 2) of one head in place; table: cosines, then sines, head_dim / 2 each."""
    b = e.b
    half = b.sdiv(head_dim, e.i64(2))
    offset = e.mul(half, 4)

    def rotate(kind, at):
        low, high = e.load(kind, x, at), e.load(kind, x, e.add(at, offset))
        cosine, sine = e.load(kind, table, at), e.load(kind, table, e.add(at, offset))
        e.store(b.fsub(b.fmul(low, cosine), b.fmul(high, sine)), x, at)
        e.store(b.fadd(b.fmul(high, cosine), b.fmul(low, sine)), x, e.add(at, offset))

    whole = e.mul(b.sdiv(half, e.i64(LANES)), WIDTH)
    e.loop(0, whole, WIDTH, [], lambda at: rotate(VF32, at))
    e.loop(whole, offset, 4, [], lambda at: rotate(F32, at))


def _mix_read(e, n_streams, x, out, coefficients, dim):
    """Emit out = sum over streams of p_i · x_i; x [n_streams, dim]."""
    weights = [e.splat(e.load(F32, coefficients, 4 * (MIX_READ + i))) for i in range(n_streams)]

    def vector(at):
        total = e.b.fmul(weights[0], e.load(VF32, x, at))
        for i in range(1, n_streams):
            total = e.fma(weights[i], e.load(VF32, e.add(x, e.mul(dim, 4 * i)), at), total)
        e.store(total, out, at)

    e.loop(0, e.mul(dim, 4), WIDTH, [], vector)


def _mix_write(e, n_streams, x, y, coefficients, dim):
    """Emit x_i = (H·q)_i · y + sum over j of H_ij · x_j, in place."""
    write = [e.splat(e.load(F32, coefficients, 4 * (MIX_WRITE + i))) for i in range(n_streams)]
    matrix = [
        [e.splat(e.load(F32, coefficients, 4 * (MIX_MATRIX + 4 * i + j))) for j in range(n_streams)]
        for i in range(n_streams)
    ]

    def vector(at):
        streams = [e.load(VF32, e.add(x, e.mul(dim, 4 * i)), at) for i in range(n_streams)]
        f = e.load(VF32, y, at)
        for i in range(n_streams):
            total = e.b.fmul(matrix[i][0], streams[0])
            for j in range(1, n_streams):
                total = e.fma(matrix[i][j], streams[j], total)
            e.store(e.fma(write[i], f, total), e.add(x, e.mul(dim, 4 * i)), at)

    e.loop(0, e.mul(dim, 4), WIDTH, [], vector)


@kernel("v:iiii")
def mix_read_1(e, target, x, out, coefficients, dim):
    """Read one stream (a plain residual: p = 1)."""
    _mix_read(e, 1, x, out, coefficients, dim)


@kernel("v:iiii")
def mix_read_2(e, target, x, out, coefficients, dim):
    """Read from two streams."""
    _mix_read(e, 2, x, out, coefficients, dim)


@kernel("v:iiii")
def mix_read_4(e, target, x, out, coefficients, dim):
    """Read from four streams."""
    _mix_read(e, 4, x, out, coefficients, dim)


@kernel("v:iiii")
def mix_write_1(e, target, x, y, coefficients, dim):
    """Add to one stream (q = H = 1)."""
    _mix_write(e, 1, x, y, coefficients, dim)


@kernel("v:iiii")
def mix_write_2(e, target, x, y, coefficients, dim):
    """Mix and write two streams."""
    _mix_write(e, 2, x, y, coefficients, dim)


@kernel("v:iiii")
def mix_write_4(e, target, x, y, coefficients, dim):
    """Mix and write four streams."""
    _mix_write(e, 4, x, y, coefficients, dim)
