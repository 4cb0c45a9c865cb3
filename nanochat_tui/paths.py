"""Folders of the user's own: settings, sessions, logs, compiled code. Each has an environment variable of its own.

There is one also where there is no home: a container may run under a number that no user has.

Each kind of folder is the one that the system has for it, else one of this user's in the temporary folder. That is
shared with others, who may have been there first: what is used of it belongs to this user, is closed to others, and
is reached without a link.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from nanochat_tui.errors import UserError

APPLICATION = "nanochat-tui"
CONFIG_VARIABLE = "NANOCHAT_CONFIG_DIR"
DATA_VARIABLE = "NANOCHAT_DATA_DIR"
STATE_VARIABLE = "NANOCHAT_STATE_DIR"
CACHE_VARIABLE = "NANOCHAT_CACHE_DIR"
RUNS_VARIABLE = "NANOCHAT_RUNS"
"""Folder of runs when none is given; otherwise ./runs, or where the application was started."""
Kind = Literal["cache", "config", "data", "state"]


def user_folder(kind: Kind) -> Path | None:
    """Return the system's folder for a kind of file, which need not exist; None where there is no home."""
    import platformdirs

    find = {
        "cache": platformdirs.user_cache_path,
        "config": platformdirs.user_config_path,
        "data": platformdirs.user_data_path,
        "state": platformdirs.user_state_path,
    }
    try:
        return find[kind](APPLICATION)
    except RuntimeError:  # HOME is not set, and the list of users does not have this one
        return None


def temporary_folder(name: str) -> Path | None:
    """Return a folder in the temporary folder that is made and is this user's alone, or None if none can be had."""
    import tempfile

    owner = os.geteuid() if os.name == "posix" else "user"
    try:
        parent = Path(tempfile.gettempdir()) / f"{APPLICATION}-{owner}"
    except OSError:  # there is no temporary folder either
        return None
    folder = parent / name
    return folder if own_private(parent, links=False) and own_private(folder, links=False) else None


def place_of(kind: Kind) -> Path:
    """Return the folder for a kind of file: the system's, or without a home a temporary one.

    Raises UserError if there is neither.
    """
    folder = user_folder(kind) or temporary_folder(kind)
    if folder is None:
        raise UserError(
            "there is no home folder, and the temporary folder has none that is this user's alone; "
            "set HOME to a folder of your own"
        )
    return folder


def own_private(folder: Path, *, links: bool = True) -> bool:
    """Make a folder that only this user can write, with what leads to it, and say whether it is one.

    links: whether the folder itself may be a link to one; not where others could have put it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat() if links else folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    if os.name == "posix" and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def config_directory() -> Path:
    """Return the folder of `settings.toml`; `NANOCHAT_CONFIG_DIR` overrides it."""
    return _chosen(CONFIG_VARIABLE, "config")


def data_directory() -> Path:
    """Return the folder of the sessions; `NANOCHAT_DATA_DIR` overrides it."""
    return _chosen(DATA_VARIABLE, "data")


def evaluations_directory() -> Path:
    """Return the folder in which evaluations are kept when no other one is named."""
    return data_directory() / "evaluations"


def state_directory() -> Path:
    """Return the folder of logs and crash reports; `NANOCHAT_STATE_DIR` overrides it."""
    return _chosen(STATE_VARIABLE, "state")


def make_private(folder: Path) -> Path:
    """Make `folder` for this user alone if it is missing, and return it. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def expanded(path: Path) -> Path:
    """Return `path` with a leading ~ or ~user as that user's home; as it is where there is no such user or home."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _chosen(variable: str, kind: Kind) -> Path:
    """Return the folder that a variable names, or the usual one. Raises UserError where there is no home for it."""
    value = os.environ.get(variable)
    if not value:
        return place_of(kind)
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise UserError(f"{variable} begins with ~, and there is no home folder; name the folder in full") from None
