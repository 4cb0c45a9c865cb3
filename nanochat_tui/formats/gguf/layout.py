"""Where the tensors of a GGUF file lie, and whether that can be true.

A tensor's *span*, from its offset to the next one's, is the only witness independent of the type id. It must
hold the tensor's bytes and less than one alignment of padding, as every known writer makes it; ids that
different programs use for different types are told apart by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_tui.formats.tensor_types import TensorType, may_mean_more, meanings, unsized
from nanochat_tui.text import display_safe

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
class Placed:
    """A tensor with the bytes from its offset to the next one's."""

    raw: RawInfo
    elements: int
    span: int
    is_last: bool

    def fits(self, kind: TensorType, alignment: int) -> bool:
        """Whether the span is what this type would take; behind the last tensor, more bytes may follow."""
        if self.raw.dims[0] % kind.block_elements:
            return False
        return self.is_tight(kind, alignment) or (self.is_last and self.span >= kind.nbytes(self.elements))

    def short_of(self, kind: TensorType) -> str:
        """Say that the span is not what this type takes."""
        said = f"tensor {display_safe(self.raw.name)} of type {kind.name} takes {kind.nbytes(self.elements)} bytes"
        cut = "; it is cut short" if self.is_last and self.span < kind.nbytes(self.elements) else ""
        return f"{said} and has {self.span}{cut}"

    def is_tight(self, kind: TensorType, alignment: int) -> bool:
        """Whether the span is what this type would take, and no more."""
        if self.raw.dims[0] % kind.block_elements:
            return False
        return 0 <= self.span - kind.nbytes(self.elements) < alignment


def resolve(raws: Sequence[RawInfo], data_start: int, file_size: int, alignment: int) -> dict[str, TensorInfo]:
    """Check the tensor table against the size of the file and give every tensor its type, shape and place.

    Returns tensors by name in the order of the table. Raises LayoutError.
    """
    placed = place(raws, file_size - data_start, alignment)
    by_id: dict[int, list[Placed]] = {}
    for item in placed:
        by_id.setdefault(item.raw.type_id, []).append(item)
    kinds = {type_id: _meaning(type_id, items, alignment) for type_id, items in by_id.items()}
    tensors = {}
    for item in placed:
        kind = kinds[item.raw.type_id]
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
                raise LayoutError(item.short_of(kind))
        elif item.elements > item.span * _MAX_ELEMENTS_PER_BYTE:
            raise LayoutError(f"tensor {name} claims {item.elements} elements in {item.span} bytes")
        shape = tuple(reversed(item.raw.dims))
        tensors[item.raw.name] = TensorInfo(item.raw.name, shape, kind, data_start + item.raw.offset, nbytes)
    return {raw.name: tensors[raw.name] for raw in raws}


def place(raws: Sequence[RawInfo], room: int, alignment: int) -> list[Placed]:
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
        placed.append(Placed(raw, math.prod(raw.dims), min(end, room) - raw.offset, is_last))
    return placed


def _meaning(type_id: int, tensors: Sequence[Placed], alignment: int) -> TensorType:
    """Return the one meaning of a type id that fits all tensors of a file which have it.

    Mainline's Q2_0 takes 18 bytes per 64 weights, an older fork's 34 per 128, and Sherry's STQ1_0 42 per 256: all are
    42. Where tensors are so small that padding hides the difference, the usual meaning holds. Raises LayoutError for
    a mix, and for tensors that are none of these unless the id may stand for something that is not known.
    """
    kinds = meanings(type_id)
    if len(kinds) == 1 and not may_mean_more(type_id):
        return kinds[0]  # what does not fit is damaged, and the caller says how
    candidates = [kind for kind in kinds if all(item.fits(kind, alignment) for item in tensors)]
    # a file may go on behind its last tensor, which then fits anything small enough: that alone is no evidence
    told = [kind for kind in candidates if any(item.is_tight(kind, alignment) for item in tensors)]
    if len(told) > 1:
        told = [kind for kind in told if all(item.is_tight(kind, alignment) for item in tensors)]
    if told:
        return told[0]
    some = [kind for kind in kinds if any(item.is_tight(kind, alignment) for item in tensors)]
    if not some and may_mean_more(type_id):
        return unsized(type_id)
    if candidates:
        raise LayoutError(
            f"bytes follow its last tensor, of type id {type_id}, so that its type cannot be told "
            f"({_names(candidates)} would fit)"
        )
    if len(some) == 1 and len(tensors) > 1:  # all that is whole is of one type, so the rest is damaged
        broken = next(item for item in tensors if not item.fits(some[0], alignment))
        if not broken.raw.dims[0] % some[0].block_elements:
            raise LayoutError(broken.short_of(some[0]))
    misfit = next((item for item in tensors if not any(item.fits(kind, alignment) for kind in kinds)), None)
    if misfit is None:
        raise LayoutError(f"its tensors of type id {type_id} are of different types, of {_names(some)}")
    raise LayoutError(
        f"tensor {display_safe(misfit.raw.name)} of type id {type_id} has {misfit.span} bytes for {misfit.elements} "
        f"elements, which fits none of {_names(kinds)}"
    )


def _names(kinds: Sequence[TensorType]) -> str:
    return ", ".join(kind.name for kind in kinds)
