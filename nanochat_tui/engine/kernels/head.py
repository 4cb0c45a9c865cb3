"""From the residual streams to logits: mean over streams, final norm, output table."""

from __future__ import annotations

from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.kernels.forward import mix_read, round_row
from nanochat_tui.engine.kernels.linear import dense_f16, dense_f32, dequantise, q8, tile_of
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.statistics import block_statistics, fill_floats
from nanochat_tui.engine.kernels.threads import barrier
from nanochat_tui.engine.kernels.vectors import rms_norm
from nanochat_tui.engine.simd.intrinsics import f32_from_bits, get

MINUS_INFINITY_BITS = 0xFF800000


@compiled("v:iiiii")
def head_input(model, thread, token, place, count):
    """Write token's input of the head into the shared buffers, as row `place` of `count`."""
    dim = get(model, s.DIM)
    streams = get(model, s.STREAMS)
    row = get(model, s.HEAD_FLOAT) + place * dim * 4
    mix_read(streams, get(thread, s.X) + token * streams * dim * 4, row, get(model, s.FINAL_MIX), dim)
    rms_norm(row, get(model, s.FINAL_NORM), row, dim, f32_from_bits(get(model, s.EPSILON_BITS)))
    if get(model, s.FLOAT_ACTIVATIONS) == 1:
        return
    bias = get(model, s.TABLE_BIAS)
    round_row(
        model,
        get(model, s.HEAD_X8),
        get(model, s.HEAD_INIT),
        get(model, s.HEAD_SCALE),
        row,
        dim,
        dim,
        place,
        count,
        32,
        bias,
    )
    if get(model, s.TABLE_KIND) != s.KIND_Q8:
        # float tables see the rounded activations as well, so that every kind of head means the same model
        tile = tile_of(model, count)
        x8 = get(model, s.HEAD_X8) + (place // tile) * tile * dim + (place % tile) * 4
        dequantise(x8, row, get(model, s.HEAD_SCALE) + place * 4, dim, tile * 4)


@compiled("v:iiii")
def table_product(model, tid, count, logits):
    """Multiply `count` head inputs by this thread's share of the table; logits float32 [count][vocab padded].

    Rows beyond the vocabulary become -infinity.
    """
    dim, padded, threads = get(model, s.DIM), get(model, s.VOCAB_PADDED), get(model, s.THREADS)
    # shares are whole statistics blocks, so that each thread can go on with the blocks it made
    blocks = padded // s.STATISTICS_BLOCK
    first, last = blocks * tid // threads * 4, blocks * (tid + 1) // threads * 4
    weights, scales = get(model, s.TABLE_WEIGHTS), get(model, s.TABLE_SCALES)
    x8, init, scale = get(model, s.HEAD_X8), get(model, s.HEAD_INIT), get(model, s.HEAD_SCALE)
    if get(model, s.TABLE_KIND) == s.KIND_Q8:
        tile = tile_of(model, count)
        tiles = (count + tile - 1) // tile
        q8(model, tile, weights, scales, x8, init, scale, logits, first, last, dim // 32, padded * 4, tiles)
    else:
        for i in range(count):
            x, y = get(model, s.HEAD_FLOAT) + i * dim * 4, logits + i * padded * 4
            if get(model, s.TABLE_KIND) == s.KIND_F16:
                dense_f16(weights, x, y, first, last, dim)
            else:
                dense_f32(weights, x, y, first, last, dim)
    if tid == threads - 1:
        beyond = padded - get(model, s.VOCAB)
        for i in range(count):
            fill_floats(logits + (i * padded + get(model, s.VOCAB)) * 4, beyond, f32_from_bits(MINUS_INFINITY_BITS))


@compiled("v:iiiii")
def last_logits(model, thread, tid, count, by_rows):
    """Compute the logits of the last of `count` tokens and the statistics of their blocks."""
    tile = tile_of(model, count)
    owner = 0 if by_rows == 1 else ((count - 1) // tile) % get(model, s.THREADS)
    if tid == owner:
        head_input(model, thread, count - 1, 0, 1)
    barrier(get(model, s.CONTROL), get(model, s.THREADS))
    table_product(model, tid, 1, get(model, s.LOGITS))
    blocks = get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK
    first, last = blocks * tid // get(model, s.THREADS), blocks * (tid + 1) // get(model, s.THREADS)
    block_statistics(get(model, s.LOGITS), first, last, get(model, s.BLOCK_MAXIMA), get(model, s.BLOCK_SUMS))
    barrier(get(model, s.CONTROL), get(model, s.THREADS))


@compiled("v:iiiiii")
def all_logits(model, job, thread, tid, count, by_rows):
    """Compute the logits of all `count` tokens into the job's own buffer."""
    tile = tile_of(model, count)
    tiles = (count + tile - 1) // tile
    for t in range(tid, tiles, get(model, s.THREADS)):
        for token in range(t * tile, min(t * tile + tile, count)):
            head_input(model, thread, token, token, count)
    barrier(get(model, s.CONTROL), get(model, s.THREADS))
    table_product(model, tid, count, get(job, s.LOGITS_OUT))
    barrier(get(model, s.CONTROL), get(model, s.THREADS))
