"""Interrupted equals uninterrupted, bit for bit, wherever a run is killed: also in evaluations and checkpoints."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from trained import losses, on_data, words, write_data

from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.state import read_state

OPTIONS: dict[str, Any] = {
    "steps": 800,
    "eval_interval": 10,
    "checkpoint_interval": 10,
    "log_interval": 4,
    "sample_tokens": 2,
    "batch_size": 2,
    "keep_last": 3,
}
KILLS = 20


@pytest.mark.slow
def test_twenty_random_kills_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")  # each command would start itself again to set it
    data = write_data(tmp_path / "data", 40_000)
    options = on_data(data, **OPTIONS)
    whole, part = tmp_path / "whole", tmp_path / "part"
    subprocess.run(words(whole, **options), check=True, capture_output=True, timeout=300)
    rng = random.Random(12)
    seen: dict[str, int] = {}
    for number in range(KILLS):
        process = subprocess.Popen(
            [*words(part, **options), "--resume", "auto"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        where = rng.choice(["evaluating", "checkpoint", "anywhere"])
        _wait(process, part, where, rng)
        assert process.poll() is None, "it ended before it was killed: the run is too short"
        process.send_signal(how)
        _, errors = process.communicate(timeout=120)
        assert "Traceback" not in errors, errors
        assert process.returncode in (0, -signal.SIGKILL, -signal.SIGTERM), (number, errors)
        seen[where] = seen.get(where, 0) + 1
        for checkpoint in RunDirectory(part).checkpoints():
            assert (checkpoint / "model.mhc").exists()
    assert len(seen) == 3
    last = subprocess.run(
        [*words(part, **options), "--resume", "auto"], check=False, capture_output=True, text=True, timeout=300
    )
    assert last.returncode == 0, last.stderr
    assert losses(RunDirectory(part).metrics()) == losses(RunDirectory(whole).metrics())
    assert RunDirectory(part).samples() == RunDirectory(whole).samples()
    a, b = ((run / "final" / "model.safetensors").read_bytes() for run in (whole, part))
    assert a == b
    assert read_state(part).life == "finished"
    states = [json.loads((run / "final" / "state.json").read_text()) for run in (whole, part)]
    assert states[0]["tokens"] == states[1]["tokens"]
    assert not [p.name for p in part.iterdir() if p.name.endswith((".partial", ".old"))]


def _wait(process: subprocess.Popen[str], run: Path, where: str, rng: random.Random) -> None:
    """Until the run is at the place of the kill, or has ended; a few steps further each time, or nothing is new."""
    begun = time.monotonic()
    patience = rng.uniform(0, 0.4)
    own = None
    while process.poll() is None and time.monotonic() < begun + 60:
        state = read_state(run)
        if state.pid == process.pid:
            own = own or time.monotonic()
            at = {
                "evaluating": state.phase == "evaluating",
                "checkpoint": any(run.glob(".*.partial")),
                "anywhere": time.monotonic() > own + patience,
            }
            if at[where] and time.monotonic() > own + 0.05:
                return
        time.sleep(0.001)
