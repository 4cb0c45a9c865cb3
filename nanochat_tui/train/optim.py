"""Muon for hidden matrices, AdamW for the rest, and one object that holds both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.train.table_adamw import RowAdamW, RowGradient

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic Newton-Schulz coefficients of Muon (Jordan et al. 2024)."""
FIRST_MOMENTUM = 0.85
"""Where a warm-up of Muon's momentum begins, as in modded-nanogpt's records."""
ROW_BETA = 0.95
"""NorMuon's decay of the rows' mean squares, its paper's value."""


def orthogonalise(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Push the singular values of each matrix of a stack [n, rows, columns] towards one.

    Newton-Schulz iteration of Muon on the Frobenius-normalised matrix; returns float32.
    """
    a, b, c = NS_COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result.float()


def _size(direction: Tensor) -> Tensor:
    """The norm of a matrix, or of each of a stack."""
    found: Tensor = direction.norm() if direction.ndim == 2 else direction.norm(dim=(-2, -1), keepdim=True)
    return found


class Muon:
    """Momentum, Nesterov, orthogonalised update (Jordan et al. 2024).

    Matrices of one shape are orthogonalised in a single batched call, in `dtype`: bfloat16 is enough. The update is
    scaled by sqrt(max(1, rows / columns)), so that its effect does not depend on the aspect ratio.

    `row_beta`: NorMuon (Li et al. 2025, arXiv 2510.05491): each row of the orthogonalised update is divided by the root
    of its running mean square, and the matrix brought back to the norm it had. `cautious`: decay only where the update
    makes a weight smaller (arXiv 2411.16085). `warmup_steps`: momentum rises linearly from `FIRST_MOMENTUM`.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        momentum: float,
        ns_steps: int,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
        *,
        row_beta: float | None = None,
        cautious: bool = False,
        warmup_steps: int = 0,
    ) -> None:
        self.row_beta, self.cautious, self.warmup_steps = row_beta, cautious, warmup_steps
        self.momentum, self.ns_steps, self.weight_decay = momentum, ns_steps, weight_decay
        self.dtype = dtype
        self.parameters = dict(named)
        self.buffers = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.rows: dict[str, Tensor] = {}
        """Running mean square of each row of the updates, [..., rows, 1], with `row_beta`."""
        if row_beta is not None:
            self.rows = {name: torch.zeros_like(p[..., :1]) for name, p in self.parameters.items()}
        self.by_shape: dict[torch.Size, list[str]] = {}
        for name, p in self.parameters.items():
            self.by_shape.setdefault(p.shape, []).append(name)

    def momentum_at(self, step: int) -> float:
        """Momentum of update number `step`, counted from 0."""
        if step >= self.warmup_steps or self.momentum <= FIRST_MOMENTUM:
            return self.momentum
        return FIRST_MOMENTUM + (self.momentum - FIRST_MOMENTUM) * step / self.warmup_steps

    def _directions(self, updates: list[Tensor]) -> Sequence[Tensor]:
        """Orthogonalised updates of matrices of one shape."""
        if isinstance(updates[0], DTensor):
            from nanochat_tui.train.sharding import orthogonal_parts

            return orthogonal_parts(updates, lambda stack: orthogonalise(stack, self.ns_steps, self.dtype))
        return list(orthogonalise(torch.stack(updates), self.ns_steps, self.dtype))

    def _even_out(self, name: str, direction: Tensor) -> Tensor:
        if self.row_beta is None:
            return direction
        rows = self.rows[name].lerp_(direction.square().mean(dim=-1, keepdim=True), 1 - self.row_beta)
        even: Tensor = direction * rows.clamp(min=1e-10).rsqrt()
        even *= _size(direction) / _size(even).clamp(min=1e-10)
        return even

    @torch.no_grad()
    def step(self, lr: float, number: int = 0) -> None:
        """Apply update number `number` at learning rate `lr`."""
        momentum = self.momentum_at(number)
        for shape, names in self.by_shape.items():
            updates = []
            for name in names:
                gradient = self.parameters[name].grad
                if gradient is None:
                    raise RuntimeError(f"{name} has no gradient; call step() after backward()")
                buffer = self.buffers[name].mul_(momentum).add_(gradient)
                updates.append(gradient.add(buffer, alpha=momentum))
            directions = self._directions(updates)
            scale = max(1.0, shape[-2] / shape[-1]) ** 0.5
            for name, orthogonal in zip(names, directions, strict=True):
                p = self.parameters[name]
                direction = self._even_out(name, orthogonal)
                if self.weight_decay and self.cautious:
                    p.sub_(p * (direction * p >= 0), alpha=lr * self.weight_decay)
                elif self.weight_decay:
                    p.mul_(1 - lr * self.weight_decay)
                p.add_(direction, alpha=-lr * scale)


