"""Writes GGUF version 3: atomically, and the same bytes for the same input."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import WriteError
from nanochat_tui.files import atomic_write
from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf.header import (
    MAGIC,
    MAX_DIMS,
    MAX_KEY_BYTES,
    MAX_NAME_BYTES,
    alignment_of,
)
from nanochat_tui.formats.gguf.layout import LayoutError, RawInfo, resolve
from nanochat_tui.formats.gguf.values import FIXED, GGUFValue, ValueType
from nanochat_tui.formats.tensor_types import TensorType
from nanochat_tui.text import display_safe


@dataclass(frozen=True, slots=True, eq=False)
class TensorData:
    """A tensor to write: `shape` in NumPy's order, `data` its blocks (uint8, any shape of the right size)."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    data: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class TensorSource:
    """A tensor whose bytes are made while the file is written, so that a large model never is in memory whole.

    `chunks` returns uint8 arrays of any shape, together `type.nbytes` of the shape's elements.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    chunks: Callable[[], Iterable[NDArray[np.uint8]]]


AnyTensor = TensorData | TensorSource


def _chunks(tensor: AnyTensor) -> Iterable[NDArray[np.uint8]]:
    return tensor.chunks() if isinstance(tensor, TensorSource) else (tensor.data,)


def _nbytes(tensor: AnyTensor) -> int:
    return tensor.type.nbytes(int(np.prod(tensor.shape, dtype=object)))


def tensor_from_array(name: str, values: NDArray[np.floating[Any]], kind: TensorType) -> TensorData:
    """Encode an array (rows first, last axis a multiple of the block) as a tensor. Raises FormatError."""
    if values.ndim == 0 or values.shape[-1] % max(1, kind.block_elements):
        raise FormatError(
            f"tensor {display_safe(name)} of shape {list(values.shape)} is not made of {kind.name} blocks"
        )
    rows = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, max(1, kind.block_elements))
    return TensorData(name, tuple(values.shape), kind, kind.encode(rows))


def _text(value: str, what: str, limit: int | None = None) -> bytes:
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{what} holds text that is not valid Unicode") from error
    if limit is not None and not 1 <= len(encoded) <= limit:
        raise FormatError(f"{what} is named with {len(encoded)} bytes, outside 1 to {limit}")
    return struct.pack("<Q", len(encoded)) + encoded


def _payload(value: GGUFValue, what: str) -> bytes:
    if value.type is ValueType.STRING:
        return _text(cast("str", value.value), what)
    if value.type is not ValueType.ARRAY:
        return np.array(value.value).astype(FIXED[value.type]).tobytes()
    element = cast("ValueType", value.element)
    items = cast("Sequence[Any]", value.value)
    head = struct.pack("<IQ", element, len(items))
    if element is ValueType.STRING:
        if not all(isinstance(item, str) for item in items):
            raise FormatError(f"{what} is a list of strings and holds something else")
        return head + b"".join(_text(item, what) for item in items)
    return head + np.asarray(items).astype(FIXED[element]).tobytes()


def _checked(tensors: Iterable[AnyTensor]) -> list[AnyTensor]:
    found = list(tensors)
    names: set[str] = set()
    for tensor in found:
        what = f"tensor {display_safe(tensor.name)}"
        if tensor.name in names:
            raise FormatError(f"{what} is given twice")
        names.add(tensor.name)
        if not 1 <= len(tensor.shape) <= MAX_DIMS or min(tensor.shape) < 1:
            raise FormatError(f"{what} has the impossible shape {list(tensor.shape)}")
        if not tensor.type.is_known or tensor.shape[-1] % tensor.type.block_elements:
            raise FormatError(f"{what} of shape {list(tensor.shape)} does not divide into blocks of {tensor.type.name}")
        expected = _nbytes(tensor)
        if isinstance(tensor, TensorData) and (tensor.data.dtype != np.uint8 or tensor.data.nbytes != expected):
            raise FormatError(f"{what} takes {expected} bytes of {tensor.type.name}, not {tensor.data.nbytes}")
    return found


def write_gguf(path: str | os.PathLike[str], metadata: Mapping[str, GGUFValue], tensors: Iterable[AnyTensor]) -> None:
    """Write a GGUF file, atomically: the keys and tensors in the order given, data aligned to 32 bytes.

    `general.alignment` in the metadata is obeyed. Every tensor, the last too, is padded to the alignment, as
    mainline's reader expects.
    Raises FormatError if `read_gguf` would not read it back as given; WriteError if the disk has no room for it or
    the system refuses.
    """
    contents = _checked(tensors)
    try:
        alignment = alignment_of(metadata)
    except LayoutError as error:
        raise FormatError(f"the file cannot be written: {error}") from None
    head = [MAGIC, struct.pack("<IQQ", 3, len(contents), len(metadata))]
    for key, value in metadata.items():
        what = f"the key {display_safe(key)}"
        head += [_text(key, what, MAX_KEY_BYTES), struct.pack("<I", value.type), _payload(value, what)]
    raws = []
    offset = 0
    for tensor in contents:
        what = f"tensor {display_safe(tensor.name)}"
        dims = tuple(reversed(tensor.shape))
        raws.append(RawInfo(tensor.name, dims, tensor.type.id, offset))
        head += [
            _text(tensor.name, what, MAX_NAME_BYTES),
            struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type.id, offset),
        ]
        offset += -(-_nbytes(tensor) // alignment) * alignment
    _check_types_survive(contents, raws, offset, alignment)
    start = b"".join(head)
    _require_room(path, len(start) + offset)
    with atomic_write(path) as handle:
        handle.write(start + bytes(-len(start) % alignment))
        for tensor in contents:
            left = expected = _nbytes(tensor)
            for chunk in _chunks(tensor):
                left -= chunk.nbytes
                handle.write(np.ascontiguousarray(chunk).data)
            if left:
                raise FormatError(
                    f"tensor {display_safe(tensor.name)} takes {expected} bytes of {tensor.type.name}, "
                    f"not {expected - left}"
                )
            handle.write(bytes(-expected % alignment))


def _require_room(path: str | os.PathLike[str], nbytes: int) -> None:
    """Raise WriteError if the disk has less room than a file takes: better now than after minutes of writing."""
    import shutil  # brings compressors along, and this module is imported by readers too

    try:
        disk = shutil.disk_usage(Path(path).resolve().parent)
    except OSError:
        return  # opening the file says what is wrong
    if disk.total and disk.free < nbytes:  # /proc and its like have no size at all
        raise WriteError(
            f"{display_safe(str(path))} would take {nbytes / 1e9:.2f} GB, and its disk has {disk.free / 1e9:.2f} GB "
            "left; make room or choose another folder"
        )


def _check_types_survive(contents: Sequence[AnyTensor], raws: Sequence[RawInfo], size: int, alignment: int) -> None:
    """Refuse a file with a type id that a reader would take for another type than was meant."""
    try:
        read_back = resolve(raws, 0, size, alignment)
    except LayoutError as error:
        raise FormatError(f"the file cannot be written: {error}") from None
    for tensor in contents:
        taken_for = read_back[tensor.name].type
        if taken_for != tensor.type:
            raise FormatError(
                f"tensor {display_safe(tensor.name)} of type {tensor.type.name} would be read back as "
                f"{taken_for.name}; choose a type whose id has one meaning, such as PQ2_0"
            )
