"""Causal attention over a paged KV cache, one page of 64 positions at a time.

Of one kv head a page holds keys in blocks of 16 positions, [block][head_dim][16], so that the scores of 16
positions are one vector, then values by position, [position][padded head_dim], then (int8 only) the scales of
64 keys and 64 values, float32. A query keeps a running maximum, sum and output while it walks the pages (the online
softmax of FlashAttention, Dao et al. 2022). Every query meets the same blocks in the same order, and a position it does
not see changes no bit of its state: so the result is the same for any number of queries that share a page's
loads, and decode equals prefill.
"""

from __future__ import annotations

from llvmlite import ir

from nanochat_tui.engine.layout.slots import KV_F16, KV_F32, KV_INT8, PAGE
from nanochat_tui.engine.simd.emitter import F32, I8, I32, LANES, VF32, VI32
from nanochat_tui.engine.simd.intrinsics import kernel

WIDTH = 4 * LANES
MASKED = -3.0e38
"""Score of a position that is not seen; anything below half of it weighs nothing."""
UNROLL = 16
"""Multiplications per round of the score loop, about: more code would only take longer to compile."""
BYTES = {KV_F32: 4, KV_F16: 2, KV_INT8: 1}
VI8 = ir.VectorType(I8, LANES)
MIN_SCALE = 1e-12
"""Smallest scale of an int8 row, so that a row of zeros has one."""


def _loader(e, kind):
    """Return a function that loads 16 cached values as float32."""
    if kind == KV_F16:
        return e.load_half
    if kind == KV_F32:
        return lambda address, offset=0: e.load(VF32, address, offset)
    return lambda address, offset=0: e.b.sitofp(e.b.sext(e.load(VI8, address, offset), VI32), VF32)


