"""`bitnet`, `bitnet-25`, `bitnet-b1.58`: a norm before each output projection, and two activations.

BitNet b1.58 2B4T was trained with ReLU²; converters wrote it as `bitnet` too, whose older models (large, 3B) use
SiLU, and every program that believed the name got a perplexity of 100 instead of 17. So its shape tells the model.
"""

from __future__ import annotations

from dataclasses import replace

from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.model.architectures.dense import dense
from nanochat_tui.model.architectures.description import Activation, Architecture
from nanochat_tui.model.architectures.keys import Keys

NAMES = ("bitnet", "bitnet-25", "bitnet-b1.58")
_SHAPE_2B4T = (30, 2560, 6912, 128_256)
"""Layers, width, feed-forward width and vocabulary of BitNet b1.58 2B4T."""


def describe(keys: Keys) -> Architecture:
    """Return the model that a file describes. Raises UserError."""
    attention = keys.attention(sub_norm=True)
    ffn = keys.feed_forward()
    activation, notes = _activation(keys, ffn.hidden)
    ffn = replace(ffn, activation=activation, sub_norm=True)
    # 2B4T turned 5e5 and always wrote so; the older models turned llama's 1e4
    made = dense(keys, attention, ffn, keys.rope(attention.head_dim))
    return replace(made, notes=notes)


def _activation(keys: Keys, hidden: int) -> tuple[Activation, tuple[str, ...]]:
    by_name: Activation = "silu" if keys.prefix == "bitnet" else "relu2"
    said = keys.text("hidden_activation", "").lower()
    known: dict[str, Activation] = {"": by_name, "silu": "silu", "swish": "silu", "relu2": "relu2", "relu^2": "relu2"}
    if said not in known:
        raise UserError(f"the activation {display_safe(said)} cannot be run by this version, only silu and relu2")
    activation = known[said]
    shape = (keys.layers, keys.dim, hidden, keys.vocabulary)
    if activation == "silu" and (shape == _SHAPE_2B4T or keys.prefix != "bitnet"):
        return "relu2", (
            "note: the file says SiLU, but this is BitNet b1.58 2B4T, which was trained with ReLU²; that is used",
        )
    return activation, ()
