"""The forward pass of a batch of tokens, each of any sequence and position.

A row of the job's table says of each token which it is, where it stands and which pages hold its sequence's keys and
values (see `slots`). Work is shared between threads in one of two ways. Few tokens (decoding): every thread
computes the row-wise parts of all tokens for itself and its share of the rows of each matrix. Many (prefill): every
thread has its own tiles of tokens and all rows. Both call the same kernels, so they agree bit for bit.
"""

from __future__ import annotations

from nanochat_tui.engine.kernels import kinds as k
from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.kernels.attention import (
    attend_1_f16,
    attend_1_f32,
    attend_1_int8,
    attend_2_f16,
    attend_2_f32,
    attend_2_int8,
    attend_4_f16,
    attend_4_int8,
    attend_8_f16,
    attend_8_int8,
    attend_begin,
    attend_end,
    scale_query,
    store_key,
    store_value,
)
from nanochat_tui.engine.kernels.experts import choose_experts, experts_down, experts_up
from nanochat_tui.engine.kernels.linear import tile_of
from nanochat_tui.engine.kernels.products import activate, product, rotate_row, round_single, takes_floats
from nanochat_tui.engine.kernels.recurrence import delta_net
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.rows import matrix_row
from nanochat_tui.engine.kernels.rowwise import multiply, sigmoid_multiply, walsh_hadamard
from nanochat_tui.engine.kernels.threads import barrier
from nanochat_tui.engine.kernels.vectors import (
    mix_read_1,
    mix_read_2,
    mix_read_4,
    mix_write_1,
    mix_write_2,
    mix_write_4,
    quantise,
    rms_norm,
    rope,
)
from nanochat_tui.engine.simd.intrinsics import (
    f32_from_bits,
    get,
    load_f32,
    load_i32,
    load_i64,
    store_f32,
    store_i32,
)


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


@compiled("v:iii")
def embed(model, token, out):
    """Write one row of the embedding table as float32 [dim]."""
    matrix_row(get(model, s.EMBEDDING_MATRIX), token, out)
    factors, dim = get(model, s.ROTATE_EMBEDDING), get(model, s.DIM)
    if factors != 0:
        # the inverse of a rotation that was folded into the table
        walsh_hadamard(out, dim, get(model, s.ROTATION_BITS))
        multiply(out, factors, out, dim)


