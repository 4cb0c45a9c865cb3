"""The one definition of int8 activations: a value is rint(x / a) · a with a = max(|x|) / 127 over some values.

Linears of models that were trained so have one scale per token (BitNet b1.58); the input of every output table has one
per `BLOCK` values, because a few large components of the last hidden state would cost the others their precision.
Trainer (PyTorch) and engine follow this module; tests compare them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
"""Values per scale where a token has several: a block of Q8_0, so that both scales change together."""
MIN_ABSMAX = 1e-8
"""Smallest absolute maximum, so that a row of zeros has a scale."""

Floats = NDArray[np.float32]


def int8_tokens(x: Floats) -> Floats:
    """Return float32 rows [..., width] rounded to int8 with one scale per row."""
    scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(MIN_ABSMAX)) / np.float32(127)
    rounded: Floats = np.rint(x / scale) * scale
    return rounded


def int8_blocks(x: Floats) -> Floats:
    """Return float32 rows [..., width] rounded to int8 with one scale per `BLOCK` values; width a multiple of it."""
    return int8_tokens(x.reshape(*x.shape[:-1], -1, BLOCK)).reshape(x.shape)
