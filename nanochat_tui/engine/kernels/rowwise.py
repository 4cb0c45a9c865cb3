"""Row-wise kernels that only some architectures need: other activations, gates, rotations, the delta rule."""

from __future__ import annotations

from llvmlite import ir

from nanochat_tui.engine.simd.emitter import F32, LANES, VF32
from nanochat_tui.engine.simd.intrinsics import kernel

WIDTH = 4 * LANES


def _rowwise(e, n, emit):
    """Emit `emit(byte offset)` for every vector of n floats, a multiple of 16."""
    e.loop(0, e.mul(n, 4), WIDTH, [], emit)


def _sigmoid(e, x):
    return e.b.fdiv(e.splat(1.0), e.b.fadd(e.splat(1.0), e.exp(e.b.fsub(e.splat(0.0), x))))


@kernel("v:iiii")
def multiply(e, target, x, factors, out, n):
    """Write x · factors, element by element; in place is allowed."""
    _rowwise(e, n, lambda at: e.store(e.b.fmul(e.load(VF32, x, at), e.load(VF32, factors, at)), out, at))


@kernel("v:iiii")
def add(e, target, x, y, out, n):
    """Write x + y, element by element; in place is allowed."""
    _rowwise(e, n, lambda at: e.store(e.b.fadd(e.load(VF32, x, at), e.load(VF32, y, at)), out, at))


@kernel("v:iifi")
def add_scaled(e, target, y, x, factor, n):
    """Add factor · x to y."""
    wide = e.splat(factor)
    _rowwise(e, n, lambda at: e.store(e.fma(wide, e.load(VF32, x, at), e.load(VF32, y, at)), y, at))


@kernel("v:iiii")
def sigmoid_multiply(e, target, x, gate, out, n):
    """Write x · sigmoid(gate)."""
    _rowwise(e, n, lambda at: e.store(e.b.fmul(e.load(VF32, x, at), _sigmoid(e, e.load(VF32, gate, at))), out, at))


@kernel("v:iiii")
def relu2_multiply(e, target, gate, up, out, n):
    """Write max(gate, 0)² · up."""

    def vector(at):
        g = e.maximum(e.load(VF32, gate, at), e.splat(0.0))
        e.store(e.b.fmul(e.b.fmul(g, g), e.load(VF32, up, at)), out, at)

    _rowwise(e, n, vector)


@kernel("v:iiiif")
def silu_multiply_clamped(e, target, gate, up, out, n, bound):
    """Write silu(min(gate, bound)) · clamp(up, -bound, bound)."""
    b, high = e.b, e.splat(bound)
    low = b.fsub(e.splat(0.0), high)

    def vector(at):
        g = e.minimum(e.load(VF32, gate, at), high)
        u = e.maximum(e.minimum(e.load(VF32, up, at), high), low)
        silu = b.fdiv(g, b.fadd(e.splat(1.0), e.exp(b.fsub(e.splat(0.0), g))))
        e.store(b.fmul(silu, u), out, at)

    _rowwise(e, n, vector)


@kernel("v:iii")
def walsh_hadamard(e, target, x, n, bits):
    """Multiply each block of 2^bits >= 16 floats by Sylvester's matrix, in place; n a multiple of the block.

    The fast transform: sums and differences of elements 1, 2, 4 … apart; the first four steps are within a vector.
    """
    b = e.b

    def within(at):
        v = e.load(VF32, x, at)
        for distance in (1, 2, 4, 8):
            partner = e.shuffle(v, v, [lane ^ distance for lane in range(LANES)])
            signs = ir.Constant(VF32, [-1.0 if lane & distance else 1.0 for lane in range(LANES)])
            v = b.fadd(partner, b.fmul(v, signs))
        e.store(v, x, at)

    _rowwise(e, n, within)

    def step(exponent):
        distance = b.shl(e.i64(4), exponent)  # bytes

        def pair_of_halves(start):
            def pair(at):
                low, high = e.load(VF32, x, at), e.load(VF32, x, e.add(at, distance))
                e.store(b.fadd(low, high), x, at)
                e.store(b.fsub(low, high), x, e.add(at, distance))

            e.loop(start, e.add(start, distance), WIDTH, [], pair)

        e.loop(0, e.mul(n, 4), e.mul(distance, 2), [], pair_of_halves)

    e.loop(4, bits, 1, [], step)


