"""Held-out and training documents as the text they were."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.baselines import Baseline, compressors, kneser_ney_baseline
from nanochat_tui.evaluate.held_out import Document, HeldOut
from nanochat_tui.model.shipped import shipped_tokenizer
from nanochat_tui.model.text import tabs_to_spaces


def load_tokenizer(given: Path | None, held_out: HeldOut) -> Tokenizer:
    """Read the tokenizer the data was made with. Raises `UserError` if it is another one."""
    path = given or held_out.tokenizer or shipped_tokenizer()
    if path is None or not path.is_file():
        raise UserError("there is no tokenizer; give the one the data was made with by --tokenizer")
    if held_out.tokenizer_sha256 not in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
        raise UserError("the data was made with another tokenizer; give that one by --tokenizer")
    return Tokenizer.from_file(str(path))


def document_text(ids: NDArray[np.int64], tokenizer: Tokenizer, indentation: int) -> str:
    """Text of a document without its end-of-text token."""
    return tabs_to_spaces(tokenizer.decode(ids[1:].tolist(), skip_special_tokens=False), indentation)


def documents_text(documents: Sequence[Document], tokenizer: Tokenizer, indentation: int) -> bytes:
    """Text of documents, one after the other, UTF-8."""
    return "".join(document_text(d.ids, tokenizer, indentation) for d in documents).encode()


def training_text(held_out: HeldOut, tokenizer: Tokenizer, tokens: int) -> tuple[bytes, NDArray[np.int64]]:
    """The first `tokens` training tokens, whole documents, as text and as ids; empty where there are none."""
    if held_out.train is None or not tokens:
        return b"", np.zeros(0, np.int64)
    ids = np.asarray(held_out.train[:tokens]).astype(np.int64)
    ends = np.flatnonzero(ids == held_out.end)
    if len(ids) == tokens and len(ends) > 1:
        ids = ids[: ends[-1]]
    parts = np.split(ids, np.flatnonzero(ids == held_out.end)[1:])
    return "".join(document_text(part, tokenizer, held_out.indentation) for part in parts).encode(), ids


def measure_baselines(
    held_out: HeldOut, documents: Sequence[Document], tokenizer: Tokenizer, training_tokens: int
) -> tuple[list[Baseline], int]:
    """Return what predicts `documents` without a network, and their bytes; `training_tokens` are read before."""
    text = documents_text(documents, tokenizer, held_out.indentation)
    before, train = training_text(held_out, tokenizer, training_tokens)
    found = list(compressors(text, before))
    if len(train):
        ids = [document.ids for document in documents]
        found.append(kneser_ney_baseline(train, ids, len(text), held_out.vocab_size))
    return found, len(text)
