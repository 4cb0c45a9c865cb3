"""Near duplicates by MinHash (Broder 1997): the share of word 5-grams two files have in common, estimated.

Numbers are folded to `0` and white space does not count, so that `dep_1` and `dep_2` of a generated set are one word.
Written here because the shingles are hashed in NumPy already, for which the libraries would bring SciPy.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from nanochat_tui.train.data_preparation.dedup import Hashes, window_hashes

SHINGLE = 5
PERMUTATIONS = 128
BANDS = 32
"""Bands of four values: two files of similarity 0.7 share one with probability 1 - (1 - 0.7^4)^32 = 0.9998."""

Signature = npt.NDArray[np.uint32]

_WORD = re.compile(r"\w+|[^\w\s]")
_NUMBER = re.compile(r"\d+")

_random = np.random.default_rng(20_261_130)
_FACTORS = _random.integers(1, 1 << 63, (PERMUTATIONS, 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_TERMS = _random.integers(0, 1 << 63, (PERMUTATIONS, 1), dtype=np.uint64)


def shingles(text: str) -> Hashes:
    """Hash the distinct word 5-grams of `text` with its numbers folded; uint64, sorted."""
    return np.unique(window_hashes(_WORD.findall(_NUMBER.sub("0", text)), SHINGLE))


def signature(hashes: Hashes) -> Signature:
    """Return the MinHash values of a set of shingles, uint32 [PERMUTATIONS].

    Each permutation is a multiply-add on 64 bits of which the upper 32 are kept (Dietzfelbinger et al. 1997).
    """
    values = np.full(PERMUTATIONS, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(hashes), 4096):
        mixed = (_FACTORS * hashes[start : start + 4096] + _TERMS) >> np.uint64(32)
        values = np.minimum(values, mixed.min(axis=1).astype(np.uint32))
    return values


class MinHashIndex:
    """Signatures of the files kept so far, found by their bands (locality-sensitive hashing)."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.kept: list[Signature] = []
        self.bands: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]

    def _keys(self, values: Signature) -> list[bytes]:
        return [part.tobytes() for part in values.reshape(BANDS, -1)]

    def seen(self, values: Signature) -> bool:
        """Say whether a file added before has an estimated similarity of at least the threshold."""
        candidates: set[int] = set()
        for band, key in zip(self.bands, self._keys(values), strict=True):
            candidates.update(band.get(key, ()))
        return any(float((self.kept[other] == values).mean()) >= self.threshold for other in candidates)

    def add(self, values: Signature) -> None:
        """Remember a file."""
        number = len(self.kept)
        self.kept.append(values)
        for band, key in zip(self.bands, self._keys(values), strict=True):
            band.setdefault(key, []).append(number)
