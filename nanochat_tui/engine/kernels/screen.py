"""The likeliest tokens without reading the whole output table: bounds from a table of half the size decide.

A screen (see `engine.screening`) holds a coarse copy of every row and how far the row may be from it. The largest a
logit can be follows from both by Cauchy and Schwarz; only blocks of rows that could hold one of the k best logits are
multiplied exactly, by the same operations as otherwise, so the k best are the same to the bit. The others count as
minus infinity. This is exact maximum inner product search with pruning.
"""

from __future__ import annotations

import numpy as np

from nanochat_tui.engine.kernels import kinds as k
from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.kernels.kinds import LAYOUTS, sums_factor
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.sampler import keep_largest
from nanochat_tui.engine.kernels.statistics import block_maxima, fill_floats
from nanochat_tui.engine.kernels.tables import bytes_to_i32, emit_table
from nanochat_tui.engine.kernels.threads import barrier
from nanochat_tui.engine.kernels.tiles import call_kernel, prefetch_weights
from nanochat_tui.engine.simd.base import Dots
from nanochat_tui.engine.simd.emitter import F32, LANES, VF32, VI32
from nanochat_tui.engine.simd.intrinsics import get, kernel, load_f32, put, store_f32

WIDTH = 4 * LANES
GROUP_BLOCKS = s.STATISTICS_BLOCK // s.ROW_BLOCK
"""Row blocks that a thread takes together, one statistics block."""
LOWEST = np.float32(-np.inf)
TAKEN = np.float32(np.inf)
"""In place of a block's bound: its logits were computed."""
REST, SLACK, MIDDLE = s.SCREEN_DIRECTIONS, s.SCREEN_DIRECTIONS + 1, s.SCREEN_DIRECTIONS + 2
"""Places of what `screen_input` writes behind the token's coordinates."""


@kernel("v:iiii")
def screen_input(e, target, x, directions, columns, out):
    """Write what the bounds need of a token, float32: its coordinates, its length beside them, slack, 7.5 · its sum.

    x: int8 [columns], a multiple of 16. directions: as `screening.Screen.directions`.
    """
    b = e.b
    row = e.mul(columns, 4)

    def vector(at, total, square, *along):
        v = e.to_f32(bytes_to_i32(e, e.add(x, at), 0, signed=True))
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


