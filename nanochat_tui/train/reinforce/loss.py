"""The clipped policy loss of GRPO and its relatives, in the form of TRL, on the log-probabilities of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat_tui.runs.reinforce import ReinforceConfig


@dataclass(frozen=True, slots=True)
class Policy:
    """Completions of a micro-batch, padded to `tokens`: what is known of them before the present weights.

    mask: float [n, tokens], 1 where a token counts. advantages: float [n]. old: log-probabilities under the weights
    that the batch was generated with [n, tokens]; None where these are the present ones. reference: those of the start
    [n, tokens], needed where beta is not 0. correction: weight for the engine's probabilities, [n, tokens] or [n, 1].
    """

    mask: Tensor
    advantages: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None
    correction: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """The generation batch that a micro-batch is a part of: its tokens that count, completions and micro-batches."""

    tokens: float
    completions: int
    parts: int = 1


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss that is differentiated, and sums over the micro-batch's tokens that are reported."""

    loss: Tensor
    kl: float
    clipped_low: float
    clipped_high: float


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """The estimate exp(d) - d - 1 of the KL divergence, d = log reference - log policy (Schulman's k3), 0 or more."""
    d = reference - log_probs
    return torch.exp(d) - d - 1


def policy_loss(log_probs: Tensor, policy: Policy, settings: ReinforceConfig, scope: Scope) -> PolicyLoss:
    """The part of a generation batch's loss that a micro-batch has; the parts add up to the whole.

    `log_probs` float [n, tokens] of the present weights, with a gradient.
    """
    mask, advantages = policy.mask, policy.advantages.unsqueeze(1)
    old = log_probs.detach() if policy.old is None else policy.old
    log_ratio = log_probs - old
    if settings.importance_sampling_level == "sequence":
        log_ratio = (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
    ratio = torch.exp(log_ratio)
    high = settings.upper
    if settings.summed == "cispo":
        losses = -ratio.clamp(max=high).detach() * advantages * log_probs
        low_cut, high_cut = torch.zeros_like(ratio, dtype=torch.bool), (ratio > high) & (advantages > 0)
    else:
        clipped = ratio.clamp(1 - settings.epsilon, 1 + high)
        free = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
        losses = -torch.min(free * advantages, clipped * advantages)
        low_cut, high_cut = (ratio < 1 - settings.epsilon) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)
    if policy.correction is not None:
        losses = losses * policy.correction
    kl = 0.0
    if settings.beta:
        if policy.reference is None:
            raise ValueError("beta needs the log-probabilities of the start")
        divergence = k3(log_probs, policy.reference)
        if settings.use_bias_correction_kl:
            divergence = divergence * ratio
        losses = losses + settings.beta * divergence
        kl = float((divergence.detach() * mask).sum())
    return PolicyLoss(
        summed_up(losses, mask, settings, scope),
        kl,
        float((low_cut * mask).sum()),
        float((high_cut * mask).sum()),
    )


def summed_up(losses: Tensor, mask: Tensor, settings: ReinforceConfig, scope: Scope) -> Tensor:
    """Token losses [n, tokens] as one number, by the loss type."""
    total = (losses * mask).sum()
    kind = settings.summed
    if kind == "grpo":
        return ((losses * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).sum() / scope.completions
    if kind == "bnpo":
        return total / mask.sum().clamp(min=1.0) / scope.parts
    if kind == "dr_grpo":
        return total / (scope.completions * settings.max_completion_length)
    if kind == "sum":
        return total / scope.completions
    return total / max(1.0, scope.tokens)


def engine_correction(log_probs: Tensor, engine: Tensor, mask: Tensor, settings: ReinforceConfig) -> Tensor:
    """Weights of the trainer's probability over the engine's, [n, tokens] or, for a sequence's, [n, 1]; no gradient.

    Both are log-probabilities [n, tokens] under the weights that the batch was generated with; NaN of the engine counts
    as no difference. A weight outside the bounds is cut to them, or 0 (`*_mask`).
    """
    difference = ((log_probs.detach() - engine) * mask).nan_to_num(0.0)
    mode = settings.importance_sampling_mode
    if mode.startswith("sequence"):
        difference = difference.sum(-1, keepdim=True)
    weights = difference.exp()
    low, high = settings.importance_sampling_clip_min, settings.importance_sampling_clip_max
    if mode.endswith("truncate"):
        return weights if low is None and high is None else weights.clamp(low, high)
    outside = torch.zeros_like(weights, dtype=torch.bool)
    if low is not None:
        outside |= weights < low
    if high is not None:
        outside |= weights > high
    return weights.masked_fill(outside, 0.0)
