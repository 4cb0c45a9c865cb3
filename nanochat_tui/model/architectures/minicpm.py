"""`minicpm`: llama with scaled embedding rows, residual branches and logits (MiniCPM, BitCPM)."""

from __future__ import annotations

import math
from dataclasses import replace

from nanochat_tui.model.architectures import llama
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.model.architectures.keys import Keys

NAMES = ("minicpm",)


def describe(keys: Keys) -> Architecture:
    """Return the model that a file describes. Raises UserError."""
    plain = llama.describe(keys)
    return replace(
        plain,
        embedding_scale=keys.number("embedding_scale", 12.0),
        residual_scale=keys.number("residual_scale", 1.4 / math.sqrt(keys.layers)),
        logit_scale=1.0 / keys.number("logit_scale", keys.dim / 256),
    )
