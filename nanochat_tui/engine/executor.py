"""A model in memory, ready to run jobs: the tables and buffers the compiled program works on."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.cache import KVCache, reserve
from nanochat_tui.engine.compile_cache import Entry
from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.packing import Packed, aligned, round_up
from nanochat_tui.engine.paging import layout_of
from nanochat_tui.engine.pool import Pool
from nanochat_tui.engine.sampling import Draw, Drawn
from nanochat_tui.engine.speculation import History
from nanochat_tui.engine.weights import Weights
from nanochat_tui.model.config import ModelConfig

CHUNK = 128
"""Most tokens per job: a multiple of every kernel's tile, few enough that cancelling is not felt."""
ROPE_POSITIONS = 1024
"""Positions of RoPE's table at first; it grows with what is used, not with what a file claims."""
UNLIMITED = 1 << 30
SLACK = 64
"""Floats behind a buffer whose last row may be read in whole vectors."""


def float_bits(value: float) -> int:
    """Return the bits of a float32 as an integer, which is how tables carry floats."""
    return int(np.array(value, np.float32).view(np.uint32))


def rope_table(positions: int, head_dim: int, theta: float) -> NDArray[np.float32]:
    """Return cosines, then sines, of every position: float32 [positions, head_dim], computed in float64."""
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.arange(positions)[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one sequence in a job: ids int64 [n], to be run at `position` of the cache.

    draw: sample up to `steps` tokens after them in up to `passes` passes, running each but the last. history: where
    tokens to come may be guessed from, up to `guesses` per pass.
    """

    cache: KVCache
    ids: NDArray[np.int64]
    position: int
    draw: Draw | None = None
    steps: int = 1
    passes: int = UNLIMITED
    history: History | None = None
    guesses: int = 0


_alive: weakref.WeakSet[Executor] = weakref.WeakSet()


def _after_fork() -> None:
    for executor in _alive:
        executor.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Executor:
    """Owns buffers and threads; runs one job at a time (a lock makes others wait).

    A job is some tokens of any sequences, run in one pass over the weights; up to HEAD_ROWS of the sequences may go on
    together, token by token, before it returns.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        entry: Entry,
        *,
        threads: int,
        tile: int,
        queries: int,
        as_float: bool,
    ) -> None:
        self.config = config
        self._buffers: dict[object, NDArray[Any]] = {}
        self._lock = threading.Lock()
        self._model = self._keep(np.zeros(s.MODEL_SLOTS, np.int64))
        self._job = self._keep(np.zeros(s.JOB_SLOTS, np.int64))
        self._rows = self._keep(aligned((CHUNK, s.ROW_SLOTS), np.int64, 0))
        self._sequences = self._keep(aligned((s.HEAD_ROWS, s.SEQUENCE_SLOTS), np.int64, 0))
        self._job[s.ROWS], self._job[s.SEQUENCES] = self._rows.ctypes.data, self._sequences.ctypes.data
        self._control = self._keep(aligned(s.CONTROL_SLOTS, np.int64, 0))
        self._weights = weights
        self._queries = queries
        self._rope_rows = 0
        self.vocab_padded = round_up(config.vocab_size, s.STATISTICS_BLOCK)
        self._fill_shape(threads, tile, as_float)
        self._layers = layers = self._keep(np.zeros((config.n_layers, s.LAYER_SLOTS), np.int64))
        self._threads = self._keep(np.zeros((threads, s.THREAD_SLOTS), np.int64))
        self._fill_layers(layers)
        self._fill_buffers(threads)
        tables = (self._model, self._job, layers, self._threads)
        addresses = tuple(t.ctypes.data for t in tables)
        self._pool = Pool(entry, threads, self._control, addresses, self._buffers)  # type: ignore[arg-type]
        _alive.add(self)

    def _keep(self, array: NDArray[Any], name: object = None) -> NDArray[Any]:
        """Keep a buffer as long as the model; one with a name replaces the last of that name."""
        self._buffers[len(self._buffers) if name is None else name] = array
        return array

    def _address(self, array: NDArray[Any], name: object = None) -> int:
        return int(self._keep(array, name).ctypes.data)

    def _floats(self, count: int, fill: float | None = None, name: object = None) -> int:
        return self._address(aligned(count + SLACK, np.float32, fill), name)

    def _fill_shape(self, threads: int, tile: int, as_float: bool) -> None:
        c, m, group = self.config, self._model, self._weights.group
        m[s.DIM], m[s.LAYERS], m[s.HEADS], m[s.KV_HEADS] = c.dim, c.n_layers, c.n_heads, c.n_kv_heads
        m[s.HEAD_DIM], m[s.HEAD_PADDED] = c.head_dim, round_up(c.head_dim, 16)
        m[s.HIDDEN], m[s.VOCAB], m[s.VOCAB_PADDED], m[s.STREAMS] = (
            c.hidden_dim,
            c.vocab_size,
            self.vocab_padded,
            c.n_streams,
        )
        m[s.DIM_PADDED], m[s.HIDDEN_PADDED] = round_up(c.dim, group), round_up(c.hidden_dim, group)
        m[s.QUERY_WIDTH] = c.n_heads * c.head_dim
        m[s.QUERY_PADDED] = round_up(int(m[s.QUERY_WIDTH]), group)
        m[s.QKV_STRIDE] = 4 * round_up(int(m[s.QUERY_WIDTH]) + 2 * c.kv_dim, s.ROW_BLOCK)
        m[s.THREADS], m[s.CONTROL], m[s.TILE], m[s.QUERIES], m[s.GROUP] = (
            threads,
            self._control.ctypes.data,
            tile,
            self._queries,
            group,
        )
        m[s.FLOAT_ACTIVATIONS] = int(as_float)
        m[s.EPSILON_BITS] = float_bits(c.norm_eps)
        m[s.QUERY_SCALE_BITS] = float_bits(1.0 / math.sqrt(c.head_dim))

    def _packed(self, packed: Packed) -> tuple[int, int]:
        return self._address(packed.weights), self._address(packed.scales)

    def _fill_layers(self, layers: NDArray[np.int64]) -> None:
        for number, (row, layer) in enumerate(zip(layers, self._weights.layers, strict=True)):
            row[s.KV_LAYER], row[s.ROTARY] = number, self.config.head_dim
            row[s.QKV_WEIGHTS], row[s.QKV_SCALES] = self._packed(layer.qkv)
            row[s.OUTPUT_WEIGHTS], row[s.OUTPUT_SCALES] = self._packed(layer.output)
            row[s.GATE_UP_WEIGHTS], row[s.GATE_UP_SCALES] = self._packed(layer.gate_up)
            row[s.DOWN_WEIGHTS], row[s.DOWN_SCALES] = self._packed(layer.down)
            row[s.ATTENTION_NORM] = self._address(layer.attention_norm)
            row[s.FFN_NORM] = self._address(layer.ffn_norm)
            row[s.ATTENTION_MIX] = self._address(layer.mixes)
            row[s.FFN_MIX] = row[s.ATTENTION_MIX] + 4 * s.MIX_FLOATS
        m, w = self._model, self._weights
        m[s.TABLE_KIND], m[s.TABLE_BIAS], m[s.EMBEDDING_KIND] = w.head.kind, w.bias, w.embedding.kind
        m[s.TABLE_WEIGHTS], m[s.TABLE_SCALES] = self._packed(w.head.packed)
        m[s.EMBEDDING_WEIGHTS], m[s.EMBEDDING_SCALES] = self._packed(w.embedding.packed)
        m[s.FINAL_NORM], m[s.FINAL_MIX] = self._address(w.final_norm), self._address(w.final_mix)

    def _fill_buffers(self, threads: int) -> None:
        c, m = self.config, self._model
        query_width, query_padded = int(m[s.QUERY_WIDTH]), int(m[s.QUERY_PADDED])
        widest = max(int(m[s.DIM_PADDED]), int(m[s.HIDDEN_PADDED]), query_padded)
        m[s.QKV] = self._floats(CHUNK * int(m[s.QKV_STRIDE]) // 4)
        m[s.ATTENTION] = self._floats(CHUNK * query_width)
        m[s.PROJECTION] = self._floats(CHUNK * c.dim)
        m[s.GATE_UP] = self._floats(CHUNK * 2 * c.hidden_dim)
        m[s.PRODUCT] = self._floats(CHUNK * c.hidden_dim)
        m[s.HEAD_X8] = self._floats(CHUNK * c.dim // 4)
        m[s.HEAD_INIT] = self._floats(CHUNK * (c.dim // 32 + 1))
        m[s.HEAD_SCALE] = self._floats(CHUNK, 0.0)
        m[s.HEAD_FLOAT] = self._floats(CHUNK * c.dim)
        padded = round_up(self.vocab_padded // s.STATISTICS_BLOCK, 16)
        m[s.BLOCKS_PADDED] = padded
        # memory that nobody has touched costs nothing: most jobs sample from one row
        m[s.LOGITS] = self._floats(s.HEAD_ROWS * self.vocab_padded)
        m[s.BLOCK_MAXIMA] = self._floats(s.HEAD_ROWS * padded, -np.inf)
        m[s.BLOCK_SUMS] = self._floats(s.HEAD_ROWS * padded, 0.0)
        queries = s.GROUP_ROWS * (c.n_heads // c.n_kv_heads)
        for row in self._threads:
            row[s.X] = self._floats(CHUNK * c.n_streams * c.dim)
            row[s.MIXED] = self._floats(CHUNK * max(c.dim, query_width, c.hidden_dim))
            row[s.X8] = self._floats(CHUNK * widest // 4, 0.0)
            row[s.INIT] = self._floats(CHUNK * (widest // self._weights.group), 0.0)
            row[s.SCALE] = self._floats(CHUNK, 0.0)
            row[s.QUERY] = self._floats(queries * c.head_dim)
            row[s.STATE] = self._floats(queries * (s.STATE_FLOATS + int(m[s.HEAD_PADDED])))
            row[s.LIMITS] = self._floats(queries * 2)
            row[s.WEIGHTS] = self._floats(max(2, self._queries) * s.PAGE)
            for slot in (s.WORK_LOGITS, s.HEAP, s.ALTERNATIVES_HEAP):
                row[slot] = self._floats(self.vocab_padded)
            row[s.WORK_MAXIMA] = self._floats(padded, -np.inf)

    def _reserve(self, positions: int, most: int) -> None:
        """Make RoPE's table reach `positions`; `most` is as far as it will ever be needed here."""
        if positions <= self._rope_rows:
            return
        # the old size is forgotten first: whatever interrupts this, the next job does it again
        self._rope_rows = 0
        count = max(positions, min(most, max(2 * positions, ROPE_POSITIONS)))
        table = rope_table(count, self.config.head_dim, self.config.rope_theta)
        kept = self._keep(aligned(table.shape, np.float32), "rope")
        kept[...] = table
        self._layers[:, s.ROPE_TABLE] = kept.ctypes.data
        self._rope_rows = count

    def _set_pieces(self, pieces: Sequence[Piece]) -> None:
        """Write pieces into the job's tables; the rows that are sampled from get the places 0, 1, …"""
        total = sum(len(piece.ids) for piece in pieces)
        if not all(len(piece.ids) for piece in pieces) or not 0 < total <= CHUNK:
            raise ValueError(f"a job takes 1 to {CHUNK} tokens, not {total}")
        if sum(piece.draw is not None for piece in pieces) > s.HEAD_ROWS:
            raise ValueError(f"a job samples at most {s.HEAD_ROWS} sequences")
        job, row, drawn = self._job, 0, 0
        for piece in pieces:
            ids, cache, first = piece.ids, piece.cache, piece.position
            if ids.min() < 0 or ids.max() >= self.config.vocab_size:
                raise ValueError("a token id is outside the vocabulary")
            end = first + len(ids) + piece.steps - 1
            if first < 0 or piece.steps < 1 or end > cache.positions:
                raise ValueError("the tokens do not fit into the cache")
            if cache.pool.kind != pieces[0].cache.pool.kind:
                raise ValueError("the caches of a job are of one kind")
            self._reserve(end, cache.positions)
            reserve(cache, first, end)
            rows = self._rows[row : row + len(ids)]
            rows[:, s.TOKEN], rows[:, s.PAGES] = ids, cache.table.ctypes.data
            rows[:, s.POSITION] = np.arange(first, first + len(ids))
            rows[:, s.LOGITS_PLACE] = -1
            row += len(ids)
            if piece.draw is not None:
                if piece.steps > piece.draw.capacity:
                    raise ValueError("more tokens are asked for than a draw has room for")
                rows[-1, s.LOGITS_PLACE] = drawn
                self._set_sequence(self._sequences[drawn], piece, drawn, end)
                drawn += 1
        layout_of(pieces[0].cache.pool, job)
        job[s.COUNT], job[s.WANTED], job[s.SEQUENCE_COUNT] = total, drawn, drawn
        job[s.LOGITS_OUT] = self._model[s.LOGITS]
        job[s.ONLY_SEQUENCES] = int(drawn == total)

    def _set_sequence(self, sequence: NDArray[np.int64], piece: Piece, place: int, end: int) -> None:
        sequence[:] = 0
        sequence[s.SEQUENCE_PAGES] = piece.cache.table.ctypes.data
        sequence[s.SEQUENCE_POSITION] = piece.position + len(piece.ids) - 1
        sequence[s.SEQUENCE_PLACE], sequence[s.SEQUENCE_ROWS] = place, 1
        sequence[s.STEPS], sequence[s.ACTIVE], sequence[s.LIMIT] = piece.steps, 1, end
        sequence[s.LAST_TOKEN], sequence[s.MOST_PASSES] = piece.ids[-1], piece.passes
        if piece.draw is not None:
            piece.draw.fill(sequence)
        if piece.history is not None:
            piece.history.fill(sequence, piece.guesses)

    def execute(self, pieces: Sequence[Piece]) -> list[Drawn]:
        """Run pieces of any sequences together; return what was sampled of those with a draw, in their order.

        A sequence ends early after one of its draw's end ids; keys and values of all its tokens but the last sampled
        one are in its cache then. At most CHUNK tokens and HEAD_ROWS draws; raises ValueError beyond that.
        """
        with self._lock:
            self._set_pieces(pieces)
            self._pool.run()
            drawn = []
            for piece in pieces:
                if piece.draw is not None:
                    row = self._sequences[len(drawn)]
                    drawn.append(piece.draw.take(row))
                    if piece.history is not None:
                        piece.history.take(row)
            return drawn

    def run(self, cache: KVCache, ids: NDArray[np.int64], position: int) -> None:
        """Write keys and values of tokens int64 [n <= CHUNK] at `position` into the cache."""
        self.execute([Piece(cache, ids, position)])

    def logits(self, cache: KVCache, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Run tokens and return all their logits, float32 [n, vocab]."""
        rows = round_up(len(ids), int(self._model[s.TILE])) if len(ids) > 1 else 1
        out = aligned((rows, self.vocab_padded), np.float32)
        with self._lock:
            self._set_pieces([Piece(cache, ids, position)])
            self._rows[: len(ids), s.LOGITS_PLACE] = np.arange(len(ids))
            self._job[s.WANTED], self._job[s.LOGITS_OUT] = len(ids), out.ctypes.data
            self._pool.run()
        return out[: len(ids), : self.config.vocab_size]

    def generate(self, cache: KVCache, ids: NDArray[np.int64], position: int, draw: Draw, steps: int) -> Drawn:
        """Run tokens, then sample up to `steps` tokens, running each but the last."""
        return self.execute([Piece(cache, ids, position, draw, steps)])[0]

    def after_fork(self) -> None:
        """Begin anew in a child process, whatever another thread was doing in the parent."""
        self._lock = threading.Lock()
        self._pool.after_fork()

    def close(self) -> None:
        """End the worker threads, after the job that is running; later jobs are refused with UserError."""
        with self._lock:
            self._pool.close()
