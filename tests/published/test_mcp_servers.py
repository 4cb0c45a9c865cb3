"""Published MCP servers, one of PyPI and one of npm, called by the headless chat. Run from `.ci/peers`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mcp_support import write_config
from openai_server import serving

pytestmark = pytest.mark.published
pytest.importorskip("mcp")
TIME = ["mcp-server-time==2026.10.19", "tzdata", "tzlocal"]
FILES = "@modelcontextprotocol/server-filesystem@2026.8.31"


def fetched(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} cannot fetch it: {done.stderr.strip().splitlines()[-1]}")


def calls(config: Path, allowed: str, function: str, arguments: dict[str, str]) -> list[dict[str, str]]:
    """Let a scripted model call a function once, and return the records of the call."""
    with serving(script=[[(function, arguments)], "Done."]) as server:
        command = [sys.executable, "-m", "nanochat_tui", "chat", "--attach", server.url, "-p", "go", "--json"]
        command += ["--mcp", str(config), "--allow-tool", allowed]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        (told,) = [m["content"] for m in server.requests[-1]["messages"] if m["role"] == "tool"]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = [row for row in rows if row["event"] == "tool"]
    assert found[-1]["result"] == told
    return found


def test_the_time_server_of_pypi(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    fetched(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages, *TIME)
    entry = {"command": sys.executable, "args": ["-m", "mcp_server_time"], "env": {"PYTHONPATH": str(packages)}}
    config = write_config(tmp_path / "mcp.json", time=entry)
    done = calls(config, "time.*", "time__get_current_time", {"timezone": "Asia/Tokyo"})[-1]
    assert done["state"] == "done"
    assert json.loads(done["result"])["timezone"] == "Asia/Tokyo"
    assert calls(config, "time.*", "time__get_current_time", {"timezone": "No/Where"})[-1]["state"] == "failed"


def test_the_file_server_of_npm(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    fetched("npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", tmp_path, FILES)
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "notes.md").write_text("The meeting is at ten.\n")
    program = tmp_path / "node_modules" / ".bin" / "mcp-server-filesystem"
    config = write_config(tmp_path / "mcp.json", files={"command": str(program), "args": [str(folder)]})
    read = {"path": str(folder / "notes.md")}
    done = calls(config, "files.read_text_file", "files__read_text_file", read)[-1]
    assert (done["state"], done["result"].strip()) == ("done", "The meeting is at ten.")
    outside = calls(config, "files.read_text_file", "files__read_text_file", {"path": "/etc/hostname"})[-1]
    assert outside["state"] == "failed"
