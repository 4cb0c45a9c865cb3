"""Where the application keeps its things: settings, sessions, logs. Each folder has an environment variable of its own.

Folders are made private (mode 0700) when something is first written to them, never before.
"""

from __future__ import annotations

import os
from pathlib import Path

APPLICATION = "nanochat-tui"


def config_directory() -> Path:
    """Return the folder of `settings.toml`; `NANOCHAT_CONFIG_DIR` overrides it."""
    import platformdirs

    return _chosen("NANOCHAT_CONFIG_DIR") or platformdirs.user_config_path(APPLICATION)


def data_directory() -> Path:
    """Return the folder of the sessions; `NANOCHAT_DATA_DIR` overrides it."""
    import platformdirs

    return _chosen("NANOCHAT_DATA_DIR") or platformdirs.user_data_path(APPLICATION)


def state_directory() -> Path:
    """Return the folder of logs and crash reports; `NANOCHAT_STATE_DIR` overrides it."""
    import platformdirs

    return _chosen("NANOCHAT_STATE_DIR") or platformdirs.user_state_path(APPLICATION)


def make_private(folder: Path) -> Path:
    """Make `folder` for this user alone if it is missing, and return it. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _chosen(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None
