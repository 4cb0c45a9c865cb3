"""Everything of a GGUF file that the engine computes with, packed for one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.packing import (
    Packed,
    aligned,
    needs_small_groups,
    pack_dense,
    pack_q8,
    pack_ternary,
    q8_parts,
)
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.formats.mhc import read_mhc
from nanochat_tui.formats.tensor_types import ternary_codes
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.mhc import check_sidecar, mixes_before_write, record_names, stream_matrices

Codes = tuple[NDArray[np.uint8], NDArray[np.float16]]


@dataclass(frozen=True, slots=True)
class Table:
    """Embedding or head: `kind` is one of `slots.KIND_*`."""

    kind: int
    packed: Packed


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. mixes: coefficients float32 [2, MIX_FLOATS] of the attention and the feed-forward record."""

    qkv: Packed
    output: Packed
    gate_up: Packed
    down: Packed
    attention_norm: NDArray[np.float32]
    ffn_norm: NDArray[np.float32]
    mixes: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model. `group` is the number of weights per ternary scale in the packed layout."""

    layers: list[Layer]
    embedding: Table
    head: Table
    final_norm: NDArray[np.float32]
    final_mix: NDArray[np.float32]
    group: int
    bias: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads: all matrices and the head, but one row of the embedding."""
        packed = [p for layer in self.layers for p in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        return sum(p.weights.nbytes + p.scales.nbytes for p in [*packed, self.head.packed])


def _codes(file: GGUFFile, names: list[str]) -> Codes:
    """Return codes [rows, columns] and scales [rows, blocks] of some matrices, stacked by rows."""
    codes, scales = [], []
    for name in names:
        info = file.tensor(name)
        flat, scale = ternary_codes(info.type, file.blocks(name))
        rows, columns = info.shape
        codes.append(flat.reshape(rows, columns))
        scales.append(scale.reshape(rows, columns // info.type.block_elements))
    width = max(part.shape[1] for part in scales)
    scales = [np.repeat(part, width // part.shape[1], axis=1) for part in scales]
    return np.concatenate(codes), np.concatenate(scales)


def _finite(file: GGUFFile, name: str) -> NDArray[np.float32]:
    values = file.array(name)
    if not np.isfinite(values).all():
        raise UserError(f"the tensor {name} holds a value that is not finite; the file is damaged")
    out: NDArray[np.float32] = aligned(values.shape, np.float32)
    out[...] = values
    return out


def _table(file: GGUFFile, name: str, as_float: bool, bias: int) -> Table:
    info = file.tensor(name)
    if info.type.name == "Q8_0" and not as_float:
        quants, scales = q8_parts(file.blocks(name), info.shape[1])
        if not np.isfinite(scales).all():
            raise UserError(f"the tensor {name} holds a value that is not finite; the file is damaged")
        # -128 has no negative in a byte, which the AVX2 kernel needs; no quantiser writes it
        if quants.min(initial=0) > -128:
            return Table(s.KIND_Q8, pack_q8(quants, scales, bias, s.STATISTICS_BLOCK))
    values = _finite(file, name)
    if info.type.name == "F16":
        return Table(s.KIND_F16, pack_dense(values.astype(np.float16), s.STATISTICS_BLOCK))
    return Table(s.KIND_F32, pack_dense(values, s.STATISTICS_BLOCK))


def mix_coefficients(records: NDArray[np.float32] | None, config: ModelConfig) -> NDArray[np.float32]:
    """Return the kernels' coefficients of every record, float32 [2 n_layers, MIX_FLOATS].

    H(x + q y) = H x + (H q) y, so that every version is one product with the streams and one with y; H q is
    formed in float64. Without records (a plain residual) p = q = H = 1.
    """
    n = config.n_streams
    out = np.zeros((2 * config.n_layers, s.MIX_FLOATS), np.float32)
    if records is None:
        out[:, [s.MIX_READ, s.MIX_WRITE, s.MIX_MATRIX]] = 1.0
        return out
    pre, residual, post = stream_matrices(records, n, config.mhc_version)
    write = post.astype(np.float64)
    if not mixes_before_write(n, config.mhc_version):
        write = np.einsum("rij,rj->ri", residual.astype(np.float64), write)
    out[:, s.MIX_READ : s.MIX_READ + n] = pre
    out[:, s.MIX_WRITE : s.MIX_WRITE + n] = write
    for i in range(n):
        out[:, s.MIX_MATRIX + 4 * i : s.MIX_MATRIX + 4 * i + n] = residual[:, i]
    return out


def _records(file: GGUFFile, config: ModelConfig, sidecar: Path | None) -> NDArray[np.float32] | None:
    inside = None
    if config.n_streams > 1:
        inside = np.stack([file.array(name) for name in record_names(config.mhc_records)])
    if sidecar is not None:
        given = read_mhc(sidecar)
        check_sidecar(
            given.records,
            given.n_streams,
            given.version,
            n_streams=config.n_streams,
            version=config.mhc_version,
            n_records=config.mhc_records,
            inside=inside,
        )
    return inside


def load_weights(file: GGUFFile, config: ModelConfig, *, as_float: bool, bias: int, mhc: Path | None) -> Weights:
    """Read and pack a supported file (see `model.support`).

    as_float: all matrices as float32, for exact comparisons. bias: what the kernel wants added to table weights.
    Raises UserError if a value is not finite or the `.mhc` file belongs to another model.
    """
    mixes = mix_coefficients(_records(file, config, mhc), config)
    blocks = [f"blk.{i}." for i in range(config.n_layers)]
    parts = (["attn_q", "attn_k", "attn_v"], ["attn_output"], ["ffn_gate", "ffn_up"], ["ffn_down"])
    matrices = [[_codes(file, [f"{b}{name}.weight" for name in names]) for names in parts] for b in blocks]
    group = 128
    for codes, scales in (m for row in matrices for m in row):
        if not np.isfinite(scales).all():
            raise UserError("a ternary scale is not finite; the file is damaged")
        if needs_small_groups(scales, codes.shape[1] // scales.shape[1]):
            group = 64

    def pack(matrix: Codes) -> Packed:
        codes, scales = matrix
        if not as_float:
            return pack_ternary(codes, scales, group)
        wide = np.repeat(scales.astype(np.float32), codes.shape[1] // scales.shape[1], axis=1)
        return pack_dense((codes.astype(np.float32) - 1) * wide, s.ROW_BLOCK)

    layers = []
    for i, (block, row) in enumerate(zip(blocks, matrices, strict=True)):
        qkv, output, gate_up, down = (pack(matrix) for matrix in row)
        before = _finite(file, f"{block}attn_norm.weight")
        between = _finite(file, f"{block}ffn_norm.weight")
        layers.append(Layer(qkv, output, gate_up, down, before, between, mixes[2 * i : 2 * i + 2].copy()))
    embedding = _table(file, "token_embd.weight", as_float, bias)
    final: NDArray[Any] = np.zeros(s.MIX_FLOATS, np.float32)
    final[s.MIX_READ : s.MIX_READ + config.n_streams] = 1.0 / config.n_streams
    return Weights(
        layers=layers,
        embedding=embedding,
        head=embedding if config.tied else _table(file, "output.weight", as_float, bias),
        final_norm=_finite(file, "output_norm.weight"),
        final_mix=final,
        group=group,
        bias=bias,
    )
