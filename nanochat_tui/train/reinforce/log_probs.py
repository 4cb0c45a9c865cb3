"""Log-probabilities of completions under the model in training, with the roundings of the file it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_tui.train.model import NanochatModel


@dataclass(frozen=True, slots=True)
class Padded:
    """Prompts with their completions: inputs int64 [n, length], padded behind.

    places: int64 [n, tokens], where the state stands that predicts each token of a completion, in the flattened inputs;
    targets int64 [n, tokens] are these tokens; present: float [n, tokens], 0 where a completion is shorter.
    """

    inputs: Tensor
    places: Tensor
    targets: Tensor
    present: Tensor


def padded(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Padded:
    """Lay out sequences that each have a prompt and a completion of at least one token."""
    length = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True)) - 1
    tokens = max(map(len, completions))
    count = len(prompts)
    inputs = torch.zeros(count, length, dtype=torch.int64)
    targets, places = torch.zeros(count, tokens, dtype=torch.int64), torch.zeros(count, tokens, dtype=torch.int64)
    present = torch.zeros(count, tokens)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        whole = torch.tensor([*prompt, *completion])
        inputs[row, : len(whole) - 1] = whole[:-1]
        size = len(completion)
        targets[row, :size] = whole[len(prompt) :]
        places[row, :size] = row * length + len(prompt) - 1 + torch.arange(size)
        present[row, :size] = 1.0
    return Padded(inputs, places, targets, present)


def log_probs(model: NanochatModel, batch: Padded, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each token of the completions and the entropy (nats, no gradient) before it.

    Both float32 [n, tokens], 0 where there is no token. The logits are made for the completions alone.
    """
    device = model.head_weight.device
    states = model.head_input(model.hidden(batch.inputs.to(device))).reshape(-1, model.config.dim)
    here = batch.present.bool()
    states = states[batch.places[here].to(device)]
    table = model.head_table().to(model.compute_dtype)
    logits = F.linear(states.to(table.dtype), table).float()
    if temperature != 1.0:
        logits = logits / temperature
    norm = logits.logsumexp(-1)
    found = logits.gather(1, batch.targets[here].to(device).unsqueeze(1)).squeeze(1) - norm
    with torch.no_grad():
        entropy = norm - (torch.softmax(logits.detach(), -1) * logits.detach()).sum(-1)
    return _spread(found, here), _spread(entropy, here)


def _spread(values: Tensor, here: Tensor) -> Tensor:
    """Values of the tokens that are there, at their places [n, tokens]."""
    empty = torch.zeros(here.shape, dtype=values.dtype, device=values.device)
    return empty.masked_scatter(here.to(values.device), values)
