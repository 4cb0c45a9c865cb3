"""The engine's benchmarks run at sizes that take no time; whether their figures are good is not for a test to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import TINY, write_model

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import engine

from nanochat_tui.bench.measure import Plan
from nanochat_tui.errors import UserError

BATCH = Path(__file__).parents[2] / "benchmarks" / "batch.py"
QUICK = Plan((1,), tokens=4, repeats=1, seconds=0.1)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> engine.Case:
    path = write_model(tmp_path / "m.gguf", TINY)
    monkeypatch.setattr(engine, "model_file", lambda *_: path)
    return engine.Case("tiny", prompts=(8,), contexts=(8,))


def test_without_the_peer_ours_is_measured(tiny: engine.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> str:
        raise UserError("llama-cpp-python is not installed")

    monkeypatch.setattr(engine, "peer_version", absent)
    result = engine.run_case(tiny, tmp_path, QUICK)
    assert [(row.engine, row.kind) for row in result.rows] == [("nanochat-tui", "prompt"), ("nanochat-tui", "decode")]
    assert result.skipped == ["llama-cpp-python was not measured: llama-cpp-python is not installed"]


def test_sequences_in_one_batcher(tmp_path: Path) -> None:
    path, figures = write_model(tmp_path / "m.gguf", TINY.with_(context_length=1000)), tmp_path / "f.json"
    command = [sys.executable, str(BATCH), "--model", str(path), "--sequences", "1,3", "--threads", "1"]
    command += ["--tokens", "600", "--context", "8", "--rounds", "2", "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| sequences | tok/s |" in done.stdout and "| against 1 |" in done.stdout
    one, three = json.loads(figures.read_text())
    assert (one["sequences"], one["ratio"], three["sequences"]) == (1, 1.0, 3)
    assert 0 < three["tps_min"] <= three["tps"] <= three["tps_max"]
