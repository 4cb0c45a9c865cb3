"""The benchmark's numbers are consistent; whether they are good is not for a test to say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import TINY, write_model

from nanochat_tui.bench.measure import Loaded, Result, Row, read_bandwidth, thread_counts
from nanochat_tui.bench.report import as_markdown, as_text, ratios
from nanochat_tui.bench.worker import Worker, random_ids
from nanochat_tui.cli.app import dispatch
from nanochat_tui.cli.bench import sizes
from nanochat_tui.errors import UserError

QUICK = ["--threads", "1", "-n", "8", "--repeats", "2", "--prompt", "16", "--context", "16"]


def test_thread_counts() -> None:
    assert [thread_counts(n) for n in (1, 2, 3, 4, 6)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6]]


def test_sizes() -> None:
    assert sizes("128, 512,128", "--prompt") == [128, 512]
    for wrong in ("", "a", "0", "1,,x", "-1", "99999999", "1.5", "²"):
        with pytest.raises(UserError, match="--prompt takes numbers"):
            sizes(wrong, "--prompt")


def test_json_has_the_promised_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.gguf", TINY)
    assert dispatch(["bench", str(path), *QUICK, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) >= {"model", "kernel", "load_seconds", "peak_rss_bytes", "bandwidth_gbps", "rows"}
    assert result["model"] == "m.gguf"
    assert result["peak_rss_bytes"] >= result["loaded"][0]["rss_bytes"] > 1 << 20
    assert [row["kind"] for row in result["rows"]] == ["prompt", "decode"]
    for row in result["rows"]:
        assert set(row) >= {"kind", "tokens", "context", "threads", "tps", "bytes_per_token"}
        assert row["threads"] == 1
        assert 0 < row["tps_min"] <= row["tps"] <= row["tps_max"]
        assert row["runs"] == 2
        assert (row["drafted"], row["accepted"]) == (0, 0)
    decode = result["rows"][1]
    assert decode["context"] == 16 + decode["tokens"]
    assert decode["bandwidth_share"] == pytest.approx(
        decode["tps"] * decode["bytes_per_token"] / (decode["bandwidth_gbps"] * 1e9)
    )
    assert 0.1 < result["bandwidth_gbps"] < 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own peak")
def test_the_peak_is_the_processs_own() -> None:
    parent = np.ones(1 << 29, np.uint8)
    code = "from nanochat_tui.system import peak_rss; print(peak_rss())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < parent.nbytes // 2


def test_guesses_are_counted_where_they_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.gguf", TINY)
    words = ["bench", str(path), *QUICK, "-n", "64", "--speculation", "on"]
    assert dispatch([*words, "--json"]) == 0
    prompt, decode = json.loads(capsys.readouterr().out)["rows"]
    assert (prompt["drafted"], prompt["accepted"]) == (0, 0)
    assert 0 < decode["accepted"] <= decode["drafted"]
    assert dispatch(words) == 0
    assert "draft tokens accepted" in capsys.readouterr().out


def test_a_worker_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="nanochat-tui: "):
        Worker("nanochat-tui", tmp_path / "x.gguf", 1)


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    path = str(write_model(tmp_path / "m.gguf", TINY))
    for words, message in [
        (["--threads", "0"], "--threads takes"),
        (["--peer-model", path], "without --peer"),
        (["--prompt", "100000", *QUICK[:2]], "context"),
    ]:
        with pytest.raises(UserError, match=message):
            dispatch(["bench", path, "--repeats", "1", *words])


def test_bandwidth_grows_with_what_is_read() -> None:
    assert read_bandwidth(1, 1 << 22) > 1e8
    assert read_bandwidth(3, 1 << 22) > 1e8


def row(engine: str, kind: str, tps: float) -> Row:
    return Row(engine, kind, 8, 24, 1, tps, tps * 0.9, tps * 1.1, 3, 1000, 10.0, 0.5)  # type: ignore[arg-type]


def test_a_report_compares_the_same_things() -> None:
    result = Result("m.gguf")
    result.loaded = [Loaded(name, "m.gguf", 1, "k", 1.0, 1 << 20, 2 << 20) for name in ("nanochat-tui", "peer")]
    result.rows = [row("nanochat-tui", "decode", 30.0), row("peer", "decode", 10.0), row("nanochat-tui", "prompt", 5.0)]
    result.skipped = ["peer, prompt 512: left out"]
    assert ratios(result) == [3.0, None, None]
    assert "3.00 x" in as_text(result)
    result.rows = [replace(row, bytes_per_token=1_234_567) if row.kind == "decode" else row for row in result.rows]
    assert "MB/token" in as_text(result) and "| 1.2 |" in as_markdown(result)
    markdown = as_markdown(result).splitlines()
    head = next(line for line in markdown if line.startswith("| engine"))
    assert head.count("|") == markdown[markdown.index(head) + 1].count("|")
    assert markdown[-1] == "peer, prompt 512: left out"


def test_ids_are_the_same_for_every_engine() -> None:
    assert random_ids(3, 5, 100) == random_ids(3, 5, 100) != random_ids(4, 5, 100)


@pytest.mark.peer
def test_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llama_cpp")
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from models import SHAPES
    from models import write_model as write_shape

    theirs = write_shape(tmp_path / "llama.gguf", SHAPES["d20-llama"])
    ours = write_model(tmp_path / "m.gguf", TINY)
    words = ["bench", str(ours), *QUICK, "--peer", "llama-cpp-python", "--peer-model", str(theirs), "--json"]
    assert dispatch(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["engine"] for row in rows] == ["nanochat-tui", "llama-cpp-python"] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a stopped process with its parent")
def test_a_stopped_worker_ends_with_its_parent(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", TINY)
    script = (
        "import sys, os; from pathlib import Path; from nanochat_tui.bench.worker import Worker;"
        "w = Worker('nanochat-tui', Path(sys.argv[1]), 1); print(w._process.pid, flush=True); os._exit(0)"
    )
    found = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    process = int(found.stdout)
    for _ in range(100):
        if not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")
