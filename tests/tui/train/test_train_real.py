"""A real training from the form to its end, by keys alone: launched, watched, steered, killed."""

import os
import signal
from pathlib import Path

import pytest
from textual.widgets import Input
from train_app import TrainApp, launch_form, overview, until

from nanochat_tui.runs import signals
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.state import read_state
from nanochat_tui.tui.widgets.chart import Chart
from nanochat_tui.tui.widgets.dialogs import Ask, Confirm

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

FIELDS = {
    "config": "tiny",
    "vocab_size": "256",
    "dataset": "synthetic",
    "seq_len": "32",
    "batch_size": "2",
    "threads": "1",
    "compile": "no",
    "device": "cpu",
    "steps": "100000",
    "warmup_steps": "3",
    "log_interval": "2",
    "eval_interval": "20",
    "eval_tokens": "64",
    "checkpoint_interval": "100000",
    "keep_last": "4",
}
PATIENCE = 120.0


async def test_a_training_is_lived_through_in_the_application(tmp_path: Path) -> None:
    app = TrainApp(tmp_path)
    run = tmp_path / "mine"
    try:
        async with app.run_test(size=(80, 24)) as pilot:
            form = await launch_form(pilot, app)
            for name, text in FIELDS.items():
                form.set_field(name, text)
            form.query_one("#form-directory", Input).value = str(run)
            await until(pilot, lambda: form.ready, PATIENCE)
            await pilot.press("ctrl+l")
            # it opens by itself, and the curve grows while one looks
            await until(pilot, lambda: app.train.opened == run and "running" in overview(app), PATIENCE)
            assert app.train.tabs.active == "dashboard"
            chart = app.train.query_one("#panel-loss", Chart)
            await until(pilot, lambda: chart.curves and len(chart.curves[0].x) >= 3, PATIENCE)
            count = len(chart.curves[0].x)
            await until(pilot, lambda: len(chart.curves[0].x) > count, PATIENCE)
            assert "ETA" in overview(app)
            # a checkpoint now
            assert not RunDirectory(run).checkpoints()
            await pilot.press("c")
            await until(pilot, lambda: RunDirectory(run).checkpoints(), PATIENCE)
            await until(pilot, lambda: app.train.seen is not None and app.train.seen.checkpoints, PATIENCE)
            # stop, which is asked once
            await pilot.press("s")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.press("tab", "enter")
            await until(pilot, lambda: "stopped" in overview(app), PATIENCE)
            stopped = read_state(run).step
            last = RunDirectory(run).checkpoints()[-1]
            assert last.name == f"step_{stopped}"
            # resume from there
            await until(pilot, lambda: app.train.can("resume"), PATIENCE)
            await pilot.press("R")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            assert app.screen.query(Input).first().value == str(last)
            await pilot.press("enter")
            await until(pilot, lambda: "running" in overview(app) and read_state(run).step > stopped, PATIENCE)
            await until(pilot, lambda: float(chart.curves[0].x[-1]) > stopped, PATIENCE)
            # kill -9 from outside is seen for what it is
            pid = read_state(run).pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(pilot, lambda: "crashed: its process is gone; resume" in overview(app), PATIENCE)
            await until(pilot, lambda: app.train.runs.runs and app.train.runs.runs[0].state.life == "crashed", PATIENCE)
    finally:
        if read_state(run).alive:
            signals.kill(run)
