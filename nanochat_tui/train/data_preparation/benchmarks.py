"""Texts of evaluations must not be trained on: files that hold 13 successive words of one are found.

Words are runs of letters and digits in lower case, as in the contamination study of GPT-3 (Brown et al. 2020, C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from nanochat_tui.train.data_preparation.dedup import Hashes, window_hashes

NGRAM = 13
_WORD = re.compile(r"[a-z0-9]+")
_LEAST_WORDS = 6


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def ngram_hashes(texts: Iterable[str]) -> Hashes:
    """Hash the 13-grams of `texts`; uint64, sorted.

    Left out are those of fewer than six different words or of numbers for the most part: rows of a table and literals,
    which say nothing about where a text is from.
    """
    found: list[Hashes] = [np.zeros(0, np.uint64)]
    for text in texts:
        words = _words(text)
        if len(words) < NGRAM:
            continue
        telling = [
            len(set(part)) >= _LEAST_WORDS and sum(word.isdigit() for word in part) <= NGRAM // 2
            for part in (words[at : at + NGRAM] for at in range(len(words) - NGRAM + 1))
        ]
        found.append(window_hashes(words, NGRAM)[np.array(telling)])
    return np.unique(np.concatenate(found))


def holds_any(text: str, hashes: Hashes) -> bool:
    """Say whether `text` holds one of the 13-grams of `hashes`."""
    if not len(hashes):
        return False
    words = _words(text)
    if len(words) < NGRAM:
        return False
    own = window_hashes(words, NGRAM)
    at = np.minimum(np.searchsorted(hashes, own), len(hashes) - 1)
    return bool((hashes[at] == own).any())
