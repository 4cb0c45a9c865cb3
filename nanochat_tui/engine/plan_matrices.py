"""Matrices of a file in the layouts the kernels read, stacked and reordered by rows on the way.

Ternary tensors are rearranged by words and scales without passing through floats, a million weights at a time, and the
file's pages are given back on the way, so that loading needs little memory beside the result. What no kernel exists for
is decoded into float16 or float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.kernels import kinds as k
from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.packing import (
    Packed,
    aligned,
    lasting,
    needs_small_groups,
    pack_dense,
    round_up,
)
from nanochat_tui.engine.packing_tables import KIND_OF_TYPE, pack_blocks
from nanochat_tui.engine.packing_words import ZEROS, Scales, Words, words_and_scales
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile

SMALL_GROUP = 64
"""The smallest group of weights per scale that the ternary kernels are made for."""
CHUNK_WEIGHTS = 1 << 20
"""Weights that are rearranged together: few enough for a core's cache."""
RELEASE_BYTES = 1 << 24
"""Bytes that are read of a file before its pages are given back, so that loading needs little beside the result."""
Rows = tuple[str, NDArray[np.int64]]
"""A tensor and the rows wanted of it, in order (of an expert tensor all experts' rows, one after another)."""
Route = Literal["ternary", "ternary by row", "BF16", "blocks", "F16", "F32"]
"""How a stack is packed, see `route_of`."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A packed matrix. kind: see `kernels.kinds`. factor and bias: float32 [rows], or None, of every output."""

    kind: int
    packed: Packed
    factor: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None

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
        return int(self.weights.nbytes + self.scales.nbytes)


def all_rows(file: GGUFFile, name: str) -> Rows:
    """Return a tensor with its rows as they are."""
    info = file.tensor(name)
    return name, np.arange(info.elements // info.shape[-1])


def names_of(rows: Sequence[Rows]) -> list[str]:
    """Return the names of a stack's tensors, each once."""
    return list(dict.fromkeys(name for name, _ in rows))


def is_ternary(file: GGUFFile, name: str) -> bool:
    """Whether the ternary kernel takes this tensor."""
    kind = file.tensor(name).type
    return (kind.is_ternary and kind.block_elements >= SMALL_GROUP) or kind.name == "I2_S"


def group_of(file: GGUFFile, names: Sequence[str]) -> int:
    """Return the kernels' group for all ternary tensors among `names`: 128, or 64 if a scale changes more often.

    Raises UserError if a scale is not finite.
    """
    group = 128
    for name in names:
        info = file.tensor(name)
        if not is_ternary(file, name) or info.type.name == "I2_S":
            continue
        if group == 128 and info.type.block_elements < 128:
            width = info.shape[-1] // info.type.block_elements
            scales = np.ascontiguousarray(file.blocks(name)[:, :2]).view("<f2").reshape(-1, width)
            if needs_small_groups(scales, info.type.block_elements):
                group = SMALL_GROUP
            file.release(name)
    return group


def route_of(file: GGUFFile, names: Sequence[str], *, as_float: bool) -> Route:
    """Return how a stack of these tensors is packed, as far as their types say: `load_matrix` and the forecast ask.

    Types of one stack that no kernel takes together become floats, which are several times as large.
    """
    types = {file.tensor(name).type.name for name in names}
    if as_float:
        return "F32"
    if types == {"I2_S"}:
        return "ternary by row"
    if "I2_S" not in types and all(is_ternary(file, name) for name in names):
        return "ternary"
    if types == {"BF16"}:
        return "BF16"
    if len(types) == 1 and types <= set(KIND_OF_TYPE):
        return "blocks"
    # float16 loses nothing that a quantised type ever held
    return "F32" if types & {"F32", "BF16"} else "F16"


def load_matrix(
    file: GGUFFile, rows: Sequence[Rows], *, group: int, bias: int, as_float: bool, multiple: int = s.ROW_BLOCK
) -> Matrix:
    """Stack rows of tensors of equal width. multiple: rows are filled up to it with zeros. bias: `Isa.q8_bias`.

    as_float: float32 whatever the type. Raises UserError if a number is not finite.
    """
    names = names_of(rows)
    route = route_of(file, names, as_float=as_float)
    factor, added = _row_vectors(file, rows, multiple)
    if route == "ternary by row":
        packed = _ternary(file, rows, group, multiple)
        by_row = _i2_s_scales(file, rows, multiple)
        return Matrix(k.TERNARY_ROW, Packed(packed.weights, by_row, packed.rows, packed.columns), factor, added)
    if route == "ternary":
        return Matrix(k.TERNARY, _ternary(file, rows, group, multiple), factor, added)
    if route == "BF16":
        return Matrix(k.BF16, pack_dense(_raw16(file, rows), multiple), factor, added)
    if route == "blocks" and (blocks := _blocks(file, rows)) is not None:
        kind = file.tensor(names[0]).type.name
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
                kind,
                blocks,
                file.tensor(names[0]).shape[-1],
                bias=bias,
                multiple=multiple,
                after=release_read,
            )
            release_read(RELEASE_BYTES)
        except ValueError as error:
            raise UserError(f"the tensor {names[0]} holds a value that is not finite; the file is damaged") from error
        return Matrix(KIND_OF_TYPE[kind], packed, factor, added)
    values = _floats(file, rows)
    if route != "F32" and (half := _as_half(values)) is not None:
        return Matrix(k.F16, pack_dense(half, multiple), factor, added)
    return Matrix(k.F32, pack_dense(values, multiple), factor, added)


def load_table(file: GGUFFile, name: str, *, group: int, as_float: bool, bias: int) -> Matrix:
    """Pack an embedding or head; bias: what the kernel wants added to int8 weights. Raises as `load_matrix`."""
    rows = [all_rows(file, name)]
    return load_matrix(file, rows, group=group, bias=bias, as_float=as_float, multiple=s.STATISTICS_BLOCK)


def load_vector(file: GGUFFile, name: str) -> NDArray[np.float32]:
    """Return a small tensor as float32 on a cache line. Raises UserError if a value is not finite."""
    values = file.array(name)
    file.release(name)
    if not np.isfinite(values).all():
        raise UserError(f"the tensor {name} holds a value that is not finite; the file is damaged")
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
    scale = np.ascontiguousarray(file.tail(name)[:4]).view("<f4")[0]
    if not np.isfinite(scale):
        raise UserError(f"the scale of {name} is not finite; the file is damaged")
    return np.float32(scale)


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
    opened: dict[str, NDArray[np.uint8]] = {}  # blocks in another order are made anew each time they are asked for
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
                raise UserError(f"a scale of {name} is not finite; the file is damaged")
            yield words.reshape(len(part), columns // 16), scales.reshape(len(part), width)
            read += chosen.nbytes
            if read >= RELEASE_BYTES:
                file.release(name)
                read = 0
        file.release(name)


def _ternary(file: GGUFFile, rows: Sequence[Rows], group: int, multiple: int) -> Packed:
    """Pack ternary rows; the pieces are cut to whole blocks of 16 rows, and the last is filled up."""
    total = sum(len(wanted) for _, wanted in rows)
    columns = file.tensor(rows[0][0]).shape[-1]
    padded, filled = round_up(columns, group), round_up(total, multiple)
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
