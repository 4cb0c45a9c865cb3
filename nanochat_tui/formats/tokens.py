"""Token files: a bare run of little-endian token ids, no header.

`u16` is ours (a GPT-2 id fits), `u32` the original's. The bytes do not say which, so the caller must: read as
the wrong one, a file is still a run of plausible numbers.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from nanochat_tui.files import atomic_write
from nanochat_tui.formats.errors import FormatError, unreadable
from nanochat_tui.formats.recognise import require_regular
from nanochat_tui.text import display_safe

TokenDtype = Literal["u16", "u32"]
DTYPES: dict[str, np.dtype[Any]] = {"u16": np.dtype("<u2"), "u32": np.dtype("<u4")}
_SCAN = 1 << 22
"""Ids looked at together when a file is checked: the scan stays within a few tens of megabytes."""


def _dtype(name: str) -> np.dtype[Any]:
    if name not in DTYPES:
        raise FormatError(f"a token file is u16 or u32, not {display_safe(str(name))}")
    return DTYPES[name]


def open_tokens(
    path: str | os.PathLike[str], dtype: TokenDtype, *, vocab_size: int | None = None
) -> np.memmap[Any, np.dtype[Any]]:
    """Map a token file: read-only, 1-D, uint16 or uint32; nothing is read until it is used.

    Parameters: vocab_size, if given, has the whole file read once to see that every id lies below it.
    Raises FormatError: unreadable, empty, a size that does not divide, or an id outside the vocabulary.
    """
    kind = _dtype(dtype)
    label = display_safe(str(path))
    try:
        require_regular(path)
        size = Path(path).stat().st_size
        if size == 0:
            raise FormatError(f"{label} holds no tokens; prepare the data again")
        if size % kind.itemsize:
            raise FormatError(
                f"{label} has {size} bytes, which is not a whole number of {dtype} tokens; "
                "it is cut short or of the other type"
            )
        tokens = np.memmap(path, dtype=kind, mode="r")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if vocab_size is not None:
        for start in range(0, tokens.size, _SCAN):
            piece = tokens[start : start + _SCAN]
            if int(piece.max()) >= vocab_size:
                where = start + int(np.argmax(piece >= vocab_size))
                raise FormatError(
                    f"{label} holds the id {int(tokens[where])} at position {where}, outside a vocabulary of "
                    f"{vocab_size}; it is of another tokenizer or not {dtype}"
                )
    return tokens


class TokenWriter:
    """Writes a token file piece by piece; the file appears, whole, when the `with` block ends well.

    Example: `with TokenWriter("train.bin", "u16") as out: out.write(ids)`.
    """

    def __init__(self, path: str | os.PathLike[str], dtype: TokenDtype, *, vocab_size: int | None = None) -> None:
        self._dtype = _dtype(dtype)
        self._limit = min(vocab_size or 1 << 32, 1 << (8 * self._dtype.itemsize))
        self._file = atomic_write(path)
        self._stack = contextlib.ExitStack()
        self._handle: Any = None
        self.count = 0
        """Tokens written so far."""

    def __enter__(self) -> Self:
        self._handle = self._stack.enter_context(self._file)
        return self

    def write(self, ids: ArrayLike) -> None:
        """Append ids: 1-D, any integer type. Raises FormatError if one does not fit."""
        values = np.asarray(ids)
        if values.size == 0:
            return
        if values.dtype.kind not in "iu" or values.ndim != 1:
            raise FormatError(f"token ids are a row of integers, not {values.dtype} of shape {list(values.shape)}")
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= self._limit:
            wrong = low if low < 0 else high
            raise FormatError(f"token id {wrong} lies outside 0 to {self._limit - 1}; use u32 or another tokenizer")
        self._handle.write(np.ascontiguousarray(values.astype(self._dtype)).data)
        self.count += values.size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
