"""The forward pass of a batch of consecutive tokens of one sequence.

Work is shared between threads in one of two ways. Few tokens (decoding): every thread computes the
row-wise parts of all tokens for itself and its share of the rows of each matrix. Many (prefill): every thread has
its own tiles of tokens and all rows. Both call the same kernels, so they agree bit for bit.
"""

from __future__ import annotations

import numpy as np

from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.kernels.attention import (
    attend_one_f16,
    attend_one_f32,
    attend_some_f16,
    scale_query,
    store_key,
    store_value,
)
from nanochat_tui.engine.kernels.linear import dense_f32, ternary, tile_of
from nanochat_tui.engine.kernels.registry import compiled
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
    silu_multiply,
)
from nanochat_tui.engine.simd.intrinsics import f32_from_bits, get, load_f32, load_i64, load_u8, load_u16, store_f32


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


@compiled("f:i")
def half_to_float(bits):
    """Return the float32 of a finite float16 given as an integer."""
    magnitude = f32_from_bits((bits & 0x7FFF) << 13) * f32_from_bits((127 + 112) << 23)
    if bits & 0x8000:
        return -magnitude
    return magnitude


@compiled("v:iii")
def embed(model, token, out):
    """Write one row of the embedding table as float32 [dim]."""
    dim = get(model, s.DIM)
    row, block = token % 16, token // 16
    weights = get(model, s.EMBEDDING_WEIGHTS)
    if get(model, s.EMBEDDING_KIND) == s.KIND_Q8:
        bias = get(model, s.TABLE_BIAS)
        for group in range(dim // 32):
            scale = half_to_float(
                load_u16(get(model, s.EMBEDDING_SCALES) + ((block * (dim // 32) + group) * 16 + row) * 2)
            )
            for i in range(32):
                k = group * 32 + i
                byte = load_u8(weights + (block * (dim // 4) + k // 4) * 64 + row * 4 + k % 4)
                # a biased table holds w + 128; the others hold w as a signed byte
                value = byte - bias if bias else (byte ^ 128) - 128
                store_f32(out + k * 4, np.float32(value) * scale)
    elif get(model, s.EMBEDDING_KIND) == s.KIND_F16:
        for k in range(dim):
            store_f32(out + k * 4, half_to_float(load_u16(weights + ((block * dim + k) * 16 + row) * 2)))
    else:
        for k in range(dim):
            store_f32(out + k * 4, load_f32(weights + ((block * dim + k) * 16 + row) * 4))


@compiled("v:iiiiiiiiiiiiiii")
def linear(model, thread, weights, scales, source, columns, padded, y, y_stride, first, last, count, t0, tiles, step):
    """Multiply tiles of tokens by row blocks first..last of one matrix.

    `source`: float32 activations [token][columns], read only when activations stay floats; otherwise the
    thread's int8 tiles are used.
    """
    if get(model, s.FLOAT_ACTIVATIONS) == 1:
        tile = tile_of(model, count)
        for t in range(t0, tiles, step):
            for token in range(t * tile, min(t * tile + tile, count)):
                dense_f32(weights, source + token * columns * 4, y + token * y_stride, first, last, columns)
        return
    ternary(model, tile_of(model, count), weights, scales, get(thread, s.X8), get(thread, s.INIT), get(thread, s.SCALE),
            y, first, last, padded // get(model, s.GROUP), y_stride, t0, tiles, step)  # fmt: skip


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


@compiled("v:iiiiiii")
def prepare(model, thread, streams, mix, norm, token, count):
    """Read from the streams, normalise, quantise one token; leaves the float row in MIXED."""
    dim = get(model, s.DIM)
    row = get(thread, s.MIXED) + token * dim * 4
    mix_read(streams, get(thread, s.X) + token * streams * dim * 4, row, mix, dim)
    rms_norm(row, norm, row, dim, f32_from_bits(get(model, s.EPSILON_BITS)))
    if get(model, s.FLOAT_ACTIVATIONS) == 0:
        round_row(
            model, get(thread, s.X8), get(thread, s.INIT), get(thread, s.SCALE), row, dim, get(model, s.DIM_PADDED),
            token, count, get(model, s.GROUP), 1,
        )  # fmt: skip


@compiled("v:iiiiiiii")
def cache_tokens(model, job, layer, token0, token1, first_head, last_head, qkv):
    """Rotate the keys of tokens token0..token1 and write keys and values into the cache."""
    dim, head_dim, padded = get(model, s.DIM), get(model, s.HEAD_DIM), get(model, s.HEAD_PADDED)
    kv_dim = get(model, s.KV_HEADS) * head_dim
    half = get(job, s.HALF_CACHE)
    for token in range(token0, token1):
        position = get(job, s.CURRENT) + token
        row = qkv + token * get(model, s.QKV_STRIDE)
        for head in range(first_head, last_head):
            key = row + (dim + head * head_dim) * 4
            rope(key, get(model, s.ROPE_TABLE) + position * head_dim * 4, head_dim)
            keys = get(job, s.KEYS) + layer * get(job, s.KEY_STRIDE) + head * get(job, s.HEAD_KEY_STRIDE)
            values = get(job, s.VALUES) + layer * get(job, s.VALUE_STRIDE) + head * get(job, s.HEAD_VALUE_STRIDE)
            store_key(key, keys, position, head_dim, half)
            store_value(key + kv_dim * 4, values, position, padded, half)


@compiled("v:iiiiiiiiii")
def attend(model, job, thread, layer, token0, token1, first_head, last_head, qkv, out):
    """Attention of query heads first_head..last_head for tokens token0..token1; out float32 [token][dim]."""
    dim, head_dim, padded = get(model, s.DIM), get(model, s.HEAD_DIM), get(model, s.HEAD_PADDED)
    per_kv = get(model, s.HEADS) // get(model, s.KV_HEADS)
    queries, stride = get(model, s.QUERIES), get(model, s.QKV_STRIDE)
    scores, result, o_stride = get(thread, s.SCORES), get(thread, s.HEAD_OUT), padded * 4
    # scores need one row of floats per query, as long as the cache
    s_stride = get(job, s.HEAD_VALUE_STRIDE) // (padded * (2 if get(job, s.HALF_CACHE) else 4)) * 4
    scale = f32_from_bits(get(model, s.QUERY_SCALE_BITS))
    for head in range(first_head, last_head):
        kv_head = head // per_kv
        keys = get(job, s.KEYS) + layer * get(job, s.KEY_STRIDE) + kv_head * get(job, s.HEAD_KEY_STRIDE)
        values = get(job, s.VALUES) + layer * get(job, s.VALUE_STRIDE) + kv_head * get(job, s.HEAD_VALUE_STRIDE)
        token = token0
        while token < token1:
            some = queries if get(job, s.HALF_CACHE) == 1 and token1 - token >= queries else 1
            for i in range(some):
                q = qkv + (token + i) * stride + head * head_dim * 4
                rope(q, get(model, s.ROPE_TABLE) + (get(job, s.CURRENT) + token + i) * head_dim * 4, head_dim)
                scale_query(q, head_dim, scale)
            q = qkv + token * stride + head * head_dim * 4
            shown = get(job, s.CURRENT) + token + 1
            if some > 1:
                attend_some_f16(q, stride, keys, values, scores, s_stride, result, o_stride, shown, head_dim, padded)
            elif get(job, s.HALF_CACHE) == 1:
                attend_one_f16(q, stride, keys, values, scores, s_stride, result, o_stride, shown, head_dim, padded)
            else:
                attend_one_f32(q, stride, keys, values, scores, s_stride, result, o_stride, shown, head_dim, padded)
            for i in range(some):
                place = out + ((token + i) * dim + head * head_dim) * 4
                for d in range(head_dim):
                    store_f32(place + d * 4, load_f32(result + i * o_stride + d * 4))
            token += some


@compiled("v:iiiiiiii")
def forward(model, job, layers, thread, tid, tokens, count, by_rows):
    """Run `count` tokens (ids at address `tokens`) through all blocks; leaves the streams in the thread's X.

    by_rows: 1 shares rows between threads, 0 shares tiles of tokens.
    """
    dim, hidden, streams = get(model, s.DIM), get(model, s.HIDDEN), get(model, s.STREAMS)
    dim_padded, hidden_padded, group = get(model, s.DIM_PADDED), get(model, s.HIDDEN_PADDED), get(model, s.GROUP)
    heads, kv_heads, qkv_stride = get(model, s.HEADS), get(model, s.KV_HEADS), get(model, s.QKV_STRIDE)
    control, threads, floats = get(model, s.CONTROL), get(model, s.THREADS), get(model, s.FLOAT_ACTIVATIONS)
    x8, init, scale, mixed = get(thread, s.X8), get(thread, s.INIT), get(thread, s.SCALE), get(thread, s.MIXED)
    qkv, projection, attention = get(model, s.QKV), get(model, s.PROJECTION), get(model, s.ATTENTION)
    gate_up, product = get(model, s.GATE_UP), get(model, s.PRODUCT)

    tile = tile_of(model, count)
    tiles = (count + tile - 1) // tile
    t0, step, part, parts = tid, threads, 0, 1
    if by_rows == 1:
        t0, step, part, parts = 0, 1, tid, threads
    shared = threads if by_rows == 1 else 1
    h0, h1 = heads * part // parts, heads * (part + 1) // parts
    k0, k1 = kv_heads * part // parts, kv_heads * (part + 1) // parts
    dim_blocks, hidden_blocks, qkv_blocks = dim // 16, hidden // 16, qkv_stride // 64
    d0, d1 = dim_blocks * part // parts, dim_blocks * (part + 1) // parts
    f0, f1 = hidden_blocks * part // parts, hidden_blocks * (part + 1) // parts
    q0, q1 = qkv_blocks * part // parts, qkv_blocks * (part + 1) // parts

    for t in range(t0, tiles, step):
        for token in range(t * tile, min(t * tile + tile, count)):
            x = get(thread, s.X) + token * streams * dim * 4
            embed(model, load_i64(tokens + token * 8), x)
            for stream in range(1, streams):
                for k in range(dim):
                    store_f32(x + (stream * dim + k) * 4, load_f32(x + k * 4))
    for layer in range(get(model, s.LAYERS)):
        row = layers + layer * 8 * s.LAYER_SLOTS
        for t in range(t0, tiles, step):
            for token in range(t * tile, min(t * tile + tile, count)):
                prepare(model, thread, streams, get(row, s.ATTENTION_MIX), get(row, s.ATTENTION_NORM), token, count)
        linear(model, thread, get(row, s.QKV_WEIGHTS), get(row, s.QKV_SCALES), mixed, dim, dim_padded,
               qkv, qkv_stride, q0, q1, count, t0, tiles, step)  # fmt: skip
        barrier(control, shared)
        for t in range(t0, tiles, step):
            cache_tokens(model, job, layer, t * tile, min(t * tile + tile, count), k0, k1, qkv)
        # with as many key heads as query heads a thread reads only what it wrote itself
        barrier(control, threads if by_rows == 0 or heads != kv_heads else 1)
        for t in range(t0, tiles, step):
            attend(model, job, thread, layer, t * tile, min(t * tile + tile, count), h0, h1, qkv, attention)
        barrier(control, shared)
        if floats == 0:
            for t in range(t0, tiles, step):
                for token in range(t * tile, min(t * tile + tile, count)):
                    round_row(model, x8, init, scale, attention + token * dim * 4, dim, dim_padded, token,
                              count, group, 1)  # fmt: skip
        linear(model, thread, get(row, s.OUTPUT_WEIGHTS), get(row, s.OUTPUT_SCALES), attention, dim, dim_padded,
               projection, dim * 4, d0, d1, count, t0, tiles, step)  # fmt: skip
        barrier(control, shared)
        for t in range(t0, tiles, step):
            for token in range(t * tile, min(t * tile + tile, count)):
                x = get(thread, s.X) + token * streams * dim * 4
                mix_write(streams, x, projection + token * dim * 4, get(row, s.ATTENTION_MIX), dim)
                prepare(model, thread, streams, get(row, s.FFN_MIX), get(row, s.FFN_NORM), token, count)
        for side in range(2):
            linear(model, thread, get(row, s.GATE_UP_WEIGHTS), get(row, s.GATE_UP_SCALES), mixed, dim,
                   dim_padded, gate_up, 2 * hidden * 4, side * hidden_blocks + f0, side * hidden_blocks + f1,
                   count, t0, tiles, step)  # fmt: skip
        for t in range(t0, tiles, step):
            for token in range(t * tile, min(t * tile + tile, count)):
                gate = gate_up + (token * 2 * hidden + f0 * 16) * 4
                silu_multiply(gate, gate + hidden * 4, product + (token * hidden + f0 * 16) * 4, (f1 - f0) * 16)
        barrier(control, shared)
        if floats == 0:
            for t in range(t0, tiles, step):
                for token in range(t * tile, min(t * tile + tile, count)):
                    round_row(model, x8, init, scale, product + token * hidden * 4, hidden, hidden_padded,
                              token, count, group, 1)  # fmt: skip
        linear(model, thread, get(row, s.DOWN_WEIGHTS), get(row, s.DOWN_SCALES), product, hidden, hidden_padded,
               projection, dim * 4, d0, d1, count, t0, tiles, step)  # fmt: skip
        barrier(control, shared)
        for t in range(t0, tiles, step):
            for token in range(t * tile, min(t * tile + tile, count)):
                x = get(thread, s.X) + token * streams * dim * 4
                mix_write(streams, x, projection + token * dim * 4, get(row, s.FFN_MIX), dim)
