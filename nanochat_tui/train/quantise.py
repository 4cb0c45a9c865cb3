"""Fake quantisation with straight-through gradients.

Forward values are exactly those of the exported model; backward passes the gradient unchanged
(straight-through estimator, Bengio et al. 2013, as in BitNet b1.58).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanochat_tui.model.activations import BLOCK, MIN_ABSMAX
from nanochat_tui.model.ternary import MIN_SCALE

Q8_0_BLOCK = 32
"""Weights per Q8_0 block along the row."""


class _StraightThrough(torch.autograd.Function):
    """Replace a tensor by another value in the forward pass only."""

    @staticmethod
    def forward(ctx: Any, original: Tensor, value: Tensor) -> Tensor:
        return value.clone() if value is original else value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


def ternary_scales(weight: Tensor, group_size: int, *, least_squares: bool = False) -> Tensor:
    """Return the group scales of `model.ternary.ternarise` as float16 [..., columns / group_size]."""
    groups = weight.detach().view(*weight.shape[:-1], -1, group_size)
    if least_squares:
        sums = groups.abs().double().sort(dim=-1, descending=True).values.cumsum(dim=-1)
        counts = torch.arange(1, group_size + 1, dtype=torch.float64, device=weight.device)
        best = (sums * sums / counts).argmax(dim=-1, keepdim=True)
        mean = (sums.gather(-1, best) / (best + 1)).squeeze(-1)
    else:
        mean = groups.abs().mean(dim=-1, dtype=torch.float64)
    return mean.clamp_(min=MIN_SCALE).float().half()


@torch.no_grad()
def _ternary_value(weight: Tensor, group_size: int, least_squares: bool) -> Tensor:
    scales = ternary_scales(weight, group_size, least_squares=least_squares).float().unsqueeze(-1)
    groups = weight.view(*weight.shape[:-1], -1, group_size)
    return (groups / scales).round_().clamp_(-1, 1).mul_(scales).view(weight.shape)


@torch.no_grad()
def _q8_0_value(table: Tensor) -> Tensor:
    blocks = table.reshape(*table.shape[:-1], -1, Q8_0_BLOCK)
    scale = (blocks.abs().amax(dim=-1, keepdim=True) / 127).half().float()
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (blocks / safe).round_().clamp_(-127, 127).mul_(scale).view(table.shape)


def ternary_weight(weight: Tensor, group_size: int, *, least_squares: bool = False) -> Tensor:
    """Ternary value of float32 matrices [..., rows, columns], with straight-through gradient."""
    value = _ternary_value(weight, group_size, least_squares)
    return _StraightThrough.apply(weight, value)  # type: ignore[no-any-return, no-untyped-call]


def q8_0_table(table: Tensor) -> Tensor:
    """Q8_0 value of float32 rows [n, dim] (dim a multiple of 32), with straight-through gradient."""
    return _StraightThrough.apply(table, _q8_0_value(table))  # type: ignore[no-any-return, no-untyped-call]


class _Int8Activation(torch.autograd.Function):
    """Round each row to int8 by its largest magnitude; backward is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = x.abs().amax(dim=-1, keepdim=True).to(wide).clamp(min=MIN_ABSMAX) / 127
        return ((x / scale).round() * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return gradients[0]  # type: ignore[no-any-return]


def int8_activation(x: Tensor) -> Tensor:
    """Int8 absmax value of each row of `x` [..., features], with straight-through gradient."""
    return _Int8Activation.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def int8_head_input(x: Tensor) -> Tensor:
    """The same with one scale per 32 features, as output tables read their input."""
    return int8_activation(x.reshape(*x.shape[:-1], -1, BLOCK)).view(x.shape)
