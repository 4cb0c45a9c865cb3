"""Runs for the tests: 7b and 25b-moe at reduced width and depth, in float32."""

from __future__ import annotations

import os
from pathlib import Path

from titan_shapes import REDUCED
from torchtitan.trainer import Trainer

from nanochat_tui.model.config import ModelConfig
from nanochat_tui.train.titan.config_registry import DATA, trainer_config
from nanochat_tui.train.titan.shape import shape_on


def reduced(flavor: str, data: Path) -> ModelConfig:
    return shape_on(flavor, data)[0].with_(**REDUCED)


def _run(flavor: str) -> Trainer.Config:
    data = Path(os.environ[DATA])
    config = trainer_config(flavor, reduced(flavor, data), data, local_batch_size=4, lr=1e-3, dtype="float32")
    config.metrics.log_freq = 1
    config.lr_scheduler.warmup_steps = 1
    return config


def dense() -> Trainer.Config:
    return _run("7b")


def experts() -> Trainer.Config:
    return _run("25b-moe")
