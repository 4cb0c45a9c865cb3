"""Cross-entropy over a large vocabulary, without keeping the logits.

For d20 the head is 71 % of a training step's arithmetic. Two things make it affordable:

* the logits are made chunk by chunk in one reused buffer, softmax runs in place, and the gradients
  of the states and of the table are computed in the forward pass (they are linear in the upstream
  scalar), so nothing of size tokens x vocabulary outlives its chunk;
* optionally the partition function is estimated: exact over the frequent tokens and every target
  of the batch, Monte Carlo over the rest (importance sampling as in Jean et al. 2015, with a uniform
  proposal over the tail only). The estimate of the partition function is unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat_tui.train.quantise import q8_0_table


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, targets: Tensor, bias: Tensor | None, chunk: int) -> Tensor:
        tokens = x.shape[0]
        needs = x.requires_grad or table.requires_grad
        rows = table.detach()
        states = x.detach().to(rows.dtype)
        buffer = torch.empty(min(chunk, tokens), rows.shape[0], dtype=rows.dtype, device=x.device)
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        d_states = torch.empty_like(states) if needs else None
        d_table: Tensor | None = None
        for start in range(0, tokens, chunk):
            part, target = states[start : start + chunk], targets[start : start + chunk]
            z = buffer[: part.shape[0]]
            if bias is None:
                torch.mm(part, rows.t(), out=z)
            else:
                torch.addmm(bias, part, rows.t(), out=z)
            torch.softmax(z, -1, out=z)
            index = torch.arange(part.shape[0], device=x.device)
            total -= z[index, target].float().clamp_(min=1e-37).log_().sum()
            if d_states is not None:
                z[index, target] -= 1
                torch.mm(z, rows, out=d_states[start : start + chunk])
                if d_table is None:
                    d_table = z.t() @ part
                else:
                    d_table.addmm_(z.t(), part)
        if needs:
            ctx.save_for_backward(d_states, d_table)
        ctx.tokens, ctx.dtypes = tokens, (x.dtype, table.dtype)
        return total / tokens

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None, None]:
        d_states, d_table = ctx.saved_tensors
        scale = (gradients[0] / ctx.tokens).to(d_states.dtype)
        return (d_states * scale).to(ctx.dtypes[0]), (d_table * scale).to(ctx.dtypes[1]), None, None, None


def fused_cross_entropy(
    x: Tensor, table: Tensor, targets: Tensor, *, bias: Tensor | None = None, chunk: int = 2048
) -> Tensor:
    """Mean cross-entropy in nats of softmax(x · tableᵀ + bias) against int64 targets.

    Shapes: x [tokens, dim], table [vocab, dim], targets [tokens], bias [vocab] (no gradient).
    The matrix products run in `table.dtype`. Gradients reach x and table once: no double backward.
    """
    return _FusedCrossEntropy.apply(x, table, targets, bias, chunk)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True, slots=True)
class VocabularySample:
    """Columns used by one step's head: ids int64 [n], additive bias float32 [n], remapped targets int64 [tokens]."""

    ids: Tensor
    bias: Tensor
    targets: Tensor


class VocabularySampler:
    """Choose the head's columns for a batch: all frequent ids, the batch's rare targets, a sample of the rest."""

    def __init__(self, counts: Tensor, frequent: int, sampled: int, seed: int) -> None:
        self.vocab = counts.numel()
        order = torch.argsort(counts, descending=True, stable=True)
        self.frequent = order[:frequent].sort().values
        self.is_tail = torch.ones(self.vocab, dtype=torch.bool)
        self.is_tail[self.frequent] = False
        self.sampled = sampled
        self.seed = seed

    def sample(self, targets: Tensor, step: int) -> VocabularySample:
        """Return the columns of optimiser step `step`; a function of (seed, step, targets) only, so resume is exact."""
        rare = torch.unique(targets[self.is_tail[targets]])
        rest = self.is_tail.clone()
        rest[rare] = False
        candidates = rest.nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        n = min(self.sampled, candidates.numel())
        drawn = candidates[torch.randperm(candidates.numel(), generator=generator)[:n]]
        ids = torch.cat([self.frequent, rare, drawn])
        bias = torch.zeros(ids.numel())
        if n:
            bias[-n:] = torch.log(torch.tensor(candidates.numel() / n))
        position = torch.empty(self.vocab, dtype=torch.int64)
        position[ids] = torch.arange(ids.numel())
        return VocabularySample(ids, bias, position[targets])


def head_loss(
    x: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    quantise: bool,
    dtype: torch.dtype,
    sample: VocabularySample | None = None,
    chunk: int = 2048,
) -> Tensor:
    """Cross-entropy of states x [tokens, dim] with a float32 table [vocab, dim], over all of it or a sample."""
    if sample is None:
        rows = q8_0_table(table) if quantise else table
        return fused_cross_entropy(x, rows.to(dtype), targets, chunk=chunk)
    rows = table.index_select(0, sample.ids.to(table.device))
    rows = q8_0_table(rows) if quantise else rows
    bias, remapped = sample.bias.to(table.device, dtype), sample.targets.to(table.device)
    return fused_cross_entropy(x, rows.to(dtype), remapped, bias=bias, chunk=chunk)
