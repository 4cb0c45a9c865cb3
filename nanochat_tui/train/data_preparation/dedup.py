"""Exact and near duplicates, by hashes alone: no text is kept in memory.

Two kinds of near duplicate are found. A file is one if its windows of five successive code lines (blank and comment
lines left out, indentation ignored) are for the most part in the corpus already; and if its words, numbers folded,
are those of a file that is there (`minhash`). The order of the files decides who wins: the first one stays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

WINDOW = 5
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

_HASH_COMMENTS = frozenset({".py", ".pyi", ".sh", ".rb", ".pl", ".r", ".jl", ".toml", ".yaml", ".yml", ".nim", ".ex"})


def content_digest(text: str) -> bytes:
    """Return 16 bytes that are equal for texts which differ in white space only."""
    return hashlib.blake2b(re.sub(r"\s+", " ", text).strip().encode(), digest_size=16).digest()


class _Hashes(dict[str, int]):
    """Hash of each item, made once: the words of one file are those of the next."""

    most = 1 << 19

    def __missing__(self, item: str) -> int:
        if len(self) >= self.most:
            self.clear()
        found = self[item] = int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), "little")
        return found


_LINES, _WORDS = _Hashes(), _Hashes()


def window_hashes(items: Sequence[str], width: int, known: dict[str, int] = _WORDS) -> Hashes:
    """Hash every window of `width` successive items (lines, words).

    Returns uint64 [max(1, items - width + 1)], in order, repeats included; fewer items than `width` make one window.
    """
    hashes = np.fromiter(map(known.__getitem__, items), np.uint64, len(items))
    count = max(1, len(items) - width + 1)
    windows = np.zeros(count, np.uint64)
    for offset in range(min(width, len(items))):
        windows = windows * _MULTIPLIER + hashes[offset : offset + count]
        windows ^= windows >> np.uint64(29)
    return windows


def line_windows(text: str, suffix: str = ".rs") -> Hashes:
    """Hash every window of five successive code lines of `text`.

    Returns uint64 [max(1, code lines - 4)], in order, repeats included. Comment lines (`//`, or `#` where `suffix` is
    of a language that writes them so) do not count, unless the file has no other lines.
    """
    lines = [line for raw in text.split("\n") if (line := raw.strip())]
    comment = "#" if suffix.lower() in _HASH_COMMENTS else "//"
    code = [line for line in lines if not line.startswith(comment)] or lines or [""]
    return window_hashes(code, WINDOW, _LINES)


class WindowIndex:
    """The windows of a list of files, renumbered densely so that sets of them are plain boolean arrays.

    `ids[f]` is int64 [windows of file f], values in 0..size-1.
    """

    def __init__(self, windows: list[Hashes]) -> None:
        borders = np.cumsum([len(w) for w in windows])[:-1]
        unique, inverse = np.unique(np.concatenate(windows) if windows else np.zeros(0, np.uint64), return_inverse=True)
        self.size = len(unique)
        self.ids: list[npt.NDArray[np.int64]] = np.split(inverse, borders) if windows else []

    def near_duplicates(self, limit: float, held_out: Collection[int] = (), held_limit: float = 1.0) -> list[bool]:
        """Say of every file, in order, whether more than `limit` of its windows are in files kept before it.

        A file that is not one of `held_out` may share at most `held_limit` of its windows with those.
        """
        seen, held = np.zeros(self.size, bool), np.zeros(self.size, bool)
        dropped: list[bool] = []
        for file, ids in enumerate(self.ids):
            is_held = file in held_out
            duplicate = bool(seen[ids].mean() > limit or (not is_held and held[ids].mean() > held_limit))
            dropped.append(duplicate)
            if not duplicate:
                seen[ids] = True
                if is_held:
                    held[ids] = True
        return dropped

    def shared(self, files: list[int]) -> dict[int, float]:
        """Return for each of `files` the share of its distinct windows that another of `files` holds, too."""
        holders = np.zeros(self.size, np.int32)
        distinct = {f: np.unique(self.ids[f]) for f in files}
        for ids in distinct.values():
            holders[ids] += 1
        return {f: float((holders[ids] > 1).mean()) for f, ids in distinct.items()}
