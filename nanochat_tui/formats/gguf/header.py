"""The head of a GGUF file: a cursor that believes no count, and the walk over keys and tensor table with it."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.errors import unreadable
from nanochat_tui.formats.gguf.layout import LayoutError, RawInfo
from nanochat_tui.formats.gguf.strings import short_strings
from nanochat_tui.formats.gguf.values import FIXED, GGUFValue, ValueType
from nanochat_tui.formats.recognise import require_regular
from nanochat_tui.text import display_safe

MAGIC = b"GGUF"
ORIGINAL_MAGIC = b"GUGF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 255
MAX_DIMS = 4
MAX_STRINGS = 1 << 24
"""Entries of one string array: sixty times the largest vocabulary known; keeps the walk over it short."""
WINDOW = 1 << 16
"""Bytes of a string array that are looked at together: few, so that arrays of them take no new memory each time."""
WORTHWHILE = 1 << 10
"""Strings that a look ahead should find; where it does not, more and more are read one by one, up to IN_TURN."""
IN_TURN = 1 << 12

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

Buffer = mmap.mmap | bytes


class Head(NamedTuple):
    """What a file says of itself."""

    metadata: dict[str, GGUFValue]
    """Values by key, in the file's order."""
    tensors: list[RawInfo]
    """The tensor table, in the file's order."""
    alignment: int
    """Tensors begin at multiples of so many bytes behind `data_start`."""
    data_start: int
    """Bytes before the first tensor's data."""


class Cursor:
    """A place in the file; every step forward is checked against the end."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.size = len(data)
        self.position = 0

    def skip(self, length: int, what: str) -> int:
        """Step over `length` bytes and return where they begin."""
        start = self.position
        if length > self.size - start:
            raise LayoutError(f"{what} runs past the end of the file")
        self.position = start + length
        return start

    def u32(self, what: str) -> int:
        """Read an unsigned 32-bit number."""
        return int(_U32.unpack_from(self.data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        """Read an unsigned 64-bit number."""
        return int(_U64.unpack_from(self.data, self.skip(8, what))[0])

    def count(self, what: str, smallest: int) -> int:
        """Read a count of things that take at least `smallest` bytes each."""
        number = self.u64(what)
        if number > (self.size - self.position) // smallest:
            raise LayoutError(f"it claims {number} {what}, more than the file can hold")
        return number

    def text(self, what: str, limit: int | None = None) -> str:
        """Read a string: u64 length, UTF-8."""
        length = self.u64(what)
        if limit is not None and length > limit:
            raise LayoutError(f"{what} has {length} bytes, more than {limit}")
        start = self.skip(length, what)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise LayoutError(f"{what} is not UTF-8") from None

    def texts(self, count: int, what: str) -> list[str]:
        """Read `count` strings: short ones thousands at a time, because a vocabulary has 100,000 of them."""
        found: list[str] = []
        patience = 1
        try:
            while len(found) < count:
                strings, length = short_strings(self.data[self.position : self.position + WINDOW], count - len(found))
                found += strings
                self.position += length
                # what follows is long or odd: one such string, or more where a look ahead costs more than it saves
                patience = 1 if len(strings) >= WORTHWHILE else min(8 * patience, IN_TURN)
                self._texts_in_turn(min(patience, count - len(found)), what, found)
        except UnicodeDecodeError:
            raise LayoutError(f"{what} holds text that is not UTF-8") from None
        return found

    def _texts_in_turn(self, count: int, what: str, found: list[str]) -> None:
        data, size, position, unpack = self.data, self.size, self.position, _U64.unpack_from
        try:
            for _ in range(count):
                start = position + 8
                (length,) = unpack(data, position)
                position = start + length
                if position > size:
                    raise LayoutError(f"{what} runs past the end of the file")
                found.append(str(data[start:position], "utf-8"))
        except struct.error:
            raise LayoutError(f"{what} runs past the end of the file") from None
        self.position = position


def _value(cursor: Cursor, what: str) -> GGUFValue:
    kind = _value_type(cursor.u32(what), what)
    if kind is ValueType.STRING:
        return GGUFValue(kind, cursor.text(what))
    if kind is ValueType.ARRAY:
        return _array(cursor, what)
    number = np.frombuffer(cursor.data, FIXED[kind], 1, cursor.skip(FIXED[kind].itemsize, what))[0].item()
    if kind is ValueType.BOOL:
        if number > 1:
            raise LayoutError(f"{what} is a truth value of {number}, neither 0 nor 1")
        number = bool(number)
    return GGUFValue(kind, number)


def _array(cursor: Cursor, what: str) -> GGUFValue:
    element = _value_type(cursor.u32(what), what)
    if element is ValueType.ARRAY:
        raise LayoutError(f"{what} is an array of arrays, which no reader supports")
    if element is ValueType.STRING:
        count = cursor.count(f"strings in {what}", 8)
        if count > MAX_STRINGS:
            raise LayoutError(f"{what} claims {count} strings, more than {MAX_STRINGS}")
        return GGUFValue(ValueType.ARRAY, cursor.texts(count, what), element)
    dtype = FIXED[element]
    count = cursor.count(f"elements in {what}", dtype.itemsize)
    start = cursor.skip(count * dtype.itemsize, what)
    values: NDArray[Any] = np.frombuffer(cursor.data, dtype, count, start)
    if element is ValueType.BOOL:
        if count and int(values.max()) > 1:
            raise LayoutError(f"{what} holds a truth value that is neither 0 nor 1")
        values = values.view(bool)
    return GGUFValue(ValueType.ARRAY, values, element)


def _value_type(number: int, what: str) -> ValueType:
    try:
        return ValueType(number)
    except ValueError:
        raise LayoutError(f"{what} is of the unknown value type {number}") from None


def _counts(cursor: Cursor) -> tuple[int, int]:
    """Read the numbers of tensors and keys. Raises LayoutError if the file cannot hold so many."""
    n_tensors = cursor.u64("the header")
    n_keys = cursor.u64("the header")
    # the least of a tensor: a letter of name, n_dims, one dim, type, offset; of a key: a letter, type, value
    for what, count, smallest in (("tensors", n_tensors, 33), ("keys", n_keys, 14)):
        if count > (cursor.size - cursor.position) // smallest:
            raise LayoutError(f"it claims {count} {what}, more than the file can hold")
    return n_tensors, n_keys


def _metadata(cursor: Cursor, count: int) -> dict[str, GGUFValue]:
    """Read the keys and their values, in the file's order. Raises LayoutError."""
    metadata: dict[str, GGUFValue] = {}
    for index in range(count):
        key = cursor.text(f"the name of key {index}", MAX_KEY_BYTES)
        if not key or key in metadata:
            raise LayoutError(f"the key {display_safe(key)} appears twice" if key else "a key has no name")
        metadata[key] = _value(cursor, f"the key {display_safe(key)}")
    return metadata


