"""The parts of a forward pass: what a thread prepares for a step of it, and what it does for a piece of one.

A row of the job's table says of each token which it is, where it stands and which pages hold its sequence's keys and
values (see `slots`). Every part takes tiles t0, t0 + step … of the `count` tokens, and what writes a matrix' outputs
takes part `part` of `parts` of its rows. See `passes` for how they are put together.
"""

from __future__ import annotations

from nanochat_tui.engine.kernels.activations import quantise_for
from nanochat_tui.engine.kernels.attending import attend_rows, cache_tokens, row_of
from nanochat_tui.engine.kernels.experts import choose_experts, experts_down, experts_up
from nanochat_tui.engine.kernels.linear import tile_of
from nanochat_tui.engine.kernels.products import activate, product, rotate_row, round_single, takes_floats
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.rows import matrix_row
from nanochat_tui.engine.kernels.rowwise import multiply, sigmoid_multiply, walsh_hadamard
from nanochat_tui.engine.kernels.vectors import (
    mix_read_1,
    mix_read_2,
    mix_read_4,
    mix_write_1,
    mix_write_2,
    mix_write_4,
    rms_norm,
)
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import f32_from_bits, get, load_f32, store_f32


@compiled("v:iiiii")
def mix_read(streams, x, out, mix, dim):
    """Dispatch on the number of streams."""
    if streams == 2:
        mix_read_2(x, out, mix, dim)
    elif streams == 1:
        mix_read_1(x, out, mix, dim)
    else:
        mix_read_4(x, out, mix, dim)


@compiled("v:iiiii")
def mix_write(streams, x, y, mix, dim):
    """Dispatch on the number of streams."""
    if streams == 2:
        mix_write_2(x, y, mix, dim)
    elif streams == 1:
        mix_write_1(x, y, mix, dim)
    else:
        mix_write_4(x, y, mix, dim)


@compiled("v:Mii")
def embed(model, token, out):
    """Write one row of the embedding table as float32 [dim]."""
    matrix_row(get(model, s.EMBEDDING_MATRIX), token, out)
    factors, dim = get(model, s.ROTATE_EMBEDDING), get(model, s.DIM)
    if factors != 0:
        # the inverse of a rotation that was folded into the table
        walsh_hadamard(out, dim, get(model, s.ROTATION_BITS))
        multiply(out, factors, out, dim)


@compiled("v:MTiiii")
def prepare(model, thread, streams, mix, norm, token):
    """Read one token from the streams and normalise it; leaves the float row in MIXED."""
    dim = get(model, s.DIM)
    row = get(thread, s.MIXED) + token * dim * 4
    mix_read(streams, get(thread, s.STREAMS_NOW) + token * streams * dim * 4, row, mix, dim)
    rms_norm(row, norm, row, dim, f32_from_bits(get(model, s.EPSILON_BITS)))


@compiled("v:MTXiii")
def round_input(model, thread, matrix, row, token, count):
    """Quantise a row into the thread's int8 tiles, if the matrix takes integers."""
    if takes_floats(matrix) == 0:
        quantise_for(
            matrix, row, tile_of(model, count), token, get(thread, s.X8), get(thread, s.INIT), get(thread, s.SCALE),
            get(model, s.TOKEN_SCALES),
        )  # fmt: skip


@compiled("v:MTXiii")
def finish_input(model, thread, matrix, rotation, token, count):
    """Rotate a token's row in MIXED and quantise it for a matrix."""
    row = get(thread, s.MIXED) + token * get(model, s.DIM) * 4
    rotate_row(model, row, rotation, get(model, s.DIM))
    round_input(model, thread, matrix, row, token, count)


@compiled("v:MTiiiiXii")
def read_rows(model, thread, shared, gates, norm, rotation, matrix, token, count):
    """Quantise one token's row of a shared buffer for a matrix: gated, normalised and rotated first if asked.

    What changes the row does so in MIXED, because other threads read the same row.
    """
    width = get(matrix, s.MATRIX_COLUMNS)
    row, mixed = shared + token * width * 4, get(thread, s.MIXED) + token * width * 4
    if gates != 0:
        sigmoid_multiply(row, gates + token * get(model, s.QKV_STRIDE), mixed, width)
        row = mixed
    if norm != 0:
        rms_norm(row, norm, mixed, width, f32_from_bits(get(model, s.EPSILON_BITS)))
        row = mixed
    if rotation != 0:
        multiply(row, rotation, mixed, width)
        walsh_hadamard(mixed, width, get(model, s.ROTATION_BITS))
        row = mixed
    round_input(model, thread, matrix, row, token, count)


@compiled("i:Mi")
def tiles_of(model, count):
    """Return how many tiles hold `count` tokens."""
    tile = tile_of(model, count)
    return (count + tile - 1) // tile


