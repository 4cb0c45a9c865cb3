"""Matrices of a file in the layouts the kernels read, stacked and reordered by rows on the way.

Ternary tensors are rearranged by words and scales without passing through floats, a million weights at a time, and the
file's pages are given back on the way, so that loading needs little more memory than the result. What no kernel exists
for is decoded into float16 or float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned, lasting, round_up
from nanochat_tui.engine.weights.pack import Packed, needs_small_groups, pack_dense
from nanochat_tui.engine.weights.pack_blocks import KIND_OF_TYPE, pack_blocks, packed_bytes
from nanochat_tui.engine.weights.pack_words import ZEROS, Scales, Words, words_and_scales
from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.formats.tensor_types import TensorType
from nanochat_tui.model.support import not_finite

SMALL_GROUP = 64
"""The smallest group of weights per scale that the ternary kernels are made for."""
CHUNK_WEIGHTS = 1 << 20
"""Weights that are rearranged together: few enough for a core's cache."""
RELEASE_BYTES = 1 << 24
"""Bytes that are read of a file before its pages are given back, so that loading needs little more than the result."""
Rows = tuple[str, NDArray[np.int64] | range]
"""A tensor and the rows wanted of it, in order (of an expert tensor all experts' rows, one after another). Those that
follow each other are a range: a plan takes no memory for them, however many a file claims to have."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A packed matrix. kind: see `layout.kinds`. factor and bias: float32 [rows], or None, of every output.

    down, up: halves of an adapter (see `weights.adapters`), float32, or None.
    """

    kind: int
    packed: Packed
    factor: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    down: Packed | None = None
    up: Packed | None = None

    @property
    def weights(self) -> NDArray[Any]:
        """The packed weights."""
        return self.packed.weights

    @property
    def scales(self) -> NDArray[Any]:
        """The packed scales; empty for floats."""
        return self.packed.scales

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        halves = sum(half.weights.nbytes for half in (self.down, self.up) if half is not None)
        return int(self.weights.nbytes + self.scales.nbytes + halves)


