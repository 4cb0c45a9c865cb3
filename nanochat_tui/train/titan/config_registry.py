"""The runs torchtitan's `--config` names: `nanochat_tiny`, `nanochat_7b`, `nanochat_25b_moe`.

torchtitan calls them without arguments, so the environment names the data, whose vocabulary the model takes over;
every other setting is one of torchtitan's own options (`--training.steps 1000`).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed
from torch.distributed import distributed_c10d
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC
from torchtitan.trainer import Trainer

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.train.titan.data import TokenDataLoader
from nanochat_tui.train.titan.decoder import spec_of
from nanochat_tui.train.titan.layers import Dtype
from nanochat_tui.train.titan.shape import shape_on

if not hasattr(torch.distributed, "set_timeout"):
    # torchtitan 0.3.0 calls it after the first step; in PyTorch 2.13 it is private
    torch.distributed.set_timeout = distributed_c10d._set_pg_timeout  # type: ignore[attr-defined]

DATA = "NANOCHAT_DATA"
"""The environment variable that names a folder made by `nanochat-train prepare-data`."""


def nanochat_tiny() -> Trainer.Config:
    """The smallest shape, for trying a cluster out."""
    return _on_data("tiny", local_batch_size=8, lr=3e-3)


def nanochat_7b() -> Trainer.Config:
    """The dense shape for several nodes."""
    return _on_data("7b", local_batch_size=1, lr=3e-4)


def nanochat_25b_moe() -> Trainer.Config:
    """The mixture of experts; use it with `--parallelism.expert_parallel_degree`."""
    return _on_data("25b-moe", local_batch_size=1, lr=3e-4)


def _on_data(flavor: str, *, local_batch_size: int, lr: float) -> Trainer.Config:
    named = os.environ.get(DATA)
    if not named:
        raise UserError(f"set {DATA} to the folder of the data, made by nanochat-train prepare-data")
    data = Path(named)
    return trainer_config(flavor, shape_on(flavor, data)[0], data, local_batch_size=local_batch_size, lr=lr)


def trainer_config(
    flavor: str, shape: ModelConfig, data: Path, *, local_batch_size: int, lr: float, dtype: Dtype = "bfloat16"
) -> Trainer.Config:
    """Return torchtitan's configuration of a run of `shape` on prepared data, whose folder holds the tokenizer too."""
    return Trainer.Config(
        model_spec=spec_of(flavor, shape, dtype=dtype),
        hf_assets_path=str(data),
        dataloader=TokenDataLoader.Config(dataset="tokens", dataset_path=str(data), vocab_size=shape.vocab_size),
        loss=ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size=shape.vocab_size)),
        optimizer=default_adamw(lr=lr, weight_decay=0.0),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=200, decay_ratio=0.2, decay_type="linear", min_lr_factor=0.0
        ),
        training=TrainingConfig(
            local_batch_size=local_batch_size,
            seq_len=shape.context_length,
            # weights are gathered in float32 and rounded then, as the file holds them; products are in `dtype`
            mixed_precision_param="float32",
            disable_cuda_graphs=True,
        ),
        # the default, "spmd_types", hands FSDP2 parameters that PyTorch 2.13 refuses
        parallelism=ParallelismConfig(spmd_backend="partial_dtensor"),
        metrics=MetricsProcessor.Config(log_freq=10),
        checkpoint=CheckpointManager.Config(enable=True, interval=500, last_save_model_only=False),
        activation_checkpoint=FullAC.Config(),
    )
