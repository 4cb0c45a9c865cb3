"""The hub on loopback, and environments in which the library asks it and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub.hub_server import Hub
from support import write_model

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_model(tmp_path_factory.mktemp("hub") / "model.gguf").read_bytes()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The library reads its variables when it is imported, so every command is a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "XDG_"))}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NANOCHAT_STATE_DIR": str(tmp_path / "state"),
        "NO_PROXY": "127.0.0.1,localhost",
    }


@pytest.fixture
def tui(environment: dict[str, str]) -> Run:
    """Run `nanochat-tui` with arguments, and perhaps further variables."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nanochat_tui", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment | more, timeout=240)

    return run
