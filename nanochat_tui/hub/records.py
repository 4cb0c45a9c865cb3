"""Which files have been compared with their checksums: a model is present only once its bytes have been looked at.

Other programs put files into the same cache. One that is not in the record is read once more before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.files import atomic_write_text
from nanochat_tui.paths import state_directory

CHUNK = 1 << 22
RECORD = "fetched.json"
MOST = 1000
"""Entries that are kept, the newest; a file without one is read again."""
Moved = Callable[[int, int], None]
"""Learns of bytes done and of all bytes."""
_HEX = frozenset("0123456789abcdef")


def digest_of(path: Path, kind: str, moved: Moved = lambda done, size: None) -> str:
    """Return a file's checksum in hexadecimal; kind: sha256, or git-sha1 (that of a Git blob). Raises OSError."""
    size = path.stat().st_size
    found = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind != "sha256":
        found.update(b"blob %d\0" % size)
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            done += len(chunk)
            moved(done, size)
    return found.hexdigest()


def kind_of(etag: str) -> str | None:
    """Return which checksum an ETag of a hub is: of 64 digits sha256, of 40 git-sha1; None if it is neither."""
    if not etag or not set(etag) <= _HEX:
        return None
    return {64: "sha256", 40: "git-sha1"}.get(len(etag))


def is_sound(path: Path, moved: Moved = lambda done, size: None) -> bool:
    """Return whether a file of the cache is what its name says: that of a blob is its checksum.

    Where the cache has no links (Windows), only the record can tell.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    if _recorded(path) == [status.st_size, status.st_mtime_ns]:
        return True
    etag = path.readlink().name if path.is_symlink() else ""
    kind = kind_of(etag)
    if kind is None or digest_of(path, kind, moved) != etag:
        return False
    remember(path)
    return True


def remember(path: Path) -> None:
    """Note that a file was compared with its checksum and is the one it should be."""
    try:
        folder = state_directory()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
        known = {name: row for name, row in _read(folder).items() if name != _key(path)}
        known[_key(path)] = [status.st_size, status.st_mtime_ns]
        atomic_write_text(folder / RECORD, json.dumps(dict(list(known.items())[-MOST:])))
    except (OSError, UserError):
        return  # the next start reads the file once more


def _key(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # links stay, for the name of the blob alone does not say whose it is


def _recorded(path: Path) -> Any:
    try:
        return _read(state_directory()).get(_key(path))
    except UserError:
        return None


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
