"""Bytes a training holds, by part; compared with the resident size of real runs (see `estimate`)."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from nanochat_tui.runs.config import TrainConfig

BASE_BYTES = 350e6
"""A process with PyTorch imported, before any tensor."""
HEAD_CHUNK = 2048
"""Tokens whose logits are held at once."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device."""

    weights: int
    """Float32 parameters, and the rounded copies the products use."""
    gradients: int
    optimizer: int
    """Muon's momentum of the blocks' matrices, AdamW's two moments of the rest."""
    activations: int
    """What a micro-batch keeps for the backward pass, and the logits of a chunk with their gradient."""
    process: int
    """PyTorch itself."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(astuple(self))


def memory_parts(config: TrainConfig, shards: int = 1) -> Memory:
    """Return the bytes of each of `shards` devices that share float32 weights, gradients and moments (FSDP2).

    One device holds everything. Of several, each holds its share, and the rounded copies of the block at work and of
    the table. NorMuon's row statistics, a thousandth of the momentum, are left out.
    """
    shape = config.model_shape()
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and config.device.startswith("cuda"))
    element = 2 if half else 4
    parameters, hidden = shape.parameters, shape.ternary_parameters
    table = shape.vocab_size * shape.dim * (1 if shape.tied else 2)
    copies = table + (hidden if shards == 1 else hidden // shape.n_layers)
    tokens = config.batch_size * config.sequence_length
    per_layer = (22 + 4 * shape.n_streams) * shape.dim + 6 * shape.hidden_dim * max(1, shape.n_active_experts)
    # evaluation is exact over the whole vocabulary even where training estimates the softmax
    logits = 2 * min(HEAD_CHUNK, tokens) * shape.vocab_size
    return Memory(
        weights=4 * parameters // shards + element * copies,
        gradients=4 * parameters // shards,
        optimizer=(4 * hidden + 8 * (parameters - hidden)) // shards,
        activations=element * (tokens * (shape.n_layers + shape.nextn) * per_layer + logits),
        process=int(BASE_BYTES),
    )
