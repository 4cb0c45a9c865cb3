"""Held-out documents of a folder that prepare-data wrote, or of plain text files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError
from nanochat_tui.formats.tokens import open_tokens
from nanochat_tui.text import display_safe


@dataclass(frozen=True)
class Document:
    """One held-out document: its tokens, the first being the end-of-text token, and its original size in bytes."""

    ids: NDArray[np.int64]
    size: int
    crate: str
    path: str


@dataclass(frozen=True)
class HeldOut:
    """Documents and how their tokens were made."""

    documents: tuple[Document, ...]
    indentation: int
    vocab_size: int
    tokenizer_sha256: str | None
    train: NDArray[Any] | None
    """Training tokens of the same folder (memory-mapped), for baselines."""
    end: int
    tokenizer: Path | None
    """The tokenizer.json that came with the data."""

    @property
    def size(self) -> int:
        """Original bytes of all documents."""
        return sum(document.size for document in self.documents)


def _description(folder: Path) -> dict[str, Any]:
    try:
        loaded = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        loaded = None
    if not isinstance(loaded, dict):
        raise UserError(
            f"{display_safe(str(folder))} has no dataset.json that can be read; give a folder made by "
            "nanochat-train prepare-data"
        )
    return loaded


def open_held_out(folder: Path) -> HeldOut:
    """Open the validation part of a data folder, document by document.

    Raises:
        UserError: the folder is none of prepare-data's, holds no validation part, or its files do not agree.
    """
    label = display_safe(str(folder))
    if not folder.is_dir():
        raise UserError(f"{label} is not a folder; give one made by nanochat-train prepare-data")
    info = _description(folder)
    try:
        rows = json.loads((folder / "val_documents.json").read_text(encoding="utf-8"))
        tokens = open_tokens(folder / "val.bin", info["dtype"], vocab_size=int(info["vocab_size"]))
        documents = []
        for row in rows:
            start, count = int(row["start"]), int(row["tokens"])
            if not 0 <= start <= start + count <= tokens.size:
                raise ValueError("a document outside val.bin")
            crate = str(row.get("crate") or row["source"])
            ids = np.asarray(tokens[start : start + count]).astype(np.int64)
            documents.append(Document(ids, int(row["bytes"]), crate, str(row["path"])))
        train_path = folder / "train.bin"
        train = open_tokens(train_path, info["dtype"]) if train_path.is_file() and train_path.stat().st_size else None
        found = HeldOut(
            tuple(documents),
            int(info["transform"]["indentation"]),
            int(info["vocab_size"]),
            info.get("tokenizer_sha256"),
            train,
            int(info["eot_id"]),
            tokenizer if (tokenizer := folder / "tokenizer.json").is_file() else None,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the validation part of {label} is damaged ({error}); prepare the data again") from None
    if not found.documents:
        raise UserError(f"{label} holds no validation documents; prepare the data with a validation part")
    return found


def choose(documents: Sequence[Document], tokens: int | None) -> list[Document]:
    """Choose whole documents of about `tokens` tokens, evenly spread over the list; all of them for None."""
    total = sum(len(document.ids) for document in documents)
    if tokens is None or tokens >= total:
        return list(documents)
    chosen: list[Document] = []
    taken = passed = 0
    for document in documents:
        passed += len(document.ids)
        if taken < passed * tokens / total:
            chosen.append(document)
            taken += len(document.ids)
    return chosen
