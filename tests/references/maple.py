"""maple: ternary experts, sliding windows, global layers without positions."""

from __future__ import annotations

import numpy as np

from nanochat_tui.formats.gguf import GGUFFile
from references.common import F64, FLOATS, Model, int8, rotate_halves, silu


def maple(file: GGUFFile, ids: list[int], *, rounded: bool = False, half_cache: bool = False) -> F64:
    m = Model(file, rounded, half_cache)
    tokens, heads, width = len(ids), int(m.key("attention.head_count")), int(m.key("attention.key_length"))
    window, pattern = int(m.key("attention.sliding_window")), m.key("attention.sliding_window_pattern")
    turn = m.angles(tokens, int(m.key("rope.dimension_count")), float(m.key("rope.freq_base")))
    x = m.embed(ids)
    for layer in range(m.layers):
        b = f"blk.{layer}."
        h = m.norm(x, b + "attn_norm.weight")
        q = m.norm(m.linear(h, b + "attn_q.weight").reshape(tokens, heads, width), b + "attn_q_norm.weight")
        k = m.norm(m.linear(h, b + "attn_k.weight").reshape(tokens, -1, width), b + "attn_k_norm.weight")
        v = m.linear(h, b + "attn_v.weight").reshape(tokens, -1, width)
        if pattern[layer]:
            o = m.attend(rotate_halves(q, *turn), rotate_halves(k, *turn), v, window)
        else:
            o = m.attend(q, k, v)
        x = x + m.linear(o, b + "attn_output.weight")
        x = x + experts(m, m.norm(x, b + "ffn_norm.weight"), b, float(m.key("swiglu_clamp_exp")[layer]))
    return m.head(x)


def experts(m: Model, h: F64, b: str, clamp: float) -> F64:
    router = h @ m.weight(b + "ffn_gate_inp.weight").T
    gates, ups, downs = (m.weight(f"{b}ffn_{part}_exps.weight") for part in ("gate", "up", "down"))
    quantised = m.file.tensor(b + "ffn_gate_exps.weight").type.name not in FLOATS

    def seen(a: F64) -> F64:
        return int8(a) if m.rounded and quantised else a

    out = np.zeros_like(h)
    for t in range(len(h)):
        share = np.exp(router[t] - router[t].max())
        share /= share.sum()
        chosen = np.argsort(-share, kind="stable")[: int(m.key("expert_used_count"))]
        total = max(share[chosen].sum(), 6.1e-5)
        for e in chosen:
            x = seen(h[t])
            gate, up = np.minimum(gates[e] @ x, clamp), np.clip(ups[e] @ x, -clamp, clamp)
            out[t] += share[e] / total * (downs[e] @ seen(silu(gate) * up))
    return out
