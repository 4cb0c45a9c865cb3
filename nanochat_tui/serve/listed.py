"""The files that a server with several models lists, and what their headers say before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat_tui.engine.generate.memory_forecast import LEAST_CONTEXT, Forecast, forecast
from nanochat_tui.engine.layout.slots import PAGE
from nanochat_tui.engine.run.paging import PagePool
from nanochat_tui.errors import UserError
from nanochat_tui.hub.choice import RepoFile, candidates
from nanochat_tui.model.chat.families import chat_format
from nanochat_tui.model.shards import open_model
from nanochat_tui.model.support import require_described
from nanochat_tui.serve.loading import ModelFiles
from nanochat_tui.text import display_safe

DEEPEST = 3
"""Folders below the models' folder that are looked into."""
MOST = 1000
"""Files that are listed."""
CACHE_SHARE = 4
"""The part of the budget that one model's key-value cache may have: a quarter, as with a single model."""


@dataclass(frozen=True, slots=True)
class Peek:
    """What a header says: memory that the model will take, positions of its cache, and its card's `meta`."""

    memory: Forecast
    kv_tokens: int
    meta: dict[str, Any]


def find_files(folder: Path) -> dict[str, Path]:
    """Return the models below a folder by name: the path without `.gguf`, of a split model without its numbers.

    Raises UserError if the folder cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {display_safe(str(folder))}; give one with GGUF files.")
    found: list[RepoFile] = []
    for here, folders, names in os.walk(folder):
        below = Path(here).relative_to(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and len(below.parts) < DEEPEST)
        for name in sorted(names):
            if name.lower().endswith(".gguf") and len(found) < MOST:
                found.append(RepoFile((below / name).as_posix(), 0))
    return {each.name[: -len(".gguf")]: folder.joinpath(*each.files[0].name.split("/")) for each in candidates(found)}


def by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """Return single files by their names without the ending. Raises UserError if two have the same."""
    found: dict[str, Path] = {}
    for path in paths:
        name = display_safe(path.stem)
        if name in found:
            raise UserError(f"two models would be called {name}; rename one of them, or put them into folders")
        found[name] = path
    return found


def peek(files: ModelFiles, budget: int) -> Peek:
    """Return what a model's header says. budget: bytes that all models may take. Raises UserError or OSError."""
    with open_model(files.path) as file:
        shape = require_described(file)
        pages = max(1, PagePool(shape, 0, files.kv).page_bytes)
        context = shape.context_length
        room = budget // CACHE_SHARE // pages * PAGE
        tokens = files.kv_tokens or max(min(context, LEAST_CONTEXT), min(files.max_sequences * context, room))
        memory = forecast(
            file,
            shape,
            None,
            files.kv,
            as_float=files.activations == "float",
            available=budget,
            kv_tokens=tokens,
            sequences=files.max_sequences,
        )
        chats = files.chat_template is not None or chat_format(file.metadata) is not None
    meta = {
        "n_vocab": shape.vocab_size,
        "n_ctx_train": context,
        "n_ctx": min(context, tokens),
        "n_embd": shape.dim,
        "n_params": shape.parameters,
        "chat_template": chats,
    }
    return Peek(memory, tokens, meta)


def with_cache(files: ModelFiles, seen: Peek) -> ModelFiles:
    """Return the files with the size of the cache that the forecast was made for."""
    return replace(files, kv_tokens=seen.kv_tokens)


def without_path(text: str, path: Path, name: str) -> str:
    """Return a reason without where on this machine the file lies: clients know its name only."""
    return text.replace(str(path), name).replace(str(path.parent), "the folder")
