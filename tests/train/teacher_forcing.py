"""The engine and the PyTorch model, sub-layer by sub-layer, each fed with the engine's own streams.

Over a whole model one activation that lies on a rounding border, and falls to the other side in another order of
summation, moves everything after it over more borders; float32 arithmetic allows that. So each sub-layer is asked
alone here: what it does with the very streams that the engine gave it, of the token and of all before it, is its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned
from nanochat_tui.engine.run.kv_cache import KVCache
from nanochat_tui.engine.run.tables import CHUNK
from nanochat_tui.train.model import NanochatModel, rms_norm

Floats = NDArray[np.floating[Any]]


def _inert_mix() -> NDArray[np.float32]:
    """Coefficients of a sub-layer that leaves the streams as they are: H is the identity, nothing is written."""
    mix = aligned(s.MIX_FLOATS, np.float32, 0)
    for i in range(4):
        mix[s.MIX_MATRIX + 4 * i + i] = 1
    return mix


@contextmanager
def _first_sub_layers(engine: Model, count: int) -> Iterator[None]:
    """Let the engine's program run only its first `count` sub-layers: its tables say how many there are."""
    tables = engine.executor._tables
    layers = (count + 1) // 2
    row, inert = tables.layers[max(layers - 1, 0)], _inert_mix()
    before = int(tables.model[s.LAYERS]), int(row[s.FFN_MIX])
    tables.model[s.LAYERS] = layers
    if count % 2:
        row[s.FFN_MIX] = inert.ctypes.data
    try:
        yield
    finally:
        tables.model[s.LAYERS], row[s.FFN_MIX] = before


def _streams_after(engine: Model, ids: NDArray[np.int64], sub_layers: int) -> Floats:
    """Return the streams after the first sub-layers, float32 [tokens, streams, dim], as the program left them."""
    tables = engine.executor._tables
    streams, dim = int(tables.model[s.STREAMS]), int(tables.model[s.DIM])
    buffer = (ctypes.c_float * (CHUNK * streams * dim)).from_address(int(tables.threads[0, s.X]))
    left = np.ctypeslib.as_array(buffer).reshape(CHUNK, streams, dim)
    cache, parts = KVCache(engine.config, len(ids), engine.kv), []
    with _first_sub_layers(engine, sub_layers):
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            engine.executor.run(cache, part, start)
            parts.append(left[: len(part)].copy())
    return np.concatenate(parts)


def engine_streams(engine: Model, ids: list[int]) -> Floats:
    """Return the engine's residual streams, float32 [2 · layers + 1, tokens, streams, dim].

    First the embedded tokens, then after attention and feed-forward of every block. The engine must have one thread,
    which then holds the streams of all tokens.
    """
    assert engine.threads == 1
    tokens = np.array(ids, np.int64)
    return np.stack([_streams_after(engine, tokens, count) for count in range(2 * engine.config.n_layers + 1)])


BOUND = 0.002
"""Most that a sub-layer or the head may differ, rms, as a share of the rms of its own output.

Arithmetic alone differs by 1e-6. The rest are activations that lie so close to a rounding border (within 1e-5 of a
step: some 2^-24 of up to 127 steps) that they fall to different sides. Of the 500 to 1,000 that a sub-layer rounds per
token, one does in about a hundredth of all tokens. It is an error of 1 in one of n >= 128 values with an rms of about
30: 1 / (30 · sqrt(n)), 0.2 to 0.3 % of the token's row; and that moves a twentieth of the values before the second
rounding over a border, so that the row may be 0.6 % off. Over all tokens this is 0.6 % · sqrt(0.01) = 0.06 %. The bound
leaves three times as much to chance, and is a tenth of the 2 % that whole models are meant to be within.
"""
EXACT = 0.0002
"""A row that differs by less has no such activation in it: a tenth of what one does."""


