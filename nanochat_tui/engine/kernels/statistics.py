"""Reductions over the logits: block maxima and sums of exponentials, weights of a distribution."""

from __future__ import annotations

from llvmlite import ir

from nanochat_tui.engine.layout.slots import STATISTICS_BLOCK
from nanochat_tui.engine.simd.emitter import I16, LANES, VF32
from nanochat_tui.engine.simd.intrinsics import kernel

WIDTH = 4 * LANES
VECTORS = STATISTICS_BLOCK // LANES


def _vectors(e, logits, block):
    return [e.load(VF32, logits, e.add(e.mul(block, 4 * STATISTICS_BLOCK), i * WIDTH)) for i in range(VECTORS)]


def _block_maximum(e, vectors):
    return e.max_lanes(e.maximum(e.maximum(vectors[0], vectors[1]), e.maximum(vectors[2], vectors[3])))


@kernel("v:iiiii")
def block_statistics(e, target, logits, first, last, maxima, sums):
    """Write each block's maximum, and its sum of exp(logit - maximum), for blocks first..last."""

    def block(index):
        vectors = _vectors(e, logits, index)
        largest = _block_maximum(e, vectors)
        weights = [e.exp(e.b.fsub(v, e.splat(largest))) for v in vectors]
        total = e.b.fadd(e.b.fadd(weights[0], weights[1]), e.b.fadd(weights[2], weights[3]))
        e.store(largest, maxima, e.mul(index, 4))
        e.store(e.sum_lanes(total), sums, e.mul(index, 4))

    e.loop(first, last, 1, [], block)


@kernel("v:iiii")
def block_maxima(e, target, logits, first, last, maxima):
    """Write each block's maximum only."""

    def block(index):
        e.store(_block_maximum(e, _vectors(e, logits, index)), maxima, e.mul(index, 4))

    e.loop(first, last, 1, [], block)


@kernel("f:ii")
def largest_of(e, target, values, n):
    """Return the largest of n floats, n a multiple of 16."""

    def vector(at, largest):
        return [e.maximum(e.load(VF32, values, at), largest)]

    return e.max_lanes(e.loop(0, e.mul(n, 4), WIDTH, [e.splat(-3.4e38)], vector)[0])


@kernel("f:iiif")
def sum_of_blocks(e, target, maxima, sums, n, largest):
    """Return the sum over blocks of sums · exp(maximum - largest): the softmax's denominator; n a multiple of 16."""
    top = e.splat(largest)

    def vector(at, total):
        weight = e.exp(e.b.fsub(e.load(VF32, maxima, at), top))
        return [e.fma(weight, e.load(VF32, sums, at), total)]

    return e.sum_lanes(e.loop(0, e.mul(n, 4), WIDTH, [e.splat(0.0)], vector)[0])


@kernel("v:iiiff")
def block_weights(e, target, logits, blocks, out, largest, factor):
    """Write each block's sum of exp((logit - largest) · factor)."""
    top, scale = e.splat(largest), e.splat(factor)

    def block(index):
        weights = [e.exp(e.b.fmul(e.b.fsub(v, top), scale)) for v in _vectors(e, logits, index)]
        total = e.b.fadd(e.b.fadd(weights[0], weights[1]), e.b.fadd(weights[2], weights[3]))
        e.store(e.sum_lanes(total), out, e.mul(index, 4))

    e.loop(0, blocks, 1, [], block)


@kernel("v:iii")
def copy_floats(e, target, source, out, n):
    """Copy n floats, n a multiple of 16."""
    e.loop(0, e.mul(n, 4), WIDTH, [], lambda at: e.store(e.load(VF32, source, at), out, at))


@kernel("v:iii")
def forbid(e, target, logits, mask, blocks):
    """Make those of the logits of `blocks` blocks minus infinity whose bit in the mask is 0."""
    bits, minus_infinity = ir.VectorType(ir.IntType(1), LANES), e.splat(float("-inf"))

    def vector(at):
        allowed = e.b.bitcast(e.load(I16, mask, e.b.lshr(at, e.i64(5))), bits)
        e.store(e.b.select(allowed, e.load(VF32, logits, at), minus_infinity), logits, at)

    e.loop(0, e.mul(blocks, 4 * STATISTICS_BLOCK), WIDTH, [], vector)


@kernel("v:iif")
def fill_floats(e, target, out, n, value):
    """Set n floats (any n)."""
    e.loop(0, e.mul(n, 4), 4, [], lambda at: e.store(value, out, at))
