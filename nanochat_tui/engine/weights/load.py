"""Everything of a GGUF file that the engine computes with, packed for one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.weights.adapters import Adapters
from nanochat_tui.engine.weights.matrices import (
    Matrix,
    MatrixPlan,
    Rows,
    all_rows,
    group_of,
    load_matrix,
    load_vector,
    plan_matrix,
    plan_table,
)
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.formats.mhc import read_mhc
from nanochat_tui.model.architectures.description import Architecture, Attention, DeltaNet, HyperConnections, Rope
from nanochat_tui.model.architectures.description import Layer as LayerShape
from nanochat_tui.model.mhc import check_sidecar, mixes_before_write, record_names, stream_matrices
from nanochat_tui.model.support import rope_factors

Vectors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Layer:
    """One block, its matrices stacked by common input.

    qkv: queries, keys, values and an attention gate's rows; of a recurrence its channels, then its gate's rows.
    small: a recurrence's alpha and beta. router: of experts, whose gate_up and down hold expert after expert.
    vectors: norms and other small floats by their name in the file. mixes: coefficients float32 [2, MIX_FLOATS] of
    both residual branches.
    """

    qkv: Matrix
    output: Matrix
    gate_up: Matrix
    down: Matrix
    attention_norm: NDArray[np.float32]
    ffn_norm: NDArray[np.float32]
    mixes: NDArray[np.float32]
    small: Matrix | None = None
    router: Matrix | None = None
    vectors: Vectors = field(default_factory=dict)

    @property
    def matrices(self) -> list[Matrix]:
        """All matrices of the block."""
        return [m for m in (self.qkv, self.output, self.gate_up, self.down, self.small, self.router) if m is not None]


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model. `group` is the number of weights per ternary scale in the packed layout.

    frequencies: radians per position of every rotated pair, float64.
    """

    layers: list[Layer]
    embedding: Matrix
    head: Matrix
    final_norm: NDArray[np.float32]
    final_mix: NDArray[np.float32]
    group: int
    frequencies: NDArray[np.float64]
    used_experts: float = 1.0
    """Share of the experts that a token uses."""

    @property
    def kinds(self) -> frozenset[int]:
        """Kinds of matrices that there are, see `layout.kinds`."""
        return frozenset([self.embedding.kind, self.head.kind, *(m.kind for y in self.layers for m in y.matrices)])

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices in memory."""
        tables = self.embedding.nbytes + (0 if self.head is self.embedding else self.head.nbytes)
        return tables + sum(m.nbytes for layer in self.layers for m in layer.matrices)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads: all matrices and the head, but one row of the embedding."""
        total = float(self.head.nbytes)
        for layer in self.layers:
            for matrix in layer.matrices:
                expert = layer.router is not None and (matrix is layer.gate_up or matrix is layer.down)
                total += matrix.nbytes * (self.used_experts if expert else 1.0)
        return int(total)


def mix_coefficients(
    records: NDArray[np.float32] | None, n_layers: int, hyper: HyperConnections | None
) -> NDArray[np.float32]:
    """Return the kernels' coefficients of every record, float32 [2 n_layers, MIX_FLOATS].

    H(x + q y) = H x + (H q) y, so that every version is one product with the streams and one with y; H q is
    formed in float64. Without records (a plain residual) p = q = H = 1.
    """
    out = np.zeros((2 * n_layers, s.MIX_FLOATS), np.float32)
    if records is None or hyper is None:
        out[:, [s.MIX_READ, s.MIX_WRITE, s.MIX_MATRIX]] = 1.0
        return out
    n = hyper.streams
    pre, residual, post = stream_matrices(records, n, hyper.version)
    write = post.astype(np.float64)
    if not mixes_before_write(n, hyper.version):
        write = np.einsum("rij,rj->ri", residual.astype(np.float64), write)
    out[:, s.MIX_READ : s.MIX_READ + n] = pre
    out[:, s.MIX_WRITE : s.MIX_WRITE + n] = write
    for i in range(n):
        out[:, s.MIX_MATRIX + 4 * i : s.MIX_MATRIX + 4 * i + n] = residual[:, i]
    return out


def _scale_branches(mixes: NDArray[np.float32], shape: Architecture) -> None:
    """Put the scales of embedding rows and residual branches into the coefficients; the head's norm has the logits'.

    The first branch is the only one that reads an embedding row, so what it reads and keeps is multiplied.
    """
    mixes[0, s.MIX_READ : s.MIX_WRITE] *= np.float32(shape.embedding_scale)
    mixes[0, s.MIX_MATRIX :] *= np.float32(shape.embedding_scale)
    mixes[:, s.MIX_WRITE : s.MIX_MATRIX] *= np.float32(shape.residual_scale)


