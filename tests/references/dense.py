"""llama, minicpm, qwen3 and the three names of bitnet."""

from __future__ import annotations

import numpy as np

from nanochat_tui.formats.gguf import GGUFFile
from references.common import F64, Model, rotate_halves, rotate_neighbours, silu


def dense(file: GGUFFile, ids: list[int], *, rounded: bool = False, half_cache: bool = False) -> F64:
    m = Model(file, rounded, half_cache)
    heads, kv_heads = int(m.key("attention.head_count")), int(m.key("attention.head_count_kv"))
    width = int(m.key("attention.key_length", m.dim // heads))
    rotate = rotate_neighbours if m.name in ("llama", "minicpm") else rotate_halves
    turn = m.angles(len(ids), int(m.key("rope.dimension_count", width)), float(m.key("rope.freq_base")))
    window = int(m.key("attention.sliding_window", 0))
    branch = float(m.key("residual_scale", 1.0))
    x = m.embed(ids) * float(m.key("embedding_scale", 1.0))
    for layer in range(m.layers):
        b = f"blk.{layer}."
        h = m.norm(x, b + "attn_norm.weight")
        q = m.linear(h, b + "attn_q.weight").reshape(len(ids), heads, width)
        k = m.linear(h, b + "attn_k.weight").reshape(len(ids), kv_heads, width)
        v = m.linear(h, b + "attn_v.weight").reshape(len(ids), kv_heads, width)
        if m.name == "qwen3":
            q, k = m.norm(q, b + "attn_q_norm.weight"), m.norm(k, b + "attn_k_norm.weight")
        o = m.attend(rotate(q, *turn), rotate(k, *turn), v, window)
        if m.name.startswith("bitnet"):
            o = m.norm(o, b + "attn_sub_norm.weight")
        x = x + branch * m.linear(o, b + "attn_output.weight")
        h = m.norm(x, b + "ffn_norm.weight")
        gate, up = m.linear(h, b + "ffn_gate.weight"), m.linear(h, b + "ffn_up.weight")
        squared = m.name in ("bitnet-25", "bitnet-b1.58")
        a = (np.maximum(gate, 0.0) ** 2 if squared else silu(gate)) * up
        if m.name.startswith("bitnet"):
            a = m.norm(a, b + "ffn_sub_norm.weight")
        x = x + branch * m.linear(a, b + "ffn_down.weight")
    return m.head(x) / float(m.key("logit_scale", 1.0))
