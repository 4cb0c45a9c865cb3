"""Token filtering through the whole backward pass (Collider, Chai et al. 2025, arXiv 2502.00340).

The forward pass is complete: every token is context for the others. Of the tokens of a batch those with the largest
excess loss are kept (their loss minus that of a reference model, as in Rho-1, arXiv 2404.07965; without one, their own
loss), and the loss is the mean over them. Filtering the loss alone saves little, for attention spreads the gradient to
all positions at once. Here filtered tokens receive no gradient in any layer: as keys and values they count as
constants. So every gradient has rows of kept tokens only, and each matrix product of the backward pass is a smaller
dense one. That is not the exact gradient of the filtered loss; without attention it would be.

`RowTrunk` keeps what the forward pass computed, without autograd's graph. Backward it takes the kept rows of it:
products are written out, what lies between them is made again on these rows and differentiated by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_tui.errors import UserError
from nanochat_tui.export.checkpoint import TERNARY
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.text import display_safe
from nanochat_tui.train.checkpoint import load_checkpoint
from nanochat_tui.train.model import Block, BlockWeights, NanochatModel, rms_norm, rope
from nanochat_tui.train.mtp import Head, TokensAhead
from nanochat_tui.train.quantise import q8_0_table
from nanochat_tui.train.streams import weighted

KEPT_LOGITS = 1 << 30
"""Bytes of probabilities of a micro-batch that are kept for the backward pass; more are computed again there."""
CHUNK = 2048
"""Tokens whose logits are made at a time."""
Mixing = tuple[Tensor, Tensor, Tensor] | None
Choose = Callable[[Tensor], Tensor]


def kept_tokens(score: Tensor, ratio: float) -> Tensor:
    """Return which tokens are kept, bool [tokens]: the ceil((1 - ratio) · tokens) of the largest score.

    Of equal scores the earlier token is kept.
    """
    count = math.ceil((1 - ratio) * score.numel())
    order = torch.argsort(score, descending=True, stable=True)
    kept = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    kept[order[:count]] = True
    return kept


@dataclass(slots=True)
class _Saved:
    """What the forward pass of one sub-layer leaves, all [tokens of the batch, width]."""

    streams: list[Tensor]
    projected: Tensor
    """Queries, keys and values, or gate and up."""
    inner: Tensor
    """Attention's output before its projection; empty for the feed-forward part."""
    y: Tensor


@dataclass(slots=True)
class _Rows:
    """Kept tokens: their index in the batch, sequence, position, and place among the kept of their sequence."""

    index: Tensor
    sequence: Tensor
    position: Tensor
    slot: Tensor
    most: int
    """Kept tokens of the sequence that has the most."""

    @classmethod
    def of(cls, kept: Tensor) -> _Rows:
        """From bool [sequences, tokens]."""
        sequence, position = kept.nonzero(as_tuple=True)
        slot = (kept.cumsum(1) - 1)[sequence, position]
        index = sequence * kept.shape[1] + position
        return cls(index, sequence, position, slot, int(kept.sum(1).max()))


@dataclass(slots=True)
class _Gradients:
    """Gradients by tensor, added up, and given to autograd at the end."""

    found: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def add(self, tensor: Tensor, gradient: Tensor) -> None:
        before = self.found.get(id(tensor))
        self.found[id(tensor)] = (tensor, gradient if before is None else before[1] + gradient)


