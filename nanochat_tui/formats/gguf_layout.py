"""Where the tensors of a GGUF file lie, and whether that can be true.

A tensor's *span*, from its offset to the next one's, is the only witness independent of the type id. It must
hold the tensor's bytes and less than one alignment of padding, as every known writer makes it; ids that
different programs use for different types are told apart by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_tui.errors import display_safe
from nanochat_tui.formats.tensor_types import Q2_0_MEANINGS, TensorType, type_by_id

_MAX_ELEMENTS_PER_BYTE = 16
"""Half a bit per weight: no type of unknown layout that exists is denser."""


class LayoutError(Exception):
    """What is wrong with the tensor table, as the middle of a sentence."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file.

    `shape` is in NumPy's order, rows first (the reverse of the file's); `offset` counts from the start of the
    file. `nbytes` is what the tensor takes; for a type of unknown layout it is the whole span with its
    padding.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class RawInfo:
    """A row of the tensor table as the file has it: dims in ne order, offset from the start of the data."""

    name: str
    dims: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Placed:
    raw: RawInfo
    elements: int
    span: int
    is_last: bool

    def fits(self, kind: TensorType, alignment: int) -> bool:
        """Whether the span is what this type would take."""
        if self.raw.dims[0] % kind.block_elements:
            return False
        slack = self.span - kind.nbytes(self.elements)
        return slack >= 0 and (slack < alignment or self.is_last)


def resolve(raws: Sequence[RawInfo], data_start: int, file_size: int, alignment: int) -> dict[str, TensorInfo]:
    """Check the tensor table against the size of the file and give every tensor its type, shape and place.

    Returns tensors by name in the order of the table. Raises LayoutError.
    """
    placed = _place(raws, file_size - data_start, alignment)
    q2_0 = _meaning_of_42([p for p in placed if p.raw.type_id == 42], alignment)
    tensors = {}
    for item in placed:
        kind = q2_0 if item.raw.type_id == 42 else type_by_id(item.raw.type_id)
        name = display_safe(item.raw.name)
        nbytes = item.span
        if kind.is_known:
            if item.raw.dims[0] % kind.block_elements:
                raise LayoutError(
                    f"rows of tensor {name} have {item.raw.dims[0]} elements, and its type {kind.name} needs "
                    f"a multiple of {kind.block_elements}"
                )
            nbytes = kind.nbytes(item.elements)
            if not item.fits(kind, alignment):
                raise LayoutError(f"tensor {name} of type {kind.name} takes {nbytes} bytes and has {item.span}")
        elif item.elements > item.span * _MAX_ELEMENTS_PER_BYTE:
            raise LayoutError(f"tensor {name} claims {item.elements} elements in {item.span} bytes")
        shape = tuple(reversed(item.raw.dims))
        tensors[item.raw.name] = TensorInfo(item.raw.name, shape, kind, data_start + item.raw.offset, nbytes)
    return {raw.name: tensors[raw.name] for raw in raws}


def _place(raws: Sequence[RawInfo], room: int, alignment: int) -> list[_Placed]:
    """Return the tensors by offset, each with its span. Raises LayoutError."""
    ordered = sorted(raws, key=lambda raw: raw.offset)
    if ordered and ordered[0].offset != 0:
        raise LayoutError(f"its first tensor begins {ordered[0].offset} bytes into the data and should begin at 0")
    placed = []
    for index, raw in enumerate(ordered):
        name = display_safe(raw.name)
        if raw.offset % alignment:
            raise LayoutError(f"tensor {name} is at offset {raw.offset}, not a multiple of {alignment}")
        if raw.offset >= room:
            raise LayoutError(f"tensor {name} begins at or beyond the end of the file; it is cut short")
        is_last = index == len(ordered) - 1
        end = room if is_last else ordered[index + 1].offset
        if end == raw.offset:
            raise LayoutError(f"tensors {name} and {display_safe(ordered[index + 1].name)} overlap")
        placed.append(_Placed(raw, math.prod(raw.dims), min(end, room) - raw.offset, is_last))
    return placed


def _meaning_of_42(tensors: Sequence[_Placed], alignment: int) -> TensorType:
    """Return the one meaning of type id 42 that fits all tensors of a file.

    Mainline's groups of 64 take 18 bytes, an older fork's groups of 128 take 34, and Sherry's STQ1_0, which
    is named and not decoded, 42 per 256. Where tensors are so small that padding hides the difference,
    mainline's meaning holds. Raises LayoutError for a mix, and for tensors that are none of these.
    """
    fitting = [kind for kind in Q2_0_MEANINGS if all(item.fits(kind, alignment) for item in tensors)]
    if len(fitting) > 1:
        # a file may go on behind its last tensor, which then fits anything: prefer what leaves nothing over
        tight = [
            kind for kind in fitting if all(item.span - kind.nbytes(item.elements) < alignment for item in tensors)
        ]
        if not tight:
            raise LayoutError(
                "its one tensor of type id 42 is the last and bytes follow it, so its group size cannot be told"
            )
        return tight[0]
    if fitting:
        return fitting[0]
    sherry = TensorType(42, "STQ1_0", 0, 0)
    if all(0 <= item.span - math.ceil(item.elements / 256) * 42 < alignment for item in tensors):
        return sherry
    if all(any(item.fits(kind, alignment) for kind in Q2_0_MEANINGS) for item in tensors):
        raise LayoutError("its Q2_0 tensors (type id 42) are partly in groups of 64 and partly of 128")
    misfit = next(item for item in tensors if not any(item.fits(kind, alignment) for kind in Q2_0_MEANINGS))
    raise LayoutError(
        f"tensor {display_safe(misfit.raw.name)} of type id 42 has {misfit.span} bytes for {misfit.elements} "
        "elements, which is neither Q2_0 in groups of 64 nor of 128"
    )
