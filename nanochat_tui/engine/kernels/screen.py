"""The likeliest tokens without reading the whole output table: bounds from a table of half the size decide.

A screen (see `weights.screening`) holds a coarse copy of every row and how far the row may be from it. The largest a
logit can be follows from both by Cauchy and Schwarz; only rows that could have one of the k best logits are multiplied
exactly, by the same operations as otherwise, so the k best are the same to the bit. The others count as minus infinity.
This is exact maximum inner product search with pruning.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir

from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.sampler import keep_largest
from nanochat_tui.engine.kernels.tables import bytes_to_i32
from nanochat_tui.engine.kernels.tiles import LINE, prefetch_weights
from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.kinds import LAYOUTS, sums_factor
from nanochat_tui.engine.simd.base import Dots
from nanochat_tui.engine.simd.emitter import F32, I32, I64, LANES, VF32, VI32
from nanochat_tui.engine.simd.intrinsics import (
    bits_of_f32,
    f32_from_bits,
    get,
    kernel,
    load_f32,
    load_i32,
    put,
    store_f32,
    store_i32,
    trailing_zeros,
)

WIDTH = 4 * LANES
GROUP_BLOCKS = s.STATISTICS_BLOCK // s.ROW_BLOCK
"""Row blocks of a statistics block."""
TURN = LANES
"""Row blocks that a thread takes together where threads take turns."""
TURN_GROUPS = TURN // GROUP_BLOCKS
LOWEST = np.float32(-np.inf)
NO_NUMBER = np.float32(np.nan)
ROW_STEP = 64
"""Columns of one row that are multiplied at a time: two blocks of a Q8 table."""
REST, SLACK, MIDDLE = s.SCREEN_DIRECTIONS, s.SCREEN_DIRECTIONS + 1, s.SCREEN_DIRECTIONS + 2
"""Places of what `screen_input` writes behind the token's coordinates."""


@kernel("v:iiiii")
def screen_input(e, target, x, x_scales, directions, columns, out):
    """Write what the bounds need of a token, float32: its coordinates, its length outside them, slack, 7.5 · its sum.

    x: int8 [columns], a multiple of 64. x_scales: float32 [columns / 32]. directions: as `screening.Screen.basis`.
    """
    b = e.b
    row = e.mul(columns, 4)

    def vector(at, total, square, *along):
        scale = e.load(F32, x_scales, e.mul(b.sdiv(at, e.i64(k.ACTIVATION_BLOCK)), 4))
        v = b.fmul(e.to_f32(bytes_to_i32(e, e.add(x, at), 0, signed=True)), e.splat(scale))
        place = e.add(directions, e.mul(at, 4))
        found = [
            e.fma(v, e.load(VF32, place, e.mul(row, d)), sum_) for d, sum_ in zip(range(len(along)), along, strict=True)
        ]
        return [b.fadd(total, v), e.fma(v, v, square), *found]

    zero = e.splat(0.0)
    sums = [e.sum_lanes(v) for v in e.loop(0, columns, LANES, [zero] * (2 + s.SCREEN_DIRECTIONS), vector)]
    total, square, *along = sums
    rest, strays = square, e.f32(0.0)
    constants = e.add(directions, e.mul(row, s.SCREEN_DIRECTIONS))
    for d, value in enumerate(along):
        rest = b.fsub(rest, b.fmul(value, value))
        strays = e.fma(e.fabs(value), e.load(F32, constants, 4 * d), strays)
        e.store(value, out, 4 * d)
    # the directions are orthonormal to a rounding error, which may be all there is of a small rest
    rest = b.fadd(e.maximum(rest, e.f32(0.0)), b.fmul(square, e.f32(1e-5)))
    e.store(e.sqrt(rest), out, 4 * REST)
    largest = e.load(F32, constants, 4 * s.SCREEN_DIRECTIONS)
    e.store(e.fma(largest, e.sqrt(square), strays), out, 4 * SLACK)
    e.store(b.fmul(total, e.f32(7.5)), out, 4 * MIDDLE)


