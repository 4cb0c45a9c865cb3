"""Cargo.toml files, read once each."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


@functools.lru_cache(maxsize=16384)
def _manifest(path: Path) -> dict[str, object] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, tomllib.TOMLDecodeError):
        return None


def table(value: object, key: str) -> dict[str, object]:
    """Return the table `key` of a parsed TOML value, empty where there is none."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def manifests(folder: PurePosixPath, root: Path) -> Iterator[tuple[dict[str, object], PurePosixPath]]:
    """Yield the readable Cargo.toml files from `folder` (relative to `root`) upwards, each with its folder."""
    for inner in (folder, *folder.parents):
        manifest = _manifest(root / inner / "Cargo.toml")
        if manifest is not None:
            yield manifest, inner
