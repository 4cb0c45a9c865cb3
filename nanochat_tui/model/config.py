"""What a nanochat model is: its shape, independent of any file or framework."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

MHC_RECORD_FLOATS = {2: 9, 4: 40}
"""Floats of one mHC record by stream count: residual logits, then pre and post (logits, bias) per stream."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a pre-norm decoder with ternary linears and hyper-connected residual streams.

    `n_streams` is 1 (plain residual, no mHC parameters), 2 or 4. All widths are in elements.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    vocab_size: int
    context_length: int
    group_size: int = 128
    n_streams: int = 2
    tied: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    mhc_version: Literal[1, 2] = 2
    indentation: int = 0
    """Spaces per leading tab in training text (`nanochat.text.indentation`); 0 = text is left as it is."""

    def __post_init__(self) -> None:
        if self.n_streams not in (1, 2, 4):
            raise ValueError(f"n_streams must be 1, 2 or 4, not {self.n_streams}")
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "vocab_size", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.dim % self.n_heads or self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"dim {self.dim}, n_heads {self.n_heads} and n_kv_heads {self.n_kv_heads} do not divide evenly"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; RoPE rotates pairs")
        if self.dim % self.group_size or self.hidden_dim % self.group_size:
            raise ValueError(
                f"dim {self.dim} and hidden_dim {self.hidden_dim} must be multiples of group_size {self.group_size}"
            )
        if self.mhc_version not in (1, 2):
            raise ValueError(f"mhc_version must be 1 or 2, not {self.mhc_version}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Width of the key (or value) projection: all key-value heads."""
        return self.n_kv_heads * self.head_dim

    @property
    def n_cached_layers(self) -> int:
        """Layers that keep keys and values: all."""
        return self.n_layers

    @property
    def state_floats(self) -> int:
        """Floats of recurrent state per sequence: none."""
        return 0

    @property
    def mhc_records(self) -> int:
        """Number of mHC records: attention and feed-forward of every block; 0 for a plain residual."""
        return 0 if self.n_streams == 1 else 2 * self.n_layers

    @property
    def ternary_parameters(self) -> int:
        """Number of ternary weights."""
        attention = self.dim * (2 * self.dim + 2 * self.kv_dim)
        return self.n_layers * (attention + 3 * self.dim * self.hidden_dim)

    @property
    def parameters(self) -> int:
        """Number of trained parameters: embedding, head when untied, ternary linears, norms and mHC records."""
        table = self.vocab_size * self.dim * (1 if self.tied else 2)
        norms = (2 * self.n_layers + 1) * self.dim
        mhc = self.mhc_records * MHC_RECORD_FLOATS.get(self.n_streams, 0)
        return table + self.ternary_parameters + norms + mhc

    def with_(self, **changes: object) -> ModelConfig:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]


PRESETS: dict[str, ModelConfig] = {
    "d20": ModelConfig(
        dim=256,
        n_layers=6,
        n_heads=4,
        n_kv_heads=4,
        hidden_dim=768,
        vocab_size=50_257,
        context_length=512,
        indentation=4,
    ),
    "tiny": ModelConfig(
        dim=128,
        n_layers=2,
        n_heads=2,
        n_kv_heads=2,
        hidden_dim=256,
        vocab_size=50_257,
        context_length=256,
        indentation=4,
    ),
}
"""Named shapes. `tiny` exists for smoke runs and tests; `d20` is the reference model."""
