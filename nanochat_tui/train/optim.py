"""Muon for hidden matrices, AdamW for the rest, and one object that holds both."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nanochat_tui.runs.config import TrainConfig

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic Newton-Schulz coefficients of Muon (Jordan et al. 2024)."""


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


class Muon:
    """Momentum, Nesterov, orthogonalised update (Jordan et al. 2024).

    Matrices of one shape are orthogonalised in a single batched call. The update is scaled by
    sqrt(max(1, rows / columns)), so that its effect does not depend on the aspect ratio.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], momentum: float, ns_steps: int, weight_decay: float
    ) -> None:
        self.momentum, self.ns_steps, self.weight_decay = momentum, ns_steps, weight_decay
        self.parameters = dict(named)
        self.buffers = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.by_shape: dict[torch.Size, list[str]] = {}
        for name, p in self.parameters.items():
            self.by_shape.setdefault(p.shape, []).append(name)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Apply one update at learning rate `lr`."""
        for shape, names in self.by_shape.items():
            updates = []
            for name in names:
                gradient = self.parameters[name].grad
                if gradient is None:
                    raise RuntimeError(f"{name} has no gradient; call step() after backward()")
                buffer = self.buffers[name].mul_(self.momentum).add_(gradient)
                updates.append(gradient.add(buffer, alpha=self.momentum))
            device = updates[0].device
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            directions = orthogonalise(torch.stack(updates), self.ns_steps, dtype)
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for name, direction in zip(names, directions, strict=True):
                p = self.parameters[name]
                if self.weight_decay:
                    p.mul_(1 - lr * self.weight_decay)
                p.add_(direction, alpha=-lr * scale)


class Optimizer:
    """Both optimisers behind one step; the learning-rate multiplier scales all groups."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        named = dict(model.named_parameters())
        hidden = {n: p for n, p in named.items() if p.ndim == 2 and n.startswith("blk.")}
        tables = {n: p for n, p in named.items() if p.ndim == 2 and n not in hidden}
        scalars = {n: p for n, p in named.items() if p.ndim == 1}
        self.parameters = named
        self.muon_lr = config.muon_lr
        self.muon = Muon(hidden.items(), config.muon_momentum, config.ns_steps, config.weight_decay)
        self.adamw_names = [*tables, *scalars]
        self.adamw = torch.optim.AdamW(
            [
                {"params": list(tables.values()), "lr": config.embed_lr, "base": config.embed_lr},
                {"params": list(scalars.values()), "lr": config.scalar_lr, "base": config.scalar_lr},
            ],
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        )

    def step(self, multiplier: float) -> None:
        """Update every parameter; `multiplier` is the schedule's value in [0, 1]."""
        self.muon.step(self.muon_lr * multiplier)
        for group in self.adamw.param_groups:
            group["lr"] = group["base"] * multiplier
        self.adamw.step()

    def clip(self, largest: float) -> float:
        """Scale all gradients to a global norm of at most `largest` (0 = leave them); returns the norm before."""
        parameters = list(self.parameters.values())
        if largest > 0:
            return float(nn.utils.clip_grad_norm_(parameters, largest))
        return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def state(self) -> dict[str, Tensor]:
        """All moments by parameter name, ready for safetensors."""
        out = {f"muon.{n}": b for n, b in self.muon.buffers.items()}
        for name in self.adamw_names:
            for key, value in self.adamw.state.get(self.parameters[name], {}).items():
                out[f"adamw.{key}.{name}"] = value
        return out

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned; raises KeyError when a moment is missing."""
        for name, buffer in self.muon.buffers.items():
            buffer.copy_(state[f"muon.{name}"])
        for name in self.adamw_names:
            p = self.parameters[name]
            self.adamw.state[p] = {
                "step": state[f"adamw.step.{name}"].clone().to(p.device),
                "exp_avg": state[f"adamw.exp_avg.{name}"].clone().to(p.device),
                "exp_avg_sq": state[f"adamw.exp_avg_sq.{name}"].clone().to(p.device),
            }
