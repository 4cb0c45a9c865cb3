"""A strict GGUF reader that believes nothing the file claims until the file's size bears it out.

Format: ggml's docs/gguf.md, versions 2 and 3, little-endian. The file is mapped, never read whole; counts,
lengths and offsets are compared with the bytes that are left before anything is allocated for them.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import display_safe
from nanochat_tui.formats.errors import FormatError, unreadable
from nanochat_tui.formats.gguf_layout import LayoutError, RawInfo, TensorInfo, resolve
from nanochat_tui.formats.gguf_values import FIXED, GGUFValue, ValueType

MAGIC = b"GGUF"
ORIGINAL_MAGIC = b"GUGF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 255
MAX_DIMS = 4
MAX_STRINGS = 1 << 24
"""Entries of one string array: sixty times the largest vocabulary known; keeps the walk over it short."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_DECODE_BYTES = 1 << 22
"""Bytes decoded together, so that temporary arrays stay small beside the result."""

Buffer = mmap.mmap | bytes


class _Cursor:
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
        """Read `count` strings. One loop without calls of our own: a vocabulary has 100,000 of them."""
        data, size, position, unpack = self.data, self.size, self.position, _U64.unpack_from
        found: list[str] = []
        append = found.append
        try:
            for _ in range(count):
                start = position + 8
                (length,) = unpack(data, position)
                position = start + length
                if position > size:
                    raise LayoutError(f"{what} runs past the end of the file")
                append(str(data[start:position], "utf-8"))
        except struct.error:
            raise LayoutError(f"{what} runs past the end of the file") from None
        except UnicodeDecodeError:
            raise LayoutError(f"{what} holds text that is not UTF-8") from None
        self.position = position
        return found


def _value(cursor: _Cursor, what: str) -> GGUFValue:
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


def _array(cursor: _Cursor, what: str) -> GGUFValue:
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


def _metadata(cursor: _Cursor, count: int) -> dict[str, GGUFValue]:
    metadata: dict[str, GGUFValue] = {}
    for index in range(count):
        key = cursor.text(f"the name of key {index}", MAX_KEY_BYTES)
        if not key or key in metadata:
            raise LayoutError(f"the key {display_safe(key)!r} {'appears twice' if key else 'has no name'}")
        metadata[key] = _value(cursor, f"the key {display_safe(key)}")
    return metadata


def _tensor_table(cursor: _Cursor, count: int) -> list[RawInfo]:
    raws: list[RawInfo] = []
    names: set[str] = set()
    for index in range(count):
        name = cursor.text(f"the name of tensor {index}", MAX_NAME_BYTES)
        if not name or name in names:
            raise LayoutError(f"the tensor {display_safe(name)!r} {'appears twice' if name else 'has no name'}")
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


