"""`qwen3`: queries and keys are normalised head by head (Qwen3, the first Bonsai models)."""

from __future__ import annotations

from dataclasses import replace

from nanochat_tui.model.architectures.dense import dense
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.model.architectures.keys import Keys

NAMES = ("qwen3",)


def describe(keys: Keys) -> Architecture:
    """Return the model that a file describes. Raises UserError."""
    attention = replace(keys.attention(qk_norm=True), window=keys.window())
    return dense(keys, attention, keys.feed_forward(), keys.rope(attention.head_dim, theta=1e6))