def _records(file: GGUFFile, shape: Architecture, sidecar: Path | None) -> NDArray[np.float32] | None:
    inside = None
    if shape.mhc_records:
        inside = np.stack([file.array(name) for name in record_names(shape.mhc_records)])
    if sidecar is not None:
        if shape.hyper is None:
            raise UserError(f"a .mhc file belongs to nanochat models, and this one is {shape.name}; leave it out")
        given = read_mhc(sidecar)
        check_sidecar(
            given.records,
            given.n_streams,
            given.version,
            n_streams=shape.hyper.streams,
            version=shape.hyper.version,
            n_records=shape.mhc_records,
            inside=inside,
        )
    return inside


def _halves(rope: Rope, head_dim: int) -> NDArray[np.int64]:
    """Return a head's rows in the order that makes its rotated pairs (i, i + dims / 2).

    Queries and keys are reordered alike, so their products stay what they are.
    """
    rows = np.arange(head_dim)
    if rope.interleaved:
        rows[: rope.dims] = np.concatenate([rows[0 : rope.dims : 2], rows[1 : rope.dims : 2]])
    return rows


def _heads(count: int, width: int, order: NDArray[np.int64], stride: int = 0, first: int = 0) -> NDArray[np.int64]:
    """Return the rows of `count` heads, each `stride` apart and in `order`."""
    starts = np.arange(count)[:, None] * (stride or width) + first
    rows: NDArray[np.int64] = (starts + order).reshape(-1)
    return rows


def _attention_rows(block: str, mixer: Attention, rope: Rope) -> list[Rows]:
    order, width = _halves(rope, mixer.head_dim) if mixer.rotates else np.arange(mixer.head_dim), mixer.head_dim
    stride = 2 * width if mixer.gated else width
    rows: list[Rows] = [
        (f"{block}attn_q.weight", _heads(mixer.heads, width, order, stride)),
        (f"{block}attn_k.weight", _heads(mixer.kv_heads, width, order)),
        (f"{block}attn_v.weight", range(mixer.kv_dim)),
    ]
    if mixer.gated:
        gates = _heads(mixer.heads, width, np.arange(width), stride, first=width)
        rows.append((f"{block}attn_q.weight", gates))
    return rows


def _expert_rows(block: str, shape: LayerShape, dim: int) -> tuple[list[Rows], list[Rows]]:
    """Return rows of all experts: of each its gates, then its ups; and of each its downs."""
    hidden = shape.ffn.hidden
    gate_up: list[Rows] = []
    for expert in range(shape.ffn.experts):
        rows = range(expert * hidden, (expert + 1) * hidden)
        gate_up += [(f"{block}ffn_gate_exps.weight", rows), (f"{block}ffn_up_exps.weight", rows)]
    return gate_up, [(f"{block}ffn_down_exps.weight", range(shape.ffn.experts * dim))]


def _vectors(file: GGUFFile, block: str, shape: LayerShape, rope: Rope) -> Vectors:
    found = {}
    for name in ("attn_q_norm", "attn_k_norm", "attn_sub_norm", "ffn_sub_norm", "ssm_norm", "ssm_conv1d"):
        if f"{block}{name}.weight" in file.tensors:
            found[name] = load_vector(file, f"{block}{name}.weight")
    if isinstance(shape.mixer, DeltaNet):
        found["ssm_dt"] = load_vector(file, f"{block}ssm_dt.bias").reshape(-1)
        found["ssm_a"] = load_vector(file, f"{block}ssm_a").reshape(-1)
    elif shape.mixer.qk_norm:
        order = _halves(rope, shape.mixer.head_dim) if shape.mixer.rotates else np.arange(shape.mixer.head_dim)
        for name in ("attn_q_norm", "attn_k_norm"):
            found[name][...] = found[name][order]
    return found


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How each of a layer's matrices is packed. small and router stay float32."""

    qkv: MatrixPlan
    output: MatrixPlan
    gate_up: MatrixPlan
    down: MatrixPlan
    small: MatrixPlan | None
    router: MatrixPlan | None

    @property
    def matrices(self) -> list[MatrixPlan]:
        """All that there are."""
        found = [self.qkv, self.output, self.gate_up, self.down, self.small, self.router]
        return [plan for plan in found if plan is not None]


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """How all matrices of a model are packed: what the forecast adds up and `load_weights` carries out.

    A layer is planned when it is asked for: the row numbers of one with many experts take megabytes.
    """

    file: GGUFFile
    shape: Architecture
    group: int
    as_float: bool
    embedding: MatrixPlan
    head: MatrixPlan
    """The embedding's own plan where the two are one tensor."""

    def layer(self, number: int) -> LayerPlan:
        """Plan layer `number`."""
        return _plan_layer(self.file, self.shape, number, self.group, self.as_float)

    @property
    def matrices(self) -> Iterator[MatrixPlan]:
        """All of them, the embedding once."""
        yield self.embedding
        if self.head is not self.embedding:
            yield self.head
        for number in range(self.shape.n_layers):
            yield from self.layer(number).matrices

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices in memory."""
        return sum(plan.nbytes for plan in self.matrices)


def matrix_names(shape: Architecture) -> list[str]:
    """Return the names of the tensors that become matrices of the kernels' kinds."""
    return [part.name for part in shape.parts() if part.role in ("ternary", "table")]


