"""Plans against the real model and optimiser: parameter counts on the meta device, bytes of weights and moments."""

from __future__ import annotations

import pytest
import torch

from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.memory import memory_parts
from nanochat_tui.runs.plan import make_plan
from nanochat_tui.runs.presets import PRESETS
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.optim import Optimizer


@pytest.mark.parametrize("name", PRESETS)
def test_the_model_has_the_planned_parameters(name: str) -> None:
    config = parse_config({"data_path": "x", **PRESETS[name].values})
    with torch.device("meta"):
        model = NanochatModel(config.model_shape())
    assert model.parameters_total == make_plan(config).parameters


def test_gradients_and_moments_have_the_planned_bytes() -> None:
    config = parse_config({"config": "tiny", "vocab_size": 300, "dataset": "synthetic", "seq_len": 16})
    model = NanochatModel(config.model_shape())
    optimizer = Optimizer(model, config)
    model.logits(torch.zeros(1, 16, dtype=torch.int64)).sum().backward()
    parts = memory_parts(config)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert sum(g.numel() * g.element_size() for g in gradients) == parts.gradients
    optimizer.step(1.0)
    moments = {k: v for k, v in optimizer.state().items() if not k.startswith("adamw.step.")}
    assert sum(v.numel() * v.element_size() for v in moments.values()) == parts.optimizer
