"""Tools of the headless chat, as a shell runs it: nothing runs that was not named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp_support import WAIT, entry, write_config
from openai_server import serving

pytest.importorskip("mcp")

CALL: list[Any] = [[("t__echo", {"text": "hi \x1b[31m"})], "Done."]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "own" / "mcp.json", t=entry(env={"MARKS": str(tmp_path / "marks")}))


def run(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nanochat_tui", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT, cwd=folder)


def chat(url: str, *arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run("chat", "--attach", url, "-p", "hello", *arguments, folder=folder)


def test_no_tool_runs_without_being_named(config: Path, tmp_path: Path) -> None:
    with serving(script=["Hello."]) as server:
        done = chat(server.url, "--mcp", config)
        assert (done.returncode, done.stdout) == (0, "Hello.\n")
        assert "--allow-tool" in done.stderr
        assert "tools" not in server.requests[0]
        server.script = [CALL[0], "No."]
        done = chat(server.url, "--mcp", config, "--allow-tool", "t.slow")
        assert done.returncode == 0, done.stderr
        assert "There is no tool t__echo here" in done.stderr
    assert not (tmp_path / "marks").exists()


@pytest.mark.parametrize("name", ["t.echo", "t.*"])
def test_what_is_named_runs(config: Path, tmp_path: Path, name: str) -> None:
    with serving(script=[*CALL]) as server:
        done = chat(server.url, "--mcp", config, "--allow-tool", name)
    assert (done.returncode, done.stdout) == (0, "Done.\n"), done.stderr
    assert "tool t.echo done in" in done.stderr
    assert "\x1b" not in done.stderr
    assert (tmp_path / "marks").read_text().startswith("echo hi")


def test_calls_are_events_for_scripts(config: Path) -> None:
    with serving(script=[*CALL]) as server:
        done = chat(server.url, "--mcp", config, "--allow-tool", "t.echo", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    calls = [row for row in rows if row["event"] == "tool"]
    assert [call["state"] for call in calls] == ["waiting", "running", "done"]
    assert calls[-1]["result"] == "echo: hi \\x1b[31m"
    assert (rows[-1]["event"], rows[-1]["answer"]) == ("finished", "Done.")


def test_ones_own_file_is_read_and_the_working_directory_is_not(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloned = tmp_path / "cloned"
    write_config(cloned / "mcp.json", t=entry(env={"MARKS": str(cloned / "marks")}))
    write_config(cloned / ".mcp.json", t=entry(env={"MARKS": str(cloned / "marks")}))
    monkeypatch.setenv("NANOCHAT_CONFIG_DIR", str(tmp_path / "empty"))
    with serving(script=[*CALL]) as server:
        done = chat(server.url, "--allow-tool", "t.echo", folder=cloned)
        assert (done.returncode, "No server of tools is configured" in done.stderr) == (2, True)
        monkeypatch.setenv("NANOCHAT_CONFIG_DIR", str(config.parent))
        done = chat(server.url, "--allow-tool", "t.echo", folder=cloned)
        assert (done.returncode, done.stdout) == (0, "Done.\n"), done.stderr
    assert not (cloned / "marks").exists()
    assert (tmp_path / "marks").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("t.absent", "There is no tool t.absent"), ("x.echo", "of no server"), ("echo", "of no server")],
)
def test_a_name_of_nothing_is_one_sentence(config: Path, name: str, said: str) -> None:
    with serving() as server:
        done = chat(server.url, "--mcp", config, "--allow-tool", name)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_tools_are_listed(config: Path) -> None:
    done = run("tools", "--mcp", config)
    assert done.returncode == 0, done.stderr
    assert "t: 10 tools\n" in done.stdout
    assert "  t.echo  Return the text.\n" in done.stdout
    listed = json.loads(run("tools", "--mcp", config, "--json").stdout)
    (server,) = listed["servers"]
    assert {tool["name"] for tool in server["tools"]} >= {"t.echo", "t.slow"}


def test_a_server_that_does_not_start_is_one_sentence(tmp_path: Path) -> None:
    config = write_config(tmp_path / "mcp.json", bad=entry("--die"))
    done = run("tools", "--mcp", config)
    assert done.returncode == 1
    assert "The tools of bad are missing" in done.stderr
    assert "Traceback" not in done.stderr
