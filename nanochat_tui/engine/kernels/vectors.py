"""Row-wise kernels: RMS norm, SwiGLU's product, RoPE, mHC mixing."""

from __future__ import annotations

from nanochat_tui.engine.layout.slots import MIX_MATRIX, MIX_READ, MIX_WRITE
from nanochat_tui.engine.simd.emitter import F32, LANES, VF32
from nanochat_tui.engine.simd.intrinsics import kernel

WIDTH = 4 * LANES


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
