"""A feed-forward part of many experts, of which each token uses a few.

Tokens go one by one: their experts differ. Threads share the rows of an expert's matrices, or have tokens of their
own, as in `forward`.
"""

from __future__ import annotations

import math

import numpy as np

from nanochat_tui.engine.kernels.matrices import matrix_product
from nanochat_tui.engine.kernels.products import activate, round_single, takes_floats
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.rowwise import add_scaled
from nanochat_tui.engine.kernels.statistics import fill_floats
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import get, load_f32, load_i64, put, store_f32, store_i64

LEAST_SHARE = 6.1e-5
"""What the chosen experts' probabilities are divided by at least."""


@compiled("v:MTLi")
def choose_experts(model, thread, layer_row, token):
    """Find a token's experts by its router logits: ids and weights, the likeliest first, into the thread's buffers.

    Softmax over all experts, then the chosen ones' shares divided by their sum. Of equals the first comes first.
    """
    experts, used = get(layer_row, s.EXPERTS), get(layer_row, s.EXPERTS_USED)
    logits = get(model, s.ROUTED) + token * get(model, s.ROUTED_STRIDE)
    ids = get(thread, s.CHOSEN) + token * used * 8
    weights = get(thread, s.CHOSEN_WEIGHTS) + token * used * 4
    for j in range(used):
        best = -1
        for e in range(experts):
            taken = 0
            for i in range(j):
                if load_i64(ids + i * 8) == e:
                    taken = 1
            if taken == 0 and (best < 0 or load_f32(logits + e * 4) > load_f32(logits + best * 4)):
                best = e
        store_i64(ids + j * 8, best)
    largest = np.float64(load_f32(logits + load_i64(ids) * 4))
    total, chosen = 0.0, 0.0
    for e in range(experts):
        total += math.exp(np.float64(load_f32(logits + e * 4)) - largest)
    for j in range(used):
        chosen += math.exp(np.float64(load_f32(logits + load_i64(ids + j * 8) * 4)) - largest) / total
    for j in range(used):
        share = math.exp(np.float64(load_f32(logits + load_i64(ids + j * 8) * 4)) - largest) / total
        store_f32(weights + j * 4, np.float32(share / max(chosen, LEAST_SHARE)))


@compiled("X:TXiii")
def expert_matrix(thread, matrix, expert, weight_bytes, scale_bytes):
    """Describe one expert's part of a stacked matrix in the thread's own record; return its address."""
    own = get(thread, s.EXPERT_MATRIX)
    for slot in range(s.MATRIX_SLOTS):
        put(own, slot, get(matrix, slot))
    put(own, s.MATRIX_WEIGHTS, get(matrix, s.MATRIX_WEIGHTS) + expert * weight_bytes)
    put(own, s.MATRIX_SCALES, get(matrix, s.MATRIX_SCALES) + expert * scale_bytes)
    return own


@compiled("v:MTXiiiii")
def single_product(model, thread, matrix, place, source, y, first, last):
    """Multiply one token by row blocks first..last; its int8 row is at `place` of the thread's buffers."""
    # the only tile is number `place`, and its row of y is to be the first
    matrix_product(
        matrix, 1, get(thread, s.X8), get(thread, s.INIT), get(thread, s.SCALE), source, 0, get(thread, s.SUMS),
        y, 0, first, last, place + 1, place, place + 1, 1,
    )  # fmt: skip


@compiled("v:MTLiiii")
def experts_up(model, thread, layer_row, token, source, first, last):
    """Leave activation(gate) · up of a token's experts, row blocks first..last, in the product buffer.

    source: the token's normalised row. The product buffer is float32 [token][used][hidden].
    """
    hidden, used = get(model, s.HIDDEN), get(layer_row, s.EXPERTS_USED)
    matrix = layer_row + 8 * s.GATE_UP_MATRIX
    blocks = hidden // 16
    y = get(model, s.GATE_UP) + token * 2 * hidden * 4
    for j in range(used):
        expert = load_i64(get(thread, s.CHOSEN) + (token * used + j) * 8)
        own = expert_matrix(thread, matrix, expert, get(layer_row, s.UP_BYTES), get(layer_row, s.UP_SCALE_BYTES))
        for side in range(2):
            single_product(model, thread, own, token, source, y, side * blocks + first, side * blocks + last)
        gate = y + first * 64
        out = get(model, s.PRODUCT) + ((token * used + j) * hidden + first * 16) * 4
        activate(layer_row, gate, gate + hidden * 4, out, (last - first) * 16)


@compiled("v:MTLiii")
def experts_down(model, thread, layer_row, token, first, last):
    """Add up what a token's experts say, row blocks first..last, in the projection buffer."""
    hidden, used, dim = get(model, s.HIDDEN), get(layer_row, s.EXPERTS_USED), get(model, s.DIM)
    matrix = layer_row + 8 * s.DOWN_MATRIX
    out = get(model, s.PROJECTION) + token * dim * 4
    fill_floats(out + first * 64, (last - first) * 16, np.float32(0.0))
    for j in range(used):
        expert = load_i64(get(thread, s.CHOSEN) + (token * used + j) * 8)
        own = expert_matrix(thread, matrix, expert, get(layer_row, s.DOWN_BYTES), get(layer_row, s.DOWN_SCALE_BYTES))
        row = get(model, s.PRODUCT) + (token * used + j) * hidden * 4
        if takes_floats(matrix) == 0:
            round_single(model, thread, row, 0, matrix)
        answer = get(thread, s.ANSWER)
        single_product(model, thread, own, 0, row, answer, first, last)
        weight = load_f32(get(thread, s.CHOSEN_WEIGHTS) + (token * used + j) * 4)
        add_scaled(out + first * 64, answer + first * 64, weight, (last - first) * 16)