@dataclass
class Difference:
    """How far the engine is from PyTorch in one place, gathered over the rows (tokens) of prompts."""

    squares: float = 0.0
    """Sum of squared differences."""
    scale: float = 0.0
    """Sum of the squares of what they are compared with."""
    rows: int = 0
    exact: int = 0
    """Rows that differ by less than EXACT."""

    @property
    def relative(self) -> float:
        """Rms difference as a share of the rms of what it is compared with."""
        return float(np.sqrt(self.squares / self.scale))

    @property
    def exact_share(self) -> float:
        """Share of exact rows."""
        return self.exact / self.rows

    def add(self, found: Floats, expected: Floats, signal: Floats) -> None:
        """Add rows [tokens, …]; `signal` is the part of `expected` that the place itself has contributed."""
        axes = tuple(range(1, found.ndim))
        squares = np.square(found.astype(np.float64) - expected).sum(axis=axes)
        scale = np.square(signal.astype(np.float64)).sum(axis=axes)
        self.squares, self.scale = self.squares + float(squares.sum()), self.scale + float(scale.sum())
        self.rows += len(squares)
        self.exact += int((squares < EXACT**2 * scale).sum())


@torch.no_grad()
def sub_layer(model: NanochatModel, index: int, streams: Floats) -> tuple[Floats, Floats]:
    """Run one PyTorch sub-layer on streams [tokens, streams, dim]: attention of a block if even, feed-forward if odd.

    Returns the streams after it, and what the sub-layer itself has written into them, both of the same shape: next to
    the streams as a whole, which mostly pass through, a difference would look smaller than it is.
    """
    block, mixing = model.blocks[index // 2], model.mixing()
    layer = model._feed_forward if index % 2 else model._attention
    run = partial(layer, block, block.effective(model.compute_dtype, model.quantise))
    given = [torch.from_numpy(streams[None, :, i]).to(model.compute_dtype) for i in range(streams.shape[1])]

    def after(contribution: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        if mixing is None:
            return torch.stack([given[0] + contribution(given[0])], dim=2)[0]
        read, matrix, write = mixing
        return torch.stack(model._hyper_connect(given, contribution, (read[index], matrix[index], write[index])), 2)[0]

    full = after(run)
    return full.numpy(), (full - after(torch.zeros_like)).numpy()


@torch.no_grad()
def head(model: NanochatModel, streams: Floats) -> Floats:
    """Return PyTorch's logits [tokens, vocab] of final streams [tokens, streams, dim]."""
    mean = torch.from_numpy(streams).to(model.compute_dtype).mean(dim=1)
    hidden = rms_norm(mean, model.output_norm.weight, model.config.norm_eps)
    return torch.nn.functional.linear(model.head_input(hidden), model.head_weight).numpy()


def differences(engine: Model, model: NanochatModel, prompts: list[list[int]]) -> tuple[list[Difference], int]:
    """Compare in every place, over prompts of token ids: the sub-layers in order, then the head.

    Returns the differences and the number of tokens whose likeliest next token is another one although the best two
    logits are 1 % of the logits' deviation apart, further than an activation's other side in the head brings them.
    """
    places = [Difference() for _ in range(2 * engine.config.n_layers + 1)]
    wrong = 0
    for ids in prompts:
        streams = engine_streams(engine, ids)
        embedded = model.embed(torch.tensor(ids)).detach().numpy()
        assert (streams[0] == embedded[:, None]).all(), "the embedding is looked up, not computed"
        for index, place in enumerate(places[:-1]):
            place.add(streams[index + 1], *sub_layer(model, index, streams[index]))
        found, expected = engine.logits(ids), head(model, streams[-1])
        places[-1].add(found, expected, expected - expected.mean())
        best = np.partition(expected, -2, axis=-1)[:, -2:]
        clear = best[:, 1] - best[:, 0] > 0.01 * expected.std()
        wrong += int((found.argmax(-1) != expected.argmax(-1))[clear].sum())
    return places, wrong
