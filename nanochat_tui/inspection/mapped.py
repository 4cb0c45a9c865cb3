"""Letting go of parts of a mapped file, so that a pass over a large one does not count as memory of this process."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE


def forget(view: NDArray[Any]) -> None:
    """Tell the system that the pages under a contiguous view of a mapped file will not be needed soon.

    What is read there again comes from the file (or the system's cache of it), so this is never wrong. Does nothing for
    arrays that are not such views, and on systems that cannot be told.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    base: Any = view
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if advice is None or not isinstance(base, mmap.mmap) or not view.nbytes or not view.flags.c_contiguous:
        return
    start = view.ctypes.data - np.frombuffer(base, np.uint8, 1).ctypes.data
    first = -(-start // PAGE) * PAGE  # whole pages of the view only: the others hold neighbours too
    last = (start + view.nbytes) // PAGE * PAGE
    if last > first:
        base.madvise(advice, first, last - first)