def plan_weights(file: GGUFFile, shape: Architecture, *, group: int, as_float: bool) -> WeightsPlan:
    """Plan a described file, from types and shapes alone. group: weights per ternary scale, see `group_of`."""
    embedding = plan_table(file, "token_embd.weight", group=group, as_float=as_float)
    head = embedding if shape.tied else plan_table(file, "output.weight", group=group, as_float=as_float)
    return WeightsPlan(file, shape, group, as_float, embedding, head)


def _plan_layer(file: GGUFFile, shape: Architecture, number: int, group: int, as_float: bool) -> LayerPlan:
    layer, b = shape.layers[number], f"blk.{number}."

    def stack(*names: str) -> list[Rows]:
        return [all_rows(file, f"{b}{name}.weight") for name in names]

    small: list[Rows] = []
    router: list[Rows] = []
    if isinstance(layer.mixer, DeltaNet):
        qkv, output, small = stack("attn_qkv", "attn_gate"), stack("ssm_out"), stack("ssm_alpha", "ssm_beta")
    else:
        qkv, output = _attention_rows(b, layer.mixer, shape.rope), stack("attn_output")
    if layer.ffn.experts:
        (gate_up, down), router = _expert_rows(b, layer, shape.dim), stack("ffn_gate_inp")
    else:
        gate_up, down = stack("ffn_gate", "ffn_up"), stack("ffn_down")

    def plan(rows: list[Rows], exact: bool = as_float) -> MatrixPlan:
        return plan_matrix(file, rows, group=group, as_float=exact, token_scales=shape.token_scales)

    return LayerPlan(
        plan(qkv),
        plan(output),
        plan(gate_up),
        plan(down),
        plan(small, exact=True) if small else None,
        plan(router, exact=True) if router else None,
    )


def load_weights(
    file: GGUFFile,
    shape: Architecture,
    *,
    as_float: bool,
    bias: int,
    mhc: Path | None,
    adapters: Adapters | None = None,
) -> Weights:
    """Read and pack a supported file (see `model.support`).

    as_float: all matrices as float32, for exact comparisons. bias: what the kernel wants added to table weights.
    adapters: what is added to the outputs of the blocks' matrices.
    Raises UserError if a value is not finite or the `.mhc` file belongs to another model.
    """
    mixes = mix_coefficients(_records(file, shape, mhc), shape.n_layers, shape.hyper)
    _scale_branches(mixes, shape)
    group = group_of(file, matrix_names(shape))
    planned = plan_weights(file, shape, group=group, as_float=as_float)

    def load(plan: MatrixPlan) -> Matrix:
        matrix = load_matrix(file, plan, bias=bias)
        return matrix if adapters is None else adapters.added(matrix, plan)

    layers = []
    for number, layer in enumerate(shape.layers):
        b = f"blk.{number}."
        plan = planned.layer(number)
        layers.append(
            Layer(
                load(plan.qkv),
                load(plan.output),
                load(plan.gate_up),
                load(plan.down),
                load_vector(file, f"{b}attn_norm.weight"),
                load_vector(file, f"{b}{layer.ffn_norm}.weight"),
                mixes[2 * number : 2 * number + 2].copy(),
                load(plan.small) if plan.small else None,
                load(plan.router) if plan.router else None,
                _vectors(file, b, layer, shape.rope),
            )
        )
    embedding = load(planned.embedding)
    final: NDArray[Any] = np.zeros(s.MIX_FLOATS, np.float32)
    final[s.MIX_READ : s.MIX_READ + shape.n_streams] = 1.0 / shape.n_streams
    factors = rope_factors(file) if shape.rope.has_factors else None
    ffn = shape.layers[0].ffn
    return Weights(
        layers=layers,
        embedding=embedding,
        head=embedding if planned.head is planned.embedding else load(planned.head),
        final_norm=load_vector(file, "output_norm.weight") * np.float32(shape.logit_scale),
        final_mix=final,
        group=group,
        frequencies=shape.rope.frequencies(factors),
        used_experts=ffn.used / ffn.experts if ffn.experts else 1.0,
    )
