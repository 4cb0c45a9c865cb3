"""A pass over the weights, step by step; every step is shared between the threads (see `threads`).

There are two ways. Few tokens (decoding): every thread computes the row-wise parts of all tokens for itself, and the
rows of each matrix are shared. Many (prefill): tiles of tokens are shared, each with all rows of a layer's matrices and
up to the keys and values of the next layer. Both call the same kernels, so they agree bit for bit.
"""

from __future__ import annotations

from nanochat_tui.engine.kernels.attending import attend_rows
from nanochat_tui.engine.kernels.forward import (
    attend_tiles,
    cache_rows,
    choose_tokens,
    down_rows,
    embed_tokens,
    experts_down_rows,
    experts_up_rows,
    finish_tokens,
    output_rows,
    prepare_tokens,
    project,
    read_mixer,
    read_product,
    tiles_of,
    up_rows,
    write_tokens,
)
from nanochat_tui.engine.kernels.head import call_screen, head_inputs, table_rows
from nanochat_tui.engine.kernels.recurrence import convolve_channels, delta_heads
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.replies import advance_part
from nanochat_tui.engine.kernels.threads import end_step, next_piece, piece_done
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import get, put

PIECE_WEIGHTS = 1 << 20
"""Weights of a matrix from which on a share of its rows is cut into pieces: tens of microseconds each."""
MOST_PIECES = 8
"""Pieces of a share at most."""
MOST_TILE_PIECES = 2
"""Those of tiles of tokens: each reads all of a layer's weights."""


