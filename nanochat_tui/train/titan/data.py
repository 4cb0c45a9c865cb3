"""Prepared token files as a data loader of torchtitan: the sequences of `nanochat-train`, in its order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import parse_config
from nanochat_tui.train.data import IGNORED, BatchLoader, open_dataset

SEQUENCES = "sequences"


class TokenDataLoader(BaseDataLoader):
    """This rank's part of each micro-batch; what a run sees is a function of the seed and the sequences read so far.

    So a run that continues on another number of ranks continues where it was.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        """`dataset_path` is the folder made by prepare-data."""

        vocab_size: int = 0
        """Token ids of the model, which must be those of the data."""
        seed: int = 0
        """Of the order of the sequences."""
        verify: bool = True
        """Compare the token files with the checksums in dataset.json."""

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, seq_len: int, local_batch_size: int, **_: Any
    ) -> None:
        if config.dataset_path is None:
            raise UserError("the data loader needs --dataloader.dataset_path, a folder made by prepare-data")
        settings = parse_config(
            {
                "config": "tiny",
                "context_length": seq_len,
                "seq_len": seq_len,
                "batch_size": local_batch_size,
                "data_path": Path(config.dataset_path),
                "seed": config.seed,
                "verify_data": config.verify,
            }
        )
        data = open_dataset(settings, config.vocab_size)
        self._loader = BatchLoader(data.train, settings, data.end, roles=data.train_roles)
        self._loader.rank, self._loader.stride = dp_rank, dp_world_size * local_batch_size
        self._read = 0

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield inputs and targets, int64 [sequences, seq_len], without end. Raises DataLostError."""
        while True:
            inputs, targets = self._loader.batch_from(self._read, 0)
            self._read += self._loader.stride
            yield {"input": inputs}, torch.where(targets == IGNORED, IGNORE_INDEX, targets)

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of sequences and of their tokens that all ranks have read."""
        return {SEQUENCES: self._read, "tokens": self._read * self._loader.length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind as many sequences as a checkpoint names."""
        self._read = int(state_dict.get(SEQUENCES, 0))
