"""How much better a completion is than the others of its group.

GRPO: DeepSeekMath (arXiv 2402.03300), with the deviation of a sample and 1e-4 as in TRL. MaxRL: Maximum Likelihood
Reinforcement Learning (Tajwar et al., arXiv 2602.02710), for successes 0 and 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nanochat_tui.runs.reinforce import ReinforceConfig

SMALLEST_DEVIATION = 1e-4
"""Added to the deviation, as in TRL."""


def grpo_advantages(rewards: Tensor, scale: Literal["group", "batch", "none"] = "group") -> Tensor:
    """Return r - mean of the group, over the deviation (n - 1) of the group or the batch; float [prompts, group].

    A reward that is NaN could not be told: it counts in no mean, and its advantage is 0.
    """
    known = ~rewards.isnan()
    advantages = rewards - rewards.nanmean(dim=1, keepdim=True)
    if scale == "group":
        advantages = advantages / (_deviation(rewards, known, 1) + SMALLEST_DEVIATION)
    elif scale == "batch":
        advantages = advantages / (_deviation(rewards.reshape(1, -1), known.reshape(1, -1), 1) + SMALLEST_DEVIATION)
    return advantages.nan_to_num(0.0)


def _deviation(values: Tensor, known: Tensor, dim: int) -> Tensor:
    count = known.sum(dim=dim, keepdim=True)
    squares = (values - values.nanmean(dim=dim, keepdim=True)).square().nansum(dim=dim, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt()


def maxrl_advantages(successes: Tensor, *, baseline: bool = True) -> Tensor:
    """Return (r - m) / m for successes r in {0, 1} with mean m, or r / m without a baseline; float [prompts, group].

    A group without success has advantages 0. With N completions a group, the mean over them of advantage times the
    gradient of log-probability is, in expectation, the gradient of the first N terms of log p = -Σ (1 - p)^k / k
    without the baseline, and of the first N - 1 with it (p: probability of success).
    """
    mean = successes.mean(dim=1, keepdim=True)
    advantages = (successes - mean if baseline else successes) / mean.clamp(min=torch.finfo(successes.dtype).tiny)
    return torch.where(mean > 0, advantages, torch.zeros_like(advantages))


def advantages_of(rewards: Tensor, successes: Tensor, settings: ReinforceConfig) -> Tensor:
    """The advantages of a generation batch by its settings; all float [prompts, group]."""
    if settings.algorithm == "maxrl":
        return maxrl_advantages(successes, baseline=settings.maxrl_baseline)
    return grpo_advantages(rewards, settings.scale_rewards)


def same_rewards(rewards: Tensor) -> Tensor:
    """Which groups have rewards that are all equal, bool [prompts]: they teach nothing."""
    return (rewards - rewards[:, :1]).abs().amax(dim=1) < 1e-8
