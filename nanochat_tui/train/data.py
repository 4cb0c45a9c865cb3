"""Batches of tokens: deterministic in (seed, position), so that a resumed run sees what an unbroken one would."""

from __future__ import annotations

import bisect
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat_tui.errors import UserError
from nanochat_tui.formats.chat_tokens import FIRST, LEARNED, open_roles
from nanochat_tui.formats.checksums import file_sha256
from nanochat_tui.formats.tokens import open_tokens
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import read_json
from nanochat_tui.text import display_safe
from nanochat_tui.train.batches import EpochPlan, document_starts, plan_epoch
from nanochat_tui.train.infill import Infill
from nanochat_tui.train.loss import VocabularySampler
from nanochat_tui.train.recovery import DataGuard

Tokens = NDArray[np.uint16] | NDArray[np.uint32]
Roles = NDArray[np.uint8]
IGNORED = -1
"""Target that is not learned."""


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
    end: int | None = None
    """The end-of-text id before each document; None when unknown."""
    mixed: tuple[tuple[Dataset, float], ...] = ()
    """Further training data, with their weights; that of `train` is 1."""
    train_roles: Roles | None = None
    """What each token is learned for, see `formats.chat_tokens`; None: all are learned."""
    val_roles: Roles | None = None
    held_out: Dataset | None = None
    """Validation data of the model that a fine-tuning starts from; its `train` is the same as its `val`."""

    def evaluation_tokens(self, config: TrainConfig) -> int:
        """Tokens that the last evaluation of a run reads."""
        size = 0 if self.val is None else int(self.val.size)
        return min(size, config.final_eval_tokens or size)


def open_dataset(config: TrainConfig, vocab_size: int) -> Dataset:
    """Open the configured data; raises UserError when it is missing or does not fit the vocabulary."""
    if config.dataset == "synthetic":
        return _synthetic(config, vocab_size)
    path = config.data_path
    if path is None:
        raise UserError("data_path is needed with dataset 'tokens'; make one with prepare-data")
    if path.is_dir():
        data = _mixed(_from_folder(path, config, vocab_size), config, vocab_size)
        _require_plain(data, config)
        return replace(data, held_out=_held_out(data, config, vocab_size))
    if config.data_mix:
        raise UserError("data_mix needs prepared data; give a folder made by prepare-data as data_path")
    dtype = config.token_dtype or "u32"
    train = open_tokens(path, dtype, vocab_size=vocab_size)
    val = open_tokens(config.val_path, dtype, vocab_size=vocab_size) if config.val_path else None
    return Dataset(train, val, None, 0, {"path": str(path), "dtype": dtype, "train_tokens": train.size})


def _from_folder(path: Path, config: TrainConfig, vocab_size: int) -> Dataset:
    info = read_json(path / "dataset.json")
    try:
        dtype, splits = info["dtype"], info["splits"]
        if info["vocab_size"] != vocab_size:
            raise UserError(
                f"{display_safe(str(path))} was tokenised with {info['vocab_size']:,} ids, the model has "
                f"{vocab_size:,}; leave vocab_size out, so that it follows the data"
            )
        train = _split(path, "train", info, config, vocab_size)
        val = _split(path, "val", info, config, vocab_size) if splits["val"]["tokens"] else None
        chat = info.get("chat")
        parts = {} if chat is None else {"train": train, **({} if val is None else {"val": val})}
        roles = {name: open_roles(path, name, tokens.size) for name, tokens in parts.items()}
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
                "train_tokens": int(train.size),
                **({} if chat is None else {"chat": chat}),
            },
            end=info.get("eot_id"),
            train_roles=roles.get("train"),
            val_roles=roles.get("val"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / 'dataset.json'} lacks or garbles {error}; run prepare-data again") from None


def _require_plain(data: Dataset, config: TrainConfig) -> None:
    """Refuse methods that know no tokens without a loss. Raises UserError."""
    if all(one.train_roles is None for one in (data, *(other for other, _ in data.mixed))):
        return
    for name, value in (("fim_rate", config.fim_rate), ("mtp_depth", config.mtp_depth)):
        if value:
            raise UserError(f"{name} cannot be used with conversations, of which only the answers are learned; set 0")
    if config.collider_ratio:
        raise UserError("collider_ratio cannot be used with conversations, whose prompts have no loss; set it to 0")


