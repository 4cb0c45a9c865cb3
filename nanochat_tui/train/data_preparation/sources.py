"""Where files come from, and which of them are worth opening."""

from __future__ import annotations

import fnmatch
import functools
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe


@dataclass(frozen=True)
class Source:
    """A folder of source files under one name.

    `name` is what reports and files.tsv say, and the first part of a document's key; `copyright` is the Debian
    copyright file that speaks for the folder, its patterns being relative to `folder`; `licence` is what the package
    around it says of itself. Sources of one `group` are parts of one project: a crate that is in two of them is one
    crate, and `PrepareOptions.max_group_share` limits the group.
    """

    folder: Path
    name: str
    copyright: Path | None = None
    licence: str | None = None
    group: str = ""


@dataclass(frozen=True)
class FileRef:
    """One file found: index of its source, path below the source's folder (`/` between parts), size in bytes."""

    source: int
    path: str
    size: int


def folder_source(folder: Path) -> Source:
    """Return the source for a plain folder, named like the folder.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{display_safe(str(folder))} is not a folder; name a folder of source files")
    return Source(folder, folder.resolve().name or "root")


def _skipped_folder(parent: str, name: str) -> bool:
    """Hidden folders, and whatever its maker tagged as a cache (cargo's `target` is)."""
    return name.startswith(".") or os.path.exists(os.path.join(parent, name, "CACHEDIR.TAG"))  # noqa: PTH110, PTH118


def _fail(error: OSError) -> None:
    raise error


def list_files(index: int, source: Source, extensions: tuple[str, ...]) -> list[FileRef]:
    """List the files of a source that end in one of `extensions`, sorted by path; links are not followed.

    Raises:
        OSError: a folder cannot be read; a corpus with a silent hole would be worse.
    """
    found: list[FileRef] = []
    for parent, folders, names in os.walk(source.folder, onerror=_fail):
        folders[:] = [name for name in folders if not _skipped_folder(parent, name)]
        for name in names:
            if not name.endswith(extensions):
                continue
            path = Path(parent, name)
            if path.is_symlink() or not path.is_file():
                continue
            found.append(FileRef(index, path.relative_to(source.folder).as_posix(), path.stat().st_size))
    found.sort(key=lambda ref: ref.path)
    return found


def in_skipped_folder(path: str, patterns: tuple[str, ...]) -> bool:
    """Say whether a folder on `path` matches one of `patterns`, shell style, whole parts: `stdarch`, `tests/ui`."""
    return _skips("/" + path.rpartition("/")[0], patterns)


@functools.lru_cache(maxsize=4096)
def _skips(folder: str, patterns: tuple[str, ...]) -> bool:
    return any(
        fnmatch.fnmatchcase("/" + "/".join(parts), "*/" + pattern)
        for parts in itertools.accumulate(([part] for part in folder[1:].split("/")), list.__add__)
        for pattern in patterns
    )
