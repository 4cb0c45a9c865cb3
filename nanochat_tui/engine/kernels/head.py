"""From the residual streams to logits: mean over streams, final norm, output table."""

from __future__ import annotations

from nanochat_tui.engine.kernels.activations import quantise_for, round_floats
from nanochat_tui.engine.kernels.attending import row_of
from nanochat_tui.engine.kernels.forward import mix_read
from nanochat_tui.engine.kernels.linear import tile_of
from nanochat_tui.engine.kernels.matrices import matrix_product
from nanochat_tui.engine.kernels.products import rotate_row, takes_floats
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.statistics import block_maxima, block_statistics, fill_floats
from nanochat_tui.engine.kernels.vectors import rms_norm
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import f32_from_bits, get, kernel
from nanochat_tui.engine.simd.library import function_type

MINUS_INFINITY_BITS = 0xFF800000


@compiled("v:MTii")
def final_state(model, thread, token, place):
    """Write a token's streams, merged and normalised, into the shared buffer of floats as row `place`."""
    dim, streams = get(model, s.DIM), get(model, s.STREAMS)
    row = get(model, s.HEAD_FLOAT) + place * dim * 4
    mix_read(streams, get(thread, s.STREAMS_NOW) + token * streams * dim * 4, row, get(model, s.FINAL_MIX), dim)
    rms_norm(row, get(model, s.FINAL_NORM), row, dim, f32_from_bits(get(model, s.EPSILON_BITS)))


@compiled("v:MTiii")
def head_input(model, thread, token, place, count):
    """Write token's input of the head into the shared buffers, as row `place` of `count`."""
    dim, matrix = get(model, s.DIM), get(model, s.HEAD_MATRIX)
    final_state(model, thread, token, place)
    row = get(model, s.HEAD_FLOAT) + place * dim * 4
    rotate_row(model, row, get(model, s.ROTATE_HEAD), dim)
    if takes_floats(matrix) == 0:
        quantise_for(
            matrix, row, tile_of(model, count), place, get(model, s.HEAD_X8), get(model, s.HEAD_INIT),
            get(model, s.HEAD_SCALE), 0,
        )  # fmt: skip
    elif get(model, s.ROUND_HEAD) == 1:
        round_floats(row, dim)


@compiled("v:MJTiii")
def head_inputs(model, job, thread, part, parts, count):
    """Write the inputs of the head, or final states, of part `part` of those of `count` tokens that want them."""
    for token in range(count):
        place = get(row_of(job, token), s.LOGITS_PLACE)
        if place >= 0 and place % parts == part:
            if get(job, s.JOB_STATES) == 1:
                final_state(model, thread, token, place)
            else:
                head_input(model, thread, token, place, get(job, s.WANTED))


@compiled("v:MTiiii")
def table_product(model, thread, part, parts, count, logits):
    """Multiply `count` head inputs by a part of the table; logits float32 [count][vocab padded].

    Rows that stand for no token become -infinity.
    """
    dim, padded = get(model, s.DIM), get(model, s.VOCAB_PADDED)
    # parts are whole statistics blocks, so that the thread that made one can go on with it
    blocks = padded // s.STATISTICS_BLOCK
    first, last = blocks * part // parts * 4, blocks * (part + 1) // parts * 4
    tile = tile_of(model, count)
    matrix_product(
        get(model, s.HEAD_MATRIX), tile, get(model, s.HEAD_X8), get(model, s.HEAD_INIT), get(model, s.HEAD_SCALE),
        get(model, s.HEAD_FLOAT), dim * 4, get(thread, s.SUMS), logits, padded * 4, first, last, count, 0,
        (count + tile - 1) // tile, 1,
    )  # fmt: skip
    # in whatever part it lies: with many the last one is smaller than what some files pad with
    begin, end = max(get(model, s.VOCAB), first * s.ROW_BLOCK), last * s.ROW_BLOCK
    for i in range(count if begin < end else 0):
        fill_floats(logits + (i * padded + begin) * 4, end - begin, f32_from_bits(MINUS_INFINITY_BITS))


@compiled("v:MJiii")
def statistics(model, job, part, parts, wanted):
    """Write maxima, and sums if log-probabilities are wanted, of the statistics blocks of a part of the table."""
    if get(job, s.SEQUENCE_COUNT) == 0:
        return
    stride, blocks = get(model, s.BLOCKS_PADDED) * 4, get(model, s.VOCAB_PADDED) // s.STATISTICS_BLOCK
    first, last = blocks * part // parts, blocks * (part + 1) // parts
    for place in range(wanted):
        logits = get(job, s.LOGITS_OUT) + place * get(model, s.VOCAB_PADDED) * 4
        maxima, sums = get(model, s.BLOCK_MAXIMA) + place * stride, get(model, s.BLOCK_SUMS) + place * stride
        if get(job, s.JOB_LOGPROBS) == 1:
            block_statistics(logits, first, last, maxima, sums)
        else:
            block_maxima(logits, first, last, maxima)


@compiled("v:MJTiii")
def table_rows(model, job, thread, part, parts, wanted):
    """Compute a part of the logits of `wanted` tokens, and what the sampler needs of them."""
    table_product(model, thread, part, parts, wanted, get(job, s.LOGITS_OUT))
    statistics(model, job, part, parts, wanted)


@kernel("v:iMTiiiii")
def call_screen(e, target, code, model, share, part, parts, phase, most, logits):
    """Call `screen.screened_logits`, which is not part of the program, by its address."""
    kind = function_type("v:iiiiiii")
    e.b.call(e.b.inttoptr(code, kind.as_pointer()), [model, share, part, parts, phase, most, logits])


@compiled("i:MJ")
def screened(model, job):
    """Return how many of the largest logits are enough for the job's only sequence, 0 if all are to be computed."""
    if get(model, s.SCREEN) == 0 or get(job, s.SEQUENCE_COUNT) != 1 or get(job, s.WANTED) != 1:
        return 0
    return get(get(job, s.SEQUENCES), s.BEST)
