"""The tables that describe a model to the compiled program, and the buffers it works in (see `layout.slots`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned, round_up
from nanochat_tui.engine.weights.load import Layer, Weights
from nanochat_tui.engine.weights.matrices import Matrix
from nanochat_tui.engine.weights.screening import Screen, is_screened
from nanochat_tui.model.architectures.description import Architecture, Attention, DeltaNet
from nanochat_tui.model.architectures.description import Layer as LayerShape

CHUNK = 128
"""Most tokens per job: a multiple of every kernel's tile, few enough that cancelling is not felt."""
ROPE_POSITIONS = 1024
"""Positions of RoPE's table at first; it grows with what is used, not with what a file claims."""
NAP_NANOSECONDS = 2_000_000
"""How long a thread of a pass sleeps at most before it looks again, in case a wake-up was lost."""
SLACK = 64
"""Floats behind a buffer whose last row may be read in whole vectors."""
RECORDS = (s.QKV_MATRIX, s.OUTPUT_MATRIX, s.GATE_UP_MATRIX, s.DOWN_MATRIX, s.SMALL_MATRIX, s.ROUTER_MATRIX)
"""Slots of a layer where the records of its matrices begin."""
LAYER_OPTIONS = (
    "WINDOW", "QUERY_NORM", "KEY_NORM", "ATTENTION_SUB_NORM", "FFN_SUB_NORM", "CLAMP_BITS", "EXPERTS",
    "ROTATE_INPUT", "ROTATE_OUTPUT", "ROTATE_FFN", "ROTATE_DOWN",
)  # fmt: skip
"""Slots of a layer that are 0 without the option."""
MODEL_OPTIONS = ("ROTATE_HEAD", "ROTATE_EMBEDDING", "SCREEN_COLUMNS")
MATRIX_OPTIONS = ("MATRIX_FACTORS", "MATRIX_BIAS", "MATRIX_ADAPTER")
LAYER_CHOICES = ("ACTIVATION", "GATED", "RECURRENT")
"""Slots of a layer with few values."""
ACTIVATIONS = {"silu": s.SILU, "relu2": s.RELU2}


def float_bits(value: float) -> int:
    """Return the bits of a float32 as an integer, which is how tables carry floats."""
    return int(np.array(value, np.float32).view(np.uint32))


def rope_table(positions: int, frequencies: NDArray[np.float64], magnitude: float = 1.0) -> NDArray[np.float32]:
    """Return cosines, then sines, of every position: float32 [positions, 2 · pairs], computed in float64."""
    angles = np.arange(positions)[:, None] * frequencies
    return np.concatenate([np.cos(angles) * magnitude, np.sin(angles) * magnitude], axis=1).astype(np.float32)


