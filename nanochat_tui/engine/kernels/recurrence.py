"""The gated delta net: a recurrent state in place of keys and values (Yang et al. 2024, as Qwen3.5 uses it).

Tokens are taken one after another, heads are shared between the threads. A token's arithmetic does not depend on
which tokens come with it, so decode and prefill agree bit for bit.
"""

from __future__ import annotations

import math

import numpy as np

from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.rowwise import convolve_silu, delta_rule, l2_normalise
from nanochat_tui.engine.kernels.vectors import rms_norm, silu_multiply
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import f32_from_bits, get, load_f32

EPSILON = np.float32(1e-6)
"""Of the norms of queries and keys; the model's own, whatever the file's."""


@compiled("f:ff")
def fade(rate, step):
    """Return exp(rate · softplus(step)); rate < 0."""
    wide = np.float64(step)
    softplus = max(wide, 0.0) + math.log(1.0 + math.exp(-abs(wide)))
    return np.float32(math.exp(np.float64(rate) * softplus))


@compiled("f:f")
def logistic(x):
    """Return 1 / (1 + exp(-x))."""
    return np.float32(1.0 / (1.0 + math.exp(-np.float64(x))))


@compiled("v:MTLRii")
def head_step(model, thread, layer_row, row, head, token):
    """Let one value head see one token; row: the token's row of the job's table.

    Reads the token's convolved channels and leaves the gated output in the attention buffer.
    """
    width, n_k, n_v = get(layer_row, s.STATE_WIDTH), get(layer_row, s.KEY_HEADS), get(layer_row, s.VALUE_HEADS)
    channels = get(layer_row, s.CHANNELS)
    u = get(model, s.QKV) + token * get(model, s.QKV_STRIDE)
    q, k = u + (head % n_k) * width * 4, u + (n_k + head % n_k) * width * 4
    v, z = u + (2 * n_k + head) * width * 4, u + (channels + head * width) * 4
    small = get(model, s.SMALL) + token * get(model, s.SMALL_STRIDE)
    decay = fade(load_f32(get(layer_row, s.DECAY) + head * 4),
                 load_f32(small + head * 4) + load_f32(get(layer_row, s.STEP) + head * 4))  # fmt: skip
    beta = logistic(load_f32(small + (n_v + head) * 4))
    query, key = get(thread, s.DELTA), get(thread, s.DELTA) + width * 4
    l2_normalise(q, query, width, EPSILON)
    l2_normalise(k, key, width, EPSILON)
    state = get(row, s.ROW_STATE) + get(layer_row, s.STATE_OFFSET)
    state += ((get(layer_row, s.TAPS) - 1) * channels + head * width * width) * 4
    target = head
    if get(layer_row, s.GROUPED) == 1:
        target = (head % n_k) * (n_v // n_k) + head // n_k
    out = get(model, s.ATTENTION) + (token * n_v + target) * width * 4
    delta_rule(state, query, key, v, out, width, decay, beta, np.float32(1.0 / math.sqrt(np.float64(width))))
    rms_norm(out, get(layer_row, s.STATE_NORM), out, width, f32_from_bits(get(model, s.EPSILON_BITS)))
    silu_multiply(z, out, out, width)


@compiled("v:MJLiii")
def convolve_channels(model, job, layer_row, part, parts, count):
    """Convolve a part of the channels of the job's tokens, whose products are in the QKV buffer, with their state's."""
    channels, taps = get(layer_row, s.CHANNELS), get(layer_row, s.TAPS)
    blocks = channels // 16
    c0, c1 = blocks * part // parts * 16, blocks * (part + 1) // parts * 16
    for token in range(count):
        row = get(job, s.ROWS) + token * 8 * s.ROW_SLOTS
        convolve_silu(
            get(model, s.QKV) + token * get(model, s.QKV_STRIDE) + c0 * 4, get(layer_row, s.CONVOLUTION) + c0 * 4,
            get(row, s.ROW_STATE) + get(layer_row, s.STATE_OFFSET) + c0 * 4, c1 - c0, taps, channels,
        )  # fmt: skip


@compiled("v:MJTLiii")
def delta_heads(model, job, thread, layer_row, part, parts, count):
    """Let a part of the value heads see the job's tokens, convolved in the QKV and with products in the SMALL buffer.

    Leaves float32 [token][value heads · width] in the attention buffer.
    """
    heads = get(layer_row, s.VALUE_HEADS)
    for head in range(heads * part // parts, heads * (part + 1) // parts):
        for token in range(count):
            row = get(job, s.ROWS) + token * 8 * s.ROW_SLOTS
            head_step(model, thread, layer_row, row, head, token)
