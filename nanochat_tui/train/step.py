"""Loss and gradients of one micro-batch: over the whole table, or over the rows that a sample names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_tui.train.collider import TokenFilter
from nanochat_tui.train.loss import VocabularySample, VocabularySampler, head_loss, sampled_loss
from nanochat_tui.train.model import BlockWeights, NanochatModel
from nanochat_tui.train.mtp import TokensAhead
from nanochat_tui.train.optim import Optimizer
from nanochat_tui.train.quantise import q8_0_table

Trunk = Callable[[Tensor, list[BlockWeights], tuple[Tensor, Tensor, Tensor] | None], Tensor]


def exact_backward(
    model: NanochatModel,
    trunk: Trunk,
    inputs: Tensor,
    targets: Tensor,
    share: float,
    z_loss: float = 0.0,
    ahead: TokensAhead | None = None,
    token_filter: TokenFilter | None = None,
    learned: Tensor | None = None,
) -> Tensor:
    """Add `share` times the gradient of the exact loss to the parameters' gradients; returns the loss.

    `inputs` int64 [sequences, tokens]; `targets` int64 [sequences · tokens], or those at the places `learned` int64
    [n] of them, of which the loss is the mean. The losses of `ahead` add to the gradient,
    not to what is returned.
    """
    if token_filter is None:
        loss, total = model(_exact_losses, model, trunk, inputs, (targets, learned), z_loss, ahead)
        (total * share).backward()
        found: Tensor = loss.detach()
        return found
    embedded = model.embed(inputs)
    table = model.head_table()

    def head(x: Tensor, wanted: Tensor) -> Tensor:
        return head_loss(x, table, wanted, dtype=model.compute_dtype, z_loss=z_loss)

    further = None if ahead is None else (ahead, head)
    return token_filter.backward(model, inputs, targets, embedded, table, share=share, z_loss=z_loss, ahead=further)


def _exact_losses(
    model: NanochatModel,
    trunk: Trunk,
    inputs: Tensor,
    wanted: tuple[Tensor, Tensor | None],
    z_loss: float,
    ahead: TokensAhead | None,
) -> tuple[Tensor, Tensor]:
    """The loss of the next token, and the sum that is differentiated; `wanted` are targets and their places."""
    targets, learned = wanted
    embedded = model.embed(inputs)
    table = model.head_table()

    def head(x: Tensor, wanted: Tensor) -> Tensor:
        return head_loss(x, table, wanted, dtype=model.compute_dtype, z_loss=z_loss)

    hidden = trunk(embedded, model.effective(), model.mixing())
    states = _at(model.head_input(hidden).reshape(-1, model.config.dim), learned)
    loss = head(states, targets)
    if ahead is None:
        return loss, loss
    return loss, loss + ahead.loss(hidden, embedded, targets.view(inputs.shape), head)


def sampled_backward(
    model: NanochatModel,
    trunk: Trunk,
    inputs: Tensor,
    sample: VocabularySample,
    share: float,
    z_loss: float = 0.0,
    ahead: TokensAhead | None = None,
    token_filter: TokenFilter | None = None,
    learned: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same for the loss estimated over `sample`; returns it and, for a tied table, the gradient of its rows.

    A tied table is read at the sample's rows only, and gets no gradient itself; an untied one gets its own.
    """
    ids, places = sample.ids.to(inputs.device), sample.inputs.to(inputs.device).view(inputs.shape)
    rows = model.head_weight[ids]
    if model.config.tied:
        rows = rows.detach().requires_grad_()
    effective = q8_0_table(rows) if model.quantise else rows
    embedded = F.embedding(places, effective) if model.config.tied else model.embed(inputs)

    def head(x: Tensor, wanted: Tensor) -> Tensor:
        part = replace(sample, targets=wanted)
        return sampled_loss(x, effective, part, dtype=model.compute_dtype, z_loss=z_loss)

    if token_filter is not None:
        wanted = sample.targets.to(inputs.device)
        columns = (ids, sample.bias.to(inputs.device, model.compute_dtype))
        further = None if ahead is None else (ahead, head)
        loss = token_filter.backward(
            model, inputs, wanted, embedded, effective, share=share, z_loss=z_loss, columns=columns, ahead=further
        )
        return loss, rows.grad if model.config.tied else None
    hidden = trunk(embedded, model.effective(), model.mixing())
    states = _at(model.head_input(hidden).reshape(-1, model.config.dim), learned)
    loss = total = head(states, sample.targets)
    if ahead is not None:
        # further tokens of a sequence are targets of the batch, so the sample has their columns
        total = loss + ahead.loss(hidden, embedded, sample.targets.view(inputs.shape), head)
    (total * share).backward()  # type: ignore[no-untyped-call]
    return loss.detach(), rows.grad if model.config.tied else None


def _at(states: Tensor, places: Tensor | None) -> Tensor:
    return states if places is None else states[places]


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch: inputs int64 [sequences, tokens], targets int64 [sequences · tokens], on the CPU.

    Targets below 0 are not learned.
    """

    inputs: Tensor
    targets: Tensor
    step: int
    """The optimiser step it belongs to."""
    share: float
    """Its weight in the step's gradient."""
    z_loss: float = 0.0


def backward(
    model: NanochatModel,
    trunk: Trunk,
    batch: Batch,
    optimizer: Optimizer,
    sampler: VocabularySampler | None,
    multiplier: float,
    ahead: TokensAhead | None = None,
    token_filter: TokenFilter | None = None,
) -> Tensor:
    """Add a micro-batch's gradients to the parameters and the optimiser's rows; returns its loss.

    Without a sampler the loss is exact, and the table must be settled.
    """
    device = model.head_weight.device
    targets, learned = batch.targets, None
    if bool((targets < 0).any()):
        places = (targets >= 0).nonzero().squeeze(1)
        if not len(places):
            return torch.zeros((), device=device)
        targets, learned = targets[places], places.to(device)
    if sampler is None:
        inputs, targets = batch.inputs.to(device), targets.to(device)
        return exact_backward(model, trunk, inputs, targets, batch.share, batch.z_loss, ahead, token_filter, learned)
    sample = sampler.sample(batch.inputs, targets, batch.step)
    ids = sample.ids.to(device)
    optimizer.bring_up(ids, multiplier)
    inputs = batch.inputs.to(device)
    loss, rows = sampled_backward(model, trunk, inputs, sample, batch.share, batch.z_loss, ahead, token_filter, learned)
    if rows is not None:
        optimizer.row_gradient.add(ids, rows)
    return loss
