"""`maple`: ternary experts; sliding windows with rotated positions, and every few layers global ones without any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nanochat_tui.errors import UserError
from nanochat_tui.model.architectures.description import Architecture, FeedForward, Layer
from nanochat_tui.model.architectures.keys import MAX_EXPERTS, MAX_POSITIONS, Keys

NAMES = ("maple",)


def describe(keys: Keys) -> Architecture:
    """Return the model that a file describes. Raises UserError."""
    layers = keys.layers
    attention = keys.attention(qk_norm=True)
    window = keys.count("attention.sliding_window", maximum=MAX_POSITIONS)
    pattern = keys.per_layer("attention.sliding_window_pattern", layers)
    if pattern is None:
        raise UserError("the file does not say which layers have a sliding window; convert it again")
    experts = keys.count("expert_count", maximum=MAX_EXPERTS)
    used = keys.count("expert_used_count", maximum=experts)
    ffn = FeedForward(keys.count("expert_feed_forward_length"), experts=experts, used=used)
    sliding = replace(attention, window=window)
    everywhere = replace(attention, rotates=False)
    rope = keys.rope(attention.head_dim)
    if keys.has("rope.freq_base_swa"):  # only sliding layers rotate
        rope = replace(rope, theta=keys.number("rope.freq_base_swa"))
    return Architecture(
        name=keys.prefix,
        dim=keys.dim,
        vocab_size=keys.vocabulary,
        context_length=keys.context,
        layers=tuple(
            Layer(sliding if flag else everywhere, replace(ffn, clamp=clamp))
            for flag, clamp in zip(pattern, _clamps(keys, layers), strict=True)
        ),
        rope=rope,
        norm_eps=keys.epsilon,
        tied=keys.tied,
        present=keys.optional,
    )


def _clamps(keys: Keys, layers: int) -> list[float]:
    found = keys.value("swiglu_clamp_exp")
    if found is None:
        return [0.0] * layers
    values = np.atleast_1d(np.asarray(found.value, dtype=np.float64))
    if len(values) == 1:
        values = np.repeat(values, layers)
    if len(values) < layers or not np.isfinite(values).all() or (values < 0).any():
        raise UserError(f"the file's {keys.prefix}.swiglu_clamp_exp is not one bound per layer; export it again")
    return [float(v) for v in values[:layers]]