@compiled("i:Xii")
def cut(matrix, parts, crew):
    """Return into how many pieces a share of a matrix, or of one part of `parts` of it, is cut."""
    weights = get(matrix, s.MATRIX_BLOCKS) * s.ROW_BLOCK // parts * get(matrix, s.MATRIX_COLUMNS)
    return min(MOST_PIECES, max(1, weights // (crew * PIECE_WEIGHTS)))


@compiled("v:MTLiii")
def feed_tiles(model, thread, row, count, t0, step):
    """The feed-forward part of tiles of tokens, all rows."""
    prepare_tokens(model, thread, get(row, s.FFN_MIX), get(row, s.FFN_NORM), count, t0, step)
    if get(row, s.EXPERTS) > 0:
        project(model, thread, row + 8 * s.ROUTER_MATRIX, get(model, s.ROUTED), get(model, s.ROUTED_STRIDE), 0, 1,
                count, t0, step)  # fmt: skip
        choose_tokens(model, thread, row, count, t0, step)
        experts_up_rows(model, thread, row, 0, 1, count, t0, step)
        experts_down_rows(model, thread, row, 0, 1, count, t0, step)
    else:
        finish_tokens(model, thread, row + 8 * s.GATE_UP_MATRIX, get(row, s.ROTATE_FFN), count, t0, step)
        up_rows(model, thread, row, 0, 1, count, t0, step)
        read_product(model, thread, row, count, t0, step)
        down_rows(model, thread, row, 0, 1, count, t0, step)
    write_tokens(model, thread, get(row, s.FFN_MIX), count, t0, step)


@compiled("v:MJLTiiii")
def tiles_piece(model, job, layers, thread, layer, count, t0, step):
    """Finish layer - 1 for tiles of tokens and begin `layer`, up to its keys and values."""
    row = layers + (layer - 1) * 8 * s.LAYER_SLOTS
    if layer == 0:
        embed_tokens(model, job, thread, count, t0, step)
    else:
        if get(row, s.RECURRENT) == 0:
            attend_tiles(model, job, thread, row, count, t0, step)
        read_mixer(model, thread, row, count, t0, step)
        output_rows(model, thread, row, 0, 1, count, t0, step)
        write_tokens(model, thread, get(row, s.ATTENTION_MIX), count, t0, step)
        feed_tiles(model, thread, row, count, t0, step)
    if layer == get(model, s.LAYERS):
        return
    row += 8 * s.LAYER_SLOTS
    prepare_tokens(model, thread, get(row, s.ATTENTION_MIX), get(row, s.ATTENTION_NORM), count, t0, step)
    if get(row, s.RECURRENT) == 1:
        project(model, thread, row + 8 * s.SMALL_MATRIX, get(model, s.SMALL), get(model, s.SMALL_STRIDE), 0, 1,
                count, t0, step)  # fmt: skip
    matrix = row + 8 * s.QKV_MATRIX
    finish_tokens(model, thread, matrix, get(row, s.ROTATE_INPUT), count, t0, step)
    project(model, thread, matrix, get(model, s.QKV), get(model, s.QKV_STRIDE), 0, 1, count, t0, step)
    if get(row, s.RECURRENT) == 0:
        cache_rows(model, job, row, 0, 1, count, t0, step)


@compiled("i:Mi")
def attends_at_once(model, count):
    """Return whether a piece of attention reads only keys and values that it wrote itself, and older ones."""
    return 1 if count == 1 and get(model, s.HEADS) == get(model, s.KV_HEADS) else 0


@compiled("v:MJTLiiii")
def rows_piece(model, job, thread, row, step, count, part, parts):
    """Do a part of the rows of a step of one layer."""
    if step == s.QKV_STEP:
        project(model, thread, row + 8 * s.QKV_MATRIX, get(model, s.QKV), get(model, s.QKV_STRIDE), part, parts,
                count, 0, 1)  # fmt: skip
    elif step == s.OUTPUT_STEP:
        output_rows(model, thread, row, part, parts, count, 0, 1)
    elif step == s.CACHE_STEP:
        cache_rows(model, job, row, part, parts, count, 0, 1)
    elif step == s.ATTEND_STEP:
        if attends_at_once(model, count) == 1:
            cache_rows(model, job, row, part, parts, count, 0, 1)
        attend_rows(model, job, thread, row, 0, count, part, parts, get(model, s.QKV), get(model, s.ATTENTION))
    elif step == s.UP_STEP:
        up_rows(model, thread, row, part, parts, count, 0, 1)
    elif step == s.DOWN_STEP:
        down_rows(model, thread, row, part, parts, count, 0, 1)
    if get(row, s.RECURRENT) == 1:
        if step == s.SMALL_STEP:
            project(model, thread, row + 8 * s.SMALL_MATRIX, get(model, s.SMALL), get(model, s.SMALL_STRIDE), part,
                    parts, count, 0, 1)  # fmt: skip
        elif step == s.CONVOLVE_STEP:
            convolve_channels(model, job, row, part, parts, count)
        elif step == s.DELTA_STEP:
            delta_heads(model, job, thread, row, part, parts, count)
    if get(row, s.EXPERTS) > 0:
        if step == s.ROUTER_STEP:
            project(model, thread, row + 8 * s.ROUTER_MATRIX, get(model, s.ROUTED), get(model, s.ROUTED_STRIDE), part,
                    parts, count, 0, 1)  # fmt: skip
        elif step == s.EXPERTS_UP_STEP:
            experts_up_rows(model, thread, row, part, parts, count, 0, 1)
        elif step == s.EXPERTS_DOWN_STEP:
            experts_down_rows(model, thread, row, part, parts, count, 0, 1)


@compiled("i:MJLTiiii")
def shared_step(model, job, layers, thread, layer, step, count, each):
    """Do a step with all threads, cut into `each` pieces for every thread; return 0 if this thread is late."""
    pieces = each * get(thread, s.CREW)
    piece = next_piece(model, thread, each)
    while piece >= 0:
        if step == s.TILES_STEP:
            tiles_piece(model, job, layers, thread, layer, count, piece, pieces)
        elif step < s.HEAD_INPUT_STEP:
            rows_piece(model, job, thread, layers + layer * 8 * s.LAYER_SLOTS, step, count, piece, pieces)
        elif step == s.HEAD_INPUT_STEP:
            head_inputs(model, job, thread, piece, pieces, count)
        elif step == s.HEAD_STEP:
            table_rows(model, job, thread, piece, pieces, count)
        elif step == s.ADVANCE_STEP:
            advance_part(model, job, thread, piece, pieces)
        elif get(model, s.SCREEN_COLUMNS) > 0:
            # each piece is a share's, and works in the buffers of the share's own thread
            share = thread + (piece - get(thread, s.NUMBER)) * 8 * s.THREAD_SLOTS
            call_screen(get(model, s.SCREEN_CODE), model, share, piece, pieces, step - s.SCREEN_STEP, count,
                        get(job, s.LOGITS_OUT))  # fmt: skip
        piece_done(model, thread)
        piece = next_piece(model, thread, each)
    return end_step(model, thread, each)


@compiled("i:MJLTi")
def forward_tiles(model, job, layers, thread, count):
    """Run `count` tokens through all layers, tiles of them shared; return 0 if this thread is late."""
    each = max(1, min(MOST_TILE_PIECES, tiles_of(model, count) // (2 * get(thread, s.CREW))))
    for layer in range(get(model, s.LAYERS) + 1):
        if shared_step(model, job, layers, thread, layer, s.TILES_STEP, count, each) == 0:
            return 0
        if layer < get(model, s.LAYERS) and get(layers + layer * 8 * s.LAYER_SLOTS, s.RECURRENT) == 1:
            if shared_step(model, job, layers, thread, layer, s.CONVOLVE_STEP, count, 1) == 0:
                return 0
            if shared_step(model, job, layers, thread, layer, s.DELTA_STEP, count, 1) == 0:
                return 0
    return 1


@compiled("i:MJLTii")
def mix_tokens(model, job, layers, thread, layer, count):
    """Attention, or what a layer has in its place, and its output matrix; return 0 if this thread is late."""
    row, crew = layers + layer * 8 * s.LAYER_SLOTS, get(thread, s.CREW)
    matrix = row + 8 * s.QKV_MATRIX
    prepare_tokens(model, thread, get(row, s.ATTENTION_MIX), get(row, s.ATTENTION_NORM), count, 0, 1)
    if get(row, s.RECURRENT) == 1 and shared_step(model, job, layers, thread, layer, s.SMALL_STEP, count, 1) == 0:
        return 0
    finish_tokens(model, thread, matrix, get(row, s.ROTATE_INPUT), count, 0, 1)
    if shared_step(model, job, layers, thread, layer, s.QKV_STEP, count, cut(matrix, 1, crew)) == 0:
        return 0
    if get(row, s.RECURRENT) == 1:
        if shared_step(model, job, layers, thread, layer, s.CONVOLVE_STEP, count, 1) == 0:
            return 0
        if shared_step(model, job, layers, thread, layer, s.DELTA_STEP, count, 1) == 0:
            return 0
    else:
        apart = attends_at_once(model, count) == 0
        if apart and shared_step(model, job, layers, thread, layer, s.CACHE_STEP, count, 1) == 0:
            return 0
        if shared_step(model, job, layers, thread, layer, s.ATTEND_STEP, count, 1) == 0:
            return 0
    read_mixer(model, thread, row, count, 0, 1)
    matrix = row + 8 * s.OUTPUT_MATRIX
    return shared_step(model, job, layers, thread, layer, s.OUTPUT_STEP, count, cut(matrix, 1, crew))


@compiled("i:MJLTii")
def feed_tokens(model, job, layers, thread, layer, count):
    """The feed-forward part; return 0 if this thread is late."""
    row, crew = layers + layer * 8 * s.LAYER_SLOTS, get(thread, s.CREW)
    matrix, down = row + 8 * s.GATE_UP_MATRIX, row + 8 * s.DOWN_MATRIX
    prepare_tokens(model, thread, get(row, s.FFN_MIX), get(row, s.FFN_NORM), count, 0, 1)
    if get(row, s.EXPERTS) > 0:
        if shared_step(model, job, layers, thread, layer, s.ROUTER_STEP, count, 1) == 0:
            return 0
        choose_tokens(model, thread, row, count, 0, 1)
        experts, used = get(row, s.EXPERTS), get(row, s.EXPERTS_USED)
        each = min(MOST_PIECES, cut(matrix, max(1, experts // used), crew))
        if shared_step(model, job, layers, thread, layer, s.EXPERTS_UP_STEP, count, each) == 0:
            return 0
        return shared_step(model, job, layers, thread, layer, s.EXPERTS_DOWN_STEP, count, each)
    finish_tokens(model, thread, matrix, get(row, s.ROTATE_FFN), count, 0, 1)
    if shared_step(model, job, layers, thread, layer, s.UP_STEP, count, cut(matrix, 1, crew)) == 0:
        return 0
    read_product(model, thread, row, count, 0, 1)
    return shared_step(model, job, layers, thread, layer, s.DOWN_STEP, count, cut(down, 1, crew))


@compiled("i:MJLTi")
def forward_rows(model, job, layers, thread, count):
    """Run `count` tokens through all layers, rows of the matrices shared; return 0 if this thread is late."""
    embed_tokens(model, job, thread, count, 0, 1)
    for layer in range(get(model, s.LAYERS)):
        row = layers + layer * 8 * s.LAYER_SLOTS
        if mix_tokens(model, job, layers, thread, layer, count) == 0:
            return 0
        write_tokens(model, thread, get(row, s.ATTENTION_MIX), count, 0, 1)
        if feed_tokens(model, job, layers, thread, layer, count) == 0:
            return 0
        write_tokens(model, thread, get(row, s.FFN_MIX), count, 0, 1)
    return 1


@compiled("i:MJLTii")
def row_logits(model, job, layers, thread, count, wanted):
    """Compute the logits of those of `count` tokens that want them, and what the sampler needs of them.

    Logits go to the job's buffer, float32 [wanted][vocab padded]; `wanted` below 0 asks for final states only, which
    are there before. Returns 0 if this thread is late.
    """
    best = get(thread, s.BEST_NOW)
    if shared_step(model, job, layers, thread, 0, s.HEAD_INPUT_STEP, count, 1) == 0:
        return 0
    if wanted < 0:
        return 1
    if get(model, s.SCREEN_COLUMNS) > 0 and best > 0:
        for phase in range(3):
            if shared_step(model, job, layers, thread, 0, s.SCREEN_STEP + phase, best, 1) == 0:
                return 0
        return 1
    each = cut(get(model, s.HEAD_MATRIX), 1, get(thread, s.CREW))
    return shared_step(model, job, layers, thread, 0, s.HEAD_STEP, wanted, each)


@compiled("i:MJLTiiii")
def run_pass(model, job, layers, thread, count, by_rows, wanted, sequences):
    """Run one pass, with all replies' next tokens if there are several; return 0 if this thread is late."""
    put(thread, s.STREAMS_NOW, get(thread, s.X))
    put(thread, s.OWN_STREAMS, by_rows)
    if by_rows == 1:
        if forward_rows(model, job, layers, thread, count) == 0:
            return 0
    else:
        # what one thread begins another may go on with
        put(thread, s.STREAMS_NOW, get(thread - get(thread, s.NUMBER) * 8 * s.THREAD_SLOTS, s.X))
        if forward_tiles(model, job, layers, thread, count) == 0:
            return 0
    if wanted != 0 and row_logits(model, job, layers, thread, count, wanted) == 0:
        return 0
    if sequences > 1:
        return shared_step(model, job, layers, thread, 0, s.ADVANCE_STEP, sequences, 1)
    return 1
