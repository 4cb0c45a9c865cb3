"""A strict GGUF reader that believes nothing the file claims until the file's size bears it out.

Format: ggml's docs/gguf.md, versions 2 and 3, little-endian. The file is mapped, never read whole; counts,
lengths and offsets are compared with the bytes that are left before anything is allocated for them.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf.header import (
    MAGIC,
    ORIGINAL_MAGIC,
    Buffer,
    Cursor,
    let_go,
    map_file,
    read_head,
)
from nanochat_tui.formats.gguf.layout import LayoutError, TensorInfo, resolve
from nanochat_tui.formats.i2_s_layouts import Layout, to_x86
from nanochat_tui.formats.recognise import HEAD_BYTES, recognise
from nanochat_tui.text import display_safe

_DECODE_BYTES = 1 << 22
"""Bytes decoded together, so that temporary arrays stay small next to the result."""
_CHECK_BYTES = 1 << 24
"""Bytes looked at together for numbers that are not finite."""


class GGUFFile:
    """An open GGUF file: its metadata and tensor table in memory, its data mapped.

    Use it as a context manager or call `close`. Arrays from `raw` and `blocks` stay valid after closing; they
    keep the map alive. Cutting a file short while it is mapped kills the process, as with any map.
    """

    _i2_s_layout: Layout = "x86"

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
                "not valid GGUF, so convert it: nanochat-tui convert FILE OUT.gguf --mhc FILE.mhc"
            )
        if magic != MAGIC:
            what = recognise(bytes(data[:HEAD_BYTES]))
            raise FormatError(
                f"{label} is not a GGUF file: it is {what}"
                if what
                else f"{label} is not a GGUF file (its first bytes are {magic.hex(' ')}); check which file was given"
            )
        try:
            self._parse(Cursor(data), label)
        except LayoutError as error:
            raise FormatError(f"{label} is not a sound GGUF file: {error}; fetch or export the file again") from None
        self._data: Buffer | None = data

    def _parse(self, cursor: Cursor, label: str) -> None:
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
        self.metadata, raws, self.alignment, self.data_start = read_head(cursor)
        self.tensors: dict[str, TensorInfo] = resolve(raws, self.data_start, cursor.size, self.alignment)
        """Tensors by name, in the file's order."""

    def set_i2_s_layout(self, layout: Layout) -> None:
        """Say in which order the file's I2_S tensors have their codes, which nothing in it tells.

        Raises FormatError if it has no such tensor.
        """
        if not any(info.type.name == "I2_S" for info in self.tensors.values()):
            name = display_safe(self.path.name) if self.path else "the GGUF data"
            raise FormatError(f"{name} has no I2_S tensors, so their layout has no place here")
        self._i2_s_layout = layout

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
        """Return a tensor's blocks, uint8 [n_blocks, block_bytes]: a read-only view of the map, or reordered to the
        x86 layout of I2_S if `set_i2_s_layout` named another.

        Blocks of a row are consecutive; what follows the last one, `tail` returns.
        Raises FormatError if it is absent or its type's layout is not known.
        """
        info = self.tensor(name)
        if not info.type.is_known:
            raise FormatError(f"tensor {display_safe(name)} is of {info.type.refusal}")
        end = info.nbytes - info.type.tail_bytes
        found = self.raw(name)[:end].reshape(-1, info.type.block_bytes)
        if info.type.name == "I2_S" and self._i2_s_layout != "x86":
            return to_x86(found, self._i2_s_layout, info.shape[-1])
        return found

    def tail(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes behind a tensor's blocks, uint8 [tail_bytes]; most types have none."""
        info = self.tensor(name)
        return self.raw(name)[info.nbytes - info.type.tail_bytes :]

    def release(self, name: str) -> None:
        """Give back the memory that a tensor's bytes take: they stay mapped, and are read again when looked at."""
        info = self.tensor(name)
        if isinstance(self._data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._data.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

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

    def is_finite(self, name: str) -> bool:
        """Whether no number of a tensor is NaN or infinite, told by its floats or the scales of its blocks.

        Raises FormatError as `array` does.
        """
        kind = self.tensor(name).type
        if not kind.is_decodable:
            raise FormatError(f"tensor {display_safe(name)} is of {kind.refusal}")
        if kind.tail_bytes:
            return bool(np.isfinite(np.ascontiguousarray(self.tail(name)[:4]).view("<f4")).all())
        blocks = self.blocks(name)
        step = max(1, _CHECK_BYTES // kind.block_bytes)
        for start in range(0, len(blocks), step):
            if not kind.is_finite(blocks[start : start + step]):
                return False
            self.release(name)
        return True

    def close(self) -> None:
        """Let go of the file; the map itself goes with the last array that looks into it."""
        data, self._data = self._data, None
        let_go(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Map and parse a GGUF file, version 2 or 3. Raises FormatError if it is unreadable, damaged or lying."""
    data = map_file(path)
    try:
        return GGUFFile(data, Path(path))
    except BaseException:
        let_go(data)
        raise