class Optimizer:
    """Both optimisers behind one step; the learning-rate multiplier scales all groups."""

    def __init__(self, model: nn.Module, config: TrainConfig, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is that of Newton-Schulz: bfloat16 where the hardware multiplies it."""
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        adapters = {n: p for n, p in named.items() if n.endswith((".lora_a", ".lora_b"))}
        # those of experts in a stack
        hidden = {n: p for n, p in named.items() if p.ndim > 1 and n.startswith("blk.") and n not in adapters}
        tables = {n: p for n, p in named.items() if p.ndim == 2 and n not in hidden and n not in adapters}
        scalars = {n: p for n, p in named.items() if p.ndim == 1}
        self.parameters = named
        self.muon_lr = config.muon_lr
        self.muon = Muon(
            hidden.items(),
            config.muon_momentum,
            config.ns_steps,
            config.weight_decay,
            dtype,
            row_beta=ROW_BETA if config.normuon else None,
            cautious=config.cautious_decay,
            warmup_steps=config.momentum_warmup_steps,
        )
        self.adamw_names = [*tables, *scalars, *adapters]
        betas, eps = (0.9, config.beta2), 1e-8
        self.adamw = torch.optim.AdamW(
            [
                {"params": list(found.values()), "lr": rate, "base": rate}
                for found, rate in (
                    (tables, config.embed_lr),
                    (scalars, config.scalar_lr),
                    (adapters, config.lora_lr),
                )
                if found
            ],
            betas=betas,
            eps=eps,
            weight_decay=0.0,
            fused=True,
        )
        # A tied table is read by embedding and head alike, so that a sample of the head's columns is all that is read.
        only = next(iter(tables.values())) if len(tables) == 1 else None
        only = None if isinstance(only, DTensor) else only
        self.rows = None if only is None else RowAdamW(only, self.adamw, betas, eps)
        self.table_lr = config.embed_lr
        self.row_gradient = RowGradient()

    def bring_up(self, ids: Tensor, multiplier: float) -> None:
        """Make rows `ids` of the table what they would be had every step updated them all; before they are read."""
        if self.rows is not None:
            self.rows.bring_up(ids, self.table_lr * multiplier)

    def settle(self, multiplier: float) -> None:
        """The same for the whole table: before evaluation, a checkpoint, or a step with a gradient for all rows."""
        if self.rows is not None:
            self.rows.settle(self.table_lr * multiplier)

    def step(self, multiplier: float, number: int = 0) -> None:
        """Update every parameter; `multiplier` is the schedule's value in [0, 1], `number` counts updates from 0.

        Gradients in `row_gradient` update their rows of the table; otherwise the table's own gradient updates it all.
        """
        self.muon.step(self.muon_lr * multiplier, number)
        for group in self.adamw.param_groups:
            group["lr"] = group["base"] * multiplier
        by_row = self.rows is not None and bool(self.row_gradient.parts)
        self.adamw.step()
        if self.rows is not None:
            if by_row:
                self.rows.update(*self.row_gradient.total(), self.table_lr * multiplier)
            else:
                self.rows.stepped()
        self.row_gradient = RowGradient()

    def drop(self) -> None:
        """Leave out a step: its gradients are forgotten, nothing moves."""
        self.row_gradient = RowGradient()

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """This process's gradients of what every process holds whole, and those of what is shared out (FSDP2)."""
        found = [p.grad for p in self.parameters.values() if p.grad is not None] + self.row_gradient.gradients
        shares = [gradient for gradient in found if isinstance(gradient, DTensor)]
        return ([g for g in found if not isinstance(g, DTensor)] if shares else found), list(shares)

    def clip(self, largest: float) -> float:
        """Scale all gradients to a global norm of at most `largest` (0 = leave them); returns the norm before."""
        whole, shares = self.gradients()
        norm = float(nn.utils.get_total_norm(whole))
        if shares:
            rest = nn.utils.get_total_norm(shares)
            norm = math.hypot(norm, float(rest.full_tensor() if isinstance(rest, DTensor) else rest))
        if 0 < largest < norm:
            for gradients in filter(None, (whole, shares)):
                torch._foreach_mul_(gradients, largest / (norm + 1e-6))
        return norm

    def state(self) -> dict[str, Tensor]:
        """All moments by parameter name, ready for safetensors."""
        out = {f"muon.{n}": b for n, b in self.muon.buffers.items()}
        out |= {f"muon.rows.{n}": b for n, b in self.muon.rows.items()}
        for name in self.adamw_names:
            for key, value in self.adamw.state.get(self.parameters[name], {}).items():
                out[f"adamw.{key}.{name}"] = value
        return out

    def begin_state(self) -> None:
        """Give every parameter the moments of no update yet, where it has none: places to read a checkpoint's into."""
        for name in self.adamw_names:
            p = self.parameters[name]
            if not self.adamw.state.get(p):
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.adamw.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned; raises KeyError when a moment is missing.

        A parameter that had no update yet has none.
        """
        for name, buffer in self.muon.buffers.items():
            buffer.copy_(state[f"muon.{name}"])
        for name, rows in self.muon.rows.items():
            if f"muon.rows.{name}" in state:  # a run may begin with it
                rows.copy_(state[f"muon.rows.{name}"])
        for name in self.adamw_names:
            p = self.parameters[name]
            if not any(f"adamw.{key}.{name}" in state for key in ("step", "exp_avg", "exp_avg_sq")):
                self.adamw.state.pop(p, None)
                continue
            self.adamw.state[p] = {
                "step": state[f"adamw.step.{name}"].clone().reshape(()).to(p.device),
                "exp_avg": state[f"adamw.exp_avg.{name}"].clone().to(p.device),
                "exp_avg_sq": state[f"adamw.exp_avg_sq.{name}"].clone().to(p.device),
            }
        if self.rows is not None:
            self.rows.loaded()