def _held_out(data: Dataset, config: TrainConfig, vocab_size: int) -> Dataset | None:
    if config.held_out is None:
        return None
    shown = display_safe(str(config.held_out))
    info = read_json(config.held_out / "dataset.json")
    try:
        if info["vocab_size"] != vocab_size or info["transform"] != data.description["transform"]:
            raise UserError(f"{shown} was tokenised otherwise than the training data; prepare both alike")
        if not info["splits"]["val"]["tokens"]:
            raise UserError(f"{shown} has no validation part; name data with held-out text")
        val = _split(config.held_out, "val", info, config, vocab_size)
        return Dataset(val, val, int(info["splits"]["val"]["bytes"]), data.indentation, {"path": str(config.held_out)})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{shown}/dataset.json lacks or garbles {error}; run prepare-data again") from None


def _mixed(data: Dataset, config: TrainConfig, vocab_size: int) -> Dataset:
    """The data with those of `data_mix`, which must be made with the same tokenizer."""
    found = tuple((_from_folder(path, config, vocab_size), weight) for path, weight in config.mixed_data())
    for other, _ in found:
        for key in ("tokenizer_sha256", "transform"):
            if other.description[key] != data.description[key]:
                raise UserError(
                    f"{display_safe(other.description['path'])} was made with another {key.split('_')[0]} than "
                    f"{display_safe(data.description['path'])}; prepare both alike, or leave it out of data_mix"
                )
    mix = [
        {
            "path": other.description["path"],
            "weight": weight,
            "train_tokens": other.description["train_tokens"],
            "sha256": other.description["splits"]["train"].get("sha256"),
        }
        for other, weight in found
    ]
    return replace(data, mixed=found, description={**data.description, "mix": mix}) if found else data


