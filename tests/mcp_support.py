"""Configurations with the MCP server of the tests."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = Path(__file__).parent / "mcp_server.py"
WAIT = 120.0
"""Seconds a test waits for what it expects."""


def entry(*arguments: str, **more: Any) -> dict[str, Any]:
    """Return the entry of the tests' server as a program."""
    return {"command": sys.executable, "args": [str(SERVER), *arguments], **more}


def write_config(path: Path, **servers: dict[str, Any]) -> Path:
    """Write `mcpServers` to a file and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")
    return path


@contextmanager
def on_loopback(kind: str) -> Iterator[str]:
    """Run the tests' server over HTTP ("http" or "sse"); gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, SERVER, f"--{kind}", str(port)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/{'mcp' if kind == 'http' else 'sse'}"
    finally:
        process.terminate()
        process.wait(WAIT)
