"""Where the application keeps its things: settings, sessions, logs. Each folder has an environment variable of its own.

Folders are made private (mode 0700) when something is first written to them, never before.
"""

from __future__ import annotations

import os
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.folders import Kind, place_of


def config_directory() -> Path:
    """Return the folder of `settings.toml`; `NANOCHAT_CONFIG_DIR` overrides it."""
    return _chosen("NANOCHAT_CONFIG_DIR", "config")


def data_directory() -> Path:
    """Return the folder of the sessions; `NANOCHAT_DATA_DIR` overrides it."""
    return _chosen("NANOCHAT_DATA_DIR", "data")


def state_directory() -> Path:
    """Return the folder of logs and crash reports; `NANOCHAT_STATE_DIR` overrides it."""
    return _chosen("NANOCHAT_STATE_DIR", "state")


def make_private(folder: Path) -> Path:
    """Make `folder` for this user alone if it is missing, and return it. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _chosen(variable: str, kind: Kind) -> Path:
    """Return the folder that a variable names, or the usual one. Raises UserError where there is no home for it."""
    value = os.environ.get(variable)
    if not value:
        return place_of(kind)
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise UserError(f"{variable} begins with ~, and there is no home folder; name the folder in full") from None