@compiled("v:MJTiii")
def embed_tokens(model, job, thread, count, t0, step):
    """Fill the streams with the tokens' rows of the embedding table."""
    dim, streams, tile = get(model, s.DIM), get(model, s.STREAMS), tile_of(model, count)
    for t in range(t0, tiles_of(model, count), step):
        for token in range(t * tile, min(t * tile + tile, count)):
            x = get(thread, s.STREAMS_NOW) + token * streams * dim * 4
            embed(model, get(row_of(job, token), s.TOKEN), x)
            for stream in range(1, streams):
                for i in range(dim):
                    store_f32(x + (stream * dim + i) * 4, load_f32(x + i * 4))


@compiled("v:MTiiiii")
def prepare_tokens(model, thread, mix, norm, count, t0, step):
    """Read the tokens' streams and normalise them, into MIXED."""
    tile = tile_of(model, count)
    for t in range(t0, tiles_of(model, count), step):
        for token in range(t * tile, min(t * tile + tile, count)):
            prepare(model, thread, get(model, s.STREAMS), mix, norm, token)


@compiled("v:MTXiiii")
def finish_tokens(model, thread, matrix, rotation, count, t0, step):
    """Rotate and quantise the tokens' rows in MIXED for a matrix."""
    tile = tile_of(model, count)
    for t in range(t0, tiles_of(model, count), step):
        for token in range(t * tile, min(t * tile + tile, count)):
            finish_input(model, thread, matrix, rotation, token, count)


@compiled("v:MTiiii")
def write_tokens(model, thread, mix, count, t0, step):
    """Add what attention or the feed-forward part left in PROJECTION to the tokens' streams."""
    dim, streams, tile = get(model, s.DIM), get(model, s.STREAMS), tile_of(model, count)
    for t in range(t0, tiles_of(model, count), step):
        for token in range(t * tile, min(t * tile + tile, count)):
            x = get(thread, s.STREAMS_NOW) + token * streams * dim * 4
            mix_write(streams, x, get(model, s.PROJECTION) + token * dim * 4, mix, dim)


