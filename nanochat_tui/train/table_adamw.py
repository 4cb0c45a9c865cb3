"""AdamW on a few rows of a large table, as if it had run on all of them.

A step that reads 8,000 of 50,257 rows needs no gradient for the others; but dense AdamW keeps moving them by their
momentum. Rows that are left alone fall behind, and are brought up to the present before they are read: with the
moments m, v of the last real update, k steps of no gradient move a row by the geometric series
`lr · m / √v · (r + r² + … + r^k)`, `r = beta1 / √beta2`, and leave `m · beta1^k`, `v · beta2^k`. That is dense AdamW as
long as learning rate and bias corrections hardly change during k steps (Kingma & Ba 2015; no weight decay).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RowAdamW:
    """Row updates of one table [rows, columns], sharing moments and step count with a `torch.optim.AdamW`."""

    def __init__(
        self, table: nn.Parameter, optimizer: torch.optim.AdamW, betas: tuple[float, float], eps: float
    ) -> None:
        self.table, self.optimizer, self.betas, self.eps = table, optimizer, betas, eps
        self.last = torch.zeros(table.shape[0], dtype=torch.int64, device=table.device)
        """Step of the last update each row has taken part in."""

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.optimizer.state[self.table]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=self.table.device)
            state["exp_avg"] = torch.zeros_like(self.table)
            state["exp_avg_sq"] = torch.zeros_like(self.table)
        return state

    def loaded(self) -> None:
        """Take note that the moments were replaced by those of a settled table."""
        self.last.fill_(int(self._state()["step"]))

    def _corrections(self, step: int) -> tuple[float, float]:
        beta1, beta2 = self.betas
        return 1 - beta1**step, (1 - beta2**step) ** 0.5

    @torch.no_grad()
    def bring_up(self, ids: Tensor, lr: float) -> None:
        """Make up for the steps that rows `ids` (int64, each once) have missed."""
        state = self._state()
        step = int(state["step"])
        missed = step - self.last[ids]
        behind = missed > 0
        ids, missed = ids[behind], missed[behind].unsqueeze(1).float()
        if not ids.numel():
            return
        beta1, beta2 = self.betas
        first, root = self._corrections(step)
        ratio = beta1 / beta2**0.5
        series = ratio * (1 - ratio**missed) / (1 - ratio)
        m, v = state["exp_avg"][ids], state["exp_avg_sq"][ids]
        move = m.mul(series).div_(v.sqrt().div_(root).add_(self.eps))
        self.table.index_add_(0, ids, move, alpha=-lr / first)
        state["exp_avg"].index_copy_(0, ids, m.mul_(beta1**missed))
        state["exp_avg_sq"].index_copy_(0, ids, v.mul_(beta2**missed))
        self.last[ids] = step

    @torch.no_grad()
    def update(self, ids: Tensor, gradient: Tensor, lr: float) -> None:
        """Take one step with the gradient [n, columns] of rows `ids`, brought up before; it counts for all rows."""
        state = self._state()
        state["step"] += 1
        beta1, beta2 = self.betas
        first, root = self._corrections(int(state["step"]))
        m = state["exp_avg"][ids].lerp_(gradient, 1 - beta1)
        v = state["exp_avg_sq"][ids].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        self.table.index_add_(0, ids, m / v.sqrt().div_(root).add_(self.eps), alpha=-lr / first)
        state["exp_avg"].index_copy_(0, ids, m)
        state["exp_avg_sq"].index_copy_(0, ids, v)
        self.last[ids] = int(state["step"])

    def settle(self, lr: float) -> None:
        """Bring up all rows: before the whole table is read, saved or updated by a dense step."""
        step = int(self._state()["step"])
        self.bring_up((self.last < step).nonzero().squeeze(1), lr)

    def stepped(self) -> None:
        """Take note of a dense step of the optimiser on a settled table."""
        self.last.fill_(int(self._state()["step"]))


class RowGradient:
    """Gradients of the rows that the micro-batches of a step have read, added up."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, ids: Tensor, gradient: Tensor) -> None:
        """Take the gradient [n, columns] of rows `ids` (each once)."""
        self.parts.append((ids, gradient))

    def total(self) -> tuple[Tensor, Tensor]:
        """Ids, each once, and their summed gradient."""
        if len(self.parts) == 1:
            return self.parts[0]
        ids, place = torch.unique(torch.cat([part for part, _ in self.parts]), return_inverse=True)
        columns = self.parts[0][1].shape[1]
        total = torch.zeros(ids.numel(), columns, device=ids.device)
        total.index_add_(0, place, torch.cat([gradient for _, gradient in self.parts]))
        self.parts = [(ids, total)]
        return ids, total

    @property
    def gradients(self) -> list[Tensor]:
        """What norm and clipping see: the total, in place."""
        return [self.total()[1]] if self.parts else []
