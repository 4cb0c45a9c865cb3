"""Files of the original nanochat-rs-ternary (`GUGF`), described without being converted.

The layout is in `export.original`. Such a file is not valid GGUF and is never run as it is; but what is in it can be
said, and also whether its scales were lost: until 16 February 2026 the original's export wrote, in place of every
trained scale, the share of the group's weights that are not zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import GGUFValue
from nanochat_tui.formats.gguf.header import (
    ORIGINAL_MAGIC,
    Buffer,
    Cursor,
    let_go,
    map_file,
    read_head,
)
from nanochat_tui.formats.gguf.layout import LayoutError, Placed, TensorInfo, place
from nanochat_tui.formats.tensor_types import TensorType, type_by_id, unsized
from nanochat_tui.text import display_safe

Q1_58 = 100
_SAMPLE_BYTES = 1 << 20
"""Codes looked at in each matrix: the fault is in every group or in none."""


@dataclass(frozen=True, slots=True)
class Original:
    """A `GUGF` file: size, version, keys and tensors (shapes are rows first, as everywhere here)."""

    bytes: int
    version: int
    metadata: dict[str, GGUFValue]
    tensors: tuple[TensorInfo, ...]
    group: int
    scales_are_counts: bool
    """Whether every scale that was looked at is the share of non-zeros in its group."""


def is_original(path: Path) -> bool:
    """Whether a file begins as the original's do; False if it cannot be read."""
    try:
        with path.open("rb") as handle:
            return handle.read(4) == ORIGINAL_MAGIC
    except OSError:
        return False


def read_original(path: Path) -> Original:
    """Read the head of a `GUGF` file, and a sample of its scales. Raises FormatError if it is not sound."""
    data = map_file(path)
    try:
        return _read(data)
    except LayoutError as error:
        raise FormatError(
            f"{display_safe(str(path))} is not a sound file of nanochat-rs-ternary: {error}; copy or export it again"
        ) from None
    finally:
        let_go(data)


def _read(data: Buffer) -> Original:
    cursor = Cursor(data)
    cursor.skip(4, "the header")
    version = cursor.u32("the header")
    metadata, raws, alignment, start = read_head(cursor)
    placed = {item.raw.name: item for item in place(raws, cursor.size - start, alignment)}
    group = next(
        (
            found.value
            for key in ("nanochat.group_size", "model.group_size")
            if (found := metadata.get(key)) is not None and isinstance(found.value, int) and found.value > 0
        ),
        128,
    )
    tensors = tuple(_info(placed[raw.name], start, group) for raw in raws)
    answers = [
        answer for info in tensors if info.type.id == Q1_58 and (answer := _are_counts(data, info, group)) is not None
    ]
    return Original(cursor.size, version, metadata, tensors, group, bool(answers) and all(answers))


def _info(item: Placed, start: int, group: int) -> TensorInfo:
    elements = math.prod(item.raw.dims)
    kind: TensorType = type_by_id(item.raw.type_id)
    if item.raw.type_id == Q1_58:
        kind = unsized(Q1_58)
        nbytes = elements // 4 + 4 * (elements // group)
    elif kind.is_known and elements % kind.block_elements == 0:
        nbytes = kind.nbytes(elements)
    else:
        raise LayoutError(f"tensor {display_safe(item.raw.name)} is of type id {item.raw.type_id}, which it cannot be")
    if nbytes > item.span:
        raise LayoutError(f"tensor {display_safe(item.raw.name)} takes {nbytes} bytes and has {item.span}")
    return TensorInfo(item.raw.name, item.raw.dims, kind, start + item.raw.offset, nbytes)


def _are_counts(data: Buffer, info: TensorInfo, group: int) -> bool | None:
    """Whether the first scales of a matrix are shares of non-zeros; None if it has no whole groups."""
    if group % 4 or info.elements % group:
        return None
    groups = min(info.elements // group, max(1, 4 * _SAMPLE_BYTES // group))
    packed = np.frombuffer(data, np.uint8, groups * group // 4, info.offset).reshape(groups, group // 4)
    scales = np.frombuffer(data, "<f4", groups, info.offset + info.elements // 4)
    used = np.bitwise_count(packed & np.uint8(0x55)).sum(axis=1)  # the low bit is set for +1 (01) and −1 (11)
    with np.errstate(invalid="ignore"):
        return bool((np.abs(scales * group - used) <= 1e-3).all())
