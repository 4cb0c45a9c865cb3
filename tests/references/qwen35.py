"""qwen35: gated delta net, token by token, and gated attention."""

from __future__ import annotations

import math

import numpy as np

from nanochat_tui.formats.gguf import GGUFFile
from references.common import F64, Model, rms_norm, rotate_halves, sigmoid, silu


def qwen35(file: GGUFFile, ids: list[int], *, rounded: bool = False, half_cache: bool = False) -> F64:
    m = Model(file, rounded, half_cache)
    interval = int(m.key("full_attention_interval", 4))
    x = m.embed(ids)
    for layer in range(m.layers):
        b = f"blk.{layer}."
        h = m.norm(x, b + "attn_norm.weight")
        mixer = gated_delta_net if (layer + 1) % interval else gated_attention
        x = x + mixer(m, h, b)
        h = m.norm(x, b + "post_attention_norm.weight")
        a = silu(m.linear(h, b + "ffn_gate.weight")) * m.linear(h, b + "ffn_up.weight")
        x = x + m.linear(a, b + "ffn_down.weight")
    return m.head(x)


def gated_attention(m: Model, h: F64, b: str) -> F64:
    tokens, heads, width = len(h), int(m.key("attention.head_count")), int(m.key("attention.key_length"))
    both = m.linear(h, b + "attn_q.weight").reshape(tokens, heads, 2 * width)
    q, gate = both[..., :width], both[..., width:]
    k = m.linear(h, b + "attn_k.weight").reshape(tokens, -1, width)
    v = m.linear(h, b + "attn_v.weight").reshape(tokens, -1, width)
    q, k = m.norm(q, b + "attn_q_norm.weight"), m.norm(k, b + "attn_k_norm.weight")
    turn = m.angles(tokens, int(m.key("rope.dimension_count", 64)), float(m.key("rope.freq_base")))
    o = m.attend(rotate_halves(q, *turn), rotate_halves(k, *turn), v)
    return m.linear(o * sigmoid(gate.reshape(tokens, -1)), b + "attn_output.weight")


def gated_delta_net(m: Model, h: F64, b: str) -> F64:
    tokens, width = len(h), int(m.key("ssm.state_size"))
    n_k, n_v = int(m.key("ssm.group_count")), int(m.key("ssm.time_step_rank"))
    u = m.linear(h, b + "attn_qkv.weight")
    z = m.linear(h, b + "attn_gate.weight").reshape(tokens, n_v, width)
    beta = sigmoid(m.linear(h, b + "ssm_beta.weight"))
    dt = m.linear(h, b + "ssm_alpha.weight") + m.weight(b + "ssm_dt.bias")
    decay = np.exp(m.weight(b + "ssm_a") * np.log1p(np.exp(dt)))
    taps = m.weight(b + "ssm_conv1d.weight")  # [channels, 4]
    padded = np.concatenate([np.zeros((taps.shape[1] - 1, u.shape[1])), u])
    mixed = silu(sum(padded[i : i + tokens] * taps[:, i] for i in range(taps.shape[1])))
    q, k, v = np.split(mixed, [n_k * width, 2 * n_k * width], axis=1)
    q, k = (a.reshape(tokens, n_k, width) for a in (q, k))
    q, k = (a / np.sqrt((a * a).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
    v = v.reshape(tokens, n_v, width)
    out = np.empty((tokens, n_v, width))
    for head in range(n_v):
        state = np.zeros((width, width))
        for t in range(tokens):
            key, query = k[t, head % n_k], q[t, head % n_k]
            state = state * decay[t, head]
            delta = beta[t, head] * (v[t, head] - state @ key)
            state = state + np.outer(delta, key)
            out[t, head] = state @ query / math.sqrt(width)
    o = rms_norm(out, m.weight(b + "ssm_norm.weight"), m.epsilon) * silu(z)
    if m.plain("prism.hadamard.gdn_v_grouped", False):
        o = o.reshape(tokens, n_v // n_k, n_k, width).swapaxes(1, 2)
    return m.linear(o.reshape(tokens, -1), b + "ssm_out.weight")