def all_rows(file: GGUFFile, name: str) -> Rows:
    """Return a tensor with its rows as they are."""
    info = file.tensor(name)
    return name, range(info.elements // info.shape[-1])


def _numbers(rows: NDArray[np.int64] | range) -> NDArray[np.int64]:
    return np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows


def names_of(rows: Sequence[Rows]) -> list[str]:
    """Return the names of a stack's tensors, each once."""
    return list(dict.fromkeys(name for name, _ in rows))


def takes_ternary(kind: TensorType) -> bool:
    """Whether the ternary kernel takes tensors of a type."""
    return kind.has_trits and kind.block_elements >= SMALL_GROUP


def largest_group(types: Iterable[TensorType]) -> int:
    """Return the kernels' group for ternary tensors of these types, if neighbours share no scale: 128, or 64.

    They may share them, but that is not known before the tensors are read, see `group_of`.
    """
    own = [kind.block_elements for kind in types if takes_ternary(kind) and not kind.has_tensor_scale]
    return SMALL_GROUP if any(elements < 128 for elements in own) else 128


def group_of(file: GGUFFile, names: Sequence[str]) -> int:
    """Return the kernels' group for all ternary tensors among `names`: 128, or 64 if a scale changes more often.

    Raises UserError if a scale is not finite.
    """
    group = 128
    for name in names:
        info = file.tensor(name)
        if not takes_ternary(info.type) or info.type.has_tensor_scale:
            continue
        if group == 128 and info.type.block_elements < 128:
            width = info.shape[-1] // info.type.block_elements
            scales = np.ascontiguousarray(file.blocks(name)[:, :2]).view("<f2").reshape(-1, width)
            if needs_small_groups(scales, info.type.block_elements):
                group = SMALL_GROUP
            file.release(name)
    return group


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """How a stack of tensors is packed, as their types and shapes say it, before a weight is read.

    The forecast adds up `nbytes`, `load_matrix` carries the plan out. Two things show only in the weights: floats that
    float16 cannot hold become F32 instead of F16, and int8 blocks with a -128 become F16.
    """

    stack: tuple[Rows, ...]
    kind: int
    """See `layout.kinds`."""
    rows: int
    """Rows in memory: those of the stack, filled up with zeros to a multiple of `multiple`."""
    columns: int
    group: int
    """Weights per scale of ternary kinds."""
    multiple: int
    block_type: str = ""
    """Name of the tensor type whose blocks are rearranged, for kinds of blocks."""

    @property
    def names(self) -> list[str]:
        """Names of the stack's tensors, each once."""
        return names_of(self.stack)

    @property
    def nbytes(self) -> int:
        """Bytes of weights and scales in memory."""
        padded = round_up(self.columns, self.group)
        if self.kind in (k.TERNARY, k.TERNARY_FINE):
            return self.rows * padded // 4 + 2 * self.rows * (padded // self.group)
        if self.kind == k.TERNARY_ROW:
            return self.rows * padded // 4 + 4 * self.rows
        if self.block_type:
            return packed_bytes(self.block_type, self.rows, self.columns)
        return (4 if self.kind == k.F32 else 2) * self.rows * self.columns


def plan_matrix(
    file: GGUFFile,
    stack: Sequence[Rows],
    *,
    group: int,
    as_float: bool,
    token_scales: bool = False,
    multiple: int = s.ROW_BLOCK,
) -> MatrixPlan:
    """Plan a stack of rows of tensors of equal width. multiple: rows are filled up to it with zeros.

    as_float: float32 whatever the type. token_scales: ternary rows are for inputs with one scale per token.

    Types of one stack that no kernel takes together become floats, which are several times as large.
    """
    names = names_of(stack)
    types = [file.tensor(name).type for name in names]
    kind, block_type = _kind_of(types, as_float=as_float, token_scales=token_scales)
    rows = round_up(sum(len(wanted) for _, wanted in stack), multiple)
    return MatrixPlan(tuple(stack), kind, rows, file.tensor(names[0]).shape[-1], group, multiple, block_type)


def plan_table(file: GGUFFile, name: str, *, group: int, as_float: bool) -> MatrixPlan:
    """Plan an embedding or head."""
    return plan_matrix(file, [all_rows(file, name)], group=group, as_float=as_float, multiple=s.STATISTICS_BLOCK)


def _kind_of(types: Sequence[TensorType], *, as_float: bool, token_scales: bool) -> tuple[int, str]:
    """Return the kind of a stack of tensors of these types, and the type's name if its blocks are rearranged."""
    names = {kind.name for kind in types}
    if as_float:
        return k.F32, ""
    if all(kind.has_tensor_scale for kind in types):
        return k.TERNARY_ROW, ""
    if all(takes_ternary(kind) and not kind.has_tensor_scale for kind in types):
        return k.TERNARY if token_scales else k.TERNARY_FINE, ""
    if names == {"BF16"}:
        return k.BF16, ""
    if len(names) == 1 and names <= set(KIND_OF_TYPE):
        (name,) = names
        return KIND_OF_TYPE[name], name
    # float16 loses nothing that a quantised type ever held
    return (k.F32 if names & {"F32", "BF16"} else k.F16), ""


def load_matrix(file: GGUFFile, plan: MatrixPlan, *, bias: int) -> Matrix:
    """Pack what a plan says. bias: `Isa.q8_bias`. Raises UserError if a number is not finite."""
    plan = replace(plan, stack=tuple((name, _numbers(wanted)) for name, wanted in plan.stack))
    rows, multiple, names = plan.stack, plan.multiple, plan.names
    factor, added = _row_vectors(file, rows, multiple)
    if plan.kind == k.TERNARY_ROW:
        packed = _ternary(file, plan)
        by_row = _i2_s_scales(file, rows, multiple)
        return Matrix(plan.kind, Packed(packed.weights, by_row, packed.rows, packed.columns), factor, added)
    if plan.kind in (k.TERNARY, k.TERNARY_FINE):
        return Matrix(plan.kind, _ternary(file, plan), factor, added)
    if plan.kind == k.BF16:
        return Matrix(plan.kind, pack_dense(_raw16(file, rows), multiple), factor, added)
    if plan.block_type and (blocks := _blocks(file, rows)) is not None:
        read = 0

        def release_read(nbytes: int) -> None:
            nonlocal read
            read += nbytes
            if read >= RELEASE_BYTES:
                read = 0
                for each in names:
                    file.release(each)

        try:
            packed = pack_blocks(
                plan.block_type, blocks, plan.columns, bias=bias, multiple=multiple, after=release_read
            )
            release_read(RELEASE_BYTES)
        except ValueError as error:
            raise not_finite(names[0]) from error
        return Matrix(plan.kind, packed, factor, added)
    values = _floats(file, rows)
    if plan.kind != k.F32 and (half := _as_half(values)) is not None:
        return Matrix(k.F16, pack_dense(half, multiple), factor, added)
    return Matrix(k.F32, pack_dense(values, multiple), factor, added)


def load_vector(file: GGUFFile, name: str) -> NDArray[np.float32]:
    """Return a small tensor as float32 on a cache line. Raises UserError if a value is not finite."""
    values = file.array(name)
    file.release(name)
    if not np.isfinite(values).all():
        raise not_finite(name)
    out: NDArray[np.float32] = aligned(values.shape, np.float32)
    out[...] = values
    return out


def _row_vectors(
    file: GGUFFile, rows: Sequence[Rows], multiple: int
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Return what every output is multiplied by and what is added: `.scale` and `.bias` tensors."""
    count = round_up(sum(len(wanted) for _, wanted in rows), multiple)
    factor, bias = aligned(count, np.float32, 1.0), aligned(count, np.float32, 0.0)
    has_factor = has_bias = False
    start = 0
    for name, wanted in rows:
        part = slice(start, start + len(wanted))
        start += len(wanted)
        stem = name.removesuffix(".weight")
        if f"{stem}.scale" in file.tensors:
            factor[part] *= load_vector(file, f"{stem}.scale").reshape(-1)[0]
            has_factor = True
        if f"{stem}.bias" in file.tensors:
            bias[part] = load_vector(file, f"{stem}.bias").reshape(-1)[wanted]
            has_bias = True
    return factor if has_factor else None, bias if has_bias else None


def _i2_s_scale(file: GGUFFile, name: str) -> np.float32:
    scale = file.tensor(name).type.tensor_scale(file.tail(name))
    if not np.isfinite(scale):
        raise not_finite(name)
    return scale


def _i2_s_scales(file: GGUFFile, rows: Sequence[Rows], multiple: int) -> NDArray[np.float32]:
    """Return the scale of every row's tensor, float32 [rows filled up]."""
    scales = aligned(round_up(sum(len(wanted) for _, wanted in rows), multiple), np.float32, 0.0)
    start = 0
    for name, wanted in rows:
        scales[start : start + len(wanted)] = _i2_s_scale(file, name)
        start += len(wanted)
    return scales


def _pieces(file: GGUFFile, rows: Sequence[Rows]) -> Iterator[tuple[Words, Scales]]:
    """Yield words uint32 [n, columns / 16] and scales float16 [n, blocks] of consecutive rows, some at a time."""
    read = 0
    opened: dict[str, NDArray[np.uint8]] = {}  # blocks in another order are made again each time they are asked for
    for name, wanted in rows:
        info = file.tensor(name)
        columns = info.shape[-1]
        width = columns // info.type.block_elements
        if name not in opened:
            opened[name] = file.blocks(name).reshape(-1, width, info.type.block_bytes)
        blocks = opened[name]
        step = max(1, CHUNK_WEIGHTS // columns)
        for start in range(0, len(wanted), step):
            part = wanted[start : start + step]
            # consecutive rows are read where they lie, others are gathered
            straight = part[-1] - part[0] == len(part) - 1 and (np.diff(part) == 1).all()
            chosen = blocks[part[0] : part[-1] + 1] if straight else blocks[part]
            words, scales = words_and_scales(info.type, chosen.reshape(-1, info.type.block_bytes))
            if not np.isfinite(scales).all():
                raise not_finite(name)
            yield words.reshape(len(part), columns // 16), scales.reshape(len(part), width)
            read += chosen.nbytes
            if read >= RELEASE_BYTES:
                file.release(name)
                read = 0
        file.release(name)


def _ternary(file: GGUFFile, plan: MatrixPlan) -> Packed:
    """Pack ternary rows; the pieces are cut to whole blocks of 16 rows, and the last is filled up."""
    rows, filled, columns, group = plan.stack, plan.rows, plan.columns, plan.group
    total = sum(len(wanted) for _, wanted in rows)
    padded = round_up(columns, group)
    weights = lasting((filled // s.ROW_BLOCK, padded // 16, s.ROW_BLOCK), np.uint32)
    scales = lasting((filled // s.ROW_BLOCK, padded // group, s.ROW_BLOCK), np.float16)
    if padded > columns:
        weights[:, columns // 16 :] = ZEROS
        scales[:, columns // group :] = 0
    done = 0
    for words, scale in _whole_blocks(_pieces(file, rows), columns, group):
        place = slice(done, done + len(words) // s.ROW_BLOCK)
        weights[place, : words.shape[1]] = words.reshape(-1, s.ROW_BLOCK, words.shape[1]).transpose(0, 2, 1)
        scales[place, : scale.shape[1]] = scale.reshape(-1, s.ROW_BLOCK, scale.shape[1]).transpose(0, 2, 1)
        done = place.stop
    weights[done:], scales[done:] = ZEROS, 0
    return Packed(weights, scales, total, columns)


def _whole_blocks(pieces: Iterator[tuple[Words, Scales]], columns: int, group: int) -> Iterator[tuple[Words, Scales]]:
    """Regroup pieces to whole blocks of rows, the last filled up with zeros; scales become one per `group`."""
    words, scales = np.empty((0, 1), np.uint32), np.empty((0, 1), np.float16)
    for more, found in pieces:
        each, scale = columns // found.shape[1], found
        if each < group:  # `group_of` saw that neighbours agree
            scale = found[:, :: group // each]
        elif each > group:
            scale = np.repeat(found, each // group, axis=1)
        words = more if not len(words) else np.concatenate([words, more])
        scales = scale if not len(scales) else np.concatenate([scales, scale])
        whole = len(words) // s.ROW_BLOCK * s.ROW_BLOCK
        if whole:
            yield words[:whole], scales[:whole]
        words, scales = words[whole:], scales[whole:]
    if missing := -len(words) % s.ROW_BLOCK:
        filling = ((0, missing), (0, 0))
        yield np.pad(words, filling, constant_values=ZEROS), np.pad(scales, filling)


def _floats(file: GGUFFile, rows: Sequence[Rows]) -> NDArray[np.float32]:
    parts = []
    for name, wanted in rows:
        values = load_vector(file, name).reshape(-1, file.tensor(name).shape[-1])
        parts.append(values if np.array_equal(wanted, np.arange(len(values))) else values[wanted])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _blocks(file: GGUFFile, rows: Sequence[Rows]) -> NDArray[np.uint8] | None:
    """Return the blocks of rows of one type, uint8 [n_blocks, block_bytes], or None if the kernels do not take them."""
    info = file.tensor(rows[0][0])
    width = info.shape[-1] // info.type.block_elements
    parts = []
    for name, wanted in rows:
        blocks = file.blocks(name).reshape(-1, width, info.type.block_bytes)
        parts.append(blocks if np.array_equal(wanted, np.arange(len(blocks))) else blocks[wanted])
    found = (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1, info.type.block_bytes)
    # -128 has no negative in a byte, which the AVX2 kernel needs; no quantiser writes it
    if info.type.name == "Q8_0" and found[:, 2:].view(np.int8).min(initial=0) == -128:
        return None
    return found


def _raw16(file: GGUFFile, rows: Sequence[Rows]) -> NDArray[np.uint16]:
    """Return the bits of bfloat16 rows."""
    parts = []
    for name, wanted in rows:
        load_vector(file, name)  # checks that all are finite
        bits = file.raw(name).view(np.uint16).reshape(-1, file.tensor(name).shape[-1])
        parts.append(bits[wanted])
        file.release(name)
    return np.concatenate(parts)


def _as_half(values: NDArray[np.float32]) -> NDArray[np.float16] | None:
    """Return values as float16, or None if one is too large for that."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.isfinite(half).all() else None
