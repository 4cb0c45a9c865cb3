"""Held-out loss: exact cross-entropy over the whole vocabulary, whatever the training estimate was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_tui.formats.chat_tokens import LEARNED
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
    read: int = 0
    """Tokens that were read; more than were evaluated where only answers count."""
    held_out: Evaluation | None = None
    """The same of the held-out data of the model that a fine-tuning started from."""

    def metrics(self) -> dict[str, float]:
        """Keys of metrics.jsonl."""
        row = {
            "val_loss": self.loss,
            "val_perplexity": math.exp(min(self.loss, 80.0)),
            "val_accuracy": self.accuracy,
            "val_accuracy_no_indent": self.accuracy_no_indent,
            "val_tokens": self.tokens,
        }
        if self.bits_per_byte is not None:
            row["val_bits_per_byte"] = self.bits_per_byte
        if self.held_out is not None:
            row |= {"held_out_loss": self.held_out.loss, "held_out_accuracy": self.held_out.accuracy}
            if self.held_out.bits_per_byte is not None:
                row["held_out_bits_per_byte"] = self.held_out.bits_per_byte
        return row


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
    then a fair sample. Of conversations the answers count, as in training. The processes of `world` share the windows.
    Returns None without validation data.
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
    count = read = 0
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
        read += len(targets)
        if data.val_roles is not None and len(group):
            roles = np.stack([data.val_roles[s + 1 : s + length + 1] for s in group]).reshape(-1)
            learned = torch.from_numpy(np.flatnonzero(roles == LEARNED)).to(device)
            states, targets = states[learned], targets[learned]
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
    loss, hits, plain_hits, plain, *totals = world.totals([loss, hits, plain_hits, plain, count, read])
    count, read = map(int, totals)
    per_byte = None
    if data.val_bytes:
        per_byte = loss / math.log(2) / (data.val_bytes * count / val.size)
    if not count:
        return None
    return Evaluation(count, loss / count, hits / count, plain_hits / max(plain, 1.0), per_byte, read)


def evaluate_both(
    model: NanochatModel,
    hidden: Hidden,
    data: Dataset,
    *,
    held_out_tokens: int,
    **options: Any,
) -> Evaluation | None:
    """`evaluate`, and where the data have held-out text of another model, about so many tokens of that, too."""
    found = evaluate(model, hidden, data, **options)
    if found is None or data.held_out is None:
        return found
    options |= {"max_tokens": held_out_tokens, "enough": None}
    return replace(found, held_out=evaluate(model, hidden, data.held_out, **options))
