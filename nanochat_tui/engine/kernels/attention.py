"""Causal attention of one head over the KV cache.

Keys lie in blocks of 16 positions, [block][head_dim][16], so that the scores of 16 positions are one vector;
values lie by position, [position][padded head_dim]. Both are float16 or float32. Several queries (the
tokens of a prefill tile) share each load of a key or value; every query's arithmetic is the same whatever
the number of queries.
"""

from __future__ import annotations

from llvmlite import ir

from nanochat_tui.engine.simd.emitter import F32, I32, LANES, VF32, VI32
from nanochat_tui.engine.simd.intrinsics import kernel

WIDTH = 4 * LANES
MASKED = -3.0e38
UNROLL = 8
"""Components of a key per round of the score loop."""


def _attention(e, queries, half, q, q_stride, keys, values, scores, s_stride, out, o_stride, shown, head_dim, padded):
    """Emit softmax(q·k / sqrt(head_dim))·v for `queries` rows; row i sees positions below shown + i.

    The scale is already in q. `scores`: scratch, float32 [queries][positions rounded up to 16].
    out: float32 [queries][padded], strides in bytes.
    """
    b = e.b
    load = e.load_half if half else (lambda address, offset=0: e.load(VF32, address, offset))
    vector_bytes = (2 if half else 4) * LANES
    longest = e.add(shown, queries - 1)
    blocks = b.sdiv(e.add(longest, LANES - 1), e.i64(LANES))
    lane_numbers = ir.Constant(VI32, list(range(LANES)))
    limits = [e.splat(b.trunc(e.add(shown, i), I32)) for i in range(queries)]

    def visible(block, i):
        position = b.add(lane_numbers, e.splat(b.trunc(e.mul(block, LANES), I32)))
        return b.icmp_signed("<", position, limits[i])

    def score_block(block, *largest):
        base = e.add(keys, e.mul(block, head_dim, vector_bytes))

        def components(count):
            def emit(d, *carried):
                sums = list(carried)
                for step in range(count):
                    key = load(base, e.mul(e.add(d, step), vector_bytes))
                    for i in range(queries):
                        at = e.add(e.mul(q_stride, i), e.mul(d, 4), 4 * step)
                        place = 2 * i + step % 2
                        sums[place] = e.fma(e.splat(e.load(F32, q, at)), key, sums[place])
                return sums

            return emit

        # two sums per query, for even and odd components: head_dim is even, and unrolling changes nothing
        whole = e.mul(b.sdiv(head_dim, e.i64(UNROLL)), UNROLL)
        sums = e.loop(0, whole, UNROLL, [e.splat(0.0)] * (2 * queries), components(UNROLL))
        sums = e.loop(whole, head_dim, 2, sums, components(2))
        out_max = []
        for i in range(queries):
            score = b.select(visible(block, i), b.fadd(sums[2 * i], sums[2 * i + 1]), e.splat(MASKED))
            e.store(score, scores, e.add(e.mul(s_stride, i), e.mul(block, WIDTH)))
            out_max.append(e.maximum(score, largest[i]))
        return out_max

    largest = e.loop(0, blocks, 1, [e.splat(MASKED)] * queries, score_block)
    maxima = [e.splat(e.max_lanes(v)) for v in largest]

    def soften(block, *sums):
        out_sums = []
        for i in range(queries):
            at = e.add(e.mul(s_stride, i), e.mul(block, WIDTH))
            weight = e.exp(b.fsub(e.load(VF32, scores, at), maxima[i]))
            weight = b.select(visible(block, i), weight, e.splat(0.0))
            e.store(weight, scores, at)
            out_sums.append(b.fadd(sums[i], weight))
        return out_sums

    sums = e.loop(0, blocks, 1, [e.splat(0.0)] * queries, soften)
    totals = [e.splat(e.sum_lanes(v)) for v in sums]
    row_bytes = e.mul(padded, 2 if half else 4)

    def gather(chunks):
        def columns(d):
            def positions(count):
                def emit(p, *carried):
                    accumulated = list(carried)
                    for step in range(count):
                        row = e.add(values, e.mul(e.add(p, step), row_bytes), e.mul(d, vector_bytes))
                        v = [load(row, c * vector_bytes) for c in range(chunks)]
                        for i in range(queries):
                            at = e.add(e.mul(s_stride, i), e.mul(p, 4), 4 * step)
                            weight = e.splat(e.load(F32, scores, at))
                            for c in range(chunks):
                                place = (i * chunks + c) * 2 + step % 2
                                accumulated[place] = e.fma(weight, v[c], accumulated[place])
                    return accumulated

                return emit

            # again two sums each, for even and odd positions
            whole = e.mul(b.sdiv(longest, e.i64(2)), 2)
            found = e.loop(0, whole, 2, [e.splat(0.0)] * (2 * queries * chunks), positions(2))
            found = e.loop(whole, longest, 1, found, positions(1))
            for i in range(queries):
                for c in range(chunks):
                    even, odd = found[2 * (i * chunks + c) :][:2]
                    at = e.add(e.mul(o_stride, i), e.mul(d, WIDTH), c * WIDTH)
                    e.store(b.fdiv(b.fadd(even, odd), totals[i]), out, at)

        return columns

    # as many vectors of a value row at a time as leave the sums in registers
    wide = {1: 4, 2: 2, 4: 2}.get(queries, 1)
    vectors = b.sdiv(padded, e.i64(LANES))
    together = e.mul(b.sdiv(vectors, e.i64(wide)), wide)
    e.loop(0, together, wide, [], gather(wide))
    if wide > 1:
        e.loop(together, vectors, 1, [], gather(1))