class RowTrunk:
    """The trunk on one micro-batch: complete forward, backward for the rows of kept tokens."""

    def __init__(self, model: NanochatModel, weights: list[BlockWeights], mixing: Mixing) -> None:
        self.model, self.weights, self.mixing = model, weights, mixing
        self._saved: list[_Saved] = []
        self._d_mixing: list[Tensor] = []
        self._last = torch.empty(0)

    @torch.no_grad()
    def forward(self, embedded: Tensor) -> Tensor:
        """Return the normed state, float32 [sequences, tokens, width], as the model's own trunk computes it."""
        self.shape = embedded.shape
        streams = [embedded] * self.model.config.n_streams
        for index, (block, w) in enumerate(zip(self.model.blocks, self.weights, strict=True)):
            for sub, layer in enumerate((self._attend, self._feed)):
                mix = self._mix(2 * index + sub)
                read = streams[0] if mix is None else weighted(mix[0], streams)
                projected, inner, y = layer(block, w, read)
                self._saved.append(_Saved(streams, projected, inner, y))
                streams = [streams[0] + y] if mix is None else self.model.write_streams(streams, y, mix[1], mix[2])
        self._last = sum(streams[1:], streams[0]) / len(streams)
        return rms_norm(self._last, self.model.output_norm.weight, self.model.config.norm_eps)

    def _mix(self, record: int) -> tuple[Tensor, Tensor, Tensor] | None:
        if self.mixing is None:
            return None
        read, matrix, write = (part.detach()[record] for part in self.mixing)
        return read, matrix, write

    def _attend(self, block: Block, w: BlockWeights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model, c = self.model, self.model.config
        batch, tokens, _ = x.shape
        normed = rms_norm(x, block.attn_norm.weight, c.norm_eps)
        qkv = F.linear(model.round_input(normed).to(model.compute_dtype), w.qkv)
        q, k, v = self._heads(qkv)
        cos, sin = model.cos[:tokens].to(q.dtype), model.sin[:tokens].to(q.dtype)
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        inner = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=c.n_heads != c.n_kv_heads)
        inner = inner.transpose(1, 2).reshape(batch, tokens, c.dim)
        return qkv, inner, F.linear(model.round_input(inner), w.output).to(x.dtype)

    def _heads(self, qkv: Tensor) -> list[Tensor]:
        """Queries, keys and values [sequences, heads, tokens, head width] of [sequences, tokens, …]."""
        c = self.model.config
        parts = torch.split(qkv, [c.dim, c.kv_dim, c.kv_dim], dim=-1)
        return [part.view(*part.shape[:-1], -1, c.head_dim).transpose(1, 2) for part in parts]

    def _feed(self, block: Block, w: BlockWeights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        normed = rms_norm(x, block.ffn_norm.weight, model.config.norm_eps)
        both = F.linear(model.round_input(normed).to(model.compute_dtype), w.gate_up)
        gate, up = both.chunk(2, dim=-1)
        return both, both[:0], F.linear(model.round_input(F.silu(gate) * up), w.down).to(x.dtype)

    def backward(self, kept: Tensor, gradient: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the gradient of the embedded input, and tensors with theirs for `torch.autograd.backward`.

        Parameters: which tokens are kept, bool [sequences, tokens]; the gradient of their normed states [kept, width].
        What was kept of the forward pass is used up.
        """
        model, rows, out = self.model, _Rows.of(kept), _Gradients()
        n = model.config.n_streams
        mean = self._rows(self._last, rows)
        with torch.enable_grad():
            normed = rms_norm(mean, model.output_norm.weight, model.config.norm_eps)
        self._d_mixing = [torch.zeros_like(part) for part in self.mixing or ()]
        d_mean, d_norm = torch.autograd.grad(normed, [mean, model.output_norm.weight], gradient)
        out.add(model.output_norm.weight, d_norm)
        d_streams = [d_mean / n] * n
        for number in reversed(range(len(self._saved))):
            block, w = model.blocks[number // 2], self.weights[number // 2]
            d_streams = self._through(number, block, w, rows, d_streams, out)
            self._saved.pop()
        for part, d_part in zip(self.mixing or (), self._d_mixing, strict=True):
            out.add(part, d_part)
        d_embedded = torch.zeros(kept.numel(), self.shape[-1], dtype=gradient.dtype, device=gradient.device)
        d_embedded[rows.index] = sum(d_streams[1:], d_streams[0])
        return d_embedded.view(self.shape), list(out.found.values())

    def _rows(self, x: Tensor, rows: _Rows) -> Tensor:
        """Kept rows of [sequences, tokens, width] as a leaf [kept, width]."""
        return x.reshape(-1, x.shape[-1])[rows.index].requires_grad_()

    def _through(
        self, number: int, block: Block, w: BlockWeights, rows: _Rows, d_after: list[Tensor], out: _Gradients
    ) -> list[Tensor]:
        """Gradients of the streams before a sub-layer, from those after it."""
        model, saved, mix = self.model, self._saved[number], self._mix(number)
        streams = [self._rows(x, rows) for x in (saved.streams if mix else saved.streams[:1])]
        coefficients = [part.clone().requires_grad_() for part in mix] if mix else []
        if coefficients:
            y = self._rows(saved.y, rows)
            with torch.enable_grad():
                after = model.write_streams(streams, y, coefficients[1], coefficients[2])
                read = weighted(coefficients[0], streams)
            sources = [*streams, y, *coefficients[1:]]
            *d_streams, d_y, d_matrix, d_write = torch.autograd.grad(after, sources, d_after)
            self._d_mixing[1][number], self._d_mixing[2][number] = d_matrix, d_write
        else:
            d_streams, d_y, read = d_after, d_after[0], streams[0]
        back, norm, matrix = (
            (self._feed_back, block.ffn_norm.weight, w.gate_up)
            if number % 2
            else (self._attend_back, block.attn_norm.weight, w.qkv)
        )
        d_projected = back(saved, w, rows, d_y.to(model.compute_dtype), out)
        with torch.enable_grad():
            entered = model.round_input(rms_norm(read, norm, model.config.norm_eps)).to(model.compute_dtype)
        out.add(matrix, d_projected.mT @ entered.detach())
        found = torch.autograd.grad(entered, [*streams, norm, *coefficients[:1]], d_projected @ matrix.detach())
        out.add(norm, found[len(streams)])
        if coefficients:
            self._d_mixing[0][number] = found[-1]
        return [a + b for a, b in zip(d_streams, found[: len(streams)], strict=True)]

    def _feed_back(self, saved: _Saved, w: BlockWeights, rows: _Rows, d_y: Tensor, out: _Gradients) -> Tensor:
        """Gradient of gate and up [kept, 2 hidden] from that of the sub-layer's output."""
        both = self._rows(saved.projected, rows)
        with torch.enable_grad():
            gate, up = both.chunk(2, dim=-1)
            inner = self.model.round_input(F.silu(gate) * up)
        out.add(w.down, d_y.mT @ inner.detach())
        (d_both,) = torch.autograd.grad(inner, both, d_y @ w.down.detach())
        return d_both

    def _attend_back(self, saved: _Saved, w: BlockWeights, rows: _Rows, d_y: Tensor, out: _Gradients) -> Tensor:
        """Gradient of queries, keys and values [kept, …]: kept queries see all keys, filtered ones as constants."""
        model, c = self.model, self.model.config
        out.add(w.output, d_y.mT @ model.round_input(self._rows(saved.inner, rows)).detach())
        sequences, tokens, _ = self.shape
        _, k_all, v_all = self._heads(saved.projected)
        cos, sin = model.cos[:tokens].to(k_all.dtype), model.sin[:tokens].to(k_all.dtype)
        k_all = rope(k_all, cos, sin)
        # pads of a sequence with fewer kept tokens than another see position 0 and have no gradient
        positions = torch.zeros(sequences, rows.most, dtype=torch.int64, device=rows.index.device)
        positions[rows.sequence, rows.slot] = rows.position
        visible = positions[:, None, :, None] >= torch.arange(tokens, device=positions.device)
        leaf = self._rows(saved.projected, rows)
        with torch.enable_grad():
            parts = torch.split(leaf, [c.dim, c.kv_dim, c.kv_dim], dim=-1)
            q, k, v = (part.view(len(part), -1, c.head_dim) for part in parts)
            at = cos[rows.position].unsqueeze(1), sin[rows.position].unsqueeze(1)
            q, k = rope(q, *at), rope(k, *at)
            keys = k_all.index_put(_places(rows.sequence, rows.position, k_all), k)
            values = v_all.index_put(_places(rows.sequence, rows.position, v_all), v)
            queries = q.new_zeros(sequences, c.n_heads, rows.most, c.head_dim)
            queries = queries.index_put(_places(rows.sequence, rows.slot, queries), q)
            y = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=visible, enable_gqa=c.n_heads != c.n_kv_heads
            )
            inner = y[rows.sequence, :, rows.slot].flatten(1)
        (d_qkv,) = torch.autograd.grad(inner, leaf, d_y @ w.output.detach())
        return d_qkv


def filtered_cross_entropy(
    x: Tensor,
    table: Tensor,
    targets: Tensor,
    choose: Choose,
    *,
    bias: Tensor | None = None,
    chunk: int = 2048,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy of all tokens, and the gradients of its mean over those that are kept.

    Shapes as for `loss.fused_cross_entropy`; `choose` maps the losses float32 [tokens] to bool [tokens].
    Returns the losses, which tokens are kept, and the gradients of their states [kept, dim] and of the table.
    """
    tokens, vocabulary = x.shape[0], table.shape[0]
    states = x.to(table.dtype)
    losses = torch.empty(tokens, dtype=torch.float32, device=x.device)
    norms = torch.zeros_like(losses)
    stores = tokens * vocabulary * table.element_size() <= KEPT_LOGITS
    logits = torch.empty(tokens if stores else min(chunk, tokens), vocabulary, dtype=table.dtype, device=x.device)

    def probabilities(part: Tensor, into: Tensor) -> tuple[Tensor, Tensor | None]:
        if bias is None:
            torch.mm(part, table.t(), out=into)
        else:
            torch.addmm(bias, part, table.t(), out=into)
        norm = into.logsumexp(-1).float() if z_loss else None
        return torch.softmax(into, -1, out=into), norm

    for start in range(0, tokens, chunk):
        part, target = states[start : start + chunk], targets[start : start + chunk]
        z, norm = probabilities(part, logits[start : start + chunk] if stores else logits[: len(part)])
        own = z.gather(1, target.unsqueeze(1)).squeeze(1)
        losses[start : start + chunk] = own.float().clamp_(min=1e-37).log_().neg_()
        if norm is not None:
            norms[start : start + chunk] = norm
    kept = choose(losses)
    rows = kept.nonzero().squeeze(1)
    d_states = torch.empty(rows.numel(), x.shape[1], dtype=table.dtype, device=x.device)
    d_table = torch.zeros_like(table)
    for start in range(0, rows.numel(), chunk):
        index = rows[start : start + chunk]
        part, target = states[index], targets[index]
        z = logits[index] if stores else probabilities(part, logits[: len(part)])[0]
        if z_loss:  # the gradient of z_loss · norm² is 2 z_loss · norm · softmax
            z *= (1 + 2 * z_loss * norms[index]).to(z.dtype).unsqueeze(-1)
        z[torch.arange(len(index), device=x.device), target] -= 1
        torch.mm(z, table, out=d_states[start : start + chunk])
        d_table.addmm_(z.t(), part)
    return losses, kept, d_states / rows.numel(), d_table / rows.numel()


def _places(sequence: Tensor, token: Tensor, of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices that put rows [kept, heads, width] into `of` [sequences, heads, tokens, width]."""
    return sequence.unsqueeze(1), torch.arange(of.shape[1], device=of.device), token.unsqueeze(1)


class TokenFilter:
    """Which tokens of each micro-batch are trained on, and what its metrics say of them.

    ratio: share of the tokens that is filtered. reference: a model of the same vocabulary whose loss is subtracted.
    """

    def __init__(self, ratio: float, reference: NanochatModel | None = None) -> None:
        self.ratio, self.reference = ratio, reference
        self.sums = [0.0, 0.0, 0.0]
        """Of micro-batches since the last row: how many, loss of kept tokens, excess of kept tokens."""

    @torch.no_grad()
    def reference_losses(self, tokens: Tensor, targets: Tensor, ids: Tensor | None, bias: Tensor | None) -> Tensor:
        """Loss of the reference at every token, float32 [tokens]; zero without one.

        Shapes: tokens int64 [sequences, T]; targets int64 [tokens], places among `ids` where the head is estimated.
        """
        model = self.reference
        if model is None:
            return torch.zeros(targets.numel(), device=targets.device)
        states = model.head_input(model.hidden(tokens)).reshape(-1, model.config.dim)
        table = model.head_weight if ids is None else model.head_weight[ids]
        table = (q8_0_table(table) if model.quantise else table).to(model.compute_dtype)
        found = []
        for part, target in zip(torch.split(states, CHUNK), torch.split(targets, CHUNK), strict=True):
            z = F.linear(part.to(table.dtype), table, bias).float()
            found.append(F.cross_entropy(z, target, reduction="none"))
        return torch.cat(found)

    def backward(
        self,
        model: NanochatModel,
        tokens: Tensor,
        targets: Tensor,
        embedded: Tensor,
        table: Tensor,
        *,
        share: float,
        z_loss: float = 0.0,
        columns: tuple[Tensor, Tensor] | None = None,
        ahead: tuple[TokensAhead, Head] | None = None,
    ) -> Tensor:
        """Add `share` times the filtered gradient of a micro-batch; returns the mean loss of all its tokens.

        Shapes: tokens int64 [sequences, T]; targets int64 [tokens]; embedded float32 [sequences, T, width] and the
        effective table, both of autograd's graph; columns: ids and bias of an estimated head. The losses of further
        tokens count at kept positions.
        """
        trunk = RowTrunk(model, model.effective(), model.mixing())
        hidden = trunk.forward(embedded.detach())
        states = model.head_input(hidden).reshape(-1, model.config.dim)
        ids, bias = columns or (None, None)
        reference = self.reference_losses(tokens, targets, ids, bias)
        rows = table.to(model.compute_dtype)
        losses, kept, d_states, d_rows = filtered_cross_entropy(
            states,
            rows.detach(),
            targets,
            lambda found: kept_tokens(found - reference, self.ratio),
            bias=bias,
            chunk=CHUNK,
            z_loss=z_loss,
        )
        d_hidden = d_states.to(hidden.dtype) * share
        of = kept.view(tokens.shape)
        if ahead is not None:
            leaf = hidden.requires_grad_()
            further = ahead[0].loss(leaf, embedded, targets.view(tokens.shape), ahead[1], of)
            (further * share).backward(retain_graph=True)  # type: ignore[no-untyped-call]
            if leaf.grad is not None:
                d_hidden = d_hidden + leaf.grad[of]
        d_embedded, found = trunk.backward(of, d_hidden)
        pairs = [(embedded, d_embedded), (rows, d_rows * share), *found]
        torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
        self.sums[0] += 1
        self.sums[1] += float(losses[kept].mean())
        self.sums[2] += float((losses - reference)[kept].mean())
        return losses.mean()

    def row(self) -> dict[str, float]:
        """Means since the last row: loss and excess loss of the kept tokens, in nats."""
        count, loss, excess = self.sums
        if not count:
            return {}
        self.sums = [0.0, 0.0, 0.0]
        return {"collider_loss": loss / count, "collider_excess": excess / count}


def open_reference(checkpoint: Path, shape: ModelConfig, device: torch.device, dtype: torch.dtype) -> NanochatModel:
    """Return a checkpoint's model, to score tokens with. Raises UserError if it is damaged or of another vocabulary."""
    weights, _, state = load_checkpoint(checkpoint)
    shown = display_safe(str(checkpoint))
    try:
        config = ModelConfig(**state["model"])
        model = NanochatModel(config, dtype=dtype)
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise UserError(f"the reference model {shown} is not of this trainer; name another checkpoint") from None
    if config.vocab_size != shape.vocab_size or config.context_length < shape.context_length:
        raise UserError(
            f"the reference model {shown} has {config.vocab_size:,} token ids and a context of "
            f"{config.context_length}, the run {shape.vocab_size:,} and {shape.context_length}; name one of its data"
        )
    model.use_ternary(bool(state.get(TERNARY, True)))
    return model.requires_grad_(False).to(device).eval()
