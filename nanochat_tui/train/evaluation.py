"""Held-out loss: exact cross-entropy over the whole vocabulary, whatever the training estimate was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_tui.train.data import Dataset
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.world import ALONE, World

Hidden = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Averages over the evaluated tokens; losses in nats per token."""

    tokens: int
    loss: float
    accuracy: float
    accuracy_no_indent: float
    """Accuracy over targets that are not whitespace only."""
    bits_per_byte: float | None
    """Bits per original byte; a partial evaluation uses the split's mean bytes per token."""

    def metrics(self) -> dict[str, float]:
        """Keys of metrics.jsonl."""
        row = {
            "val_loss": self.loss,
            "val_perplexity": math.exp(min(self.loss, 80.0)),
            "val_accuracy": self.accuracy,
            "val_accuracy_no_indent": self.accuracy_no_indent,
            "val_tokens": self.tokens,
        }
        return row if self.bits_per_byte is None else {**row, "val_bits_per_byte": self.bits_per_byte}


@torch.no_grad()
def evaluate(
    model: NanochatModel,
    hidden: Hidden,
    data: Dataset,
    *,
    batch: int,
    length: int,
    max_tokens: int | None,
    whitespace: Tensor,
    chunk: int = 1024,
    tick: Callable[[], None] = lambda: None,
    enough: Callable[[], bool] | None = None,
    world: World = ALONE,
) -> Evaluation | None:
    """Evaluate non-overlapping windows of `length` tokens, spread over the split when `max_tokens` limits them.

    `hidden` maps tokens to the normed final state (the compiled trunk); `whitespace` bool [vocab] marks ids
    left out of `accuracy_no_indent`; `tick` is called once per batch. With `enough` the windows come in a shuffled
    order, the same each time, and the evaluation ends when it returns true, after one batch at least: what was seen is
    then a fair sample. The processes of `world` share the windows. Returns None without validation data.
    """
    val = data.val
    if val is None or val.size < 2:
        return None
    windows = max(1, (val.size - 1) // length)
    length = min(length, val.size - 1)
    wanted = windows if max_tokens is None else min(windows, max(1, max_tokens // length))
    starts = (np.arange(wanted) * windows // wanted) * length
    if enough is not None:
        starts = np.random.default_rng(0).permutation(starts)
    device = model.token_embd.weight.device
    table = model(model.head_table).to(model.compute_dtype)
    loss = hits = plain_hits = plain = 0.0
    count = 0
    for first in range(0, wanted, batch * world.size):
        tick()
        if first and enough is not None and enough():
            break
        own = first + world.rank * batch
        group = starts[own : own + batch]
        # a full batch always: another shape would make the compiled trunk compile again
        padded = np.resize(group if len(group) else starts[:1], batch)
        block = torch.from_numpy(np.stack([val[s : s + length + 1].astype(np.int64) for s in padded])).to(device)
        states = model.head_input(hidden(block[:, :-1].contiguous()))[: len(group)].reshape(-1, model.config.dim)
        targets = block[: len(group), 1:].reshape(-1)
        for i in range(0, len(targets), chunk):
            logits = F.linear(states[i : i + chunk].to(table.dtype), table).float()
            target = targets[i : i + chunk]
            loss += float(F.cross_entropy(logits, target, reduction="sum"))
            hit = logits.argmax(-1) == target
            visible = ~whitespace[target]
            hits += float(hit.sum())
            plain_hits += float((hit & visible).sum())
            plain += float(visible.sum())
            count += len(target)
    loss, hits, plain_hits, plain, total = world.totals([loss, hits, plain_hits, plain, count])
    count = int(total)
    per_byte = None
    if data.val_bytes:
        per_byte = loss / math.log(2) / (data.val_bytes * count / val.size)
    return Evaluation(count, loss / count, hits / count, plain_hits / max(plain, 1.0), per_byte)
