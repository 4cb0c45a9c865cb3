"""A feed-forward part of many experts, of which a router chooses a few for each token.

The router is a ternary linear; the experts of its k largest logits are used, weighted by the softmax of these logits
(which are the shares of a softmax over all, divided by their sum: what the engine computes). Tokens are sorted by
expert and multiplied in one call (`torch.nn.functional.grouped_mm`, where PyTorch has it), or expert by expert.

Balance: the loss of the Switch Transformer (Fedus et al. 2021, arXiv 2101.03961, equation 4) for k experts a token,
E · Σ share of assignments · mean probability, which is 1 when all are used alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]
GROUPED = hasattr(F, "grouped_mm")
ALIGNMENT = 16
"""Bytes that a row of a grouped product's matrices is a multiple of."""


class _WithLoss(torch.autograd.Function):
    """Pass a tensor on, and have a loss take part in the backward pass with a fixed weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        return gradients[0], torch.full((), ctx.weight, dtype=torch.float32, device=gradients[0].device), None


def with_loss(x: Tensor, loss: Tensor, weight: float) -> Tensor:
    """Return `x`, whose backward pass adds `weight` times the gradient of the scalar `loss`."""
    return _WithLoss.apply(x, loss, weight)  # type: ignore[no-any-return, no-untyped-call]


def choose(logits: Tensor, used: int) -> tuple[Tensor, Tensor]:
    """Return each token's experts (int64 [tokens, used], the likeliest first, of equals the first) and their weights.

    `logits` is float32 [tokens, experts].
    """
    chosen = torch.argsort(logits, dim=-1, descending=True, stable=True)[:, :used]
    return chosen, logits.gather(1, chosen).softmax(dim=-1)


def _assignments(chosen: Tensor, experts: int) -> Tensor:
    """How many tokens each expert got, int64 [experts]."""
    counts = torch.zeros(experts, dtype=torch.int64, device=chosen.device)
    return counts.index_add_(0, chosen.reshape(-1), torch.ones_like(chosen.reshape(-1)))


def balance_loss(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the balance loss, a scalar, and how many assignments each expert got, int64 [experts]."""
    experts = logits.shape[-1]
    counts = _assignments(chosen, experts)
    share = counts / chosen.numel()
    return experts * (share * logits.softmax(dim=-1).mean(dim=0)).sum(), counts


def mixture(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, rounded: Rounding) -> Tensor:
    """Return the weighted sum of each token's experts, [tokens, dim] in the type of `weights`.

    Shapes: x [tokens, dim], rounded already; chosen and weights [tokens, used]; gate_up [experts, 2 hidden, dim], gates
    first; down [experts, dim, hidden], both in the type of x. `rounded` is done to what `down` reads.
    """
    order = torch.argsort(chosen.reshape(-1), stable=True)
    token = order // chosen.shape[1]
    counts = _assignments(chosen, gate_up.shape[0])
    gate, up = grouped(x[token], gate_up, counts).chunk(2, dim=-1)
    found = grouped(rounded(F.silu(gate) * up), down, counts)
    share = weights.reshape(-1)[order].unsqueeze(1)
    return torch.zeros(x.shape, dtype=weights.dtype, device=x.device).index_add_(
        0, token, found.to(weights.dtype) * share
    )


def grouped(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """Rows of x [n, inputs], sorted by expert, times their expert's matrix of [experts, outputs, inputs]."""
    aligned = all(width * x.element_size() % ALIGNMENT == 0 for width in matrices.shape[1:])
    # the compiler knows it for bfloat16 only
    known = x.dtype == torch.bfloat16 or not torch.compiler.is_compiling()
    if GROUPED and aligned and known:
        ends = counts.cumsum(0).to(torch.int32)
        found: Tensor = F.grouped_mm(x.contiguous(), matrices.transpose(-2, -1), offs=ends)
    else:
        found = by_expert(x, matrices, counts)
    return found


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of rows of an expert is another one each time
def by_expert(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """The same, a product for each expert."""
    parts = torch.split(x, counts.tolist())
    return torch.cat([F.linear(part, matrix) for part, matrix in zip(parts, matrices, strict=True)])
