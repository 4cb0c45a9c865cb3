"""The logits of a checkpoint by a forward pass that is independent of engine and trainer.

It uses the tables and trits as they are exported and the roundings of the engine, so that its logits say what an
exported file must compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.export.checkpoint import Weights
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.model.activations import int8_blocks, int8_tokens
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.mhc import record_names, stream_matrices
from nanochat_tui.model.plain_forward import read_out, stream_states, unchanged
from nanochat_tui.model.ternary import dequantise, ternarise

Floats = NDArray[np.float32]


def exported_weights(config: ModelConfig, weights: Weights, table: str = "Q8_0") -> Weights:
    """Return the weights as an exported file holds them: ternary matrices and tables rounded, the rest as it is."""
    rounded: Weights = {}
    kind = TENSOR_TYPES[table]
    for name, values in weights.items():
        if name in ("token_embd.weight", "output.weight"):
            blocks = np.ascontiguousarray(values).reshape(-1, kind.block_elements)
            rounded[name] = kind.decode(kind.encode(blocks)).reshape(values.shape)
        elif values.ndim > 1:
            rounded[name] = dequantise(*ternarise(values, config.group_size, least_squares=config.least_squares))
        else:
            rounded[name] = values
    return rounded


def reference_logits(
    config: ModelConfig,
    weights: Weights,
    ids: Sequence[int],
    table: str = "Q8_0",
    int8: bool = True,
    added: Mapping[str, Floats] | None = None,
) -> Floats:
    """Return the logits of a checkpoint after every token of a text.

    Parameters: shape and weights of a checkpoint, token ids [n], the type the tables are exported in, and whether the
    inputs of linears and head are rounded to int8 as the engine does (see `model.activations`). added: what an adapter
    adds to matrices, by name.
    Returns float32 [n, vocab].
    """
    w = exported_weights(config, weights, table)
    for name, values in (added or {}).items():
        w[name] = w[name] + values
    rounded, head = (int8_tokens, int8_blocks) if int8 else (unchanged, unchanged)
    matrices = None
    if config.n_streams > 1:
        records = np.stack([w[name] for name in record_names(config.mhc_records)])
        matrices = stream_matrices(records, config.n_streams, config.mhc_version)
    (last,) = deque(stream_states(config, w, ids, matrices, rounded), maxlen=1)
    return read_out(config, w, last, head)
