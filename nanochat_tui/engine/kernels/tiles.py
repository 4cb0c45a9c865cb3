"""What the matrix kernels share: prefetching, storing a tile's outputs, choosing a kernel by the size of its tile."""

from __future__ import annotations

from nanochat_tui.engine.layout.kinds import TILES
from nanochat_tui.engine.simd.emitter import F32, LANES
from nanochat_tui.engine.simd.objects import symbol

NEAR_BYTES, FAR_BYTES = 4096, 16384
"""How far ahead of their use weights are asked for, into the first-level cache and the second. Hardware alone reads
at 64 % of what memory can give, either distance alone at 84 to 89 %, both at 96 %."""
PREFETCH_TOKENS = 4
"""Tokens per tile up to which a kernel waits for weights; with more it waits for its own arithmetic."""
LINE = 64


def prefetch_weights(e, weights, size, scales=None, scale_size=0):
    """Ask for what follows `size` bytes of weights, which are used now, and their `scale_size` bytes of scales."""
    for line in range(0, size, LINE):
        e.prefetch(weights, FAR_BYTES + line, level=2)
        e.prefetch(weights, NEAR_BYTES + line)
    for line in range(0, scale_size, LINE):
        e.prefetch(scales, FAR_BYTES // size * scale_size + line, level=2)


def store_tile(e, sums, start, x_scale, y, y_stride, block):
    """Store the 16 outputs of tokens `start` and following, times each token's activation scale if it has one."""
    row = e.add(y, e.mul(start, y_stride), e.mul(block, 4 * LANES))
    for t, total in enumerate(sums):
        scale = None if x_scale is None else e.splat(e.load(F32, x_scale, e.add(e.mul(start, 4), 4 * t)))
        e.store(total if scale is None else e.b.fmul(total, scale), row, e.mul(y_stride, t))


def token_scales(e, place, tokens):
    """Return what the values of some tokens, which lie side by side, are to be multiplied by: a vector of each."""
    return [e.splat(e.load(F32, place, 4 * t)) for t in range(tokens)]


def scaled(e, products, scales, totals):
    """Return each token's products times its scale, added to the totals if there are any."""
    if not totals:
        return [e.b.fmul(n, a) for n, a in zip(products, scales, strict=True)]
    return [e.fma(n, a, total) for n, a, total in zip(products, scales, totals, strict=True)]


def by_tile(e, tile, name, arguments, below=None):
    """Emit a branch on the tokens per tile to the kernels `name`_1, `name`_2 … that the target has.

    The one for most tokens takes larger tiles too. below: leave out those for that many tokens and more.
    """
    found = [tokens for tokens in TILES if symbol(f"{name}_{tokens}") in e.b.module.globals]
    found = [tokens for tokens in found if below is None or tokens < below]
    for tokens in found:
        comparison = ">=" if tokens == found[-1] else "=="
        with e.b.if_then(e.b.icmp_signed(comparison, tile, e.i64(tokens))):
            call_kernel(e, f"{name}_{tokens}", arguments)


def call_kernel(e, name, arguments):
    """Call another kernel of the same target."""
    e.b.call(e.b.module.globals[symbol(name)], list(arguments))
