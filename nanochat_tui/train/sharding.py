"""FSDP2: a model whose matrices are shared out over the processes, its Muon, and checkpoints for any number of them.

Every process holds its rows of each matrix, of their gradients and of their moments; a block's matrices are gathered
when it is computed, forward and backward, and given back after (`torch.distributed.fsdp.fully_shard`). Norms and mHC
records, thousandths of the model, are whole everywhere, and their gradients are averaged as with one model each.

A checkpoint is written and read by `torch.distributed.checkpoint` in safetensors, each process its own part, and joined
into the two files that one process writes: so it loads on any number of processes, and the export reads it as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from nanochat_tui.errors import UserError
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.train.checkpoint import SaveError, save_checkpoint
from nanochat_tui.train.model import Block, BlockWeights, Joined, NanochatModel, NextBlock, rope_tables
from nanochat_tui.train.streams import records_of
from nanochat_tui.train.world import World

Mix = tuple[Tensor, Tensor, Tensor] | None
ARRAYS = ("model", "optimizer")


class ShardedModel(NanochatModel):
    """A `NanochatModel` in shares. What reads its weights runs inside `forward`, where they are gathered.

    Raises UserError for a PyTorch that is too old.
    """

    def __init__(self, config: ModelConfig, *, init_std: float, dtype: torch.dtype, checkpointing: bool) -> None:
        with torch.device("meta"):
            super().__init__(config, init_std=init_std, dtype=dtype)
        self.checkpointing = checkpointing
        self._step: Callable[..., Any] = self._block_step

    def shard(self, world: World, device: torch.device, *, compiled: bool) -> None:
        """Share the matrices out over the processes, on `device`, and give everything its initial value."""
        mesh = dist.device_mesh.init_device_mesh(device.type, (world.size,))
        whole = {parameter for parameter in self.parameters() if parameter.ndim == 1}
        tables = [self.token_embd] if self.config.tied else [self.token_embd, self.output]
        try:
            for part in (*self.blk, *tables, self):
                fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        except TypeError:
            raise UserError("parallel fsdp needs PyTorch 2.9 or newer; update it, or use parallel ddp") from None
        self._fill(device)
        if compiled:
            self._step = torch.compile(self._block_step, dynamic=False)

    @torch.no_grad()
    def _fill(self, device: torch.device) -> None:
        """Give every parameter its initial value: one is whole at a time, of which this process keeps its part."""
        self.to_empty(device=device)
        for parameter, value in self.initial():
            if isinstance(parameter, DTensor):
                local(parameter).copy_(local(_shared_out(value, parameter)))
            else:
                parameter.copy_(value)
        for block in (*self.blocks, *self.next_blocks):
            if self.config.n_experts:
                block.load.zero_()
        for buffer, table in zip((self.cos, self.sin), rope_tables(self.config), strict=True):
            buffer.copy_(table)

    def effective(self) -> list[BlockWeights]:
        """Nothing: a block's weights are made when it is computed."""
        return []

    def embed(self, tokens: Tensor) -> Tensor:
        """See `NanochatModel`."""
        return F.embedding(tokens, self.token_embd(self.quantise))

    def head_table(self) -> Tensor:
        """See `NanochatModel`."""
        table: Tensor = (self.token_embd if self.config.tied else self.output)(self.quantise)
        return table

    def _block_step(self, block: Block, streams: list[Tensor], mix: Mix) -> list[Tensor]:
        return self.block_step(block, block.effective(self.compute_dtype, self.quantise), streams, mix)

    def trunk(
        self, x: Tensor, weights: list[BlockWeights], mixing: Mix, *, keep_streams: list[Tensor] | None = None
    ) -> Tensor:
        """See `NanochatModel`; `weights` are not used."""
        streams = [x] * self.config.n_streams
        for index, block in enumerate(self.blocks):
            streams = block(self._around(self._step), streams, records_of(mixing, index))
        return self.end_of_trunk(streams)

    def effective_next(self, block: NextBlock) -> Joined:
        """See `effective`."""
        return BlockWeights(*[torch.empty(0)] * 4), torch.empty(0)

    def next_state(self, block: NextBlock, weights: Joined, state: Tensor, embedded: Tensor) -> Tensor:
        """See `NanochatModel`; `weights` are not used."""

        def step(block: NextBlock, state: Tensor, embedded: Tensor) -> Tensor:
            made = NanochatModel.effective_next(self, block)
            return NanochatModel.next_state(self, block, made, state, embedded)

        found: Tensor = block(self._around(step), state, embedded)
        return found

    def _around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A block's step whose activations are computed again in the backward pass, where that is wanted."""
        if self.checkpointing and torch.is_grad_enabled():
            return partial(checkpoint, step, use_reentrant=False)
        return step

    def hidden(self, tokens: Tensor) -> Tensor:
        """See `NanochatModel`."""
        found: Tensor = self(super().hidden, tokens)
        return found

    def logits(self, tokens: Tensor) -> Tensor:
        """See `NanochatModel`."""
        found: Tensor = self(super().logits, tokens)
        return found


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def orthogonal_parts(updates: Sequence[Tensor], orthogonalise: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return orthogonalised updates (DTensors of one shape, shared out by rows), shared out as they were.

    Each process does whole matrices, one of every `world size`: rows go there and come back in one exchange each
    (distributed Muon, as Liu et al. 2025, arXiv 2502.16982, section 2.3). Matrices whose rows do not divide evenly are
    gathered everywhere.
    """
    first = cast("DTensor", updates[0])
    mesh, size = first.device_mesh, first.device_mesh.size()
    if first.shape[0] % size:
        whole = orthogonalise(torch.stack([update.full_tensor() for update in updates]))  # type: ignore[attr-defined]
        return [_shared_out(part, first) for part in whole]
    found: list[Tensor] = []
    for start in range(0, len(updates), size):
        group = [local(update) for update in updates[start : start + size]]
        padded = torch.stack([*group, *[torch.zeros_like(group[0])] * (size - len(group))])
        mine = torch.empty_like(padded)
        dist.all_to_all_single(mine, padded)
        # part i of `mine` are the rows that process i had of this process's matrix
        rank = mesh.get_local_rank()
        done = orthogonalise(mine.flatten(0, 1).unsqueeze(0))[0] if rank < len(group) else mine.flatten(0, 1).float()
        back = torch.empty_like(mine, dtype=done.dtype)
        dist.all_to_all_single(back, done.contiguous().view_as(back))
        found += [_as(part, first) for part in back[: len(group)]]
    return found


def _as(part: Tensor, like: DTensor) -> DTensor:
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _shared_out(whole: Tensor, like: DTensor) -> DTensor:
    """The part of a tensor, the same in every process, that this one has of `like`."""
    mesh = like.device_mesh
    chunks = whole.chunk(mesh.size())
    rank = mesh.get_local_rank()
    return _as(chunks[rank].contiguous() if rank < len(chunks) else whole[:0], like)


def save_sharded(
    world: World,
    target: Path,
    arrays: tuple[dict[str, Tensor], dict[str, Tensor]],
    state: dict[str, Any],
    extra: Callable[[Path], None],
) -> None:
    """Write a checkpoint of which every process has its part (see `save_checkpoint`). Raises SaveError in all."""
    parts = target.with_name(f".{target.name}.parts.partial")
    problem: str | None = None
    try:
        if world.leads:
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(parents=True)
        for name, tensors in zip(ARRAYS, arrays, strict=True):
            writer = HuggingFaceStorageWriter(
                path=str(parts / name),
                fqn_to_index_mapping=dict.fromkeys(tensors, 1),
                save_distributed=True,
                enable_consolidation=True,
            )
            # numbers as rows of one: joining the parts would write zeros in their place (PyTorch 2.13)
            rows = {key: value.detach() if value.ndim else value.detach().view(1) for key, value in tensors.items()}
            save(rows, storage_writer=writer)
        if world.leads:
            for name in ARRAYS:
                next((parts / name).glob("model-*.safetensors")).rename(parts / f"{name}.safetensors")
                shutil.rmtree(parts / name)
            save_checkpoint(target, *arrays, state, extra, arrays=parts)
    except SaveError as error:
        problem = str(error)
    except (OSError, CheckpointException) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        problem = (
            f"the checkpoint {target.name} could not be written by every process: {lines[-1][:200]}; free space on the "
            "shared folder, then resume from the checkpoint before it"
        )
    finally:
        if world.leads:
            shutil.rmtree(parts, ignore_errors=True)
    problem = world.decide(lambda: problem)
    if problem is not None:
        raise SaveError(problem)


def load_sharded(path: Path, name: str, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, in place, with this process's part of a checkpoint's file of `name`; raises KeyError for a lack."""
    with safe_open(path / f"{name}.safetensors", "pt") as file:
        if missing := tensors.keys() - set(file.keys()):
            raise KeyError(min(missing))
        for key, tensor in tensors.items():
            if not tensor.ndim:
                tensor.copy_(file.get_tensor(key).reshape(()))
    try:
        parts = {key: tensor for key, tensor in tensors.items() if tensor.ndim}
        load(parts, storage_reader=HuggingFaceStorageReader(path=str(path)), no_dist=True)
    except CheckpointException as error:
        raise KeyError(str(error)) from None
