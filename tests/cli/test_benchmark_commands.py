"""The benchmarks' own commands run, on a shape that takes no time; what they measure is not for a test to say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import TINY, write_model

LONG = TINY.with_(context_length=4096)
ROOT = Path(__file__).parents[2]


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=300)


@pytest.mark.slow
def test_the_table_of_the_engine(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    quick = ["--cases", "tiny", "--threads", "1,2", "--repeats", "1", "--seconds", "0.05"]
    done = run("engine.py", *quick, "--folder", tmp_path / "models", "--json", found)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "## tiny" in done.stdout and "| decode |" in done.stdout
    case = json.loads(found.read_text())["cases"]["tiny"]
    ours = {(row["kind"], row["threads"]) for row in case["rows"] if row["engine"] == "nanochat-tui"}
    assert ours >= {(kind, threads) for kind in ("prompt", "decode") for threads in (1, 2)}
    assert all(row["tps"] > 0 for row in case["rows"])
    assert len(list((tmp_path / "models").glob("*.gguf"))) == 1


@pytest.mark.slow
def test_an_unknown_case_is_refused(tmp_path: Path) -> None:
    done = run("engine.py", "--cases", "tiny,none", "--folder", tmp_path)
    assert done.returncode == 2
    assert "there is no case none" in done.stderr


@pytest.mark.slow
def test_identity_over_threads_and_guesses(tmp_path: Path) -> None:
    done = run("identity.py", "--shape", "tiny", "--tokens", 600, "--threads", "1,2,3", "--folder", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": 600 tokens in ") == 4  # three numbers of threads, and once with guesses
    assert done.stdout.count("the last logits are the same") == 3
    assert "DIFFERENT" not in done.stdout


@pytest.mark.slow
def test_load_with_tools_and_grammars(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", LONG)
    done = run("server_tools.py", "--model", model, "--clients", 1, 3, "--seconds", 1, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert [row["clients"] for row in found["rows"]] == [1, 3] and found["notes"] == []
    for row in found["rows"]:
        assert (
            row["lost"] == row["invalid"] == 0 and row["calls"] >= row["clients"] and row["objects"] >= row["clients"]
        )
