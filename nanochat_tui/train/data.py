"""Batches of tokens: deterministic in (seed, position), so that a resumed run sees what an unbroken one would."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat_tui.errors import UserError
from nanochat_tui.formats.tokens import open_tokens
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import read_json

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True)
class Dataset:
    """Training and validation tokens and what is known of them."""

    train: Tokens
    val: Tokens | None
    val_bytes: int | None
    """Original UTF-8 bytes of the validation text; None when unknown."""
    indentation: int
    description: dict[str, Any]
    """Goes to the run's config.json: sizes, tokenizer hash, fingerprint."""


def open_dataset(config: TrainConfig, vocab_size: int) -> Dataset:
    """Open the configured data; raises UserError when it is missing or does not fit the vocabulary."""
    if config.dataset == "synthetic":
        return _synthetic(config, vocab_size)
    path = config.data_path
    if path is None:
        raise UserError("data_path is needed with dataset 'tokens'; make one with prepare-data")
    if path.is_dir():
        return _from_folder(path, vocab_size)
    dtype = config.token_dtype or "u32"
    train = open_tokens(path, dtype, vocab_size=vocab_size)
    val = open_tokens(config.val_path, dtype, vocab_size=vocab_size) if config.val_path else None
    return Dataset(train, val, None, 0, {"path": str(path), "dtype": dtype, "train_tokens": train.size})


def _from_folder(path: Path, vocab_size: int) -> Dataset:
    info = read_json(path / "dataset.json")
    try:
        dtype, splits = info["dtype"], info["splits"]
        if info["vocab_size"] > vocab_size:
            raise UserError(f"{path} was tokenised with {info['vocab_size']} ids, the model has {vocab_size}")
        train = open_tokens(path / "train.bin", dtype, vocab_size=vocab_size)
        val = open_tokens(path / "val.bin", dtype, vocab_size=vocab_size) if splits["val"]["tokens"] else None
        return Dataset(
            train,
            val,
            int(splits["val"]["bytes"]),
            int(info["transform"]["indentation"]),
            {
                "path": str(path),
                "dtype": dtype,
                "tokenizer_sha256": info.get("tokenizer_sha256"),
                "transform": info["transform"],
                "splits": splits,
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / 'dataset.json'} lacks or garbles {error}; run prepare-data again") from None


def _synthetic(config: TrainConfig, vocab_size: int) -> Dataset:
    """Arithmetic ramps modulo a small range: learnable in a few steps, for trying out the machinery."""
    rng = np.random.default_rng(config.seed)
    span = min(vocab_size, 256)
    length = config.sequence_length + 1

    def ramps(n: int) -> NDArray[np.uint16]:
        start, stride = rng.integers(0, span, (n, 1)), rng.integers(1, 5, (n, 1))
        return ((start + stride * np.arange(length)) % span).astype(np.uint16).reshape(-1)

    train, val = ramps(2000), ramps(40)
    return Dataset(train, val, None, 0, {"synthetic": True, "train_tokens": train.size})


class BatchLoader:
    """Fixed-length chunks of the training tokens in a shuffled order, a new order each epoch.

    Chunks do not overlap except for the one token that is both target and next input.
    """

    def __init__(self, tokens: Tokens, config: TrainConfig) -> None:
        self.tokens, self.seed = tokens, config.seed
        self.length = config.sequence_length
        self.batch = config.batch_size
        self.chunks = (tokens.size - 1) // self.length
        if self.chunks < 1:
            raise UserError(
                f"the training data has {tokens.size} tokens, fewer than one sequence of {self.length}; "
                "add data or lower --seq-len"
            )
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def _chunk(self, position: int) -> int:
        epoch, index = divmod(position, self.chunks)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.chunks)
            self._order = epoch, order
        return int(self._order[1][index])

    def batch_at(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [batch, seq_len], of micro-batch `index` counted from the run's start."""
        rows = []
        for position in range(index * self.batch, (index + 1) * self.batch):
            start = self._chunk(position) * self.length
            rows.append(self.tokens[start : start + self.length + 1].astype(np.int64))
        block = torch.from_numpy(np.stack(rows))
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()


def token_counts(tokens: Tokens, vocab_size: int) -> Tensor:
    """Occurrences of every id in the training data, float32 [vocab]; reads the file once."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, tokens.size, 1 << 22):
        counts += np.bincount(tokens[start : start + (1 << 22)], minlength=vocab_size)
    return torch.from_numpy(counts.astype(np.float32))


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