def _tensor_table(cursor: Cursor, count: int) -> list[RawInfo]:
    """Read the tensor table, in the file's order. Raises LayoutError."""
    raws: list[RawInfo] = []
    names: set[str] = set()
    for index in range(count):
        name = cursor.text(f"the name of tensor {index}", MAX_NAME_BYTES)
        if not name or name in names:
            raise LayoutError(f"the tensor {display_safe(name)} appears twice" if name else "a tensor has no name")
        names.add(name)
        what = f"tensor {display_safe(name)}"
        n_dims = cursor.u32(what)
        if not 1 <= n_dims <= MAX_DIMS:
            raise LayoutError(f"{what} has {n_dims} dimensions, outside 1 to {MAX_DIMS}")
        dims = tuple(cursor.u64(what) for _ in range(n_dims))
        if 0 in dims or math.prod(dims) >= 1 << 63:
            raise LayoutError(f"{what} has the impossible dimensions {list(dims)}")
        raws.append(RawInfo(name, dims, cursor.u32(what), cursor.u64(what)))
    return raws


def alignment_of(metadata: Mapping[str, GGUFValue]) -> int:
    """Return `general.alignment`, or its default of 32. Raises LayoutError for a wrong type or value."""
    found = metadata.get("general.alignment")
    if found is None:
        return DEFAULT_ALIGNMENT
    value = found.value
    if found.type is not ValueType.U32 or not isinstance(value, int):
        raise LayoutError(f"general.alignment is of type {found.type_name} and not u32")
    if not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise LayoutError(f"general.alignment is {value}, not a power of two up to {MAX_ALIGNMENT}")
    return value


def read_head(cursor: Cursor) -> Head:
    """Read what follows magic and version: keys and tensor table. Raises LayoutError if the file cannot hold them."""
    n_tensors, n_keys = _counts(cursor)
    metadata = _metadata(cursor, n_keys)
    alignment = alignment_of(metadata)
    raws = _tensor_table(cursor, n_tensors)
    return Head(metadata, raws, alignment, -(-cursor.position // alignment) * alignment)


def map_file(path: str | os.PathLike[str]) -> Buffer:
    """Map a file for reading; an empty one is b"". Raises FormatError if it cannot be read or is no file."""
    place = Path(path)
    try:
        require_regular(place)  # before opening: opening a pipe would wait for a writer for ever
        with place.open("rb") as handle:
            try:
                return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # nothing to map: the file is empty
                return b""
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def let_go(data: Buffer | None) -> None:
    """Close a map; one that arrays still look into goes with the last of them."""
    if isinstance(data, mmap.mmap):
        with contextlib.suppress(BufferError):
            data.close()
