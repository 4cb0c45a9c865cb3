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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, targets: Tensor, bias: Tensor | None, chunk: int, z_loss: float
    ) -> Tensor:
        tokens = x.shape[0]
        needs = x.requires_grad or table.requires_grad
        learns = table.requires_grad
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
            norm = z.logsumexp(-1).float() if z_loss else None
            torch.softmax(z, -1, out=z)
            index = torch.arange(part.shape[0], device=x.device)
            total -= z[index, target].float().clamp_(min=1e-37).log_().sum()
            if norm is not None:
                total += z_loss * norm.square().sum()
            if d_states is not None:
                if norm is not None:  # the gradient of z_loss · norm² is 2 z_loss · norm · softmax
                    z *= (1 + 2 * z_loss * norm).to(z.dtype).unsqueeze(-1)
                z[index, target] -= 1
                torch.mm(z, rows, out=d_states[start : start + chunk])
                if not learns:
                    continue
                if d_table is None:
                    d_table = z.t() @ part
                else:
                    d_table.addmm_(z.t(), part)
        if needs:
            ctx.save_for_backward(d_states, d_table)
        ctx.tokens, ctx.dtypes = tokens, (x.dtype, table.dtype)
        return total / tokens

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        d_states, d_table = ctx.saved_tensors
        scale = (gradients[0] / ctx.tokens).to(d_states.dtype)
        table = None if d_table is None else (d_table * scale).to(ctx.dtypes[1])
        return (d_states * scale).to(ctx.dtypes[0]), table, None, None, None, None


def fused_cross_entropy(
    x: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk: int = 2048,
    z_loss: float = 0.0,
) -> Tensor:
    """Mean cross-entropy in nats of softmax(x · tableᵀ + bias) against int64 targets.

    With `z_loss` the mean of z_loss · (log of the sum of exponentials)² is added (PaLM, Chowdhery et al. 2022).

    Shapes: x [tokens, dim], table [vocab, dim], targets [tokens], bias [vocab] (no gradient).
    The matrix products run in `table.dtype`. Gradients reach x and table once: no double backward.
    """
    return _FusedCrossEntropy.apply(x, table, targets, bias, chunk, z_loss)  # type: ignore[no-any-return, no-untyped-call]


COLUMN_STEP = 512
"""Columns of a step's head come in multiples of it, filled up with drawn ones: oneDNN makes, and keeps, code for every
shape of bfloat16 product that it meets, 14 MB a step of d20 when each step has another one."""


@dataclass(frozen=True, slots=True)
class VocabularySample:
    """Columns used by one step's head: ids int64 [n], each once, additive bias float32 [n], and the places of the
    batch's targets (int64 [tokens]) and inputs (int64, any shape) among them."""

    ids: Tensor
    bias: Tensor
    targets: Tensor
    inputs: Tensor


class VocabularySampler:
    """Choose the head's columns for a batch: all frequent ids, the batch's rare tokens, a sample of the rest.

    Of the batch all tokens are taken, not its targets alone, so that a tied table is read at these rows only. sampled:
    the fewest that are drawn of the rest; some more make the number of columns a multiple of `COLUMN_STEP`.
    """

    def __init__(self, counts: Tensor, frequent: int, sampled: int, seed: int) -> None:
        self.vocab = counts.numel()
        order = torch.argsort(counts, descending=True, stable=True)
        self.frequent = order[:frequent].sort().values
        self.is_tail = torch.ones(self.vocab, dtype=torch.bool)
        self.is_tail[self.frequent] = False
        self.sampled = sampled
        self.seed = seed
        self.gather: Callable[[Tensor], Tensor] = lambda tokens: tokens
        """Adds the tokens of the other processes, so that all have the same columns."""

    def sample(self, inputs: Tensor, targets: Tensor, step: int) -> VocabularySample:
        """Return the columns of optimiser step `step`; a function of (seed, step, tokens) only, so resume is exact."""
        tokens = self.gather(torch.cat([inputs.reshape(-1), targets]))
        rare = torch.unique(tokens[self.is_tail[tokens]])
        rest = self.is_tail.clone()
        rest[rare] = False
        candidates = rest.nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        missing = -(self.frequent.numel() + rare.numel() + self.sampled) % COLUMN_STEP
        n = min(self.sampled + missing, candidates.numel())
        drawn = candidates[torch.randperm(candidates.numel(), generator=generator)[:n]]
        ids = torch.cat([self.frequent, rare, drawn])
        bias = torch.zeros(ids.numel())
        if n:
            bias[-n:] = torch.log(torch.tensor(candidates.numel() / n))
        position = torch.empty(self.vocab, dtype=torch.int64)
        position[ids] = torch.arange(ids.numel())
        return VocabularySample(ids, bias, position[targets], position[inputs])


def head_loss(
    x: Tensor, table: Tensor, targets: Tensor, *, dtype: torch.dtype, chunk: int = 2048, z_loss: float = 0.0
) -> Tensor:
    """Cross-entropy of states x [tokens, dim] with an effective float32 table [vocab, dim], over all of it."""
    return fused_cross_entropy(x, table.to(dtype), targets, chunk=chunk, z_loss=z_loss)


def sampled_loss(
    x: Tensor, rows: Tensor, sample: VocabularySample, *, dtype: torch.dtype, chunk: int = 2048, z_loss: float = 0.0
) -> Tensor:
    """The same estimated from the effective rows [n, dim] of the table that `sample` names."""
    bias, targets = sample.bias.to(x.device, dtype), sample.targets.to(x.device)
    return fused_cross_entropy(x, rows.to(dtype), targets, bias=bias, chunk=chunk, z_loss=z_loss)
