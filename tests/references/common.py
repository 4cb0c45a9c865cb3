"""Blocks that several architectures share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.gguf import GGUFFile

F64 = NDArray[np.float64]
FLOATS = {"F32", "F16", "BF16"}
"""Types of matrices whose inputs are never rounded."""


def sigmoid(x: F64) -> F64:
    return 1.0 / (1.0 + np.exp(-x))


def silu(x: F64) -> F64:
    return x * sigmoid(x)


def rms_norm(x: F64, weight: F64, epsilon: float) -> F64:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def int8(x: F64) -> F64:
    x32 = x.astype(np.float32)
    a = np.maximum(np.abs(x32).max(-1, keepdims=True), np.float32(1e-8)) / np.float32(127)
    return np.clip(np.rint(x32 / a), -127, 127).astype(np.float64) * a


FINER = ("Q4_0", "Q4_1", "Q5_1")
"""Types whose blocks of 32 have their first half in low and their second in high bits: a scale for each half."""


def rounded(x: F64, kind: str, *, per_token: bool = False) -> F64:
    """int8 with the scales that a matrix of `kind` gets: per token, per 32 or per 16 columns; floats as they are."""
    if kind in FLOATS:
        return x
    if per_token or kind == "I2_S":
        return int8(x)
    span = 16 if kind in FINER else 32
    return int8(x.reshape(*x.shape[:-1], -1, span)).reshape(x.shape)


def hadamard(size: int) -> F64:
    """Sylvester's matrix: H[i, j] = (-1)^(number of ones in i and j)."""
    return np.array([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)])


class Model:
    """An open file, its keys below the architecture's prefix, and matrices applied as the file says."""

    def __init__(self, file: GGUFFile, rounded: bool = False, half_cache: bool = False) -> None:
        self.file, self.rounded, self.half_cache = file, rounded, half_cache
        self.name = str(file.metadata["general.architecture"].value)
        self.epsilon = float(self.key("attention.layer_norm_rms_epsilon"))
        self.layers, self.dim = int(self.key("block_count")), int(self.key("embedding_length"))
        self.rotated = set(self.plain("prism.hadamard.weight_names", []))
        self.block = int(self.plain("prism.hadamard.block_size", 1))

    def plain(self, key: str, default: Any = None) -> Any:
        found = self.file.metadata.get(key)
        return default if found is None else found.value

    def key(self, key: str, default: Any = None) -> Any:
        return self.plain(f"{self.name}.{key}", default)

    def has(self, name: str) -> bool:
        return name in self.file.tensors

    def weight(self, name: str) -> F64:
        return self.file.array(name).astype(np.float64)

    def norm(self, x: F64, name: str) -> F64:
        return rms_norm(x, self.weight(name), self.epsilon)

    def signs(self, width: int) -> F64:
        if self.plain("prism.hadamard.sign_mode") == "identity":
            return np.ones(width)
        widths = [int(w) for w in self.plain("prism.hadamard.sign_widths")]
        start = sum(widths[: widths.index(width)])
        return np.asarray(self.plain("prism.hadamard.sign_values"), np.float64)[start : start + width]

    def transform(self, x: F64) -> F64:
        parts = x.reshape(*x.shape[:-1], -1, self.block) @ hadamard(self.block) / math.sqrt(self.block)
        return parts.reshape(x.shape)

    def linear(self, x: F64, name: str) -> F64:
        """x [tokens, columns] times a matrix, with its bias and scale if it has them."""
        kind = self.file.tensor(name).type.name
        if name in self.rotated:
            x = self.transform(x * self.signs(x.shape[-1]))
        if self.rounded:
            x = rounded(x, kind, per_token=self.name.startswith("bitnet"))
        y = x @ self.weight(name).T
        stem = name.removesuffix(".weight")
        if self.has(f"{stem}.scale"):
            y = y * self.weight(f"{stem}.scale")
        if self.has(f"{stem}.bias"):
            y = y + self.weight(f"{stem}.bias")
        return y

    def embed(self, ids: list[int]) -> F64:
        rows = self.weight("token_embd.weight")[ids]
        if "token_embd.weight" in self.plain("prism.hadamard.inverse_weight_names", []):
            rows = self.signs(self.dim) * self.transform(rows)
        return rows

    def head(self, x: F64) -> F64:
        x = self.norm(x, "output_norm.weight")
        tied = not self.has("output.weight")
        if "output.weight" in self.rotated or (tied and self.plain("prism.hadamard.tied_output", False)):
            x = self.transform(x * self.signs(self.dim))
        table = "token_embd.weight" if tied else "output.weight"
        if self.rounded:
            x = rounded(x, self.file.tensor(table).type.name)
        return x @ self.weight(table).T

    def angles(self, tokens: int, dims: int, theta: float) -> tuple[F64, F64]:
        """cosines and sines [tokens, 1, dims / 2], scaled as the file says."""
        i = np.arange(dims // 2)
        frequency = theta ** (-2.0 * i / dims)
        if self.has("rope_freqs.weight"):
            frequency = frequency / self.weight("rope_freqs.weight")
        kind, factor = self.key("rope.scaling.type", "none"), float(self.key("rope.scaling.factor", 1.0))
        magnitude = 1.0
        if kind == "linear":
            frequency = frequency / factor
        if kind == "yarn":
            original = int(self.key("rope.scaling.original_context_length"))

            def corr(rotations: float) -> float:
                return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

            low, high = max(0, math.floor(corr(32))), min(dims - 1, math.ceil(corr(1)))
            ramp = 1 - np.clip((i - low) / max(0.001, high - low), 0, 1)
            frequency = frequency / factor * (1 - ramp) + frequency * ramp
            magnitude = (1 + 0.1 * math.log(factor)) * float(self.key("rope.scaling.attn_factor", 1.0))
        angle = np.arange(tokens)[:, None, None] * frequency
        return np.cos(angle) * magnitude, np.sin(angle) * magnitude

    def attend(self, q: F64, k: F64, v: F64, window: int = 0) -> F64:
        """q [tokens, heads, width], k and v [tokens, kv heads, width]; returns [tokens, heads · width]."""
        if self.half_cache:
            k, v = (a.astype(np.float16).astype(np.float64) for a in (k, v))
        tokens, heads, width = q.shape
        share = heads // k.shape[1]
        back = np.arange(tokens)[:, None] - np.arange(tokens)
        hidden = (back < 0) | ((back >= window) if window else False)
        out = np.empty_like(q)
        for head in range(heads):
            scores = q[:, head] @ k[:, head // share].T / math.sqrt(width)
            scores[hidden] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head // share]
        return out.reshape(tokens, -1)


def rotate_halves(x: F64, cosine: F64, sine: F64) -> F64:
    """Pairs (i, i + n / 2) of the first n = 2 · len(cosine) components."""
    n = cosine.shape[-1]
    low, high, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return np.concatenate([low * cosine - high * sine, high * cosine + low * sine, rest], -1)


def rotate_neighbours(x: F64, cosine: F64, sine: F64) -> F64:
    """Pairs (2i, 2i + 1)."""
    n = 2 * cosine.shape[-1]
    even, odd = x[..., :n:2], x[..., 1:n:2]
    turned = np.stack([even * cosine - odd * sine, odd * cosine + even * sine], -1)
    return np.concatenate([turned.reshape(*x.shape[:-1], n), x[..., n:]], -1)