class GGUFFile:
    """An open GGUF file: its metadata and tensor table in memory, its data mapped.

    Use it as a context manager or call `close`. Arrays from `raw` and `blocks` stay valid after closing; they
    keep the map alive. Cutting a file short while it is mapped kills the process, as with any map.
    """

    def __init__(self, data: Buffer, path: Path | None = None) -> None:
        """Parse a mapped file, or bytes. Raises FormatError."""
        self.path = path
        self.size = len(data)
        """Bytes of the file."""
        label = display_safe(str(path)) if path else "the GGUF data"
        magic = bytes(data[:4])
        if magic == ORIGINAL_MAGIC:
            raise FormatError(
                f"{label} begins with GUGF, as files of the original nanochat-rs-ternary do; they are "
                "not valid GGUF and cannot be read, so export the model again with `nanochat-train export`"
            )
        if magic != MAGIC:
            raise FormatError(f"{label} is not a GGUF file (it begins with {magic!r}); check which file was given")
        try:
            self._parse(_Cursor(data), label)
        except LayoutError as error:
            raise FormatError(f"{label} is not a sound GGUF file: {error}; fetch or export the file again") from None
        self._data: Buffer | None = data

    def _parse(self, cursor: _Cursor, label: str) -> None:
        cursor.skip(4, "the header")
        self.version = cursor.u32("the header")
        if self.version not in (2, 3):
            if self.version and self.version & 0xFFFF == 0:
                reason = "is big-endian; convert it to little-endian with gguf_convert_endian"
            elif self.version == 1:
                reason = "is GGUF version 1, which was given up in 2023; convert the model again"
            else:
                reason = f"is GGUF version {self.version} and only 2 and 3 are known; update this program"
            raise FormatError(f"{label} {reason}")
        n_tensors = cursor.u64("the header")
        n_keys = cursor.u64("the header")
        # the least of a tensor: a letter of name, n_dims, one dim, type, offset; of a key: a letter, type, value
        for what, count, smallest in (("tensors", n_tensors, 33), ("keys", n_keys, 14)):
            if count > (cursor.size - cursor.position) // smallest:
                raise LayoutError(f"it claims {count} {what}, more than the file can hold")
        self.metadata = _metadata(cursor, n_keys)
        """Values by key, in the file's order."""
        self.alignment = alignment_of(self.metadata)
        raws = _tensor_table(cursor, n_tensors)
        self.data_start = -(-cursor.position // self.alignment) * self.alignment
        self.tensors: dict[str, TensorInfo] = resolve(raws, self.data_start, cursor.size, self.alignment)
        """Tensors by name, in the file's order."""

    def tensor(self, name: str) -> TensorInfo:
        """Return a tensor's description. Raises FormatError if the file has no such tensor."""
        try:
            return self.tensors[name]
        except KeyError:
            where = display_safe(str(self.path)) if self.path else "the GGUF data"
            raise FormatError(f"{where} has no tensor {display_safe(name)}; it is incomplete") from None

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes, uint8 [nbytes], a view of the map. Raises FormatError if it is absent."""
        info = self.tensor(name)
        if self._data is None:
            raise RuntimeError("this GGUF file was closed")
        return np.frombuffer(self._data, np.uint8, info.nbytes, info.offset)

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's blocks, uint8 [n_blocks, block_bytes]: a read-only view of the map.

        Blocks of a row are consecutive; what follows the last one, `tail` returns.
        Raises FormatError if it is absent or its type's layout is not known.
        """
        info = self.tensor(name)
        if not info.type.is_known:
            raise FormatError(f"tensor {display_safe(name)} is of {info.type.refusal}")
        end = info.nbytes - info.type.tail_bytes
        return self.raw(name)[:end].reshape(-1, info.type.block_bytes)

    def tail(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes behind a tensor's blocks, uint8 [tail_bytes]; most types have none."""
        info = self.tensor(name)
        return self.raw(name)[info.nbytes - info.type.tail_bytes :]

    def array(self, name: str) -> NDArray[np.float32]:
        """Return a tensor decoded: a new float32 array of its shape. Raises FormatError as `blocks` does."""
        info = self.tensor(name)
        blocks, tail = self.blocks(name), self.tail(name)
        if not info.type.is_decodable:
            raise FormatError(f"tensor {display_safe(name)} is of {info.type.refusal}")
        step = max(1, _DECODE_BYTES // info.type.block_bytes)
        if len(blocks) <= step:
            return info.type.decode(blocks, tail).reshape(info.shape)
        out = np.empty((len(blocks), info.type.block_elements), dtype=np.float32)
        for start in range(0, len(blocks), step):
            out[start : start + step] = info.type.decode(blocks[start : start + step], tail)
        return out.reshape(info.shape)

    def close(self) -> None:
        """Let go of the file; the map itself goes with the last array that looks into it."""
        data, self._data = self._data, None
        if isinstance(data, mmap.mmap):
            with contextlib.suppress(BufferError):  # arrays still look into it
                data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Map and parse a GGUF file, version 2 or 3. Raises FormatError if it is unreadable, damaged or lying."""
    place = Path(path)
    try:
        # asked before opening: opening a pipe would wait for a writer for ever
        if not stat.S_ISREG(place.stat().st_mode):
            raise FormatError(f"{display_safe(str(path))} is not a file; give the path of a .gguf file")
        with place.open("rb") as handle:
            try:
                data: Buffer = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # nothing to map: the file is empty
                data = b""
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    try:
        return GGUFFile(data, place)
    except BaseException:
        if isinstance(data, mmap.mmap):
            with contextlib.suppress(BufferError):
                data.close()
        raise
