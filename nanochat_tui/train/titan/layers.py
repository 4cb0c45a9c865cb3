"""What torchtitan's layers are replaced by: ternary linears and experts, tables in Q8_0, the records of mHC.

Each rounds its float32 weight in the forward pass, after FSDP2 has gathered it, and multiplies in `dtype`. Group scales
lie along the inputs of a row, so a weight may be shared out by rows or by experts, never by inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.models.common.embedding import Embedding
from torchtitan.models.common.linear import Linear
from torchtitan.models.common.moe import GroupedExperts, TokenChoiceTopKRouter
from torchtitan.models.common.rope import CosSinRoPE
from torchtitan.protocols.module import Module

from nanochat_tui.train.experts import balance_loss, grouped, with_loss
from nanochat_tui.train.model import rope_angles
from nanochat_tui.train.quantise import int8_activation, int8_head_input, q8_0_table, ternary_weight
from nanochat_tui.train.streams import initial_record, mix_coefficients

Dtype = Literal["bfloat16", "float32"]
Activations = Literal["int8", "float"]


def _local(weight: Tensor) -> Tensor:
    """The part of a weight that this rank computes with."""
    found: Tensor = weight.to_local() if isinstance(weight, DTensor) else weight
    return found


class TernaryLinear(Linear):
    """A linear with ternary weights and inputs rounded to int8, one scale per token; the result is of `dtype`."""

    @dataclass(kw_only=True, slots=True)
    class Config(Linear.Config):
        """Sizes, and how it rounds; see `ModelConfig` and `NanochatModel`."""

        group_size: int
        least_squares: bool = False
        activations: Activations = "int8"
        dtype: Dtype = "bfloat16"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rounding = config
        self.compute_dtype = TORCH_DTYPE_MAP[config.dtype]

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., outputs] of [..., inputs]."""
        c = self.rounding
        weight = ternary_weight(_local(self.weight), c.group_size, least_squares=c.least_squares)
        x = int8_activation(input) if c.activations == "int8" else input
        return F.linear(x.to(self.compute_dtype), weight.to(self.compute_dtype))


class TernaryExperts(GroupedExperts):
    """SwiGLU experts with ternary matrices; what they read is rounded to int8 per token."""

    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        """Sizes, and how it rounds."""

        group_size: int
        least_squares: bool = False
        activations: Activations = "int8"
        dtype: Dtype = "bfloat16"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rounding = config
        self.compute_dtype = TORCH_DTYPE_MAP[config.dtype]

    def _round(self, x: Tensor) -> Tensor:
        return int8_activation(x) if self.rounding.activations == "int8" else x

    def _matrices(self, *weights: Tensor) -> Tensor:
        c = self.rounding
        stacked = torch.cat([_local(weight) for weight in weights], dim=1)
        return ternary_weight(stacked, c.group_size, least_squares=c.least_squares).to(self.compute_dtype)

    def forward(self, x_RD: Tensor, num_tokens_per_expert_E: Tensor) -> Tensor:
        """Return [rows, dim] of rows sorted by the experts of this rank, whose numbers of rows are int64 [experts]."""
        counts = num_tokens_per_expert_E
        x = self._round(x_RD).to(self.compute_dtype)
        gate, up = grouped(x, self._matrices(self.w1_EFD, self.w3_EFD), counts).chunk(2, dim=-1)
        return grouped(self._round(F.silu(gate) * up), self._matrices(self.w2_EDF), counts).type_as(x_RD)


class BalancedRouter(TokenChoiceTopKRouter):
    """A router whose backward pass adds the Switch Transformer's balance loss.

    torchtitan balances with a bias on the choice, which the engine does not have.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(TokenChoiceTopKRouter.Config):
        """As torchtitan's."""

        balance_weight: float = 0.0
        """Of the loss, in the gradient of one rank's micro-batch; these are added up over ranks and micro-batches."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.balance_weight = config.balance_weight

    def forward(self, x_BLD: Tensor, expert_bias_E: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights and numbers of each token's experts [batch, tokens, used], and all shares."""
        weights, chosen, shares = super().forward(x_BLD, expert_bias_E)
        if self.balance_weight and torch.is_grad_enabled():
            # the softmax of the logarithm of shares is the shares
            loss, _ = balance_loss(shares.flatten(0, 1).clamp(min=1e-30).log(), chosen.flatten(0, 1))
            weights = with_loss(weights, loss, self.balance_weight)
        return weights, chosen, shares


class Q8Embedding(Embedding):
    """Rows as the file holds them, in Q8_0."""

    @dataclass(kw_only=True, slots=True)
    class Config(Embedding.Config):
        """As torchtitan's."""

    def forward(self, input: Tensor) -> Tensor:
        """Return float32 [batch, tokens, dim], a tensor of its own, as FSDP2 wants it."""
        return q8_0_table(super().forward(input)).clone()


class Q8Head(Linear):
    """The head: table in Q8_0, input rounded to int8 with one scale per 32 values."""

    @dataclass(kw_only=True, slots=True)
    class Config(Linear.Config):
        """Sizes, and how it rounds."""

        activations: Activations = "int8"
        dtype: Dtype = "bfloat16"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rounded = config.activations == "int8"
        self.compute_dtype = TORCH_DTYPE_MAP[config.dtype]

    def forward(self, input: Tensor) -> Tensor:
        """Return logits [..., vocab] of [..., dim]."""
        x = int8_head_input(input) if self.rounded else input
        return F.linear(x.to(self.compute_dtype), q8_0_table(_local(self.weight)).to(self.compute_dtype))


class ExactRoPE(CosSinRoPE):
    """torchtitan's half-split rotation, with angles computed in float64 as the engine's are."""

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        """As torchtitan's."""

    def _precompute_cache(self) -> Tensor:
        c = self.config
        angles = rope_angles(c.dim, c.theta, c.max_seq_len)
        cos, sin = angles.cos().float(), angles.sin().float()
        return torch.cat([cos, cos, sin, sin], dim=-1)


class HyperConnection(Module):
    """The mHC record of one sub-layer (mHC-lite, static)."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        """The number of streams and the version, see `ModelConfig`."""

        n_streams: int
        version: int

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_streams, self.version = config.n_streams, config.version
        self.record = nn.Parameter(torch.empty_like(initial_record(config.n_streams, 0)))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return read weights [n], the doubly stochastic matrix [n, n] and write weights [n]."""
        read, matrix, write = mix_coefficients(_local(self.record)[None], self.n_streams, self.version)
        return read[0], matrix[0], write[0]

    @property
    def mix_first(self) -> bool:
        """Whether streams are mixed before a sub-layer's output is added."""
        return self.n_streams == 4 and self.version == 1


def set_record(record: Tensor, *, n_streams: int, index: int) -> None:
    """Initialise the record of sub-layer `index`, in shares or whole."""
    value = initial_record(n_streams, index).to(record.device)
    if isinstance(record, DTensor):
        value = distribute_tensor(value, record.device_mesh, record.placements, src_data_rank=None)
    record.copy_(value)
