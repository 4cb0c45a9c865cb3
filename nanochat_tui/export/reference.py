"""The forward pass of a checkpoint in plain NumPy: slow, short, and independent of engine and trainer.

It uses the tables and trits as they are exported and the roundings of the engine, so that its logits say what an
exported file must compute. For checking; nobody generates text with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.export.checkpoint import Weights
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.mhc import (
    collapse_streams,
    expand_streams,
    mixes_before_write,
    read_streams,
    record_names,
    stream_matrices,
    write_streams,
)
from nanochat_tui.model.ternary import dequantise, ternarise

Floats = NDArray[np.float32]


def exported_weights(config: ModelConfig, weights: Weights, table: str = "Q8_0") -> Weights:
    """Return the weights as an exported file holds them: ternary matrices and tables rounded, the rest as it is."""
    rounded: Weights = {}
    kind = TENSOR_TYPES[table]
    for name, values in weights.items():
        if name in ("token_embd.weight", "output.weight"):
            blocks = np.ascontiguousarray(values).reshape(-1, kind.block_elements)
            rounded[name] = kind.decode(kind.encode(blocks)).reshape(values.shape)
        elif values.ndim == 2:
            rounded[name] = dequantise(*ternarise(values, config.group_size))
        else:
            rounded[name] = values
    return rounded


def reference_logits(
    config: ModelConfig, weights: Weights, ids: Sequence[int], table: str = "Q8_0", int8: bool = True
) -> Floats:
    """Return the logits of a checkpoint after every token of a text.

    Parameters: shape and weights of a checkpoint, token ids [n], the type the tables are exported in, and whether the
    inputs of linears are rounded to int8 (absmax per token) as the engine does.
    Returns float32 [n, vocab].
    """
    w = exported_weights(config, weights, table)
    round_input = _int8 if int8 else _unchanged
    embedding = w["token_embd.weight"]
    x = expand_streams(embedding[np.asarray(ids, dtype=np.int64)], config.n_streams)
    blocks = [(f"blk.{layer}.", kind) for layer in range(config.n_layers) for kind in ("attn", "ffn")]
    if config.n_streams > 1:
        records = np.stack([w[name] for name in record_names(config.mhc_records)])
        matrices = stream_matrices(records, config.n_streams, config.mhc_version)
    mix_first = mixes_before_write(config.n_streams, config.mhc_version)
    for index, (block, kind) in enumerate(blocks):
        h = x[:, 0] if config.n_streams == 1 else read_streams(x, matrices.pre[index])
        h = round_input(_rms_norm(h, w[f"{block}{kind}_norm.weight"], config.norm_eps))
        if kind == "attn":
            y = round_input(_attention(config, w, block, h)) @ w[f"{block}attn_output.weight"].T
        else:
            gate, up = h @ w[f"{block}ffn_gate.weight"].T, h @ w[f"{block}ffn_up.weight"].T
            y = round_input(_silu(gate) * up) @ w[f"{block}ffn_down.weight"].T
        if config.n_streams == 1:
            x = x + y[:, None]
        else:
            x = write_streams(x, y, matrices.residual[index], matrices.post[index], mix_first=mix_first)
    final = round_input(_rms_norm(collapse_streams(x), w["output_norm.weight"], config.norm_eps))
    logits: Floats = final @ w.get("output.weight", embedding).T
    return logits


def _unchanged(x: Floats) -> Floats:
    return x


def _int8(x: Floats) -> Floats:
    scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-8)) / np.float32(127)
    rounded: Floats = np.clip(np.rint(x / scale), -127, 127) * scale
    return rounded


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
    scores = np.where(np.tril(np.ones((n, n), dtype=bool)), scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    heads: Floats = np.einsum("hqk,khd->qhd", scores, np.repeat(v, shared, axis=1)).astype(np.float32)
    return heads.reshape(n, -1)
