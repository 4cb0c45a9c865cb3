"""A training under Slurm's own daemons: submitted, requeued, stopped before its time is up, cancelled."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm_daemons

from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.state import read_state

pytestmark = pytest.mark.clusters
pytest.importorskip("torch")


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    reason = slurm_daemons.missing()
    if reason is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder, slurm_daemons.slurm(Path(folder) / "s") as environment:
        yield environment


def until(there: Callable[[], Any], run: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not there():
        said = "\n".join(file.read_text(errors="replace")[-2000:] for file in run.glob("slurm-*.out"))
        assert time.monotonic() < end, said
        time.sleep(0.2)


def test_a_run_of_two_processes_under_slurm(tmp_path: Path, cluster: dict[str, str]) -> None:
    run = tmp_path / "run"

    def train(*words: str) -> str:
        program = [sys.executable, "-m", "nanochat_tui.cli.train_entry", *words]
        done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120, env=cluster)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def phase() -> str:
        return str(json.loads(train("job", str(run), "--json"))["phase"])

    def step() -> int:
        return read_state(run).step

    words = ("--config", "try-out", "--steps", "100000", "--checkpoint-interval", "5", "--eval-interval", "0")
    train("submit", "--to", "slurm", "--checkpoint-dir", str(run), "--processes-per-node", "2", *words)
    until(lambda: step() >= 6, run)
    assert phase() == "running"
    assert RunDirectory(run).config()["config"]["processes"] == 2
    # what a failed node or a preemption does
    before = step()
    train("job", str(run), "requeue")
    until(lambda: read_state(run).alive and step() > before + 2, run)
    assert {row["step"] for row in RunDirectory(run).metrics()} >= {1, 10}
    # what Slurm sends before the time is up: a checkpoint at this step, and the queue again
    before = step()
    subprocess.run(
        ["scancel", "--signal=USR1", "--batch", json.loads((run / "job.json").read_text())["id"]],
        check=True,
        env=cluster,
    )
    until(lambda: "stopped at step" in (run / "log.txt").read_text(), run)
    stopped = step()
    assert stopped >= before
    until(lambda: read_state(run).life == "running" and step() > stopped, run)
    train("job", str(run), "cancel")
    until(lambda: phase() == "ended", run)
    assert "resuming" in train("job", str(run), "logs")
