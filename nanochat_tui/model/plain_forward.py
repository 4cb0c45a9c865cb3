"""The forward pass of a nanochat model in plain NumPy: slow, short, and independent of engine and trainer.

For looking into a model and for checking an exported one; it does not generate text. Weights go by their names in
GGUF files, matrices are float32 [outputs, inputs], and the residual state of n tokens is N streams x [n, N, dim].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.mhc import (
    StreamMatrices,
    collapse_streams,
    expand_streams,
    mixes_before_write,
    read_streams,
    write_streams,
)

Floats = NDArray[np.float32]
Weights = Mapping[str, Floats]
Rounding = Callable[[Floats], Floats]
"""What is done to the inputs of linears, rows of [..., width]."""


def unchanged(x: Floats) -> Floats:
    """Return `x`: activations stay float32."""
    return x


def stream_states(
    config: ModelConfig,
    w: Weights,
    ids: Sequence[int],
    matrices: StreamMatrices | None,
    rounded: Rounding = unchanged,
) -> Iterator[Floats]:
    """Yield the streams [n, N, dim] after every sub-layer, attention and feed-forward in turn.

    Parameters: a model's shape and weights, n token ids, the weights of its mHC records (None for one stream), and how
    the inputs of linears are rounded.
    """
    mix_first = mixes_before_write(config.n_streams, config.mhc_version)
    x = expand_streams(w["token_embd.weight"][np.asarray(ids, np.int64)], config.n_streams)
    blocks = [(f"blk.{layer}.", kind) for layer in range(config.n_layers) for kind in ("attn", "ffn")]
    for index, (block, kind) in enumerate(blocks):
        h = x[:, 0] if matrices is None else read_streams(x, matrices.pre[index])
        h = rounded(_rms_norm(h, w[f"{block}{kind}_norm.weight"], config.norm_eps))
        if kind == "attn":
            y = rounded(_attention(config, w, block, h)) @ w[f"{block}attn_output.weight"].T
        elif config.n_experts:
            y = _experts(config, w, block, h, rounded)
        else:
            gate, up = h @ w[f"{block}ffn_gate.weight"].T, h @ w[f"{block}ffn_up.weight"].T
            y = rounded(_silu(gate) * up) @ w[f"{block}ffn_down.weight"].T
        if matrices is None:
            x = x + y[:, None]
        else:
            x = write_streams(x, y, matrices.residual[index], matrices.post[index], mix_first=mix_first)
        yield x


def read_out(config: ModelConfig, w: Weights, x: Floats, rounded: Rounding = unchanged) -> Floats:
    """Return what last norm and head say of streams [n, N, dim]: logits float32 [n, vocab].

    rounded: how the head's input is rounded.
    """
    final = rounded(_rms_norm(collapse_streams(x), w["output_norm.weight"], config.norm_eps))
    logits: Floats = final @ w.get("output.weight", w["token_embd.weight"]).T
    return logits


def _experts(config: ModelConfig, w: Weights, block: str, h: Floats, rounded: Rounding) -> Floats:
    """Each token's experts, those of the largest router logits, weighted by the softmax of these [tokens, dim]."""
    logits = h @ w[f"{block}ffn_gate_inp.weight"].T
    gates, ups, downs = (w[f"{block}ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
    y = np.zeros_like(h)
    for token, (row, x) in enumerate(zip(logits, h, strict=True)):
        chosen = np.argsort(-row, kind="stable")[: config.n_active_experts]
        share = np.exp(row[chosen] - row[chosen[0]])
        for expert, weight in zip(chosen, share / share.sum(), strict=True):
            inner = rounded(_silu(gates[expert] @ x) * (ups[expert] @ x))
            y[token] += weight * (downs[expert] @ inner)
    return y


def _silu(x: Floats) -> Floats:
    value: Floats = x * (np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x)))  # never overflows
    return value


def _rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    normed: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight
    return normed


def _rope(x: Floats, theta: float) -> Floats:
    """Rotate pairs (i, i + width/2) of x [tokens, heads, width] by position."""
    half = x.shape[-1] // 2
    frequency = theta ** (-np.arange(half, dtype=np.float64) / half)
    angle = np.arange(len(x))[:, None] * frequency
    cos, sin = (f(angle).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _attention(config: ModelConfig, w: Weights, block: str, h: Floats) -> Floats:
    """Return the heads' outputs side by side [tokens, dim], before the output projection."""
    n, width = len(h), config.head_dim
    q, k, v = (
        (h @ w[f"{block}attn_{name}.weight"].T).reshape(n, count, width)
        for name, count in (("q", config.n_heads), ("k", config.n_kv_heads), ("v", config.n_kv_heads))
    )
    shared = config.n_heads // config.n_kv_heads
    q, k = _rope(q, config.rope_theta), np.repeat(_rope(k, config.rope_theta), shared, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(np.sqrt(width))
    scores[:, ~np.tri(n, dtype=bool)] = -np.inf
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    heads: Floats = np.einsum("hqk,khd->qhd", scores, np.repeat(v, shared, axis=1)).astype(np.float32)
    return heads.reshape(n, -1)
