"""`llama`: the plain decoder, with the converter's rotation of neighbouring components (Falcon3, Falcon-E, TriLM …)."""

from __future__ import annotations

from dataclasses import replace

from nanochat_tui.model.architectures.dense import dense
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.model.architectures.keys import Keys

NAMES = ("llama",)


def describe(keys: Keys) -> Architecture:
    """Return the model that a file describes. Raises UserError."""
    attention = replace(keys.attention(), window=keys.window())
    rope = keys.rope(attention.head_dim, interleaved=True)
    return dense(keys, attention, keys.feed_forward(), rope)
