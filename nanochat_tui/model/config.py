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
    least_squares: bool = False
    """Whether latent weights become ternary with scales of least squared error, see `ternary`."""
    n_experts: int = 0
    """Feed-forward networks per block of which a router chooses; 0 = one network, no router."""
    n_active_experts: int = 0
    """Experts each token passes through."""

    nextn: int = 0
    """Blocks behind the last that predict further tokens (multi-token prediction); generation does without them."""

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
        if self.nextn < 0:
            raise ValueError(f"nextn must be at least 0, not {self.nextn}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; RoPE rotates pairs")
        if self.dim % self.group_size or self.hidden_dim % self.group_size:
            raise ValueError(
                f"dim {self.dim} and hidden_dim {self.hidden_dim} must be multiples of group_size {self.group_size}"
            )
        if self.mhc_version not in (1, 2):
            raise ValueError(f"mhc_version must be 1 or 2, not {self.mhc_version}")
        if self.n_experts and not 1 <= self.n_active_experts <= self.n_experts:
            raise ValueError(f"n_active_experts must be 1 to {self.n_experts}, not {self.n_active_experts}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Width of the key (or value) projection: all key-value heads."""
        return self.n_kv_heads * self.head_dim

    @property
    def mhc_records(self) -> int:
        """Number of mHC records: attention and feed-forward of every block; 0 for a plain residual."""
        return 0 if self.n_streams == 1 else 2 * self.n_layers

    def _ternary(self, experts: int) -> int:
        attention = self.dim * (2 * self.dim + 2 * self.kv_dim)
        router = self.dim * self.n_experts
        joining = self.nextn * 2 * self.dim * self.dim
        blocks = self.n_layers + self.nextn
        return blocks * (attention + router + max(1, experts) * 3 * self.dim * self.hidden_dim) + joining

    @property
    def ternary_parameters(self) -> int:
        """Number of ternary weights; of a mixture of experts all of them, the router's too."""
        return self._ternary(self.n_experts)

    @property
    def active_ternary_parameters(self) -> int:
        """Number of ternary weights a token is multiplied with: fewer where it passes through some experts only."""
        return self._ternary(self.n_active_experts)

    @property
    def active_parameters(self) -> int:
        """Number of parameters without those of the experts a token does not pass through."""
        return self.parameters - self.ternary_parameters + self.active_ternary_parameters

    @property
    def parameters(self) -> int:
        """Number of trained parameters: embedding, head when untied, ternary linears, norms and mHC records."""
        table = self.vocab_size * self.dim * (1 if self.tied else 2)
        norms = (2 * self.n_layers + 1 + 5 * self.nextn) * self.dim
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
    "nano-125m": ModelConfig(
        dim=768,
        n_layers=12,
        n_heads=12,
        n_kv_heads=12,
        hidden_dim=2176,
        vocab_size=50_257,
        context_length=512,
        indentation=4,
    ),
    "nano-560m": ModelConfig(
        dim=1024,
        n_layers=24,
        n_heads=16,
        n_kv_heads=16,
        hidden_dim=2816,
        vocab_size=32_000,
        context_length=2048,
        tied=False,
        indentation=4,
    ),
    "1b": ModelConfig(
        dim=2048,
        n_layers=20,
        n_heads=16,
        n_kv_heads=16,
        hidden_dim=5504,
        vocab_size=50_257,
        context_length=1024,
        indentation=4,
    ),
    "7b": ModelConfig(
        dim=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        hidden_dim=11_008,
        vocab_size=128_256,
        context_length=8192,
        n_streams=4,
        tied=False,
        rope_theta=500_000.0,
        indentation=4,
    ),
}
"""Named shapes. `tiny` exists for smoke runs and tests; `d20` is the reference model; the others are the original's
presets, by its names: what they really count is `parameters`."""

PRESETS["25b-moe"] = PRESETS["7b"].with_(n_experts=8, n_active_experts=2)
