"""The soak in small: what `benchmarks/soak.py` does for ten minutes, for some seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import TINY, write_model

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_random_use_from_several_threads(tmp_path: Path, seed: int) -> None:
    path = write_model(tmp_path / "m.gguf", TINY.with_(context_length=400))
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), str(path), "--minutes", "0.2"]
    command += ["--workers", "3", "--threads", "2", "--seed", str(seed)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["errors"] == []
    wanted = ("start", "edit", "branch", "cancel", "interrupt", "abandon", "batched", "f16", "int8")
    assert [what for what in wanted if not result.get(what)] == []
    assert result["reused_tokens"] > 0