def _split(path: Path, name: str, info: dict[str, Any], config: TrainConfig, vocab_size: int) -> Tokens:
    """Open train.bin or val.bin, once it is known to be the file that prepare-data wrote."""
    promised = info["splits"][name]
    file = path / f"{name}.bin"
    tokens: Tokens = open_tokens(file, info["dtype"], vocab_size=vocab_size)
    if tokens.size != promised["tokens"]:
        raise UserError(
            f"{display_safe(str(file))} has {tokens.size:,} tokens where dataset.json promises "
            f"{promised['tokens']:,}; it was cut or replaced: run prepare-data again"
        )
    expected = promised.get("sha256")
    if config.verify_data and expected is not None and file_sha256(file) != expected:
        raise UserError(
            f"{display_safe(str(file))} is not what prepare-data wrote (its checksum differs); run prepare-data "
            "again, or --no-verify-data to train on it as it is"
        )
    return tokens


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
    """Sequences of the training tokens, laid out again for each epoch by `plan_epoch`.

    What a run sees is a function of (seed, position): a position is the number of the micro-batch, from which epoch
    and row follow, so a resumed run sees what an unbroken one would.
    """

    def __init__(
        self,
        tokens: Tokens,
        config: TrainConfig,
        end: int | None = None,
        infill: Infill | None = None,
        *,
        seed: int | None = None,
        roles: Roles | None = None,
    ) -> None:
        self.tokens, self.infill, self.roles = tokens, infill, roles
        self.seed = config.seed if seed is None else seed
        self.length = config.sequence_length
        self.batch = config.batch_size
        self.rank, self.stride = 0, config.processes * config.batch_size
        """This process's part of each micro-batch: `batch` of its `stride` sequences, those before it passed over."""
        self.origin = 0
        """Sequences read so far beyond what the counted micro-batches hold: not 0 once a resume has another size."""
        if tokens.size <= self.length:
            raise UserError(
                f"the training data has {tokens.size} tokens, fewer than one sequence of {self.length}; "
                "add data or lower --seq-len"
            )
        name = getattr(tokens, "filename", None)
        self.guard = DataGuard([Path(name)] if name else [])
        self.documents = document_starts(tokens, end) if roles is None else document_starts(roles, FIRST)
        self._borders = [0]
        """Rows before each epoch whose number of rows is known."""
        self._plans: dict[int, EpochPlan] = {}
        self._lock = threading.RLock()

    def plan(self, epoch: int) -> EpochPlan:
        """The rows of an epoch; the last two asked for are kept, for batches made ahead lie on both sides of a border.

        May be called from several threads, of which one plans and the others wait.
        """
        found = self._plans.get(epoch)
        if found is not None:
            return found
        with self._lock:
            if epoch not in self._plans:
                plan = plan_epoch(self.documents, self.tokens.size, self.length, self.seed, epoch)
                kept = list(self._plans.items())[-1:]
                self._plans = {**dict(kept), epoch: plan}  # replaced, never changed: others read it without the lock
            return self._plans[epoch]

    def place(self, position: int) -> tuple[int, int]:
        """Epoch and row of the sequence number `position` of the run."""
        with self._lock:
            while self._borders[-1] <= position:
                self._borders.append(self._borders[-1] + self.plan(len(self._borders) - 1).rows)
        epoch = bisect.bisect_right(self._borders, position) - 1
        return epoch, position - self._borders[epoch]

    def _texts(self, epoch: int, row: int, start: int, end: int) -> list[NDArray[np.int64]]:
        """Tokens `start` to `end` of a row, cut where documents meet; int64, the complement where not learned."""
        plan = self.plan(epoch)
        found = []
        before = 0
        for i in range(plan.first[row], plan.first[row + 1]):
            first, last = max(start - before, 0), min(end - before, int(plan.lengths[i]))
            if first < last:
                place = slice(plan.starts[i] + first, plan.starts[i] + last)
                ids = self.tokens[place].astype(np.int64)
                found.append(ids if self.roles is None else np.where(self.roles[place] == LEARNED, ids, ~ids))
            before += int(plan.lengths[i])
        return found

    def sequence(self, position: int, start: int, length: int) -> NDArray[np.int64]:
        """`length` + 1 tokens from token `start` of the row at a position."""
        epoch, row = self.place(position)
        texts = self._texts(epoch, row, start, start + length + 1)
        return np.concatenate(texts) if self.infill is None else self.infill.row(texts, (epoch, row, start))

    def batch_at(self, index: int, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [sequences, length], of micro-batch `index` counted from the run's start; targets
        that are not learned are `IGNORED`.

        With a `length` that divides the sequence length, each row becomes several sequences. Raises DataLostError.
        """
        return self.batch_from(self.origin, index, length)

    def batch_from(self, origin: int, index: int, length: int | None = None) -> tuple[Tensor, Tensor]:
        """The same for an `origin` of one's own; safe to call from several threads."""
        self.guard.check()
        length = length or self.length
        first = origin + index * self.stride + self.rank * self.batch
        block = torch.from_numpy(
            np.stack(
                [
                    self.sequence(position, start, length)
                    for position in range(first, first + self.batch)
                    for start in range(0, self.length, length)
                ]
            )
        )
        return torch.where(block < 0, ~block, block)[:, :-1].contiguous(), block[:, 1:].clamp(min=IGNORED).contiguous()

    def close(self) -> None:
        """End what was begun for the batches: nothing here."""


def token_counts(tokens: Tokens, vocab_size: int) -> Tensor:
    """Occurrences of every id in the training data, float32 [vocab]; reads the file once."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, tokens.size, 1 << 22):
        counts += np.bincount(tokens[start : start + (1 << 22)], minlength=vocab_size)
    return torch.from_numpy(counts.astype(np.float32))


def open_sampler(tokens: Tokens, vocab_size: int, frequent: int, config: TrainConfig) -> VocabularySampler | None:
    """What chooses the head's columns, exact over the `frequent` commonest ids; None for 0, an exact softmax."""
    if not frequent:
        return None
    return VocabularySampler(token_counts(tokens, vocab_size), frequent, config.head_sampled, config.seed)