@kernel("v:iiiiiiiiiii")
def attend_one_f16(e, target, q, q_stride, keys, values, scores, s_stride, out, o_stride, shown, head_dim, padded):
    """One query over a float16 cache."""
    _attention(e, 1, True, q, q_stride, keys, values, scores, s_stride, out, o_stride, shown, head_dim, padded)


@kernel("v:iiiiiiiiiii")
def attend_some_f16(e, target, q, q_stride, keys, values, scores, s_stride, out, o_stride, shown, head_dim, padded):
    """`target.isa.queries` consecutive queries over a float16 cache."""
    n = target.isa.queries
    _attention(e, n, True, q, q_stride, keys, values, scores, s_stride, out, o_stride, shown, head_dim, padded)


@kernel("v:iiiiiiiiiii")
def attend_one_f32(e, target, q, q_stride, keys, values, scores, s_stride, out, o_stride, shown, head_dim, padded):
    """One query over a float32 cache."""
    _attention(e, 1, False, q, q_stride, keys, values, scores, s_stride, out, o_stride, shown, head_dim, padded)


@kernel("v:iif")
def scale_query(e, target, q, head_dim, factor):
    """Multiply one head's query in place."""

    def one(at):
        e.store(e.b.fmul(e.load(F32, q, at), factor), q, at)

    e.loop(0, e.mul(head_dim, 4), 4, [], one)


@kernel("v:iiiii")
def store_key(e, target, source, keys, position, head_dim, half):
    """Write one head's key into the blocked cache; half: 1 for float16, 0 for float32."""
    b = e.b
    lane, block = b.srem(position, e.i64(LANES)), b.sdiv(position, e.i64(LANES))

    def write(is_half):
        size = 2 if is_half else 4
        base = e.add(keys, e.mul(block, head_dim, size * LANES), e.mul(lane, size))

        def one(d):
            value = e.load(F32, source, e.mul(d, 4))
            if is_half:
                value = b.extract_element(e.half_bits(e.splat(value)), I32(0))
            e.store(value, base, e.mul(d, size * LANES))

        e.loop(0, head_dim, 1, [], one)

    _when(e, half, lambda: write(True), lambda: write(False))


@kernel("v:iiiii")
def store_value(e, target, source, values, position, padded, half):
    """Write one head's value row (padded to 16 floats) into the cache."""

    def write(is_half):
        size = 2 if is_half else 4
        base = e.add(values, e.mul(position, padded, size))

        def vector(d):
            value = e.load(VF32, source, e.mul(d, 4))
            if is_half:
                e.store_half(value, base, e.mul(d, size))
            else:
                e.store(value, base, e.mul(d, size))

        e.loop(0, padded, LANES, [], vector)

    _when(e, half, lambda: write(True), lambda: write(False))


def _when(e, condition, yes, no):
    """Emit `yes()` if the i64 condition is not zero, else `no()`."""
    with e.b.if_else(e.b.icmp_signed("!=", condition, e.i64(0))) as (then, otherwise):
        with then:
            yes()
        with otherwise:
            no()