@kernel("v:iiiiiiiii")
def screen_bounds(e, target, table, columns, x, x_scales, facts, first, last, bounds, largest):
    """Write the largest logit that every row can have, float32, and the largest of 16 rows, for blocks first..last.

    table: as `screening.Screen.table`. x: the token's int8 [columns], a multiple of 64. facts: of `screen_input`.
    """
    b, isa = e.b, target.isa
    nibbles = e.constant(VI32, 0x0F0F0F0F)
    four = e.constant(VI32, 4)
    fact = lambda place: e.splat(e.load(F32, facts, 4 * place))  # noqa: E731
    codes = e.mul(columns, LANES // 2)
    halves = 2 * LANES
    record = e.add(codes, (s.SCREEN_DIRECTIONS + 2) * halves)
    step = 8 * 64

    def block(index):
        base = e.add(table, e.mul(index, record))

        def columns64(at, *carried):
            # `at` counts bytes of codes: 64 columns of 16 rows
            words = e.add(base, at)
            prefetch_weights(e, words, step)
            products = []
            place = e.mul(b.sdiv(at, e.i64(k.ACTIVATION_BLOCK * LANES // 2)), 4)
            for half, total in enumerate(carried):
                # integers of 32 columns share a scale of the token; two sums wait less for their own last product
                sums = [e.constant(VI32, 0)] * 2
                for word in range(4 * half, 4 * half + 4):
                    packed = e.load(VI32, words, word * WIDTH)
                    quads = e.add(x, b.sdiv(at, e.i64(LANES // 2)), 8 * word)
                    dots = Dots(isa, e, [sums[word % 2]], 15)
                    dots.step(b.and_(packed, nibbles), [isa.broadcast(e, quads, 0)])
                    dots.step(b.and_(b.lshr(packed, four), nibbles), [isa.broadcast(e, quads, 4)])
                    (sums[word % 2],) = dots.end()
                scale = e.splat(e.load(F32, x_scales, e.add(place, 4 * half)))
                products.append(e.fma(e.to_f32(b.add(*sums)), scale, total))
            return products

        product = b.fadd(*e.loop(0, codes, step, [e.splat(0.0)] * 2, columns64))
        behind = e.add(base, codes)
        bound = b.fmul(b.fsub(product, fact(MIDDLE)), e.load_half(behind, s.SCREEN_DIRECTIONS * halves))
        for d in range(s.SCREEN_DIRECTIONS):
            bound = e.fma(e.load_half(behind, d * halves), fact(d), bound)
        bound = e.fma(e.load_half(behind, (s.SCREEN_DIRECTIONS + 1) * halves), fact(REST), bound)
        bound = b.fadd(bound, fact(SLACK))
        e.store(bound, bounds, e.mul(index, WIDTH))
        e.store(e.max_lanes(bound), largest, e.mul(index, 4))

    e.loop(first, last, 1, [], block)


@kernel("v:iii")
def screened_ahead(e, target, rows, row, size):
    """Ask for a row that is multiplied soon."""
    place = e.add(rows, e.mul(row, size))
    e.loop(0, size, LINE, [], lambda at: e.prefetch(e.add(place, at)))


@kernel("f:iiiiii")
def screened_row(e, target, rows, row, x, sums, x_scales, columns):
    """Return a row's logit as the kernels for a whole Q8 table compute it, to the bit.

    rows: as `screening.Screen.rows`. x, sums, x_scales: the token as `quantise_for` left it for the table; columns a
    multiple of 64.
    """
    b, isa = e.b, target.isa
    layout = LAYOUTS[k.Q8]
    codes = e.add(rows, e.mul(row, e.add(columns, b.sdiv(e.mul(columns, 4), e.i64(layout.block)))))
    scales = e.add(codes, columns)

    def two_blocks(at, total):
        found = isa.q8_step(e, e.constant(VI32, 0), e.load(VI32, codes, at), e.load(VI32, x, at))
        for distance in (4, 2, 1):
            found = b.add(found, e.shuffle(found, found, [lane ^ distance for lane in range(LANES)]))
        place = e.mul(b.sdiv(at, e.i64(layout.block)), 4)
        for block in (0, 1):
            dot = b.extract_element(found, I32(block * LANES // 2))
            if sums_factor(k.Q8, isa.q8_bias):
                dot = b.add(dot, e.load(I32, sums, e.add(place, 4 * block)))
            scale, a = (e.load(F32, each, e.add(place, 4 * block)) for each in (scales, x_scales))
            total = e.fma(b.sitofp(dot, F32), b.fmul(scale, a), total)
        return [total]

    (total,) = e.loop(0, columns, ROW_STEP, [e.f32(0.0)], two_blocks)
    return total


@kernel("v:ii")
def screened_out(e, target, logits, group):
    """Make the logits of a statistics block minus infinity."""
    for at in range(0, 4 * s.STATISTICS_BLOCK, WIDTH):
        e.store(e.splat(-math.inf), logits, e.add(e.mul(group, 4 * s.STATISTICS_BLOCK), at))


@kernel("i:if")
def not_below(e, target, values, bound):
    """Return bits that say which of 16 floats are not below a bound; what is no number is below nothing."""
    found = e.b.fcmp_unordered(">=", e.load(VF32, values), e.splat(bound))
    return e.b.zext(e.b.bitcast(found, ir.IntType(LANES)), I64)


@compiled("f:MTiii")
def first_bound(model, thread, tid, threads, most):
    """Return the `most`-th largest of the bounds of this share's row blocks."""
    largest, best = get(model, s.SCREEN_BOUNDS), get(thread, s.HEAP)
    blocks, found, low = get(model, s.VOCAB_PADDED) // s.ROW_BLOCK, 0, LOWEST
    for first in range(tid * TURN, blocks, threads * TURN):
        bits = not_below(largest + first * 4, low)
        while bits != 0:
            found = keep_largest(best, found, most, load_f32(largest + (first + trailing_zeros(bits)) * 4))
            bits &= bits - 1
        low = load_f32(best + (most - 1) * 4) if found >= most else LOWEST
    return load_f32(best + (found - 1) * 4) if found > 0 else LOWEST


@compiled("i:MTiiiiff")
def list_rows(model, thread, tid, threads, bounds, n, low, high):
    """Add this share's rows with bounds from `low` to below `high` to its list of n; return how many it has then.

    high: NaN for no limit. A bound that is no number hides no row, and is listed without a limit only.
    """
    largest, ids, size = get(model, s.SCREEN_BOUNDS), get(thread, s.ALTERNATIVES_HEAP), get(model, s.SCREEN_ROW_BYTES)
    blocks, vocab = get(model, s.VOCAB_PADDED) // s.ROW_BLOCK, get(model, s.VOCAB)
    for first in range(tid * TURN, blocks, threads * TURN):
        bits = not_below(largest + first * 4, low)
        while bits != 0:
            begin = (first + trailing_zeros(bits)) * s.ROW_BLOCK
            bits &= bits - 1
            wanted = not_below(bounds + begin * 4, low)
            while wanted != 0:
                row = begin + trailing_zeros(wanted)
                wanted &= wanted - 1
                if row < vocab and (math.isnan(high) or load_f32(bounds + row * 4) < high):
                    store_i32(ids + n * 4, row)
                    screened_ahead(get(model, s.SCREEN_ROWS), row, size)
                    n += 1
    return n


@compiled("i:MTiiiii")
def multiply_rows(model, thread, bounds, begin, end, most, found):
    """Compute the listed rows begin..end that can still be among the `most` largest logits, of which HEAP has `found`.

    Returns how many it has then. Logits go to WORK_LOGITS, in the list's order; minus infinity if not computed.
    """
    best, ids, logits = get(thread, s.HEAP), get(thread, s.ALTERNATIVES_HEAP), get(thread, s.WORK_LOGITS)
    read = 0
    for i in range(begin, end):
        row, logit = load_i32(ids + i * 4), LOWEST
        if found < most or not load_f32(bounds + row * 4) < load_f32(best + (most - 1) * 4):
            logit = screened_row(get(model, s.SCREEN_ROWS), row, get(model, s.HEAD_X8), get(model, s.HEAD_INIT),
                                 get(model, s.HEAD_SCALE), get(model, s.DIM))  # fmt: skip
            found = keep_largest(best, found, most, logit)
            read += 1
        store_f32(logits + i * 4, logit)
    put(thread, s.SCREEN_READ, get(thread, s.SCREEN_READ) + read)
    return found


@compiled("v:Tii")
def tell_largest(thread, most, found):
    """Leave the list of this share's largest logits for the others."""
    best, told = get(thread, s.HEAP), get(thread, s.WORK_MAXIMA)
    for i in range(most):
        store_f32(told + i * 4, load_f32(best + i * 4) if i < found else LOWEST)


@compiled("i:Tiii")
def hear_largest(thread, tid, threads, most):
    """Make the list of the largest logits that of all shares; return how many it has."""
    best, found = get(thread, s.HEAP), 0
    for other in range(threads):
        told = get(thread + (other - tid) * 8 * s.THREAD_SLOTS, s.WORK_MAXIMA)
        for i in range(most):
            found = keep_largest(best, found, most, load_f32(told + i * 4))
    return found


@compiled("v:MTiiii")
def write_rows(model, thread, tid, threads, logits, n):
    """Write the n listed logits in their places, minus infinity elsewhere, and all statistics blocks' maxima."""
    ids, found, maxima = get(thread, s.ALTERNATIVES_HEAP), get(thread, s.WORK_LOGITS), get(model, s.BLOCK_MAXIMA)
    groups = get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK
    for first in range(tid * TURN_GROUPS, groups, threads * TURN_GROUPS):
        for group in range(first, min(first + TURN_GROUPS, groups)):
            store_f32(maxima + group * 4, LOWEST)
    for i in range(n):
        row, logit = load_i32(ids + i * 4), load_f32(found + i * 4)
        place = maxima + row // s.STATISTICS_BLOCK * 4
        if logit == LOWEST:
            continue
        if load_f32(place) == LOWEST:
            screened_out(logits, row // s.STATISTICS_BLOCK)
        store_f32(logits + row * 4, logit)
        if not logit <= load_f32(place):
            store_f32(place, logit)


@compiled("v:MTiiiii")
def screened_logits(model, thread, tid, threads, phase, most, logits):
    """Do share `tid` of `threads` of a phase 0 to 2; the next one begins when all shares are done. Threads take them.

    In the end the `most` largest logits of the only head input, and some others, are in `logits` and the block maxima.
    The rest is minus infinity: single logits where a statistics block has a finite maximum, else only the maximum.
    thread: the row of THREAD whose number is the share's; no other thread uses what is kept there between phases.
    """
    dim, x = get(model, s.DIM), get(model, s.HEAD_X8)
    if phase == 0:
        groups = get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK
        first, last = groups * tid // threads * GROUP_BLOCKS, groups * (tid + 1) // threads * GROUP_BLOCKS
        facts = get(thread, s.QUERY)  # the queries of attention are not needed any more
        screen_input(x, get(model, s.HEAD_SCALE), get(model, s.SCREEN_BASIS), dim, facts)
        screen_bounds(get(model, s.SCREEN), dim, x, get(model, s.HEAD_SCALE), facts, first, last, logits,
                      get(model, s.SCREEN_BOUNDS))  # fmt: skip
        if tid == 0:
            put(thread, s.SCREEN_PASSES, get(thread, s.SCREEN_PASSES) + 1)
    elif phase == 1:
        # likely tokens have small ids, so shares take turns from here on
        # rows with the largest bounds first: their logits rule out most of the others
        begin = first_bound(model, thread, tid, threads, most)
        n = list_rows(model, thread, tid, threads, logits, 0, begin, NO_NUMBER)
        found = multiply_rows(model, thread, logits, 0, n, most, 0)
        tell_largest(thread, most, found)
        put(thread, s.SCREEN_LISTED, n)
        put(thread, s.SCREEN_FOUND, found)
        put(thread, s.SCREEN_BEGIN_BITS, bits_of_f32(begin))
    else:
        n, found = get(thread, s.SCREEN_LISTED), get(thread, s.SCREEN_FOUND)
        begin = f32_from_bits(get(thread, s.SCREEN_BEGIN_BITS))
        if threads > 1:
            found = hear_largest(thread, tid, threads, most)
        if begin >= LOWEST:  # else it is no number, and all rows were listed
            enough = load_f32(get(thread, s.HEAP) + (most - 1) * 4) if found >= most else LOWEST
            end = list_rows(model, thread, tid, threads, logits, n, enough, begin)
            multiply_rows(model, thread, logits, n, end, most, found)
            n = end
        write_rows(model, thread, tid, threads, logits, n)