@compiled("v:MTXiiiiiii")
def project(model, thread, matrix, y, stride, part, parts, count, t0, step):
    """Multiply the tokens in MIXED by a matrix, into rows y that are `stride` bytes apart."""
    blocks = get(matrix, s.MATRIX_BLOCKS)
    product(model, thread, matrix, get(thread, s.MIXED), y, stride, blocks * part // parts,
            blocks * (part + 1) // parts, count, t0, tiles_of(model, count), step)  # fmt: skip


@compiled("v:MJLiiiii")
def cache_rows(model, job, layer_row, part, parts, count, t0, step):
    """Write keys and values of a part of the heads into the cache."""
    kv_heads, tile = get(model, s.KV_HEADS), tile_of(model, count)
    first, last = kv_heads * part // parts, kv_heads * (part + 1) // parts
    for t in range(t0, tiles_of(model, count), step):
        cache_tokens(model, job, layer_row, t * tile, min(t * tile + tile, count), first, last, get(model, s.QKV))


@compiled("v:MJTLiii")
def attend_tiles(model, job, thread, layer_row, count, t0, step):
    """Attention of the tokens with all heads; result in the attention buffer."""
    tile = tile_of(model, count)
    for t in range(t0, tiles_of(model, count), step):
        attend_rows(model, job, thread, layer_row, t * tile, min(t * tile + tile, count), 0, 1,
                    get(model, s.QKV), get(model, s.ATTENTION))  # fmt: skip


@compiled("v:MTLiii")
def read_mixer(model, thread, layer_row, count, t0, step):
    """Quantise what attention or a recurrence left, for the output matrix."""
    tile, gates = tile_of(model, count), 0
    if get(layer_row, s.RECURRENT) == 0 and get(layer_row, s.GATED) == 1:
        width = get(model, s.QUERY_WIDTH) + 2 * get(model, s.KV_HEADS) * get(model, s.HEAD_DIM)
        gates = get(model, s.QKV) + width * 4
    norm, rotation = get(layer_row, s.ATTENTION_SUB_NORM), get(layer_row, s.ROTATE_OUTPUT)
    for t in range(t0, tiles_of(model, count), step):
        for token in range(t * tile, min(t * tile + tile, count)):
            read_rows(model, thread, get(model, s.ATTENTION), gates, norm, rotation,
                      layer_row + 8 * s.OUTPUT_MATRIX, token, count)  # fmt: skip


@compiled("v:MTLiiiii")
def output_rows(model, thread, layer_row, part, parts, count, t0, step):
    """Multiply by the output matrix, into PROJECTION."""
    blocks, source = get(model, s.DIM) // 16, get(model, s.ATTENTION)
    if get(layer_row, s.RECURRENT) == 0 and get(layer_row, s.GATED) == 1:
        source = get(thread, s.MIXED)
    if get(layer_row, s.ATTENTION_SUB_NORM) != 0 or get(layer_row, s.ROTATE_OUTPUT) != 0:
        source = get(thread, s.MIXED)
    product(model, thread, layer_row + 8 * s.OUTPUT_MATRIX, source, get(model, s.PROJECTION), get(model, s.DIM) * 4,
            blocks * part // parts, blocks * (part + 1) // parts, count, t0, tiles_of(model, count), step)  # fmt: skip


@compiled("v:MTLiiiii")
def up_rows(model, thread, layer_row, part, parts, count, t0, step):
    """Leave activation(gate) · up of the tokens whose rows are quantised in PRODUCT."""
    hidden, gate_up, tile = get(model, s.HIDDEN), get(model, s.GATE_UP), tile_of(model, count)
    blocks, tiles = hidden // 16, tiles_of(model, count)
    f0, f1 = blocks * part // parts, blocks * (part + 1) // parts
    for side in range(2):
        product(model, thread, layer_row + 8 * s.GATE_UP_MATRIX, get(thread, s.MIXED), gate_up, 2 * hidden * 4,
                side * blocks + f0, side * blocks + f1, count, t0, tiles, step)  # fmt: skip
    for t in range(t0, tiles, step):
        for token in range(t * tile, min(t * tile + tile, count)):
            gate = gate_up + (token * 2 * hidden + f0 * 16) * 4
            out = get(model, s.PRODUCT) + (token * hidden + f0 * 16) * 4
            activate(layer_row, gate, gate + hidden * 4, out, (f1 - f0) * 16)


@compiled("v:MTLiii")
def read_product(model, thread, layer_row, count, t0, step):
    """Quantise PRODUCT for the down matrix."""
    tile = tile_of(model, count)
    for t in range(t0, tiles_of(model, count), step):
        for token in range(t * tile, min(t * tile + tile, count)):
            read_rows(model, thread, get(model, s.PRODUCT), 0, get(layer_row, s.FFN_SUB_NORM),
                      get(layer_row, s.ROTATE_DOWN), layer_row + 8 * s.DOWN_MATRIX, token, count)  # fmt: skip


@compiled("v:MTLiiiii")
def down_rows(model, thread, layer_row, part, parts, count, t0, step):
    """Multiply by the down matrix, into PROJECTION."""
    blocks, source = get(model, s.DIM) // 16, get(model, s.PRODUCT)
    if get(layer_row, s.FFN_SUB_NORM) != 0 or get(layer_row, s.ROTATE_DOWN) != 0:
        source = get(thread, s.MIXED)
    product(model, thread, layer_row + 8 * s.DOWN_MATRIX, source, get(model, s.PROJECTION), get(model, s.DIM) * 4,
            blocks * part // parts, blocks * (part + 1) // parts, count, t0, tiles_of(model, count), step)  # fmt: skip


@compiled("v:MTLiii")
def choose_tokens(model, thread, layer_row, count, t0, step):
    """Choose each token's experts by what the router said of its unrounded row, and quantise the row for them."""
    matrix, tile = layer_row + 8 * s.GATE_UP_MATRIX, tile_of(model, count)
    for t in range(t0, tiles_of(model, count), step):
        for token in range(t * tile, min(t * tile + tile, count)):
            choose_experts(model, thread, layer_row, token)
            if takes_floats(matrix) == 0:
                round_single(model, thread, get(thread, s.MIXED) + token * get(model, s.DIM) * 4, token, matrix)


@compiled("v:MTLiiiii")
def experts_up_rows(model, thread, layer_row, part, parts, count, t0, step):
    """Leave activation(gate) · up of every token's experts in PRODUCT."""
    blocks, tile = get(model, s.HIDDEN) // 16, tile_of(model, count)
    for t in range(t0, tiles_of(model, count), step):
        for token in range(t * tile, min(t * tile + tile, count)):
            row = get(thread, s.MIXED) + token * get(model, s.DIM) * 4
            experts_up(model, thread, layer_row, token, row, blocks * part // parts, blocks * (part + 1) // parts)


@compiled("v:MTLiiiii")
def experts_down_rows(model, thread, layer_row, part, parts, count, t0, step):
    """Add up what every token's experts say in PROJECTION."""
    blocks, tile = get(model, s.DIM) // 16, tile_of(model, count)
    for t in range(t0, tiles_of(model, count), step):
        for token in range(t * tile, min(t * tile + tile, count)):
            experts_down(model, thread, layer_row, token, blocks * part // parts, blocks * (part + 1) // parts)
