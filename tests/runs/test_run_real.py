"""A real, tiny training run, started as the application starts it: stopped, killed, told for crashed, resumed."""

import os
import signal
from pathlib import Path

import pytest
from run_support import until

from nanochat_tui.runs import launcher, signals
from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.state import read_state
from nanochat_tui.runs.watch import RunWatch

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

CONFIG = {
    "config": "tiny",
    "vocab_size": 256,
    "dataset": "synthetic",
    "seq_len": 32,
    "batch_size": 2,
    "threads": 1,
    "compile": False,
    "device": "cpu",
    "steps": 100_000,
    "warmup_steps": 3,
    "log_interval": 2,
    "eval_interval": 20,
    "eval_tokens": 64,
    "checkpoint_interval": 20,
    "keep_last": 2,
}


def test_a_run_from_launch_to_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    watch: RunWatch
    launched = launcher.launch(parse_config(CONFIG), ["nice", "-n", "5"], run)
    try:
        assert read_state(run).life == "starting"
        watch = RunWatch(run)
        until(lambda: len(watch.look().checkpoints) >= 1, 120)
        seen = watch.look()
        assert (seen.state.life, seen.state.pid) == ("running", launched.pid)
        assert os.getpgid(launched.pid) == launched.pid  # a group of its own
        assert seen.memory is not None and seen.memory > 50e6
        assert seen.speed is not None and seen.eta is not None
        assert len(seen.series.mhc) >= 1
        assert seen.config["config"]["batch_size"] == 2
        # checkpoint now
        before = {c.name for c in RunDirectory(run).checkpoints()}
        request = signals.request_checkpoint(run)
        until(lambda: read_state(run).control_done == request, 120)
        assert {c.name for c in RunDirectory(run).checkpoints()} - before
        # stop safely
        signals.request_stop(run)
        until(lambda: read_state(run).life == "stopped", 120)
        stopped = read_state(run).step
        last = RunDirectory(run).checkpoints()[-1]
        assert last.name == f"step_{stopped}"
        # resume, and kill -9
        resumed = launcher.resume(last)
        assert read_state(run).life == "starting"
        until(lambda: read_state(run).life == "running" and read_state(run).step > stopped, 120)
        assert resumed.pid == read_state(run).pid
        until(lambda: len(watch.look().series.steps) and watch.look().series.steps[-1] > stopped + 4, 120)
        os.kill(resumed.pid, signal.SIGKILL)
        until(lambda: read_state(run).life == "crashed", 120)
        seen = watch.look()
        assert seen.alarms[0].text.startswith("crashed: its process is gone")
        steps = list(seen.series.steps)
        assert steps == sorted(set(steps))
        # resume after the crash, with an end in sight
        end = steps[-1] + 10
        launcher.resume(RunDirectory(run).checkpoints()[-1], steps=end)
        until(lambda: read_state(run).life == "finished", 120)
        seen = watch.look()
        assert seen.series.steps[-1] == end == seen.state.step
        assert list(seen.series.steps) == sorted(set(seen.series.steps))
        assert seen.checkpoints[-1].path.name == "final"
        assert "finished at step" in seen.log[-1]
    finally:
        if read_state(run).alive:
            signals.kill(run)


def test_a_trainer_that_cannot_start_says_why(tmp_path: Path) -> None:
    run = tmp_path / "run"
    bad = parse_config({**CONFIG, "dataset": "tokens", "data_path": tmp_path / "absent"})
    launcher.launch(bad, [], run)
    until(lambda: read_state(run).life == "failed", 120)
    seen = RunWatch(run).look()
    assert "there is no data at" in "\n".join(seen.console)
