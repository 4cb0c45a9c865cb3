"""Attention of a job's tokens: their keys and values into the cache, and what each query sees there."""

from __future__ import annotations

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
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.vectors import rms_norm, rope
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import f32_from_bits, get, load_i32, load_i64, store_i32


@compiled("R:Ji")
def row_of(job, token):
    """Return the address of a token's row."""
    return get(job, s.ROWS) + token * 8 * s.ROW_SLOTS


@compiled("i:JRLi")
def page_of(job, row, layer_row, page):
    """Return the address of a layer's part of one page of a row's sequence."""
    return load_i64(get(row, s.PAGES) + page * 8) + get(layer_row, s.KV_LAYER) * get(job, s.LAYER_KV_BYTES)


@compiled("v:MJLiiiii")
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


@compiled("v:MJTLiiiiii")
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


@compiled("i:Jii")
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


@compiled("v:MJTLiiiiii")
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
