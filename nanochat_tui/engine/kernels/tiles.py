"""What the matrix kernels share: prefetching, storing a tile's outputs, choosing a kernel by the size of its tile."""

from __future__ import annotations

from nanochat_tui.engine.kernels.kinds import TILES
from nanochat_tui.engine.simd.emitter import F32, LANES
from nanochat_tui.engine.simd.library import symbol

PREFETCH_BYTES = 4096
"""How far ahead of its use a decode kernel asks for weights: far enough for memory, near enough to stay in L1."""
PREFETCH_TOKENS = 4
"""Tokens per tile up to which a kernel waits for weights; with more it waits for its own arithmetic."""
LINE = 64


def prefetch_weights(e, address, size):
    """Ask for the cache lines PREFETCH_BYTES behind `size` (a Python int) bytes of weights that are used now."""
    for line in range(0, size, LINE):
        e.prefetch(address, PREFETCH_BYTES + line)


def store_tile(e, sums, start, x_scale, y, y_stride, block):
    """Store the 16 outputs of tokens `start` and following, times each token's activation scale."""
    row = e.add(y, e.mul(start, y_stride), e.mul(block, 4 * LANES))
    scales = e.add(x_scale, e.mul(start, 4))
    for t, total in enumerate(sums):
        scale = e.splat(e.load(F32, scales, 4 * t))
        e.store(e.b.fmul(total, scale), row, e.mul(y_stride, t))


def by_tile(e, tile, name, arguments):
    """Emit a branch on the tokens per tile to the kernels `name`_1, `name`_2 … that the target has.

    The one for most tokens takes larger tiles too.
    """
    found = [tokens for tokens in TILES if symbol(f"{name}_{tokens}") in e.b.module.globals]
    for tokens in found:
        comparison = ">=" if tokens == found[-1] else "=="
        with e.b.if_then(e.b.icmp_signed(comparison, tile, e.i64(tokens))):
            call_kernel(e, f"{name}_{tokens}", arguments)


def call_kernel(e, name, arguments):
    """Call another kernel of the same target."""
    e.b.call(e.b.module.globals[symbol(name)], list(arguments))
