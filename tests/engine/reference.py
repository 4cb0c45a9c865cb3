"""The forward pass once more, in plain NumPy with float64 sums, written from the definitions alone.

Shares no code with the engine: it reads the file through the decoders of `formats` and works on whole matrices.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.model.config import ModelConfig

F64 = NDArray[np.float64]


def sigmoid(x: F64) -> F64:
    return 1.0 / (1.0 + np.exp(-x))


def rms_norm(x: F64, weight: F64, epsilon: float) -> F64:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def quantise(x: F64, block: int = 0) -> F64:
    """int8 with one scale per row or per `block` columns, in float32 like everybody's."""
    if block:
        return quantise(x.reshape(*x.shape[:-1], -1, block)).reshape(x.shape)
    x32 = x.astype(np.float32)
    a = np.maximum(np.abs(x32).max(-1, keepdims=True), np.float32(1e-8)) / np.float32(127)
    return np.clip(np.rint(x32 / a), -127, 127).astype(np.float64) * a


def streams_of(record: F64, n: int, version: int) -> tuple[F64, F64, F64]:
    if n == 2:
        a = sigmoid(record[0])
        matrix, rest = np.array([[a, 1 - a], [1 - a, a]]), record[1:]
    else:
        weights = np.exp(record[:24] - record[:24].max())
        weights /= weights.sum()
        matrix = np.zeros((4, 4))
        for weight, permutation in zip(weights, itertools.permutations(range(4)), strict=True):
            for i, j in enumerate(permutation):
                matrix[i, j] += weight
        rest = record[24:]
    pre = sigmoid(rest[:n] + rest[n : 2 * n])
    ceiling = 4.0 if n == 4 and version == 2 else 2.0
    post = ceiling * sigmoid(rest[2 * n : 3 * n] + rest[3 * n :])
    return pre, matrix, post


def rotate(x: F64, theta: float) -> F64:
    """x [tokens, heads, head_dim]."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
    low, high = x[..., :half], x[..., half:]
    return np.concatenate([low * cosine - high * sine, high * cosine + low * sine], -1)


def forward(file: GGUFFile, config: ModelConfig, ids: list[int], *, rounded: bool, half_cache: bool) -> F64:
    """Return logits [len(ids), vocab]. rounded: int8 activations; half_cache: keys and values through float16."""
    c, n = config, config.n_streams

    def weight(name: str) -> F64:
        return file.array(name).astype(np.float64)

    def linear(x: F64, *names: str) -> list[F64]:
        x = quantise(x) if rounded else x
        return [x @ weight(name).T for name in names]

    table = weight("token_embd.weight")
    x = np.repeat(table[ids][:, None], n, axis=1)
    for layer in range(c.n_layers):
        block = f"blk.{layer}."
        for sublayer in ("attn", "ffn"):
            if n == 1:
                pre, matrix, post = np.ones(1), np.ones((1, 1)), np.ones(1)
            else:
                pre, matrix, post = streams_of(weight(f"{block}{sublayer}_mhc"), n, c.mhc_version)
            h = rms_norm(np.einsum("i,tid->td", pre, x), weight(f"{block}{sublayer}_norm.weight"), c.norm_eps)
            if sublayer == "attn":
                y = attention(h, linear, block, c, half_cache)
            else:
                gate, up = linear(h, f"{block}ffn_gate.weight", f"{block}ffn_up.weight")
                (y,) = linear(gate * sigmoid(gate) * up, f"{block}ffn_down.weight")
            written = post[:, None] * y[:, None]
            if n == 4 and c.mhc_version == 1:
                x = np.einsum("ij,tjd->tid", matrix, x) + written
            else:
                x = np.einsum("ij,tjd->tid", matrix, x + written)
    h = rms_norm(x.mean(1), weight("output_norm.weight"), c.norm_eps)
    h = quantise(h, 32) if rounded else h
    return h @ weight("token_embd.weight" if c.tied else "output.weight").T


def attention(h: F64, linear, block: str, c: ModelConfig, half_cache: bool) -> F64:
    tokens = len(h)
    q, k, v = linear(h, *(f"{block}attn_{part}.weight" for part in "qkv"))
    q = rotate(q.reshape(tokens, c.n_heads, c.head_dim), c.rope_theta)
    k = rotate(k.reshape(tokens, c.n_kv_heads, c.head_dim), c.rope_theta)
    v = v.reshape(tokens, c.n_kv_heads, c.head_dim)
    if half_cache:
        k, v = (a.astype(np.float16).astype(np.float64) for a in (k, v))
    group = c.n_heads // c.n_kv_heads
    out = np.empty_like(q)
    for head in range(c.n_heads):
        scores = q[:, head] @ k[:, head // group].T / np.sqrt(c.head_dim)
        scores[np.triu_indices(tokens, 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head // group]
    (y,) = linear(out.reshape(tokens, -1), f"{block}attn_output.weight")
    return y
