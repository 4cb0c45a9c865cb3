"""From the residual streams to logits: mean over streams, final norm, output table."""

from __future__ import annotations

from nanochat_tui.engine.kernels import kinds as k
from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.kernels.forward import mix_read, round_row
from nanochat_tui.engine.kernels.linear import dequantise, tile_of
from nanochat_tui.engine.kernels.matrices import matrix_product
from nanochat_tui.engine.kernels.products import rotate_row, takes_floats
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.statistics import block_maxima, block_statistics, fill_floats
from nanochat_tui.engine.kernels.threads import barrier
from nanochat_tui.engine.kernels.vectors import rms_norm
from nanochat_tui.engine.simd.intrinsics import f32_from_bits, get, kernel, put
from nanochat_tui.engine.simd.library import function_type

MINUS_INFINITY_BITS = 0xFF800000


@compiled("v:iiiii")
def head_input(model, thread, token, place, count):
    """Write token's input of the head into the shared buffers, as row `place` of `count`."""
    dim, matrix = get(model, s.DIM), get(model, s.HEAD_MATRIX)
    streams = get(model, s.STREAMS)
    row = get(model, s.HEAD_FLOAT) + place * dim * 4
    mix_read(streams, get(thread, s.X) + token * streams * dim * 4, row, get(model, s.FINAL_MIX), dim)
    rms_norm(row, get(model, s.FINAL_NORM), row, dim, f32_from_bits(get(model, s.EPSILON_BITS)))
    rotate_row(model, row, get(model, s.ROTATE_HEAD), dim)
    if get(model, s.FLOAT_ACTIVATIONS) == 1:
        return
    padded = get(matrix, k.PADDED)
    round_row(
        model, get(model, s.HEAD_X8), get(model, s.HEAD_INIT), get(model, s.HEAD_SCALE), row, dim, padded,
        place, count, get(model, s.GROUP), 1,
    )  # fmt: skip
    if takes_floats(matrix) == 1:
        # float tables see the rounded activations as well, so that every kind of head means the same model
        tile = tile_of(model, count)
        x8 = get(model, s.HEAD_X8) + (place // tile) * tile * padded + (place % tile) * 4
        dequantise(x8, row, get(model, s.HEAD_SCALE) + place * 4, dim, tile * 4)


@compiled("v:iiiii")
def table_product(model, thread, tid, count, logits):
    """Multiply `count` head inputs by this thread's share of the table; logits float32 [count][vocab padded].

    Rows that stand for no token become -infinity.
    """
    dim, padded, threads = get(model, s.DIM), get(model, s.VOCAB_PADDED), get(model, s.THREADS)
    # shares are whole statistics blocks, so that each thread can go on with the blocks it made
    blocks = padded // s.STATISTICS_BLOCK
    first, last = blocks * tid // threads * 4, blocks * (tid + 1) // threads * 4
    tile = tile_of(model, count)
    matrix_product(
        get(model, s.HEAD_MATRIX), tile, get(model, s.HEAD_X8), get(model, s.HEAD_INIT), get(model, s.HEAD_SCALE),
        get(model, s.HEAD_FLOAT), dim * 4, get(thread, s.SUMS), logits, padded * 4, first, last, count, 0,
        (count + tile - 1) // tile, 1, 0,
    )  # fmt: skip
    # in whatever share it lies: with many threads the last one's is smaller than what some files pad with
    begin, end = max(get(model, s.VOCAB), first * s.ROW_BLOCK), last * s.ROW_BLOCK
    for i in range(count if begin < end else 0):
        fill_floats(logits + (i * padded + begin) * 4, end - begin, f32_from_bits(MINUS_INFINITY_BITS))


@compiled("v:iiii")
def statistics(model, job, tid, wanted):
    """Write maxima, and sums if log-probabilities are wanted, of the statistics blocks that this thread made."""
    if get(job, s.SEQUENCE_COUNT) == 0:
        return
    threads, stride = get(model, s.THREADS), get(model, s.BLOCKS_PADDED) * 4
    blocks = get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK
    first, last = blocks * tid // threads, blocks * (tid + 1) // threads
    for place in range(wanted):
        logits = get(job, s.LOGITS_OUT) + place * get(model, s.VOCAB_PADDED) * 4
        maxima, sums = get(model, s.BLOCK_MAXIMA) + place * stride, get(model, s.BLOCK_SUMS) + place * stride
        if get(job, s.JOB_LOGPROBS) == 1:
            block_statistics(logits, first, last, maxima, sums)
        else:
            block_maxima(logits, first, last, maxima)


@kernel("v:iiiiii")
def call_screen(e, target, code, model, thread, tid, most, logits):
    """Call `screen.screened_logits`, which is not part of the program, by its address."""
    kind = function_type("v:iiiii")
    e.b.call(e.b.inttoptr(code, kind.as_pointer()), [model, thread, tid, most, logits])


@compiled("i:ii")
def screened(model, job):
    """Return how many of the largest logits are enough for the job's only sequence, 0 if all are to be computed."""
    if get(model, s.SCREEN) == 0 or get(job, s.SEQUENCE_COUNT) != 1 or get(job, s.WANTED) != 1:
        return 0
    return get(get(job, s.SEQUENCES), s.BEST)


@compiled("v:iiiiii")
def row_logits(model, job, thread, tid, count, by_rows):
    """Compute the logits of those of `count` tokens that want them, and what the sampler needs of them.

    Logits go to the job's buffer, float32 [WANTED][vocab padded]. by_rows: as in `forward`.
    """
    threads, wanted, tile = get(model, s.THREADS), get(job, s.WANTED), tile_of(model, count)
    for token in range(count):
        place = get(get(job, s.ROWS) + token * 8 * s.ROW_SLOTS, s.LOGITS_PLACE)
        if place >= 0 and tid == (place if by_rows == 1 else token // tile) % threads:
            head_input(model, thread, token, place, wanted)
    barrier(get(model, s.CONTROL), threads)
    if get(model, s.SCREEN_COLUMNS) > 0 and screened(model, job) > 0:
        call_screen(get(model, s.SCREEN_CODE), model, thread, tid, screened(model, job), get(job, s.LOGITS_OUT))
        put(thread, s.SCREEN_PASSES, get(thread, s.SCREEN_PASSES) + 1)
    else:
        table_product(model, thread, tid, wanted, get(job, s.LOGITS_OUT))
        statistics(model, job, tid, wanted)
    barrier(get(model, s.CONTROL), threads)
