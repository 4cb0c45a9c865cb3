"""Arrays for machine code: where they begin, and how large pages they lie in."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Bytes: a cache line, and one load of the widest kernel."""


HUGE_PAGE, PIECE_BYTES = 1 << 21, 1 << 26


def aligned(shape: int | tuple[int, ...], dtype: Any, fill: float | None = None) -> NDArray[Any]:
    """Return an array that begins on a cache line, uninitialised or filled."""
    count = math.prod(shape) if isinstance(shape, tuple) else shape
    kind = np.dtype(dtype)
    raw = np.empty(count * kind.itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    made: NDArray[Any] = raw[start : start + count * kind.itemsize].view(kind).reshape(shape)
    if fill is not None:
        made[...] = fill
    return made


def lasting(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return an uninitialised array that begins on a cache line, for weights, which stay as long as their model.

    Weights lie side by side in pieces of memory so large that NumPy asks for huge pages, which a matrix of a few
    megabytes by itself would not fill: reading gigabytes a second through small ones costs a twentieth of the speed.
    A piece is given back when all arrays in it are gone.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw, start = _piece.take(size) if size < PIECE_BYTES else _new_piece(size)
    made: NDArray[Any] = raw[start : start + size].view(dtype).reshape(shape)
    return made


def _new_piece(size: int) -> tuple[NDArray[np.uint8], int]:
    """Return bytes, and where a huge page with `size` of them behind it begins."""
    raw = np.empty(size + HUGE_PAGE, np.uint8)
    return raw, -raw.ctypes.data % HUGE_PAGE


class _Piece:
    """The piece that is being filled, and how many bytes of it are in use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._raw: weakref.ref[NDArray[np.uint8]] | None = None
        self._end = self._used = 0

    def take(self, size: int) -> tuple[NDArray[np.uint8], int]:
        """Return a piece, and where `size` bytes of it begin that are not in use."""
        with self._lock:
            raw = self._raw() if self._raw is not None else None
            if raw is None or self._used + size > self._end:
                raw, self._used = _new_piece(PIECE_BYTES)
                self._raw, self._end = weakref.ref(raw), self._used + PIECE_BYTES
            start, self._used = self._used, self._used + round_up(size, ALIGNMENT)
            return raw, start


_piece = _Piece()


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple that is at least n."""
    return -(-n // multiple) * multiple