class Tables:
    """MODEL, LAYER, THREAD and CONTROL tables of a loaded model. `buffers` keeps alive what they point to."""

    def __init__(
        self, shape: Architecture, weights: Weights, *, threads: int, tile: int, queries: int, as_float: bool
    ) -> None:
        self.shape = shape
        self.buffers: dict[object, NDArray[Any]] = {}
        self.model = self.keep(np.zeros(s.MODEL_SLOTS, np.int64))
        self.layers = self.keep(np.zeros((shape.n_layers, s.LAYER_SLOTS), np.int64))
        self.threads = self.keep(aligned((threads, s.THREAD_SLOTS), np.int64, 0))
        self.control = self.keep(aligned(s.SHARES + threads * s.SHARE_SLOTS, np.int64, 0))
        self.control[s.NAP_LIMIT + 1] = NAP_NANOSECONDS
        self.vocab_padded = round_up(shape.vocab_size, s.STATISTICS_BLOCK)
        self._weights = weights
        self._rope_rows = 0
        self._factors: dict[int, int] = {}
        self._records: list[NDArray[np.int64]] = []
        self._fill_shape(threads, tile, queries, as_float)
        self._fill_tables()
        cached = offset = 0
        for row, layer, packed in zip(self.layers, shape.layers, weights.layers, strict=True):
            row[s.KV_LAYER], row[s.STATE_OFFSET] = cached, 4 * offset
            if isinstance(layer.mixer, DeltaNet):
                offset += layer.mixer.state_floats
            else:
                cached += 1
            self._fill_layer(row, layer, packed)
        self._fill_rotation()
        self._fill_buffers(queries)

    # ---- buffers

    def keep(self, array: NDArray[Any], name: object = None) -> NDArray[Any]:
        """Keep a buffer as long as the model; one with a name replaces the last of that name."""
        self.buffers[len(self.buffers) if name is None else name] = array
        return array

    def _address(self, array: NDArray[Any], name: object = None) -> int:
        return int(self.keep(array, name).ctypes.data)

    def _floats(self, count: int, fill: float | None = None, name: object = None) -> int:
        return self._address(aligned(count + SLACK, np.float32, fill), name)

    @property
    def states(self) -> NDArray[np.float32]:
        """What a job of final states leaves: float32 [CHUNK, dim]."""
        return self.buffers["states"][: CHUNK * self.shape.dim].reshape(CHUNK, self.shape.dim)

    def known(self, kv: int) -> frozenset[tuple[str, int]]:
        """Return slots that have one value in all of the model's tables, by name: the program is made for them.

        Options that no layer has are 0; of the others only those with few values are told, so that models of one
        family share a program. kv: the kind of key-value cache, see `slots`.
        """
        options = {name: self.layers[:, getattr(s, name)] for name in LAYER_OPTIONS}
        options |= {name: self.model[getattr(s, name)] for name in MODEL_OPTIONS}
        options |= {name: np.array([record[getattr(s, name)] for record in self._records]) for name in MATRIX_OPTIONS}
        found = {name: 0 for name, values in options.items() if not np.any(values)}
        for name in LAYER_CHOICES:
            values = set(self.layers[:, getattr(s, name)].tolist())
            if len(values) == 1:
                found[name] = values.pop()
        return frozenset((found | {"STREAMS": int(self.model[s.STREAMS]), "KV_KIND": kv}).items())

    def reserve_positions(self, positions: int, most: int) -> None:
        """Make RoPE's table reach `positions`; `most` is as far as it will ever be needed here."""
        if positions <= self._rope_rows:
            return
        # the old size is forgotten first: whatever interrupts this, the next job does it again
        self._rope_rows = 0
        count = max(positions, min(most, max(2 * positions, ROPE_POSITIONS)))
        table = rope_table(count, self._weights.frequencies, self.shape.rope.magnitude)
        kept = self.keep(aligned(table.shape, np.float32), "rope")
        kept[...] = table
        self.layers[:, s.ROPE_TABLE] = kept.ctypes.data
        self._rope_rows = count

    def attach_screen(self, screen: Screen) -> None:
        """Let the next jobs use a screen of the output table."""
        m = self.model
        m[s.SCREEN_CODE] = screen.code
        m[s.SCREEN_ROWS], m[s.SCREEN_ROW_BYTES] = self._address(screen.rows), screen.rows.shape[1]
        m[s.SCREEN_BASIS], m[s.SCREEN] = self._address(screen.basis), self._address(screen.table)

    # ---- shape

    def _fill_shape(self, threads: int, tile: int, queries: int, as_float: bool) -> None:
        a, m = self.shape, self.model
        m[s.DIM], m[s.LAYERS], m[s.HEADS], m[s.KV_HEADS] = a.dim, a.n_layers, a.n_heads, a.n_kv_heads
        m[s.HEAD_DIM], m[s.HEAD_PADDED] = a.head_dim, round_up(a.head_dim, 16)
        m[s.HIDDEN] = max(layer.ffn.hidden for layer in a.layers)
        m[s.VOCAB], m[s.VOCAB_PADDED] = a.vocab_size - a.unnamed, self.vocab_padded
        m[s.STREAMS] = a.n_streams
        m[s.QUERY_WIDTH] = a.n_heads * a.head_dim
        m[s.QKV_STRIDE] = 4 * round_up(max(layer.qkv.packed.rows for layer in self._weights.layers), s.ROW_BLOCK)
        m[s.CONTROL] = self.control.ctypes.data
        m[s.TILE], m[s.QUERIES], m[s.GROUP] = tile, queries, self._weights.group
        m[s.ROUND_HEAD] = int(a.rounds_head and not as_float)
        m[s.TOKEN_SCALES] = int(a.token_scales)
        m[s.EPSILON_BITS] = float_bits(a.norm_eps)
        m[s.QUERY_SCALE_BITS] = float_bits(1.0 / math.sqrt(a.head_dim))

    def _record(self, record: NDArray[np.int64], matrix: Matrix) -> None:
        """Describe a matrix in its record."""
        self._records.append(record)
        record[s.MATRIX_KIND], record[s.MATRIX_COLUMNS] = matrix.kind, matrix.packed.columns
        record[s.MATRIX_WEIGHTS], record[s.MATRIX_SCALES] = self._address(matrix.weights), self._address(matrix.scales)
        record[s.MATRIX_PADDED] = round_up(matrix.packed.columns, self._weights.group)
        record[s.MATRIX_BLOCKS] = round_up(matrix.packed.rows, s.ROW_BLOCK) // s.ROW_BLOCK
        if matrix.factor is not None:
            record[s.MATRIX_FACTORS] = self._address(matrix.factor)
        if matrix.bias is not None:
            record[s.MATRIX_BIAS] = self._address(matrix.bias)
        if matrix.down is not None and matrix.up is not None:
            adapter = self.keep(np.zeros(s.ADAPTER_SLOTS, np.int64))
            adapter[s.ADAPTER_DOWN], adapter[s.ADAPTER_UP] = map(
                self._address, (matrix.down.weights, matrix.up.weights)
            )
            adapter[s.ADAPTER_RANK] = matrix.up.columns
            record[s.MATRIX_ADAPTER] = adapter.ctypes.data

    def _fill_tables(self) -> None:
        m, w = self.model, self._weights
        for slot, matrix in ((s.HEAD_MATRIX, w.head), (s.EMBEDDING_MATRIX, w.embedding)):
            record = self.keep(np.zeros(s.MATRIX_SLOTS, np.int64))
            self._record(record, matrix)
            m[slot] = record.ctypes.data
        columns = w.head.packed.columns
        screened = is_screened(w.head.kind, int(m[s.VOCAB]), columns)
        m[s.SCREEN_COLUMNS] = columns if screened else 0
        m[s.FINAL_NORM], m[s.FINAL_MIX] = self._address(w.final_norm), self._address(w.final_mix)

    def _fill_layer(self, row: NDArray[np.int64], shape: LayerShape, layer: Layer) -> None:
        matrices = (layer.qkv, layer.output, layer.gate_up, layer.down, layer.small, layer.router)
        for slot, matrix in zip(RECORDS, matrices, strict=True):
            if matrix is not None:
                self._record(row[slot : slot + s.MATRIX_SLOTS], matrix)
        row[s.ATTENTION_NORM], row[s.FFN_NORM] = self._address(layer.attention_norm), self._address(layer.ffn_norm)
        row[s.ATTENTION_MIX] = self._address(layer.mixes)
        row[s.FFN_MIX] = row[s.ATTENTION_MIX] + 4 * s.MIX_FLOATS
        for slot, name in (
            (s.QUERY_NORM, "attn_q_norm"),
            (s.KEY_NORM, "attn_k_norm"),
            (s.ATTENTION_SUB_NORM, "attn_sub_norm"),
            (s.FFN_SUB_NORM, "ffn_sub_norm"),
        ):
            if name in layer.vectors:
                row[slot] = self._address(layer.vectors[name])
        ffn = shape.ffn
        row[s.ACTIVATION] = ACTIVATIONS[ffn.activation]
        row[s.CLAMP_BITS] = float_bits(ffn.clamp) if ffn.clamp else 0
        if ffn.experts:
            row[s.EXPERTS], row[s.EXPERTS_USED] = ffn.experts, ffn.used
            row[s.UP_BYTES], row[s.UP_SCALE_BYTES] = _share(layer.gate_up, ffn.experts)
            row[s.DOWN_BYTES], row[s.DOWN_SCALE_BYTES] = _share(layer.down, ffn.experts)
        if isinstance(shape.mixer, Attention):
            row[s.WINDOW], row[s.GATED] = shape.mixer.window, int(shape.mixer.gated)
            row[s.ROTARY] = self.shape.rope.dims if shape.mixer.rotates else 0
        else:
            self._fill_recurrence(row, shape.mixer, layer)

    def _fill_recurrence(self, row: NDArray[np.int64], mixer: DeltaNet, layer: Layer) -> None:
        row[s.RECURRENT], row[s.KEY_HEADS], row[s.VALUE_HEADS] = 1, mixer.key_heads, mixer.value_heads
        row[s.STATE_WIDTH], row[s.TAPS], row[s.CHANNELS] = mixer.width, mixer.taps, mixer.channels
        taps: NDArray[np.float32] = aligned((mixer.taps, mixer.channels), np.float32)
        taps[...] = layer.vectors["ssm_conv1d"].reshape(mixer.channels, mixer.taps).T
        row[s.CONVOLUTION] = self._address(taps)
        row[s.STEP], row[s.DECAY] = self._address(layer.vectors["ssm_dt"]), self._address(layer.vectors["ssm_a"])
        row[s.STATE_NORM] = self._address(layer.vectors["ssm_norm"])
        rotation = self.shape.rotation
        row[s.GROUPED] = int(rotation is not None and rotation.grouped_values)

    # ---- rotation

    def _rotation(self, name: str, inverse: bool = False) -> int:
        """Return the address of the factors by which a matrix's input (or an embedding) is rotated, 0 for none."""
        rotation = self.shape.rotation
        if rotation is None or name not in (rotation.inverse if inverse else rotation.forward):
            return 0
        width = self._widths[name]
        if width not in self._factors:
            factors: NDArray[np.float32] = aligned(width, np.float32, 1.0)
            factors[...] = rotation.signs.get(width, factors) / math.sqrt(rotation.block)
            self._factors[width] = self._address(factors)
        return self._factors[width]

    def _fill_rotation(self) -> None:
        if self.shape.rotation is None:
            return
        self._widths = {part.name: part.shape[-1] for part in self.shape.parts()}
        m = self.model
        m[s.ROTATION_BITS] = self.shape.rotation.block.bit_length() - 1
        m[s.ROTATE_EMBEDDING] = self._rotation("token_embd.weight", inverse=True)
        m[s.ROTATE_HEAD] = self._rotation("token_embd.weight" if self.shape.tied else "output.weight")
        for number, (row, layer) in enumerate(zip(self.layers, self.shape.layers, strict=True)):
            b, recurrent = f"blk.{number}.", isinstance(layer.mixer, DeltaNet)
            row[s.ROTATE_INPUT] = self._rotation(b + ("attn_qkv.weight" if recurrent else "attn_q.weight"))
            row[s.ROTATE_OUTPUT] = self._rotation(b + ("ssm_out.weight" if recurrent else "attn_output.weight"))
            row[s.ROTATE_FFN] = self._rotation(f"{b}ffn_gate.weight")
            row[s.ROTATE_DOWN] = self._rotation(f"{b}ffn_down.weight")

    # ---- buffers of a job

    def _fill_buffers(self, queries: int) -> None:
        a, m, w = self.shape, self.model, self._weights
        matrices = [matrix for layer in w.layers for matrix in layer.matrices]
        columns = max(matrix.packed.columns for matrix in [*matrices, w.head])
        widest = round_up(columns, w.group)
        hidden, used = int(m[s.HIDDEN]), max(1, *(layer.ffn.used for layer in a.layers))
        outputs = max(layer.output.packed.columns for layer in w.layers)
        m[s.QKV] = self._floats(CHUNK * int(m[s.QKV_STRIDE]) // 4)
        m[s.ATTENTION] = self._floats(CHUNK * outputs)
        m[s.PROJECTION] = self._floats(CHUNK * a.dim)
        m[s.GATE_UP] = self._floats(CHUNK * 2 * hidden)
        m[s.PRODUCT] = self._floats(CHUNK * used * hidden)
        for slot, stride, found in (
            (s.SMALL, s.SMALL_STRIDE, [layer.small for layer in w.layers]),
            (s.ROUTED, s.ROUTED_STRIDE, [layer.router for layer in w.layers]),
        ):
            rows = max((round_up(matrix.packed.rows, s.ROW_BLOCK) for matrix in found if matrix is not None), default=0)
            m[slot], m[stride] = self._floats(CHUNK * rows), 4 * rows
        head = round_up(a.dim, w.group)
        m[s.HEAD_X8] = self._floats(CHUNK * head // 4, 0.0)
        m[s.HEAD_INIT] = self._floats(CHUNK * (head // k.LEAST_UNIT))
        m[s.HEAD_SCALE] = self._floats(CHUNK * (head // k.LEAST_UNIT), 0.0)
        m[s.HEAD_FLOAT] = self._floats(CHUNK * a.dim, name="states")
        padded = round_up(self.vocab_padded // s.STATISTICS_BLOCK, 16)
        m[s.BLOCKS_PADDED] = padded
        # memory that was never touched costs nothing: most jobs sample from one row
        m[s.LOGITS] = self._floats(s.HEAD_ROWS * self.vocab_padded)
        m[s.BLOCK_MAXIMA] = self._floats(s.HEAD_ROWS * padded, -np.inf)
        m[s.BLOCK_SUMS] = self._floats(s.HEAD_ROWS * padded, 0.0)
        if m[s.SCREEN_COLUMNS] > 0:
            m[s.SCREEN_BOUNDS] = self._floats(round_up(self.vocab_padded // s.ROW_BLOCK, 16), -np.inf)
        ranks = max((matrix.up.columns for matrix in matrices if matrix.up is not None), default=0)
        tallest = max(round_up(matrix.packed.rows, s.ROW_BLOCK) for matrix in matrices)
        together = s.GROUP_ROWS * (a.n_heads // a.n_kv_heads)
        state_width = max((mixer.width for mixer in a.recurrences), default=0)
        for row in self.threads:
            row[s.X] = self._floats(CHUNK * int(m[s.STREAMS]) * a.dim)
            row[s.MIXED] = self._floats(CHUNK * max(a.dim, outputs, hidden))
            row[s.X8] = self._floats(CHUNK * widest // 4, 0.0)
            row[s.INIT] = self._floats(CHUNK * (widest // k.LEAST_UNIT), 0.0)
            row[s.SCALE] = self._floats(CHUNK * (widest // k.LEAST_UNIT), 0.0)
            # the products in tile registers work here, where there are such
            row[s.SUMS] = self._floats(k.tile_scratch(widest) // 4)
            row[s.QUERY] = self._floats(together * a.head_dim)
            row[s.STATE] = self._floats(together * (s.STATE_FLOATS + int(m[s.HEAD_PADDED])))
            row[s.LIMITS] = self._floats(together * 2)
            row[s.WEIGHTS] = self._floats(max(2, queries) * s.PAGE)
            row[s.DELTA] = self._floats(2 * state_width)
            row[s.CHOSEN], row[s.CHOSEN_WEIGHTS] = self._floats(2 * CHUNK * used), self._floats(CHUNK * used)
            row[s.EXPERT_MATRIX], row[s.ANSWER] = self._floats(2 * s.MATRIX_SLOTS), self._floats(a.dim)
            if ranks:
                row[s.ADAPTED], row[s.ADAPTED_ROWS] = self._floats(ranks), self._floats(tallest)
            for slot in (s.WORK_LOGITS, s.HEAP, s.ALTERNATIVES_HEAP):
                row[slot] = self._floats(self.vocab_padded)
            row[s.WORK_MAXIMA] = self._floats(padded, -np.inf)


def _share(matrix: Matrix, experts: int) -> tuple[int, int]:
    """Return one expert's bytes of a stacked matrix and of its scales."""
    return matrix.weights.nbytes // experts, matrix.scales.nbytes // experts
