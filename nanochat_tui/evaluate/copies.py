"""How much of held-out text is in the training text, too, and what a model is worth on the rest.

Long runs of tokens that training text holds word for word (copies of code and comments) can be recalled; short ones
that dozens of crates hold are the language's common turns of phrase, and no fault of a split.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.held_out import Document, HeldOut
from nanochat_tui.evaluate.scoring import Scored
from nanochat_tui.evaluate.summary import Figure, ratio
from nanochat_tui.formats.ngrams import ngram_cover, ngram_owners
from nanochat_tui.model.tokenizer.codec import TextCodec
from nanochat_tui.text import display_safe

COPY = 32
"""Tokens of a run that counts as copied: about three lines of code."""
SHORT = 13
FEW, COMMON = 2, 5
"""Crates that hold an n-gram: up to two stand for a copy, five and more for a common turn of phrase."""


@dataclass(frozen=True)
class Overlap:
    """Shares of a crate's tokens (or of all) that training text covers."""

    crate: str
    tokens: int
    covered: float
    """In a 13-gram of training."""
    few: float
    """In one that at most two training crates hold."""
    common: float
    """In one that at least five training crates hold."""
    copied: float
    """In a 32-gram of training."""


@dataclass(frozen=True)
class WithoutCopies:
    """Bits per byte on the tokens outside runs of `COPY` tokens that training text holds, with their share."""

    run: int
    copied: float
    bits_per_byte: Figure


def _training(held_out: HeldOut) -> NDArray[Any]:
    if held_out.train is None:
        raise UserError("the folder has no train.bin to compare with; give the whole folder that prepare-data wrote")
    return held_out.train


def mark_copies(held_out: HeldOut, documents: Sequence[Document], run: int = COPY) -> list[NDArray[np.bool_]]:
    """Mark each document's tokens that lie in a run of `run` tokens which training text holds; bool [tokens].

    Raises UserError without training tokens.
    """
    train = _training(held_out)
    flat = np.concatenate([document.ids for document in documents])
    cover = ngram_cover(flat, train, run)
    return np.split(cover, np.cumsum([len(document.ids) for document in documents])[:-1])


def token_sizes(tokenizer: Tokenizer, vocab: int, indentation: int) -> NDArray[np.int64]:
    """Original bytes of each id, int64 [vocab]: a tab stands for `indentation` spaces, where that is not 0."""
    codec = TextCodec(tokenizer, None, None, add_bos=False)
    texts = [codec.token_bytes(i) for i in range(min(vocab, tokenizer.get_vocab_size(with_added_tokens=True)))]
    sizes = np.zeros(vocab, np.int64)
    sizes[: len(texts)] = [len(text) + max(0, indentation - 1) * text.count(b"\t") for text in texts]
    return sizes


def without_copies(
    scored: Sequence[Scored], copies: Sequence[NDArray[np.bool_]], sizes: NDArray[np.int64], run: int = COPY
) -> WithoutCopies:
    """Average over the targets that `copies` (as from `mark_copies`) leaves, errors over crates.

    A document's bytes are shared out over its targets by `sizes`. Text that training holds is easy text as well, so the
    figure is what a model is worth on what is new, and no estimate of the whole had nothing been copied.
    """
    bits: dict[str, float] = {}
    size: dict[str, float] = {}
    left = total = 0
    for one, marked in zip(scored, copies, strict=True):
        keep = ~marked[1:]
        own = sizes[one.targets].astype(float)
        share = one.document.size / max(own.sum(), 1.0)
        crate = one.document.crate
        bits[crate] = bits.get(crate, 0.0) + float(one.nats[keep].sum()) / math.log(2)
        size[crate] = size.get(crate, 0.0) + float(own[keep].sum() * share)
        left, total = left + int(keep.sum()), total + len(keep)
    return WithoutCopies(run, 1 - left / max(total, 1), ratio(list(bits.values()), list(size.values())))


def training_crates(folder: Path, held_out: HeldOut) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the documents of train.bin begin and the number of each one's crate, both int64 [documents].

    Raises UserError if files.tsv does not tell.
    """
    train = _training(held_out)
    blocks = range(0, len(train), 1 << 22)
    starts = np.concatenate([np.flatnonzero(train[at : at + (1 << 22)] == held_out.end) + at for at in blocks])
    try:
        with (folder / "files.tsv").open(encoding="utf-8", newline="") as file:
            rows = [r for r in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if r["split"] == "train"]
        sizes = np.array([int(row["tokens"]) for row in rows])
        names = [row["crate"] or row["source"] for row in rows]
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{display_safe(str(folder))} has no files.tsv that can be read; prepare the data again"
        ) from None
    if not np.array_equal(np.diff(np.append(starts, len(train))), sizes):
        raise UserError(f"files.tsv in {display_safe(str(folder))} does not list train.bin; prepare the data again")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return starts, np.array([numbers[name] for name in names], np.int64)


def overlaps(folder: Path, held_out: HeldOut) -> list[Overlap]:
    """Shares for all held-out documents (crate ''), then for each crate, the most covered first. Raises UserError."""
    train = _training(held_out)
    starts, owners = training_crates(folder, held_out)
    flat = np.concatenate([document.ids for document in held_out.documents])
    held = ngram_owners(flat, train, starts, owners, SHORT)
    copied = ngram_cover(flat, train, COPY)
    crates = np.concatenate([np.full(len(d.ids), d.crate) for d in held_out.documents])

    def row(crate: str, at: NDArray[np.bool_]) -> Overlap:
        n = held[at]
        few = (n > 0) & (n <= FEW)
        shares = [float(part.mean()) for part in (n > 0, few, n >= COMMON, copied[at])]
        return Overlap(crate, len(n), *shares)

    everything = row("", np.ones(len(flat), bool))
    by_crate = sorted((row(str(c), crates == c) for c in np.unique(crates)), key=lambda r: -r.covered)
    return [everything, *by_crate]
