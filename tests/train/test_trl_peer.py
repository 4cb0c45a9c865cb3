"""The policy loss next to that of TRL, whose names and defaults it has, on a fixed batch: `_compute_loss` itself.

TRL's trainer needs a model and data sets to be made; its loss needs neither, so it is called on an object with just the
settings that it reads, and a model whose log-probabilities are given.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat_tui.runs.reinforce import ReinforceConfig
from nanochat_tui.train.reinforce.advantages import grpo_advantages
from nanochat_tui.train.reinforce.loss import Policy, Scope, engine_correction, policy_loss

pytestmark = pytest.mark.peer
ROWS, TOKENS = 8, 6


def batch() -> dict[str, Tensor]:
    """Log-probabilities before, now, of the start and of the engine, lengths, advantages; float64."""
    generator = torch.Generator().manual_seed(7)

    def noise(size: float) -> Tensor:
        return size * torch.randn(ROWS, TOKENS, generator=generator, dtype=torch.float64)

    old = -2 * torch.rand(ROWS, TOKENS, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([6, 1, 3, 4, 2, 6, 5, 3])
    rewards = torch.rand(2, ROWS // 2, generator=generator, dtype=torch.float64)
    return {
        "old": old,
        "now": old + noise(0.25),
        "start": old + noise(0.5),
        "engine": old + noise(0.05),
        "mask": (torch.arange(TOKENS) < lengths.unsqueeze(1)).double(),
        "advantages": grpo_advantages(rewards).reshape(-1),
    }


def trl_loss(given: dict[str, Tensor], log_probs: Tensor, correction: Tensor | None, **settings: Any) -> Tensor:
    """What TRL's own method makes of the batch."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    config = {
        "loss_type": "dapo",
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "delta": None,
        "importance_sampling_level": "token",
        "use_bias_correction_kl": True,
        **settings,
    }
    accelerator = SimpleNamespace(num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(
            delta=config["delta"], use_bias_correction_kl=config["use_bias_correction_kl"], steps_per_generation=1
        ),
        accelerator=accelerator,
        current_gradient_accumulation_steps=1,
        max_completion_length=16,
        loss_type=config["loss_type"],
        beta=config["beta"],
        epsilon_low=config["epsilon"],
        epsilon_high=config["epsilon_high"],
        importance_sampling_level=config["importance_sampling_level"],
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=correction is not None,
        vllm_importance_sampling_correction=True,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=False,
        entropy_coef=0.0,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": given["mask"],
        "advantages": given["advantages"],
        "num_items_in_batch": given["mask"].sum(),
        "old_per_token_logps": given["old"],
        "ref_per_token_logps": given["start"],
    }
    if correction is not None:
        inputs["importance_sampling_ratio"] = correction
    found: Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)
    return found


CASES: list[dict[str, Any]] = [
    {},
    {"loss_type": "grpo"},
    {"loss_type": "bnpo"},
    {"loss_type": "dr_grpo"},
    {"loss_type": "cispo", "epsilon_high": 1.2},
    {"beta": 0.3},
    {"beta": 0.3, "use_bias_correction_kl": False, "loss_type": "grpo"},
    {"epsilon": 0.1, "epsilon_high": 0.28},
    {"delta": 1.1},
    {"importance_sampling_level": "sequence", "loss_type": "grpo"},
]


@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradient_are_those_of_trl(case: dict[str, Any], corrects: bool) -> None:
    pytest.importorskip("trl", reason="TRL is not installed; .ci/peers installs it")
    given = batch()
    settings = ReinforceConfig(**{**case, "max_completion_length": 16})
    correction = engine_correction(given["old"], given["engine"], given["mask"], settings) if corrects else None
    losses = []
    slopes = []
    for is_ours in (True, False):
        log_probs = given["now"].clone().requires_grad_()
        if is_ours:
            policy = Policy(given["mask"], given["advantages"], given["old"], given["start"], correction)
            loss = policy_loss(log_probs, policy, settings, Scope(float(given["mask"].sum()), ROWS)).loss
        else:
            loss = trl_loss(given, log_probs, correction, **{"epsilon_high": settings.upper, **case})
        losses.append(loss.detach())
        slopes.append(torch.autograd.grad(loss, log_probs)[0])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=1e-14)
    assert float(slopes[0].abs().max()) > 1e-3


def test_names_and_defaults_are_those_of_trl() -> None:
    pytest.importorskip("trl", reason="TRL is not installed; .ci/peers installs it")
    from dataclasses import fields

    from trl import GRPOConfig

    theirs = {one.name: one.default for one in fields(GRPOConfig)}
    ours = ReinforceConfig()
    renamed = {f"importance_sampling_{name}": f"vllm_importance_sampling_{name}" for name in ("correction", "mode")}
    renamed |= {f"importance_sampling_clip_{side}": f"vllm_importance_sampling_clip_{side}" for side in ("min", "max")}
    own = {"algorithm", "prompts_per_step", "maxrl_baseline"}
    for name in set(ReinforceConfig.model_fields) - own:
        value = ours.summed if name == "loss_type" else getattr(ours, name)
        assert value == theirs[renamed.get(name, name)], name