def _attend(e, target, n, kind, q, limits, state, weights, page, base, shown, head_dim, padded):
    """Emit one page's part of softmax(q·k)·v for n queries.

    q: float32 [n][head_dim], scaled. limits: int32 [n][2], first position seen and how many. state: [n][maximum
    16 times, sum of weights 16 partial sums, output [padded]], float32. weights: scratch, float32 [n][64]. page:
    address of the kv head's part. base: position of the page's first place. shown: places of the page to look at.
    """
    b = e.b
    load, size = _loader(e, kind), BYTES[kind]
    vector_bytes = size * LANES
    values = e.add(page, e.mul(head_dim, PAGE * size))
    scales = e.add(values, e.mul(padded, PAGE * size))
    blocks = b.sdiv(e.add(shown, LANES - 1), e.i64(LANES))
    stride = e.add(e.mul(padded, 4), 2 * WIDTH)
    states = [e.add(state, e.mul(stride, i)) for i in range(n)]
    queries = [e.add(q, e.mul(head_dim, 4 * i)) for i in range(n)]
    lanes = ir.Constant(VI32, list(range(LANES)))

    def visible(block, i):
        position = b.add(lanes, e.splat(b.trunc(e.add(base, e.mul(block, LANES)), I32)))
        first, count = (e.splat(e.load(I32, limits, 8 * i + at)) for at in (0, 4))
        return b.icmp_unsigned("<", b.sub(position, first), count)

    def score_blocks(together):
        def emit(block, *largest):
            keys = [e.add(page, e.mul(e.add(block, w), head_dim, vector_bytes)) for w in range(together)]

            def components(count):
                def one(d, *carried):
                    sums = list(carried)
                    here = [e.add(base, e.mul(d, vector_bytes)) for base in keys]
                    there = [e.add(query, e.mul(d, 4)) for query in queries]
                    for step in range(count):
                        key = [load(base, step * vector_bytes) for base in here]
                        for i in range(n):
                            component = e.splat(e.load(F32, there[i], 4 * step))
                            for w in range(together):
                                place = 2 * (i * together + w) + step % 2
                                sums[place] = e.fma(component, key[w], sums[place])
                    return sums

                return one

            # two sums per score, of even and odd components: head_dim is even, and unrolling changes nothing
            unroll = max(2, UNROLL // (n * together))
            whole = e.mul(b.sdiv(head_dim, e.i64(unroll)), unroll)
            sums = e.loop(0, whole, unroll, [e.splat(0.0)] * (2 * n * together), components(unroll))
            if unroll > 2:
                sums = e.loop(whole, head_dim, 2, sums, components(2))
            found = []
            for i in range(n):
                top = largest[i]
                for w in range(together):
                    place = e.add(block, w)
                    score = b.fadd(*sums[2 * (i * together + w) :][:2])
                    if kind == KV_INT8:
                        score = b.fmul(score, e.load(VF32, scales, e.mul(place, WIDTH)))
                    score = b.select(visible(place, i), score, e.splat(MASKED))
                    e.store(score, weights, e.add(e.mul(place, WIDTH), 4 * PAGE * i))
                    top = e.maximum(score, top)
                found.append(top)
            return found

        return emit

    # blocks at a time: few queries leave registers for several, and hide each other's latency
    together = max(1, min(4, target.isa.queries // n))
    whole = e.mul(b.sdiv(blocks, e.i64(together)), together)
    largest = e.loop(0, whole, together, [e.splat(MASKED)] * n, score_blocks(together))
    if together > 1:
        largest = e.loop(whole, blocks, 1, largest, score_blocks(1))
    old = [e.load(VF32, s) for s in states]
    maxima = [e.maximum(e.splat(e.max_lanes(v)), o) for v, o in zip(largest, old, strict=True)]
    factors = [e.exp(b.fsub(o, m)) for o, m in zip(old, maxima, strict=True)]

    def soften(block, *sums):
        out = []
        for i in range(n):
            at = e.add(e.mul(block, WIDTH), 4 * PAGE * i)
            score = e.load(VF32, weights, at)
            seen = b.fcmp_ordered(">", score, e.splat(MASKED / 2))
            weight = b.select(seen, e.exp(b.fsub(score, maxima[i])), e.splat(0.0))
            out.append(b.fadd(sums[i], weight))
            if kind == KV_INT8:
                weight = b.fmul(weight, e.load(VF32, scales, e.add(e.mul(block, WIDTH), 4 * PAGE)))
                # the scale of a place that was not written may be anything
                weight = b.select(seen, weight, e.splat(0.0))
            e.store(weight, weights, at)
        return out

    sums = [b.fmul(e.load(VF32, s, WIDTH), f) for s, f in zip(states, factors, strict=True)]
    sums = e.loop(0, blocks, 1, sums, soften)
    for i in range(n):
        e.store(maxima[i], states[i])
        e.store(sums[i], states[i], WIDTH)
    row_bytes = e.mul(padded, size)

    def gather(chunks):
        def columns(d):
            def positions(count):
                def emit(p, *carried):
                    sums = list(carried)
                    row = e.add(values, e.mul(p, row_bytes), e.mul(d, vector_bytes))
                    weight_row = e.add(weights, e.mul(p, 4))
                    for step in range(count):
                        v = [load(row, c * vector_bytes) for c in range(chunks)]
                        row = e.add(row, row_bytes)
                        for i in range(n):
                            weight = e.splat(e.load(F32, weight_row, 4 * step + 4 * PAGE * i))
                            for c in range(chunks):
                                place = (i * chunks + c) * 2 + step % 2
                                sums[place] = e.fma(weight, v[c], sums[place])
                    return sums

                return emit

            places = [e.add(states[i], e.mul(d, WIDTH), (2 + c) * WIDTH) for i in range(n) for c in range(chunks)]
            start = []
            for j, place in enumerate(places):
                # again two sums each, for even and odd positions
                start += [b.fmul(e.load(VF32, place), factors[j // chunks]), e.splat(0.0)]
            whole = e.mul(b.sdiv(shown, e.i64(2)), 2)
            found = e.loop(0, whole, 2, start, positions(2))
            found = e.loop(whole, shown, 1, found, positions(1))
            for j, place in enumerate(places):
                e.store(b.fadd(found[2 * j], found[2 * j + 1]), place)

        return columns

    # as many vectors of a value row at a time as leave the sums in registers
    wide = {1: 4, 2: 4, 4: 2}.get(n, 1) if target.isa.queries > 2 else {1: 2}.get(n, 1)
    vectors = b.sdiv(padded, e.i64(LANES))
    whole = e.mul(b.sdiv(vectors, e.i64(wide)), wide)
    e.loop(0, whole, wide, [], gather(wide))
    if wide > 1:
        e.loop(whole, vectors, 1, [], gather(1))


def _variant(n, kind, name):
    def emit(e, target, q, limits, state, weights, page, base, shown, head_dim, padded):
        if n <= target.isa.queries:
            _attend(e, target, n, kind, q, limits, state, weights, page, base, shown, head_dim, padded)

    emit.__name__, emit.__doc__ = f"attend_{n}_{name}", f"{n} queries over one page of {name} keys and values."
    return kernel("v:iiiiiiiii")(emit)


attend_1_f32, attend_2_f32 = (_variant(n, KV_F32, "f32") for n in (1, 2))
attend_1_f16, attend_2_f16, attend_4_f16, attend_8_f16 = (_variant(n, KV_F16, "f16") for n in (1, 2, 4, 8))
attend_1_int8, attend_2_int8, attend_4_int8, attend_8_int8 = (_variant(n, KV_INT8, "int8") for n in (1, 2, 4, 8))


@kernel("v:iii")
def attend_begin(e, target, state, queries, padded):
    """Set the states of some queries that have seen nothing yet."""
    stride = e.add(e.mul(padded, 4), 2 * WIDTH)

    def one(i):
        place = e.add(state, e.mul(i, stride))
        e.store(e.splat(MASKED), place)
        e.loop(WIDTH, stride, WIDTH, [], lambda at: e.store(e.splat(0.0), place, at))

    e.loop(0, queries, 1, [], one)


@kernel("v:iii")
def attend_end(e, target, state, out, head_dim):
    """Write a query's output, float32 [head_dim]."""
    b = e.b
    total = e.sum_lanes(e.load(VF32, state, WIDTH))
    _floats(e, head_dim, lambda at, kind, splat: e.store(
        b.fdiv(e.load(kind, state, e.add(at, 2 * WIDTH)), splat(total)), out, at
    ))  # fmt: skip


@kernel("v:iiif")
def scale_query(e, target, q, out, head_dim, factor):
    """Write one head's query times a factor."""
    _floats(e, head_dim, lambda at, kind, splat: e.store(e.b.fmul(e.load(kind, q, at), splat(factor)), out, at))


def _floats(e, count, emit):
    """Emit work on `count` floats: `emit(byte offset, type, splat)` for whole vectors, then for single floats."""
    whole = e.mul(e.b.sdiv(count, e.i64(LANES)), WIDTH)
    e.loop(0, whole, WIDTH, [], lambda at: emit(at, VF32, e.splat))
    e.loop(whole, e.mul(count, 4), 4, [], lambda at: emit(at, F32, lambda x: x))


def _row_scale(e, source, head_dim):
    """Return absmax / 127 of a row of head_dim floats."""
    b = e.b
    whole = e.mul(b.sdiv(head_dim, e.i64(LANES)), WIDTH)

    def vector(at, largest):
        return [e.maximum(e.fabs(e.load(VF32, source, at)), largest)]

    def single(at, largest):
        return [e.maximum(e.fabs(e.load(F32, source, at)), largest)]

    top = e.max_lanes(e.loop(0, whole, WIDTH, [e.splat(0.0)], vector)[0])
    top = e.loop(whole, e.mul(head_dim, 4), 4, [top], single)[0]
    return e.maximum(b.fdiv(top, e.f32(127.0)), e.f32(MIN_SCALE))


def _encoded(e, kind, scale):
    """Return a function from 16 float32 to their cached form."""
    b = e.b
    if kind == KV_F16:
        return e.half_bits
    if kind == KV_F32:
        return lambda v: v

    def rounded(v):
        # what fills up the last vector of a row is not part of the maximum, and may be anything
        bounded = e.minimum(e.maximum(b.fdiv(v, e.splat(scale)), e.splat(-127.0)), e.splat(127.0))
        return b.trunc(e.to_i32(bounded), VI8)

    return rounded


@kernel("v:iiiiii")
def store_key(e, target, source, page, place, head_dim, scales, kind):
    """Write one head's key at a place (0..63) of a page; scales: address of the page's key scales (int8)."""
    b = e.b
    lane, block = b.srem(place, e.i64(LANES)), b.sdiv(place, e.i64(LANES))

    def write(form):
        size = BYTES[form]
        scale = None
        if form == KV_INT8:
            scale = _row_scale(e, source, head_dim)
            e.store(scale, scales, e.mul(place, 4))
        encode = _encoded(e, form, scale)
        base = e.add(page, e.mul(block, head_dim, size * LANES), e.mul(lane, size))

        def put(vector, d, count):
            for i in range(count):
                e.store(b.extract_element(vector, I32(i)), base, e.mul(e.add(d, i), size * LANES))

        whole = e.mul(b.sdiv(head_dim, e.i64(LANES)), LANES)
        e.loop(0, whole, LANES, [], lambda d: put(encode(e.load(VF32, source, e.mul(d, 4))), d, LANES))
        e.loop(whole, head_dim, 1, [], lambda d: put(encode(e.splat(e.load(F32, source, e.mul(d, 4)))), d, 1))

    _by_kind(e, target, kind, write)


@kernel("v:iiiiiii")
def store_value(e, target, source, values, place, head_dim, padded, scales, kind):
    """Write one head's value row (padded to 16 floats); values: address of the page's value rows."""

    def write(form):
        scale = None
        if form == KV_INT8:
            scale = _row_scale(e, source, head_dim)
            e.store(scale, scales, e.mul(place, 4))
        encode, size = _encoded(e, form, scale), BYTES[form]
        base = e.add(values, e.mul(place, padded, size))
        e.loop(0, padded, LANES, [], lambda d: e.store(encode(e.load(VF32, source, e.mul(d, 4))), base, e.mul(d, size)))

    _by_kind(e, target, kind, write)


def _by_kind(e, target, kind, write):
    """Emit `write(form)` for each form of cache; the i64 `kind` picks one when the program runs."""
    known = dict(target.known).get("KV_KIND")
    if known is not None:
        write(known)
        return
    for form in (KV_F32, KV_F16, KV_INT8):
        with e.b.if_then(e.b.icmp_signed("==", kind, e.i64(form))):
            write(form)
