"""A model in memory, ready to run jobs: the tables and buffers the compiled program works on."""

from __future__ import annotations

import math
import os
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.cache import KVCache
from nanochat_tui.engine.compile_cache import Entry
from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.packing import Packed, aligned, round_up
from nanochat_tui.engine.pool import Pool
from nanochat_tui.engine.sampling import Draw, Drawn
from nanochat_tui.engine.weights import Weights
from nanochat_tui.model.config import ModelConfig

CHUNK = 128
"""Most tokens per job: a multiple of every kernel's tile, few enough that cancelling is not felt."""
ROPE_POSITIONS = 1024
"""Positions of RoPE's table at first; it grows with what is used, not with what a file claims."""
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


_alive: weakref.WeakSet[Executor] = weakref.WeakSet()


def _after_fork() -> None:
    for executor in _alive:
        executor.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Executor:
    """Owns buffers and threads; runs one job at a time (a lock makes others wait)."""

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
        self._control = self._keep(aligned(s.CONTROL_SLOTS, np.int64, 0))
        self._weights = weights
        self._queries = queries
        self._score_rows = 0
        self._rope_rows = 0
        self.vocab_padded = round_up(config.vocab_size, s.STATISTICS_BLOCK)
        self._fill_shape(threads, tile, as_float)
        layers = self._keep(np.zeros((config.n_layers, s.LAYER_SLOTS), np.int64))
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
        m[s.QKV_STRIDE] = 4 * round_up(c.dim + 2 * c.kv_dim, s.ROW_BLOCK)
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
        for row, layer in zip(layers, self._weights.layers, strict=True):
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
        widest = int(max(m[s.DIM_PADDED], m[s.HIDDEN_PADDED]))
        m[s.QKV] = self._floats(CHUNK * int(m[s.QKV_STRIDE]) // 4)
        m[s.ATTENTION] = self._floats(CHUNK * c.dim)
        m[s.PROJECTION] = self._floats(CHUNK * c.dim)
        m[s.GATE_UP] = self._floats(CHUNK * 2 * c.hidden_dim)
        m[s.PRODUCT] = self._floats(CHUNK * c.hidden_dim)
        m[s.HEAD_X8] = self._floats(CHUNK * c.dim // 4)
        m[s.HEAD_INIT] = self._floats(CHUNK * (c.dim // 32 + 1))
        m[s.HEAD_SCALE] = self._floats(CHUNK, 0.0)
        m[s.HEAD_FLOAT] = self._floats(CHUNK * c.dim)
        blocks = self.vocab_padded // s.STATISTICS_BLOCK
        padded = round_up(blocks, 16)
        m[s.BLOCKS_PADDED] = padded
        for slot in (s.LOGITS, s.WORK_LOGITS, s.HEAP, s.ALTERNATIVES_HEAP):
            m[slot] = self._floats(self.vocab_padded, 0.0)
        for slot in (s.BLOCK_MAXIMA, s.WORK_MAXIMA):
            m[slot] = self._floats(padded, -np.inf)
        m[s.BLOCK_SUMS] = self._floats(padded, 0.0)
        for row in self._threads:
            row[s.X] = self._floats(CHUNK * c.n_streams * c.dim)
            row[s.MIXED] = self._floats(CHUNK * c.dim)
            row[s.X8] = self._floats(CHUNK * widest // 4, 0.0)
            row[s.INIT] = self._floats(CHUNK * (widest // self._weights.group), 0.0)
            row[s.SCALE] = self._floats(CHUNK, 0.0)
            row[s.HEAD_OUT] = self._floats(self._queries * int(m[s.HEAD_PADDED]))

    def _reserve(self, positions: int, rows: int) -> None:
        """Make RoPE's table reach `positions`, and the threads' score buffers all `rows` of a cache."""
        # the old sizes are forgotten first: whatever interrupts this, the next job does it again
        if positions > self._rope_rows:
            self._rope_rows = 0
            count = min(rows, max(2 * positions, ROPE_POSITIONS))
            table = rope_table(count, self.config.head_dim, self.config.rope_theta)
            kept = self._keep(aligned(table.shape, np.float32), "rope")
            kept[...] = table
            self._model[s.ROPE_TABLE] = kept.ctypes.data
            self._rope_rows = count
        if rows > self._score_rows:
            self._score_rows = 0
            for number, thread in enumerate(self._threads):
                thread[s.SCORES] = self._floats(self._queries * rows, name=("scores", number))
            self._score_rows = rows

    def _set_cache(self, cache: KVCache) -> None:
        j = self._job
        j[s.KEYS], j[s.VALUES] = cache.keys.ctypes.data, cache.values.ctypes.data
        j[s.KEY_STRIDE], j[s.HEAD_KEY_STRIDE] = cache.keys.strides[0], cache.keys.strides[1]
        j[s.VALUE_STRIDE], j[s.HEAD_VALUE_STRIDE] = cache.values.strides[0], cache.values.strides[1]
        j[s.HALF_CACHE] = int(cache.half)

    def _set_tokens(self, cache: KVCache, ids: NDArray[np.int64], position: int, want: int, steps: int = 1) -> None:
        if not 0 < len(ids) <= CHUNK:
            raise ValueError(f"a job takes 1 to {CHUNK} tokens, not {len(ids)}")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError("a token id is outside the vocabulary")
        if position < 0 or position + len(ids) > cache.positions:
            raise ValueError("the tokens do not fit into the cache")
        self._reserve(position + len(ids) + steps - 1, cache.rows)
        self._set_cache(cache)
        j = self._job
        j[s.TOKENS], j[s.COUNT], j[s.POSITION], j[s.WANT] = ids.ctypes.data, len(ids), position, want

    def run(self, cache: KVCache, ids: NDArray[np.int64], position: int) -> None:
        """Write keys and values of tokens int64 [n <= CHUNK] at `position` into the cache."""
        with self._lock:
            self._set_tokens(cache, ids, position, s.WANT_NOTHING)
            self._pool.run()

    def logits(self, cache: KVCache, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Run tokens and return all their logits, float32 [n, vocab]."""
        rows = round_up(len(ids), int(self._model[s.TILE])) if len(ids) > 1 else 1
        out = aligned((rows, self.vocab_padded), np.float32)
        with self._lock:
            self._set_tokens(cache, ids, position, s.WANT_ALL_LOGITS)
            self._job[s.LOGITS_OUT] = out.ctypes.data
            self._pool.run()
        return out[: len(ids), : self.config.vocab_size]

    def generate(self, cache: KVCache, ids: NDArray[np.int64], position: int, draw: Draw, steps: int) -> Drawn:
        """Run tokens, then sample up to `steps` tokens, running each but the last.

        Ends early after one of draw's end ids. Keys and values of all but the last sampled token are in the cache.
        """
        if not 0 < steps <= draw.capacity or position + len(ids) + steps - 1 > cache.positions:
            raise ValueError("the tokens to generate do not fit into the cache")
        with self._lock:
            self._set_tokens(cache, ids, position, s.WANT_SAMPLES, steps)
            self._job[s.STEPS] = steps
            draw.fill(self._job)
            self._pool.run()
            return draw.take(self._job)

    def after_fork(self) -> None:
        """Begin anew in a child process, whatever another thread was doing in the parent."""
        self._lock = threading.Lock()
        self._pool.after_fork()

    def close(self) -> None:
        """End the worker threads, after the job that is running; later jobs are refused with UserError."""
        with self._lock:
            self._pool.close()
