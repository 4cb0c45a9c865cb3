"""The processes of a training that share its steps, as torchrun started them; one process is a world of one.

Every process runs the same loop on its own part of each batch. What decides about that loop is agreed: losses are
averaged, the clock, the control file and the run directory are the first process's. Numbers, words and files go over
gloo on the CPU, gradients over the device's own library.

Gradients are averaged once per optimiser step, after the last micro-batch, in few large pieces.
`torch.nn.parallel.DistributedDataParallel` would hook one forward pass of one module; a step here has several, a head
whose table gets gradients for some rows only, and backward passes of its own.
"""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_tui.errors import UserError

Value = TypeVar("Value")
BUCKET = 1 << 26
"""Elements that are averaged in one call: more are not faster, and each piece is copied once."""
TIMEOUT = datetime.timedelta(minutes=30)
"""For what another process does alone: compile, read a checkpoint, write one."""
_LOST = ("closed by peer", "reset by peer", "broken pipe", "gloo", "nccl", "socket", "timed out", "aborted")


class LostProcessError(UserError):
    """Another process of the training exited, or failed."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among `size` processes; `rank` 0 writes the run directory."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Processes on this machine."""

    @property
    def leads(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """Return the mean of every process's value."""
        return self.totals([value])[0] / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.totals([float(flag)])[0] > 0

    def totals(self, values: Sequence[float]) -> list[float]:
        """Return the sums over the processes."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found)
        return [float(value) for value in found]

    def decide(self, decision: Callable[[], Value]) -> Value:
        """Return what `decision` returns in the first process; elsewhere it is not called."""
        if self.size == 1:
            return decision()
        box = [decision() if self.leads else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, which have one shape, one after the other along the first axis."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors (one type, one device) by their means over the processes."""
        if self.size == 1:
            return
        waiting: list[Tensor] = []
        for tensor in tensors:
            if waiting and sum(t.numel() for t in waiting) + tensor.numel() > BUCKET:
                self._average(waiting)
                waiting = []
            waiting.append(tensor)
        if waiting:
            self._average(waiting)

    def _average(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def average_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row whose numbers are the means of every process's, by the first one's keys."""
        if self.size == 1:
            return row
        keys = self.decide(lambda: [key for key, value in row.items() if isinstance(value, float)])
        sums = self.totals([float(row.get(key, math.nan)) for key in keys])
        return row | {key: total / self.size for key, total in zip(keys, sums, strict=True)}

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Have a UserError of any process end the block in all of them; nothing in it may talk to the others."""
        own: UserError | None = None
        try:
            yield
        except UserError as error:
            own = error
        if self.size > 1:
            found: list[str | None] = [None] * self.size
            dist.all_gather_object(found, None if own is None else str(own))
            other = next(((rank, text) for rank, text in enumerate(found) if text is not None), None)
            if own is None and other is not None:
                raise LostProcessError(f"process {other[0]} of the training: {other[1]}")
        if own is not None:
            raise own

    def close(self) -> None:
        """Leave the others in good order."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def explain(self, error: BaseException) -> BaseException:
        """The error, or where it says in a library's words that another process is gone, a LostProcessError."""
        text = str(error).lower()
        if self.size > 1 and isinstance(error, RuntimeError) and any(word in text for word in _LOST):
            return LostProcessError(
                "another process of the training exited unexpectedly, and nothing can be computed without it; "
                "see what it said, then continue with --resume auto"
            )
        return error


ALONE = World()
"""The world of a training of one process."""


def open_world(device: str) -> World:
    """Join the processes that torchrun started, by the variables it sets; without them the world is this process.

    Raises UserError when they are incomplete or the others cannot be reached.
    """
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return World()
        rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
        world = World(rank, size, local, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    except (KeyError, ValueError):
        raise UserError(
            "WORLD_SIZE is set but RANK is not a number; start several processes with torchrun, or unset WORLD_SIZE"
        ) from None
    cuda = device != "cpu" and torch.cuda.is_available()
    if not dist.is_initialized():
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"process {rank} cannot reach the others of the training ({str(error).splitlines()[0][:200]}); "
                "start them with torchrun, and check that the machines reach each other"
            ) from None
    return world