@kernel("v:iiif")
def l2_normalise(e, target, x, out, n, epsilon):
    """Write x / sqrt(sum of x² + epsilon)."""

    def square(at, total):
        v = e.load(VF32, x, at)
        return [e.fma(v, v, total)]

    total = e.sum_lanes(e.loop(0, e.mul(n, 4), WIDTH, [e.splat(0.0)], square)[0])
    root = e.splat(e.sqrt(e.b.fadd(total, epsilon)))
    _rowwise(e, n, lambda at: e.store(e.b.fdiv(e.load(VF32, x, at), root), out, at))


@kernel("v:iiiiii")
def convolve_silu(e, target, x, weights, state, channels, taps, stride):
    """One step of a causal convolution over time, then SiLU, in place on some channels of one token.

    x: float32 [channels], a multiple of 16. weights: [taps][stride], the last for x itself. state: [taps - 1][stride],
    the inputs before, the oldest first; x is added to it. stride: channels of a row, of which these are a part.
    """
    b = e.b
    row = e.mul(stride, 4)

    def vector(at):
        oldest = e.load(VF32, state, at)
        total = b.fmul(e.load(VF32, weights, at), oldest)

        def tap(i, running):
            before = e.load(VF32, state, e.add(at, e.mul(i, row)))
            e.store(before, state, e.add(at, e.mul(e.add(i, -1), row)))
            return [e.fma(e.load(VF32, weights, e.add(at, e.mul(i, row))), before, running)]

        last = e.add(taps, -1)
        total = e.loop(1, last, 1, [total], tap)[0]
        now = e.load(VF32, x, at)
        e.store(now, state, e.add(at, e.mul(e.add(taps, -2), row)))
        total = e.fma(e.load(VF32, weights, e.add(at, e.mul(last, row))), now, total)
        e.store(b.fmul(total, _sigmoid(e, total)), x, at)

    _rowwise(e, channels, vector)


@kernel("v:iiiiiifff")
def delta_rule(e, target, state, q, k, v, out, width, decay, beta, scale):
    """One step of a head's gated delta rule: S = decay·S; S += k (x) beta·(v - S'k); out = scale · S'q.

    state: float32 [width of k][width of v], so that lanes are components of v and nothing is summed across them;
    width a multiple of 32.
    """
    b = e.b
    fading, rate, factor = e.splat(decay), e.splat(beta), e.splat(scale)
    row = e.mul(width, 4)

    def columns(at):
        places = [e.add(state, at, c * WIDTH) for c in (0, 1)]

        def recall(i, *sums):
            key = e.splat(e.load(F32, k, e.mul(i, 4)))
            return [e.fma(key, e.load(VF32, p, e.mul(i, row)), t) for p, t in zip(places, sums, strict=True)]

        recalled = e.loop(0, width, 1, [e.splat(0.0)] * 2, recall)
        wrong = [
            b.fmul(rate, b.fsub(e.load(VF32, v, e.add(at, c * WIDTH)), b.fmul(fading, recalled[c]))) for c in (0, 1)
        ]

        def write(i, *sums):
            key, query = e.splat(e.load(F32, k, e.mul(i, 4))), e.splat(e.load(F32, q, e.mul(i, 4)))
            totals = []
            for place, error, total in zip(places, wrong, sums, strict=True):
                new = e.fma(key, error, b.fmul(fading, e.load(VF32, place, e.mul(i, row))))
                e.store(new, place, e.mul(i, row))
                totals.append(e.fma(query, new, total))
            return totals

        answers = e.loop(0, width, 1, [e.splat(0.0)] * 2, write)
        for c in (0, 1):
            e.store(b.fmul(factor, answers[c]), out, e.add(at, c * WIDTH))

    e.loop(0, row, 2 * WIDTH, [], columns)
