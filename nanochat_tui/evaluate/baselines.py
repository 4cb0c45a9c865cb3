"""What predicts the same bytes without a network: compressors that have seen training text, and a 5-gram model.

A figure of bits per byte means little alone: these stand next to it.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError

_DICTIONARY = 1 << 27
_PPMD_ORDER = 12
_PPMD_MEMORY = 1 << 30


@dataclass(frozen=True)
class Baseline:
    """Bits per original byte of one method, and what it had read before."""

    name: str
    bits_per_byte: float
    primed: str


def _needs(package: str) -> UserError:
    return UserError(f"this baseline needs the package {package}; install it with: pip install 'nanochat-tui[eval]'")


def xz_size(text: bytes, before: bytes) -> int:
    """Bytes that `text` adds to the xz stream of `before` (preset 6, a dictionary of 128 MiB)."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": _DICTIONARY}]

    def size(data: bytes) -> int:
        return len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters))

    return size(before + text) - (size(before) if before else 0)


def zstd_size(text: bytes, before: bytes) -> int:
    """Bytes of `text` under zstd -19 with `before` as raw dictionary; UserError without the package."""
    try:
        import zstandard
    except ImportError:
        raise _needs("zstandard") from None
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
    prefix = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if before else None
    return len(zstandard.ZstdCompressor(compression_params=parameters, dict_data=prefix).compress(text))


def ppmd_size(text: bytes, before: bytes) -> int:
    """Bytes that `text` adds to the PPMd (variant H, order 12, 1 GiB) stream of `before`; UserError without pyppmd."""
    try:
        import pyppmd
    except ImportError:
        raise _needs("pyppmd") from None
    encoder = pyppmd.Ppmd7Encoder(_PPMD_ORDER, _PPMD_MEMORY)
    size = sum(len(encoder.encode(before[at : at + (1 << 20)])) for at in range(0, len(before), 1 << 20))
    total = size + len(encoder.encode(text)) + len(encoder.flush())
    return int(total - size)


_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def _hashes(tokens: NDArray[np.int64], order: int) -> NDArray[np.uint64]:
    """Hash of the `order` tokens that end at each position from order - 1 on; order 0 gives one constant each."""
    wide = tokens.astype(np.uint64) + np.uint64(1)
    count = len(tokens) - max(order, 1) + 1
    found = np.zeros(max(0, count), np.uint64)
    for offset in range(order):
        found = found * _MULTIPLIER + wide[offset : offset + len(found)]
        found ^= found >> np.uint64(29)
    return found


def _lookup(keys: NDArray[np.uint64], values: NDArray[np.int64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def kneser_ney(train: NDArray[np.int64], documents: list[NDArray[np.int64]], vocab: int, order: int = 5) -> float:
    """Nats of all tokens of `documents` but their first, under an interpolated Kneser-Ney model of `train`.

    One discount per order, n1 / (n1 + 2 n2) (Kneser & Ney 1995; interpolation as in Chen & Goodman 1998); below the
    highest order counts are numbers of different predecessors; at the bottom all `vocab` ids are equally likely. A
    context never runs over the beginning of a document; in `train` it may. n-grams are told apart by 64-bit hashes.
    """
    targets = np.concatenate([d[1:] for d in documents]) if documents else np.zeros(0, np.int64)
    position = np.concatenate([np.arange(1, len(d)) for d in documents]) if documents else targets
    probability = np.full(len(targets), 1.0 / vocab)
    for n in range(1, order + 1):
        context, gram = (
            np.concatenate([_ends(d, n - 1, 1) for d in documents]),
            np.concatenate([_ends(d, n, 0) for d in documents]),
        )
        known = position >= n - 1
        counts = _counts(train, n, continuation=n < order)
        grams, times, contexts, totals, kinds = counts
        n1, n2 = int((times == 1).sum()), int((times == 2).sum())
        discount = n1 / (n1 + 2 * n2) if n1 else 0.5
        own, total = _lookup(grams, times, gram), _lookup(contexts, totals, context)
        different = _lookup(contexts, kinds, context)
        seen = known & (total > 0)
        safe = np.maximum(total, 1)
        higher = np.maximum(own - discount, 0) / safe + discount * different / safe * probability
        probability = np.where(seen, higher, probability)
    return float(-np.log(probability).sum())


def _ends(document: NDArray[np.int64], order: int, shift: int) -> NDArray[np.uint64]:
    """Hashes of the `order` tokens before (shift 1) or up to (shift 0) each token but the first; 0 where too few."""
    found = np.zeros(len(document) - 1, np.uint64)
    if order == 0:
        return found
    hashes = _hashes(document, order)
    first = order - 1 + shift  # position of the target that the first hash belongs to
    wanted = np.arange(1, len(document))
    has = wanted >= first
    found[has] = hashes[wanted[has] - first]
    return found


def _counts(
    train: NDArray[np.int64], n: int, *, continuation: bool
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Sorted n-gram hashes and their counts; their contexts with the sum of counts and the number of n-grams."""
    grams = _hashes(train, n)
    context = _hashes(train, n - 1)[: len(grams)] if n > 1 else np.zeros(len(grams), np.uint64)
    if continuation:
        # one for every different (n + 1)-gram that ends in the n-gram
        _, first = np.unique(_hashes(train, n + 1), return_index=True)
        grams, context = grams[first + 1], context[first + 1]
    keys, first, times = np.unique(grams, return_index=True, return_counts=True)
    contexts, inverse = np.unique(context[first], return_inverse=True)
    totals = np.bincount(inverse, weights=times, minlength=len(contexts)).astype(np.int64)
    kinds = np.bincount(inverse, minlength=len(contexts)).astype(np.int64)
    return keys, times.astype(np.int64), contexts, totals, kinds


def compressors(text: bytes, before: bytes) -> Iterator[Baseline]:
    """Yield each compressor's figure for `text`, with and without `before` read first."""
    primed = f"{len(before) / 1e6:.0f} MB of training text"
    for name, size in (("xz -6", xz_size), ("zstd -19", zstd_size), (f"PPMd, order {_PPMD_ORDER}", ppmd_size)):
        yield Baseline(name, 8 * size(text, b"") / len(text), "nothing")
        if before:
            yield Baseline(name, 8 * size(text, before) / len(text), primed)


def kneser_ney_baseline(
    train: NDArray[np.int64], documents: list[NDArray[np.int64]], size: int, vocab: int
) -> Baseline:
    """The 5-gram's bits per byte of `size` original bytes."""
    bits = kneser_ney(train, documents, vocab) / math.log(2)
    return Baseline("Kneser-Ney, 5-gram", bits / size, f"{len(train):,} training tokens")