@compiled("v:iiiiiiiiiii")
def round_row(model, x8, init, scales, row, n, padded, token, count, block, factor):
    """Quantise a row into its place in the thread's int8 tiles."""
    tile = tile_of(model, count)
    index, lane = token // tile, token % tile
    quantise(
        row,
        n,
        padded,
        x8 + index * tile * padded + lane * 4,
        tile * 4,
        init + (index * tile * (padded // block) + lane) * 4,
        tile * 4,
        factor,
        scales + token * 4,
        block,
    )


@compiled("v:iiiiii")
def prepare(model, thread, streams, mix, norm, token):
    """Read one token from the streams and normalise it; leaves the float row in MIXED."""
    dim = get(model, s.DIM)
    row = get(thread, s.MIXED) + token * dim * 4
    mix_read(streams, get(thread, s.X) + token * streams * dim * 4, row, mix, dim)
    rms_norm(row, norm, row, dim, f32_from_bits(get(model, s.EPSILON_BITS)))


@compiled("v:iiiiii")
def round_input(model, thread, matrix, row, token, count):
    """Quantise a row into the thread's int8 tiles, if the matrix takes integers."""
    if takes_floats(matrix) == 0:
        round_row(
            model, get(thread, s.X8), get(thread, s.INIT), get(thread, s.SCALE), row, get(matrix, k.COLUMNS),
            get(matrix, k.PADDED), token, count, get(model, s.GROUP), 1,
        )  # fmt: skip


@compiled("v:iiiiii")
def finish_input(model, thread, matrix, rotation, token, count):
    """Rotate a token's row in MIXED and quantise it for a matrix."""
    row = get(thread, s.MIXED) + token * get(model, s.DIM) * 4
    rotate_row(model, row, rotation, get(model, s.DIM))
    round_input(model, thread, matrix, row, token, count)


@compiled("v:iiiiiiiii")
def read_rows(model, thread, shared, gates, norm, rotation, matrix, token, count):
    """Quantise one token's row of a shared buffer for a matrix: gated, normalised and rotated first if asked.

    What changes the row does so in MIXED, because other threads read the same row.
    """
    width = get(matrix, k.COLUMNS)
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


@compiled("i:ii")
def row_of(job, token):
    """Return the address of a token's row."""
    return get(job, s.ROWS) + token * 8 * s.ROW_SLOTS


@compiled("i:iiii")
def page_of(job, row, layer_row, page):
    """Return the address of a layer's part of one page of a row's sequence."""
    return load_i64(get(row, s.PAGES) + page * 8) + get(layer_row, s.KV_LAYER) * get(job, s.LAYER_KV_BYTES)


@compiled("v:iiiiiiii")
def cache_tokens(model, job, layer_row, token0, token1, first_head, last_head, qkv):
    """Normalise and rotate the keys of tokens token0..token1, and write keys and values into their pages."""
    head_dim, padded = get(model, s.HEAD_DIM), get(model, s.HEAD_PADDED)
    kv_width, rotary = get(model, s.KV_HEADS) * head_dim, get(layer_row, s.ROTARY)
    for token in range(token0, token1):
        row = row_of(job, token)
        position = get(row, s.POSITION)
        place = position % s.PAGE
        keys = qkv + token * get(model, s.QKV_STRIDE) + get(model, s.QUERY_WIDTH) * 4
        for head in range(first_head, last_head):
            key = keys + head * head_dim * 4
            if get(layer_row, s.KEY_NORM) != 0:
                rms_norm(key, get(layer_row, s.KEY_NORM), key, head_dim, f32_from_bits(get(model, s.EPSILON_BITS)))
            rope(key, get(layer_row, s.ROPE_TABLE) + position * rotary * 4, rotary)
            page = page_of(job, row, layer_row, position // s.PAGE) + head * get(job, s.HEAD_KV_BYTES)
            kind = get(job, s.KV_KIND)
            store_key(key, page, place, head_dim, page + get(job, s.KEY_SCALE_OFFSET), kind)
            store_value(key + kv_width * 4, page + get(job, s.VALUE_OFFSET), place, head_dim, padded,
                        page + get(job, s.VALUE_SCALE_OFFSET), kind)  # fmt: skip


@compiled("v:iiiiiiiiiii")
def attend_page(kind, n, q, limits, state, weights, page, base, shown, head_dim, padded):
    """Let n queries, a power of two, see one page."""
    if kind == s.KV_F16:
        if n == 8:
            attend_8_f16(q, limits, state, weights, page, base, shown, head_dim, padded)
        elif n == 4:
            attend_4_f16(q, limits, state, weights, page, base, shown, head_dim, padded)
        elif n == 2:
            attend_2_f16(q, limits, state, weights, page, base, shown, head_dim, padded)
        else:
            attend_1_f16(q, limits, state, weights, page, base, shown, head_dim, padded)
    elif kind == s.KV_INT8:
        if n == 8:
            attend_8_int8(q, limits, state, weights, page, base, shown, head_dim, padded)
        elif n == 4:
            attend_4_int8(q, limits, state, weights, page, base, shown, head_dim, padded)
        elif n == 2:
            attend_2_int8(q, limits, state, weights, page, base, shown, head_dim, padded)
        else:
            attend_1_int8(q, limits, state, weights, page, base, shown, head_dim, padded)
    elif n == 2:
        attend_2_f32(q, limits, state, weights, page, base, shown, head_dim, padded)
    else:
        attend_1_f32(q, limits, state, weights, page, base, shown, head_dim, padded)


@compiled("v:iiiiiiiiii")
def attend(model, job, thread, layer_row, token0, token1, first_head, last_head, qkv, out):
    """Attention of some query heads for tokens at consecutive positions of one sequence; out float32 [token][heads].

    All queries that share a kv head see a page before the next one is read.
    """
    head_dim, padded = get(model, s.HEAD_DIM), get(model, s.HEAD_PADDED)
    per_kv, kind = get(model, s.HEADS) // get(model, s.KV_HEADS), get(job, s.KV_KIND)
    queries, limits = get(thread, s.QUERY), get(thread, s.LIMITS)
    states, weights = get(thread, s.STATE), get(thread, s.WEIGHTS)
    state_bytes = (s.STATE_FLOATS + padded) * 4
    most = 2 if kind == s.KV_F32 else get(model, s.QUERIES)
    rotary, window = get(layer_row, s.ROTARY), get(layer_row, s.WINDOW)
    row = row_of(job, token0)
    position, tokens = get(row, s.POSITION), token1 - token0
    for kv_head in range(first_head // per_kv, (last_head + per_kv - 1) // per_kv):
        head0, head1 = max(first_head, kv_head * per_kv), min(last_head, (kv_head + 1) * per_kv)
        heads = head1 - head0
        n = heads * tokens
        for i in range(n):
            token, here = token0 + i // heads, position + i // heads
            q = qkv + token * get(model, s.QKV_STRIDE) + (head0 + i % heads) * head_dim * 4
            if get(layer_row, s.QUERY_NORM) != 0:
                rms_norm(q, get(layer_row, s.QUERY_NORM), q, head_dim, f32_from_bits(get(model, s.EPSILON_BITS)))
            rope(q, get(layer_row, s.ROPE_TABLE) + here * rotary * 4, rotary)
            scale_query(q, queries + i * head_dim * 4, head_dim, f32_from_bits(get(model, s.QUERY_SCALE_BITS)))
            first = max(0, here + 1 - window) if window > 0 else 0
            store_i32(limits + i * 8, first)
            store_i32(limits + i * 8 + 4, here + 1 - first)
        attend_begin(states, n, padded)
        for index in range(load_i32(limits) // s.PAGE, (position + tokens - 1) // s.PAGE + 1):
            page, base = page_of(job, row, layer_row, index) + kv_head * get(job, s.HEAD_KV_BYTES), index * s.PAGE
            i = 0
            while i < n:
                some = most
                while some > n - i:
                    some //= 2
                # the last of them sees the most
                shown = min(s.PAGE, position + (i + some - 1) // heads + 1 - base)
                if shown > 0:
                    attend_page(kind, some, queries + i * head_dim * 4, limits + i * 8,
                                states + i * state_bytes, weights, page, base, shown, head_dim, padded)  # fmt: skip
                i += some
        for i in range(n):
            place = out + ((token0 + i // heads) * get(model, s.QUERY_WIDTH) + (head0 + i % heads) * head_dim) * 4
            attend_end(states + i * state_bytes, place, head_dim)


@compiled("i:iii")
def group_end(job, token, end):
    """Return the end of the tokens from `token` on that are consecutive ones of a sequence, before `end`."""
    row = row_of(job, token)
    last = token + 1
    while last < end and last - token < s.GROUP_ROWS:
        other = row_of(job, last)
        if get(other, s.PAGES) != get(row, s.PAGES) or get(other, s.POSITION) != get(row, s.POSITION) + last - token:
            break
        last += 1
    return last


@compiled("v:iiiiiiiiii")
def attend_rows(model, job, thread, layer_row, token0, token1, part, parts, qkv, out):
    """Attention of one part of all heads of tokens token0..token1, which may be of several sequences."""
    heads = get(model, s.HEADS)
    groups, token = 0, token0
    while token < token1:
        token = group_end(job, token, token1)
        groups += 1
    first, last = groups * heads * part // parts, groups * heads * (part + 1) // parts
    token = token0
    for group in range(groups):
        end = group_end(job, token, token1)
        head0, head1 = max(0, first - group * heads), min(heads, last - group * heads)
        if head0 < head1:
            attend(model, job, thread, layer_row, token, end, head0, head1, qkv, out)
        token = end


@compiled("v:iiiiiiiii")
def feed_forward(model, thread, layer_row, part, parts, count, t0, tiles, step):
    """activation(gate) · up, then down, of the tokens whose normalised rows are in MIXED; result in PROJECTION."""
    dim, hidden, mixed = get(model, s.DIM), get(model, s.HIDDEN), get(thread, s.MIXED)
    gate_up, result = get(model, s.GATE_UP), get(model, s.PRODUCT)
    up_matrix, down_matrix = layer_row + 8 * s.GATE_UP_MATRIX, layer_row + 8 * s.DOWN_MATRIX
    tile = tile_of(model, count)
    blocks, dim_blocks = hidden // 16, dim // 16
    f0, f1 = blocks * part // parts, blocks * (part + 1) // parts
    for t in range(t0, tiles, step):
        for token in range(t * tile, min(t * tile + tile, count)):
            finish_input(model, thread, up_matrix, get(layer_row, s.ROTATE_FFN), token, count)
    for side in range(2):
        product(model, thread, up_matrix, mixed, gate_up, 2 * hidden * 4, side * blocks + f0, side * blocks + f1,
                count, t0, tiles, step)  # fmt: skip
    for t in range(t0, tiles, step):
        for token in range(t * tile, min(t * tile + tile, count)):
            gate = gate_up + (token * 2 * hidden + f0 * 16) * 4
            activate(layer_row, gate, gate + hidden * 4, result + (token * hidden + f0 * 16) * 4, (f1 - f0) * 16)
    barrier(get(model, s.CONTROL), parts)
    norm, rotation = get(layer_row, s.FFN_SUB_NORM), get(layer_row, s.ROTATE_DOWN)
    source = mixed if norm != 0 or rotation != 0 else result
    for t in range(t0, tiles, step):
        for token in range(t * tile, min(t * tile + tile, count)):
            read_rows(model, thread, result, 0, norm, rotation, down_matrix, token, count)
    product(model, thread, down_matrix, source, get(model, s.PROJECTION), dim * 4, dim_blocks * part // parts,
            dim_blocks * (part + 1) // parts, count, t0, tiles, step)  # fmt: skip


@compiled("v:iiiiiiiii")
def expert_feed_forward(model, thread, layer_row, part, parts, count, t0, tiles, step):
    """The same with experts, chosen by a router that reads the row before it is rounded."""
    dim, mixed = get(model, s.DIM), get(thread, s.MIXED)
    router, up_matrix = layer_row + 8 * s.ROUTER_MATRIX, layer_row + 8 * s.GATE_UP_MATRIX
    control, tile = get(model, s.CONTROL), tile_of(model, count)
    routed, blocks, dim_blocks = get(router, s.MATRIX_BLOCKS), get(model, s.HIDDEN) // 16, dim // 16
    product(model, thread, router, mixed, get(model, s.ROUTED), get(model, s.ROUTED_STRIDE),
            routed * part // parts, routed * (part + 1) // parts, count, t0, tiles, step)  # fmt: skip
    barrier(control, parts)
    for t in range(t0, tiles, step):
        for token in range(t * tile, min(t * tile + tile, count)):
            row = mixed + token * dim * 4
            choose_experts(model, thread, layer_row, token)
            if takes_floats(up_matrix) == 0:
                round_single(model, thread, row, token, up_matrix)
            experts_up(model, thread, layer_row, token, row, blocks * part // parts, blocks * (part + 1) // parts)
    barrier(control, parts)
    for t in range(t0, tiles, step):
        for token in range(t * tile, min(t * tile + tile, count)):
            experts_down(model, thread, layer_row, token, dim_blocks * part // parts,
                         dim_blocks * (part + 1) // parts)  # fmt: skip


@compiled("v:iiiiiiiiiiiii")
def attention(model, job, thread, layer_row, tid, by_rows, count, tile, t0, tiles, step, part, parts):
    """Keys and values into the cache, then attention of the job's tokens; result in the attention buffer."""
    control, threads = get(model, s.CONTROL), get(model, s.THREADS)
    heads, kv_heads = get(model, s.HEADS), get(model, s.KV_HEADS)
    qkv, out = get(model, s.QKV), get(model, s.ATTENTION)
    k0, k1 = kv_heads * part // parts, kv_heads * (part + 1) // parts
    barrier(control, parts)
    for t in range(t0, tiles, step):
        cache_tokens(model, job, layer_row, t * tile, min(t * tile + tile, count), k0, k1, qkv)
    # one token with as many key heads as query heads: a thread reads only what it wrote itself
    barrier(control, threads if by_rows == 0 or count > 1 or heads != kv_heads else 1)
    if by_rows == 1:
        attend_rows(model, job, thread, layer_row, 0, count, part, parts, qkv, out)
    else:
        for t in range(t0, tiles, step):
            attend_rows(model, job, thread, layer_row, t * tile, min(t * tile + tile, count), 0, 1, qkv, out)
    barrier(control, parts)


@compiled("v:iiiiiii")
def forward(model, job, layers, thread, tid, count, by_rows):
    """Run the first `count` tokens of the job's table through all blocks; leaves the streams in the thread's X.

    by_rows: 1 shares rows between threads, 0 shares tiles of tokens.
    """
    dim, streams = get(model, s.DIM), get(model, s.STREAMS)
    control, threads, mixed = get(model, s.CONTROL), get(model, s.THREADS), get(thread, s.MIXED)
    qkv, qkv_stride, projection = get(model, s.QKV), get(model, s.QKV_STRIDE), get(model, s.PROJECTION)
    mixer_out = get(model, s.ATTENTION)

    tile = tile_of(model, count)
    tiles = (count + tile - 1) // tile
    t0, step, part, parts = tid, threads, 0, 1
    if by_rows == 1:
        t0, step, part, parts = 0, 1, tid, threads
    d0, d1 = dim // 16 * part // parts, dim // 16 * (part + 1) // parts

    for t in range(t0, tiles, step):
        for token in range(t * tile, min(t * tile + tile, count)):
            x = get(thread, s.X) + token * streams * dim * 4
            embed(model, get(row_of(job, token), s.TOKEN), x)
            for stream in range(1, streams):
                for i in range(dim):
                    store_f32(x + (stream * dim + i) * 4, load_f32(x + i * 4))
    for layer in range(get(model, s.LAYERS)):
        row = layers + layer * 8 * s.LAYER_SLOTS
        matrix, recurrent = row + 8 * s.QKV_MATRIX, get(row, s.RECURRENT)
        for t in range(t0, tiles, step):
            for token in range(t * tile, min(t * tile + tile, count)):
                prepare(model, thread, streams, get(row, s.ATTENTION_MIX), get(row, s.ATTENTION_NORM), token)
        if recurrent == 1:
            small = row + 8 * s.SMALL_MATRIX
            blocks = get(small, s.MATRIX_BLOCKS)
            product(model, thread, small, mixed, get(model, s.SMALL), get(model, s.SMALL_STRIDE),
                    blocks * part // parts, blocks * (part + 1) // parts, count, t0, tiles, step)  # fmt: skip
        for t in range(t0, tiles, step):
            for token in range(t * tile, min(t * tile + tile, count)):
                finish_input(model, thread, matrix, get(row, s.ROTATE_INPUT), token, count)
        blocks = get(matrix, s.MATRIX_BLOCKS)
        product(model, thread, matrix, mixed, qkv, qkv_stride, blocks * part // parts, blocks * (part + 1) // parts,
                count, t0, tiles, step)  # fmt: skip
        gates = 0
        if recurrent == 1:
            barrier(control, threads)
            delta_net(model, job, thread, row, tid, count)
        else:
            attention(model, job, thread, row, tid, by_rows, count, tile, t0, tiles, step, part, parts)
            if get(row, s.GATED) == 1:
                gates = qkv + (get(model, s.QUERY_WIDTH) + 2 * get(model, s.KV_HEADS) * get(model, s.HEAD_DIM)) * 4
        matrix, norm, rotation = row + 8 * s.OUTPUT_MATRIX, get(row, s.ATTENTION_SUB_NORM), get(row, s.ROTATE_OUTPUT)
        source = mixed if gates != 0 or norm != 0 or rotation != 0 else mixer_out
        for t in range(t0, tiles, step):
            for token in range(t * tile, min(t * tile + tile, count)):
                read_rows(model, thread, mixer_out, gates, norm, rotation, matrix, token, count)
        product(model, thread, matrix, source, projection, dim * 4, d0, d1, count, t0, tiles, step)
        barrier(control, parts)
        for t in range(t0, tiles, step):
            for token in range(t * tile, min(t * tile + tile, count)):
                x = get(thread, s.X) + token * streams * dim * 4
                mix_write(streams, x, projection + token * dim * 4, get(row, s.ATTENTION_MIX), dim)
                prepare(model, thread, streams, get(row, s.FFN_MIX), get(row, s.FFN_NORM), token)
        if get(row, s.EXPERTS) > 0:
            expert_feed_forward(model, thread, row, part, parts, count, t0, tiles, step)
        else:
            feed_forward(model, thread, row, part, parts, count, t0, tiles, step)
        barrier(control, parts)
        for t in range(t0, tiles, step):
            for token in range(t * tile, min(t * tile + tile, count)):
                x = get(thread, s.X) + token * streams * dim * 4
                mix_write(streams, x, projection + token * dim * 4, get(row, s.FFN_MIX), dim)
