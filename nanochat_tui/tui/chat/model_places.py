"""Where models may lie on this machine: shipped, used before, in a folder, in Hugging Face's cache. Reads no model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat_tui.model.shipped import shipped_models

MOST = 400
"""Files looked for in one place; a folder may hold a whole disk."""
DEEPEST = 4


@dataclass(frozen=True, slots=True)
class Found:
    """One model file: where it was found, a name for people, its size in bytes."""

    path: Path
    place: str
    name: str
    size: int


def hugging_face_cache() -> Path | None:
    """Return the folder of the Hugging Face hub's downloads, by its own environment variables; None without a home."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = os.environ.get("HF_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"
    except RuntimeError:
        return None


def find_models(recent: Iterable[str], folder: Path | None, cache: Path | None = None) -> list[Found]:
    """Return every model that is found, each file once, the likeliest choices first."""
    seen: set[Path] = set()
    found = []
    for path, place, name in _candidates(recent, folder, cache or hugging_face_cache()):
        try:
            real, size = path.resolve(), path.stat().st_size
        except OSError:
            continue
        if real not in seen and path.is_file():
            seen.add(real)
            found.append(Found(path, place, name, size))
    return found


def _candidates(recent: Iterable[str], folder: Path | None, cache: Path | None) -> Iterator[tuple[Path, str, str]]:
    for shipped in shipped_models():
        yield shipped, "shipped", shipped.stem
    for text in recent:
        yield Path(text), "recent", Path(text).stem
    if folder is not None:
        for path in _files(folder, DEEPEST):
            yield path, "folder", str(path.relative_to(folder))
    for repository in sorted(_entries(cache) if cache else ()):
        if repository.name.startswith("models--"):
            name = repository.name.removeprefix("models--").replace("--", "/")
            for path in _files(repository / "snapshots", DEEPEST):
                yield path, "Hugging Face", f"{name} · {path.name}"


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _files(folder: Path, deepest: int) -> Iterator[Path]:
    """Yield the GGUF files under a folder, at most MOST of them and no deeper than `deepest`."""
    count = 0
    waiting = [(folder, 0)]
    while waiting and count < MOST:
        here, depth = waiting.pop(0)
        for entry in sorted(_entries(here)):
            if entry.suffix.lower() == ".gguf" and entry.is_file():
                count += 1
                yield entry
            elif depth < deepest and not entry.name.startswith(".") and entry.is_dir() and not entry.is_symlink():
                waiting.append((entry, depth + 1))