@kernel("v:iiiiiiii")
def screen_bounds(e, target, table, columns, x, x_scale, facts, first, last, upper):
    """Write the largest logit that any row of a block of 16 can have, float32, for blocks first..last.

    table: as `screening.Screen.table`. x: the token's int8 [columns], a multiple of 64. facts: of `screen_input`.
    """
    b, isa = e.b, target.isa
    nibbles = e.constant(VI32, 0x0F0F0F0F)
    four = e.constant(VI32, 4)
    fact = lambda place: e.splat(e.load(F32, facts, 4 * place))  # noqa: E731
    codes = e.mul(columns, LANES // 2)
    record = e.add(codes, s.SCREEN_DIRECTIONS * 2 * LANES + 2 * WIDTH)
    step = 8 * 64
    scale_of_x = e.load(F32, x_scale)

    def block(index):
        base = e.add(table, e.mul(index, record))

        def columns64(at, *carried):
            # `at` counts bytes of codes: 64 columns of 16 rows
            words = e.add(base, at)
            prefetch_weights(e, words, step)
            sums = list(carried)
            for word in range(8):
                packed = e.load(VI32, words, word * WIDTH)
                quads = e.add(x, b.sdiv(at, e.i64(LANES // 2)), 8 * word)
                dots = Dots(isa, e, [sums[word % 4]], 15)
                dots.step(b.and_(packed, nibbles), [isa.broadcast(e, quads, 0)])
                dots.step(b.and_(b.lshr(packed, four), nibbles), [isa.broadcast(e, quads, 4)])
                (sums[word % 4],) = dots.end()
            return sums

        zero = e.constant(VI32, 0)
        parts = e.loop(0, codes, step, [zero] * 4, columns64)
        product = e.to_f32(b.add(b.add(parts[0], parts[1]), b.add(parts[2], parts[3])))
        behind = e.add(base, codes)
        bound = b.fmul(b.fsub(product, fact(MIDDLE)), e.load(VF32, behind, s.SCREEN_DIRECTIONS * 2 * LANES))
        for d in range(s.SCREEN_DIRECTIONS):
            bound = e.fma(e.load_half(behind, d * 2 * LANES), fact(d), bound)
        bound = e.fma(e.load(VF32, behind, s.SCREEN_DIRECTIONS * 2 * LANES + WIDTH), fact(REST), bound)
        largest = b.fadd(e.max_lanes(bound), e.load(F32, facts, 4 * SLACK))
        e.store(b.fmul(largest, scale_of_x), upper, e.mul(index, 4))

    e.loop(first, last, 1, [], block)


@kernel("v:iii")
def screened_sums(e, target, x, columns, sums):
    """Write the block sums of a token that products with a Q8 table need, int32 [columns / 32]."""
    layout = LAYOUTS[k.Q8]
    factor = sums_factor(layout, target.isa.q8_bias)
    if factor:
        call_kernel(e, "block_sums", (x, e.i64(1), columns, e.i64(layout.block), e.i64(factor), sums))


@kernel("v:iiiiiiiiii")
def screened_rows(e, target, weights, scales, x, sums, x_scale, y, first, last, columns, y_stride):
    """Write the logits of row blocks first..last of a Q8 table for one token, as the kernel for all rows would.

    Nothing is asked for ahead, as what follows is seldom wanted. sums: of `screened_sums`.
    """
    layout = LAYOUTS[k.Q8]
    emit_table(e, target, layout, 1, 1, weights, scales, x, sums, x_scale, y, first, last, columns, columns, y_stride,
               (0, 1, 1), ahead=False)  # fmt: skip


@compiled("i:iiiiii")
def screened_block(model, thread, logits, block, most, found):
    """Compute a block's logits; return how many of the `most` largest seen are in the sorted list HEAP now."""
    matrix = get(model, s.HEAD_MATRIX)
    screened_rows(
        get(matrix, k.WEIGHTS), get(matrix, k.SCALES), get(model, s.HEAD_X8), get(thread, s.SUMS),
        get(model, s.HEAD_SCALE), logits, block, block + 1, get(model, s.DIM), get(model, s.VOCAB_PADDED) * 4,
    )  # fmt: skip
    for row in range(block * s.ROW_BLOCK, block * s.ROW_BLOCK + s.ROW_BLOCK):
        if row >= get(model, s.VOCAB):
            store_f32(logits + row * 4, LOWEST)
        found = keep_largest(get(thread, s.HEAP), found, most, load_f32(logits + row * 4))
    store_f32(get(model, s.SCREEN_BOUNDS) + block * 4, TAKEN)
    put(thread, s.SCREEN_READ, get(thread, s.SCREEN_READ) + 1)
    return found


@compiled("i:iiiii")
def first_blocks(model, thread, tid, logits, most):
    """Compute this thread's blocks with the largest bounds, which rule out most others; return `found`."""
    bounds, best, threads = get(model, s.SCREEN_BOUNDS), get(thread, s.HEAP), get(model, s.THREADS)
    blocks, stride = get(model, s.VOCAB_PADDED) // s.ROW_BLOCK, threads * GROUP_BLOCKS
    found = 0
    for first in range(tid * GROUP_BLOCKS, blocks, stride):
        for block in range(first, first + GROUP_BLOCKS):
            found = keep_largest(best, found, most, load_f32(bounds + block * 4))
    least = load_f32(best + (found - 1) * 4) if found > 0 else LOWEST
    found = 0
    for first in range(tid * GROUP_BLOCKS, blocks, stride):
        for block in range(first, first + GROUP_BLOCKS):
            if load_f32(bounds + block * 4) >= least:
                found = screened_block(model, thread, logits, block, most, found)
    return found


@compiled("i:iiiii")
def share_largest(model, thread, tid, most, found):
    """Make the list of the largest logits that of all threads; return how many it has."""
    threads, best, told = get(model, s.THREADS), get(thread, s.HEAP), get(thread, s.ALTERNATIVES_HEAP)
    for i in range(most):
        store_f32(told + i * 4, load_f32(best + i * 4) if i < found else LOWEST)
    barrier(get(model, s.CONTROL), threads)
    found = 0
    for other in range(threads):
        told = get(thread + (other - tid) * 8 * s.THREAD_SLOTS, s.ALTERNATIVES_HEAP)
        for i in range(most):
            found = keep_largest(best, found, most, load_f32(told + i * 4))
    return found


@compiled("v:iiiii")
def screened_blocks(model, thread, tid, logits, most):
    """Compute those blocks of this thread's groups that may hold one of the `most` largest logits."""
    bounds, best, threads = get(model, s.SCREEN_BOUNDS), get(thread, s.HEAP), get(model, s.THREADS)
    blocks, stride = get(model, s.VOCAB_PADDED) // s.ROW_BLOCK, threads * GROUP_BLOCKS
    found = first_blocks(model, thread, tid, logits, most)
    if threads > 1:
        found = share_largest(model, thread, tid, most, found)
    for first in range(tid * GROUP_BLOCKS, blocks, stride):
        for block in range(first, first + GROUP_BLOCKS):
            bound = load_f32(bounds + block * 4)
            enough = load_f32(best + (most - 1) * 4) if found >= most else LOWEST
            # NaN, which is below nothing, hides no block
            if bound != TAKEN and not bound < enough:
                found = screened_block(model, thread, logits, block, most, found)


@compiled("v:iii")
def screened_maximum(model, logits, group):
    """Write the maximum of a statistics block, whose logits become minus infinity where they were not computed."""
    bounds, taken = get(model, s.SCREEN_BOUNDS), 0
    for block in range(group * GROUP_BLOCKS, (group + 1) * GROUP_BLOCKS):
        taken += 1 if load_f32(bounds + block * 4) == TAKEN else 0
    if taken == 0:
        store_f32(get(model, s.BLOCK_MAXIMA) + group * 4, LOWEST)
        return
    for block in range(group * GROUP_BLOCKS, (group + 1) * GROUP_BLOCKS):
        if load_f32(bounds + block * 4) != TAKEN:
            fill_floats(logits + block * s.ROW_BLOCK * 4, s.ROW_BLOCK, LOWEST)
    block_maxima(logits, group, group + 1, get(model, s.BLOCK_MAXIMA))


@compiled("v:iiiii")
def screened_logits(model, thread, tid, most, logits):
    """Leave the `most` largest logits of the only head input, and some others, in `logits` and the block maxima.

    The rest is minus infinity: single logits where a statistics block has a finite maximum, else only the maximum.
    """
    threads = get(model, s.THREADS)
    groups = get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK
    first, last = groups * tid // threads * GROUP_BLOCKS, groups * (tid + 1) // threads * GROUP_BLOCKS
    # the queries of attention are not needed any more
    facts, dim, x = get(thread, s.QUERY), get(model, s.DIM), get(model, s.HEAD_X8)
    screen_input(x, get(model, s.SCREEN_BASIS), dim, facts)
    screen_bounds(get(model, s.SCREEN), dim, x, get(model, s.HEAD_SCALE), facts, first, last,
                  get(model, s.SCREEN_BOUNDS))  # fmt: skip
    screened_sums(x, dim, get(thread, s.SUMS))
    # likely tokens have small ids, so threads take turns from here on
    barrier(get(model, s.CONTROL), threads)
    screened_blocks(model, thread, tid, logits, most)
    for group in range(tid, groups, threads):
        screened_maximum(model, logits, group)
