"""Which file belongs to validation: by a hash of its path, so that the answer outlives changes elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence


def path_fraction(key: str, salt: str) -> float:
    """Return a number in [0, 1) that depends on a document's path and a salt only."""
    digest = hashlib.sha256(f"{salt}:{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def validation_files(
    keys: Sequence[str], shared: Mapping[int, float], fraction: float, max_shared: float
) -> tuple[set[int], int]:
    """Choose the validation files among `keys`.

    A file is a candidate if its path hashes below `fraction`; one that shares more than `max_shared` of its five-line
    windows (`shared`, by index) with another file stays in training, because it would measure memory. Where chance
    leaves a small corpus without any, the acceptable file with the lowest hash is taken.

    Returns the chosen indices and the number of candidates sent to training.
    """
    ranks = {index: path_fraction(keys[index], "validation-1") for index in shared}
    candidates = [index for index, rank in ranks.items() if rank < fraction]
    chosen = {index for index in candidates if shared[index] <= max_shared}
    moved = len(candidates) - len(chosen)
    if not chosen and fraction > 0 and len(shared) > 1:
        acceptable = [index for index in ranks if shared[index] <= max_shared]
        if acceptable:
            chosen = {min(acceptable, key=lambda index: (ranks[index], keys[index]))}
    return chosen, moved
