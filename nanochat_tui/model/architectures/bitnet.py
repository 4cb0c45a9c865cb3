"""`bitnet`, `bitnet-25`, `bitnet-b1.58`: a norm before each output projection, and two activations.

BitNet b1.58 2B4T was trained with ReLU²; converters wrote it as `bitnet` too, whose older models (large, 3B) use
SiLU, and every program that believed the name got a perplexity of 100 instead of 17. It is told by what the older two
have not: its widths, Llama 3's vocabulary, or its name.
"""

from __future__ import annotations

from dataclasses import replace

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import metadata_string
from nanochat_tui.model.architectures.dense import dense
from nanochat_tui.model.architectures.description import Activation, Architecture
from nanochat_tui.model.architectures.keys import Keys
from nanochat_tui.text import display_safe

NAMES = ("bitnet", "bitnet-25", "bitnet-b1.58")
_WIDTHS_2B4T = (2560, 6912)
"""Width and feed-forward width of BitNet b1.58 2B4T."""
_VOCABULARY_2B4T = 128_256
"""Its vocabulary is Llama 3's; the older models have SentencePiece's, of 32,002."""
_NAMES_2B4T = ("2b4t", "2b-4t", "2b 4t", "2b_4t")


def describe(keys: Keys) -> Architecture:
    """Return the model that a file describes. Raises UserError."""
    attention = keys.attention(sub_norm=True)
    ffn = keys.feed_forward()
    activation, notes = _activation(keys, ffn.hidden)
    ffn = replace(ffn, activation=activation, sub_norm=True)
    # 2B4T turned 5e5 and always wrote so; the older models turned llama's 1e4
    made = dense(keys, attention, ffn, keys.rope(attention.head_dim))
    return replace(made, notes=notes, token_scales=True)


def _activation(keys: Keys, hidden: int) -> tuple[Activation, tuple[str, ...]]:
    by_name: Activation = "silu" if keys.prefix == "bitnet" else "relu2"
    said = keys.text("hidden_activation", "").lower()
    known: dict[str, Activation] = {"": by_name, "silu": "silu", "swish": "silu", "relu2": "relu2", "relu^2": "relu2"}
    if said not in known:
        raise UserError(f"the activation {display_safe(said)} cannot be run by this version, only silu and relu2")
    activation = known[said]
    if activation == "silu" and (keys.prefix != "bitnet" or is_2b4t(keys, hidden)):
        return "relu2", (
            "note: the file says SiLU, but this is BitNet b1.58 2B4T, which was trained with ReLU²; that is used",
        )
    return activation, ()


def is_2b4t(keys: Keys, hidden: int) -> bool:
    """Whether a file of these architectures is BitNet b1.58 2B4T; `hidden` is its feed-forward width."""
    if (keys.dim, hidden) == _WIDTHS_2B4T or keys.vocabulary == _VOCABULARY_2B4T:
        return True
    names = [metadata_string(keys.metadata, f"general.{key}", "").lower() for key in ("name", "basename")]
    return any(known in name for name in names for known in _NAMES_2B4T)
