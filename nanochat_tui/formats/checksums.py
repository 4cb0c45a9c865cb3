"""Checksums: of any file, and of a checkpoint folder, whose `state.json` holds those of all its files and its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nanochat_tui.formats.errors import FormatError, unreadable
from nanochat_tui.text import display_safe

STATE_FILE = "state.json"
_OWN = "state_sha256"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Return `state` with size and SHA-256 of every file in `folder` ("files"), and a hash of itself.

    Raises OSError.
    """
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != STATE_FILE
    }
    # what a reader will see: JSON turns tuples into lists, numbers as keys into text
    whole = json.loads(json.dumps({**state, "files": files}, default=str))
    return {**whole, _OWN: _hash(whole)}


def verify_sealed(folder: Path, state: dict[str, Any], names: tuple[str, ...] | None = None) -> None:
    """Compare a checkpoint's files (all, or those named) with its state; one without checksums passes.

    Raises FormatError naming the first file that is missing or differs.
    """
    own = state.get(_OWN)
    if own is not None and own != _hash({key: value for key, value in state.items() if key != _OWN}):
        raise FormatError(_damaged(folder, STATE_FILE))
    files = state.get("files")
    for name, promised in files.items() if isinstance(files, dict) else ():
        if (names is not None and name not in names) or not isinstance(promised, dict):
            continue
        path = folder / Path(name).name
        try:
            same = path.stat().st_size == promised.get("bytes") and file_sha256(path) == promised.get("sha256")
        except FileNotFoundError:
            raise FormatError(
                f"the checkpoint {display_safe(str(folder))} is incomplete: {display_safe(name)} is missing; "
                "use another one"
            ) from None
        except OSError as error:
            raise unreadable(path, error) from None
        if not same:
            raise FormatError(_damaged(folder, name))


def _damaged(folder: Path, name: str) -> str:
    return (
        f"the checkpoint {display_safe(str(folder))} is damaged: {display_safe(name)} is not what was written "
        "(its checksum differs); use another one"
    )


def _hash(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
