"""The model of a run and its checkpoints: whole in one process or in each of several, or in shares (`sharding`).

`sharding` is imported where it is used: it loads parts of PyTorch that a run of one process does without.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.train.beginning import begin_from
from nanochat_tui.train.checkpoint import SaveError, save_checkpoint
from nanochat_tui.train.environment import Environment
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.optim import Optimizer
from nanochat_tui.train.world import World


def make_model(
    shape: ModelConfig, config: TrainConfig, environment: Environment, world: World | None, *, fresh: bool
) -> NanochatModel:
    """The model of a run on its device; shared out over the processes of `world`, where one is given.

    With `fresh` and `init_from` it has that one's weights; a resume reads its own over them. Raises UserError if they
    do not fit, or the model is shared out.
    """
    start = config.init_from if fresh else None
    if world is None:
        model = NanochatModel(shape, init_std=config.init_std, dtype=environment.dtype)
        if start is not None:
            begin_from(model, start, shape)
        if config.lora_rank:
            model.add_lora(config.lora_rank, config.lora_alpha)
        model.checkpointing = config.activation_checkpointing
        model.balance_weight = config.balance_weight / config.grad_accum
        return model.to(environment.device)
    if start is not None:
        raise UserError("--init-from does not go with --parallel fsdp; leave that out, or train without a start")
    from nanochat_tui.train.sharding import ShardedModel

    shares = ShardedModel(
        shape, init_std=config.init_std, dtype=environment.dtype, checkpointing=config.activation_checkpointing
    )
    shares.balance_weight = config.balance_weight / config.grad_accum
    shares.shard(world, environment.device, compiled=environment.compiled)
    return shares


def load_shares(path: Path, model: NanochatModel, optimizer: Optimizer) -> None:
    """Read a checkpoint into a model and an optimiser in shares. Raises KeyError for one that lacks arrays."""
    from nanochat_tui.train.sharding import load_sharded

    load_sharded(path, "model", model.state_dict())
    optimizer.begin_state()
    load_sharded(path, "optimizer", optimizer.state())


def save(
    world: World,
    target: Path,
    arrays: tuple[dict[str, Tensor], dict[str, Tensor]],
    state: dict[str, Any],
    extra: Callable[[Path], None],
    *,
    sharded: bool,
) -> None:
    """Write a checkpoint (see `save_checkpoint`), by the first process or, where shared out, by all of them.

    Raises SaveError in every process.
    """
    if sharded:
        from nanochat_tui.train.sharding import save_sharded

        save_sharded(world, target, arrays, state, extra)
        return
    problem: str | None = None
    if world.leads:
        try:
            save_checkpoint(target, *arrays, state, extra)
        except SaveError as error:
            problem = str(error)
    problem = world.decide(lambda: problem)
    if problem is not None:
        raise SaveError(problem)
