"""What most decoders share: the same attention and feed-forward part in every layer."""

from __future__ import annotations

from nanochat_tui.model.architectures.description import Architecture, Attention, FeedForward, Layer, Rope
from nanochat_tui.model.architectures.keys import Keys


def dense(keys: Keys, attention: Attention, ffn: FeedForward, rope: Rope) -> Architecture:
    """Return a model of equal layers. Raises UserError if a key is missing or impossible."""
    return Architecture(
        name=keys.prefix,
        dim=keys.dim,
        vocab_size=keys.vocabulary,
        context_length=keys.context,
        layers=(Layer(attention, ffn),) * keys.layers,
        rope=rope,
        norm_eps=keys.epsilon,
        tied=keys.tied,
        present=keys.optional,
    )
