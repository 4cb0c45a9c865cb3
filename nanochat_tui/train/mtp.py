"""Multi-token prediction: blocks behind the trunk that are trained on the tokens after the next one.

The sequential form of DeepSeek-V3 (arXiv 2412.19437, section 2.2), with embedding and head of the main model:

    h⁰   = the trunk's normed state, which predicts token i + 1
    x    = M_k [RMSNorm(embedding of token i + k); RMSNorm(hᵏ⁻¹)]      M_k [width, 2 width], ternary
    hᵏ   = block_k(x)                                                  a block with a plain residual
    Lᵏ   = cross-entropy of head(RMSNorm(hᵏ)) against token i + 1 + k, for the T - k positions that have one
    loss = L + weight / depth · Σ_k (T - k) / T · Lᵏ

The halves of M_k's input stand as llama.cpp's `nextn.eh_proj` reads them: embedding first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nanochat_tui.train.model import Joined, NanochatModel, rms_norm

Head = Callable[[Tensor, Tensor], Tensor]
"""Mean cross-entropy of states [tokens, width] against targets [tokens], in the units that the caller has."""


def effective_ahead(model: NanochatModel) -> list[Joined]:
    """Fake-quantised weights of the blocks for further tokens."""
    return [model.effective_next(block) for block in model.next_blocks]


def states_ahead(model: NanochatModel, hidden: Tensor, embedded: Tensor, weights: list[Joined]) -> list[Tensor]:
    """Return the normed states of every depth k = 1, 2, …, float32 [sequences, T - k, width].

    `hidden` is the trunk's normed state and `embedded` the embedded inputs, both [sequences, T, width].
    """
    found, state = [], hidden
    for depth, (block, joined) in enumerate(zip(model.next_blocks, weights, strict=True), 1):
        state = model.next_state(block, joined, state, embedded[:, depth:])
        found.append(rms_norm(state, block.nextn.shared_head_norm.weight, model.config.norm_eps))
    return found


class TokensAhead:
    """The losses of further tokens in a run, and their means for its metrics."""

    def __init__(self, model: NanochatModel, weight: float, *, compiled: bool = False) -> None:
        self.model, self.weight = model, weight
        self.depth = len(model.next_blocks)
        states = partial(states_ahead, model)
        self._states = torch.compile(states, dynamic=False) if compiled else states
        self.sums = [torch.zeros(())] * self.depth
        self.count = 0
        """Micro-batches in `sums`."""

    def loss(self, hidden: Tensor, embedded: Tensor, targets: Tensor, head: Head, kept: Tensor | None = None) -> Tensor:
        """Return what a micro-batch's loss gains by the further tokens, and note the losses.

        Shapes: hidden and embedded [sequences, T, width]; targets [sequences, T], what the main head is trained on, in
        whatever form `head` takes them; kept, bool [sequences, T]: positions that count, by default all.
        """
        weights = effective_ahead(self.model)
        length = targets.shape[1]
        total = torch.zeros((), device=hidden.device)
        for depth, states in enumerate(self._states(hidden, embedded, weights), 1):
            x, further, share = self.model.head_input(states), targets[:, depth:], (length - depth) / length
            if kept is None:
                mean = head(x.reshape(-1, x.shape[-1]), further.reshape(-1))
            else:
                of = kept[:, :-depth]
                share = float(of.sum()) / float(kept.sum())
                mean = head(x[of], further[of]) if share else x.sum() * 0
            self.sums[depth - 1] = self.sums[depth - 1] + mean.detach().float().cpu()
            total = total + self.weight / self.depth * share * mean
        self.count += 1
        return total

    def row(self) -> dict[str, float]:
        """Means since the last row, in nats per token: `mtp_loss_2` is the loss of the token after the next one."""
        if not self.count:
            return {}
        found = {f"mtp_loss_{ahead}": float(value) / self.count for ahead, value in enumerate(self.sums, 2)}
        self.sums, self.count = [torch.zeros(())] * self.depth, 0
        return found

    def state(self) -> dict[str, object]:
        """For state.json."""
        return {"sums": [float(value) for value in self.sums], "count": self.count}

    def load_state(self, sums: list[float], count: int) -> None:
        """Take over what `state` returned."""
        self.sums, self.count = [torch.tensor(value) for value in sums], count
