"""The table of published shapes says what was measured, and what was not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from models import SHAPES
from shapes import CASES, DEFAULT, Found, as_markdown

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "shapes.py"


def part(kind: str, ours: float, theirs: float | None, tokens: int = 128) -> Found:
    speeds = [("nanochat-tui", ours), ("llama-cpp-python", theirs)]
    known = [(engine, tps) for engine, tps in speeds if tps is not None]
    return {
        "rows": [{"engine": engine, "kind": kind, "tps": tps, "tokens": tokens} for engine, tps in known],
        "loaded": [{"engine": engine, "rss_bytes": 10**9} for engine, _ in known],
        "skipped": [],
    }


def test_cases_are_shapes_with_types_of_their_own() -> None:
    assert {case.shape for case in CASES.values()} <= set(SHAPES)
    assert CASES["bonsai-1.7b-g128"].made().ternary == "Q2_0_g128"
    assert CASES["bonsai-4b"].made() == SHAPES["bonsai-4b"]
    assert "d20" not in DEFAULT and {"bonsai-8b", "bonsai-2-2b", "bonsai-2-4b"} <= set(DEFAULT)


def test_the_table_has_both_sides_and_the_reasons() -> None:
    both = {"file_bytes": 5 * 10**8, "decode": part("decode", 30.0, 10.0), "prompt": part("prompt", 400.0, 50.0)}
    alone = {"file_bytes": 10**9, "decode": part("decode", 12.3, None), "prompt": {"error": "it did not end"}}
    alone["refused"] = "it does not load x.gguf"
    head, rule, first, second, *rest = as_markdown({"bonsai-1.7b": both, "2b4t-i2_s": alone}, 2).splitlines()
    assert head.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert "| 30.0 | 10.0 | 3.0 x | 400 | 50.0 | 8.0 x | 1.00 GB | 1.00 GB |" in first
    assert "| 12.3 | – |  | – | – |  | 1.00 GB | – |" in second
    assert any("it does not load x.gguf" in line for line in rest) and any("it did not end" in line for line in rest)


def test_a_slow_peer_is_compared_over_what_it_can_read() -> None:
    found = {"file_bytes": 10**9, "decode": part("decode", 30.0, 10.0), "prompt": part("prompt", 400.0, None)}
    found["prompt"]["rows"] += part("prompt", 250.0, 2.5, tokens=32)["rows"]
    found["prompt"]["skipped"] = ["too slow"]
    text = as_markdown({"bonsai-1.7b": found}, 1)
    assert "| 400 | 2.5 (of 32) | 100.0 x |" in text and "too slow" not in text


@pytest.mark.peer
@pytest.mark.slow
def test_a_small_model_goes_through(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    words = ["--cases", "d20", "--folder", str(tmp_path / "m"), "--under", "env"]
    words += ["--json", str(tmp_path / "found.json")]
    command = [sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    case = json.loads((tmp_path / "found.json").read_text())["cases"]["d20"]
    assert {row["engine"] for row in case["decode"]["rows"]} == {"nanochat-tui", "llama-cpp-python"}
    assert "d20 without mHC" in done.stdout and not list((tmp_path / "m").iterdir())
