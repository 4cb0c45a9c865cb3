"""The benchmark's numbers are consistent; whether they are good is not for a test to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import TINY, write_model

from nanochat_tui.cli.app import dispatch
from nanochat_tui.cli.measurement import thread_counts


def test_thread_counts() -> None:
    assert [thread_counts(n) for n in (1, 2, 3, 4, 6)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6]]


def test_json_has_the_promised_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.gguf", TINY)
    assert dispatch(["bench", str(path), "--threads", "1", "-n", "16", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) >= {"model", "kernel", "load_seconds", "peak_rss_bytes", "bandwidth_gbps", "rows"}
    assert result["model"] == "m.gguf"
    assert [row["kind"] for row in result["rows"]] == ["prompt", "decode"]
    for row in result["rows"]:
        assert set(row) >= {"kind", "tokens", "context", "threads", "tps", "bytes_per_token"}
        assert row["threads"] == 1
        assert row["tps"] > 0
    decode = result["rows"][1]
    assert decode["bandwidth_share"] == pytest.approx(
        decode["tps"] * decode["bytes_per_token"] / (result["bandwidth_gbps"] * 1e9)
    )
    assert dispatch(["bench", str(path), "--threads", "1", "-n", "16"]) == 0
    assert "decode" in capsys.readouterr().out
