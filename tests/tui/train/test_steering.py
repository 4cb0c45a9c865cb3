"""What was asked of a run is followed to its outcome, and what happens to runs is told wherever one is."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from run_support import grow, recorded_run, stand_in, write_checkpoint_mark, write_status
from textual.widgets import Input
from train_app import TrainApp, found, overview, until

sys.path.insert(0, str(Path(__file__).parents[1]))
from scripted import ScriptedBackend

from nanochat_tui.runs import launcher, signals
from nanochat_tui.runs.state import read_state
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.train.jobs import shared_threads
from nanochat_tui.tui.train.screen import TrainScreen
from nanochat_tui.tui.widgets.dialogs import Ask, Confirm
from nanochat_tui.tui.widgets.key_line import KeyLine


def me() -> dict[str, object]:
    return {"pid": os.getpid(), "process_started": psutil.Process().create_time(), "state": "running"}


async def test_a_checkpoint_is_confirmed_by_its_name(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", **me(), step=3600, total=4000)
    app = TrainApp(tmp_path)
    async with app.run_test(size=(120, 36)) as pilot:
        await found(pilot, app)
        app.train.open_path(run)
        await until(pilot, lambda: "running" in overview(app))
        await pilot.press("c")
        await until(pilot, (run / "control").is_file)
        request = json.loads((run / "control").read_text())["id"]
        await until(pilot, lambda: "checkpoint asked for" in overview(app))
        # the trainer is frozen: its heart beats no more
        write_status(run, **me(), step=3600, total=4000, heartbeat=time.time() - 25)
        await until(pilot, lambda: "still waiting; no heartbeat for 2" in overview(app))
        assert "ETA" not in overview(app)
        write_checkpoint_mark(run, 3601)
        write_status(run, **me(), step=3601, total=4000, control_done=request)
        await until(pilot, lambda: "The checkpoint step_3601 is written." in app.said)
        assert "asked for" not in overview(app)
        # asked of a run that ends before it answers
        await pilot.press("c")
        await until(pilot, lambda: app.train.requests)
        write_status(run, state="running", pid=os.getpid(), process_started=1.0, step=3601, control_done=request)
        await until(pilot, lambda: any("ended before it answered" in text for text in app.said))


async def test_a_stop_is_confirmed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stand_in(run)
    app = TrainApp(tmp_path)
    try:
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: read_state(run).life == "running")
            app.train.open_path(run)
            await until(pilot, lambda: "running" in overview(app))
            await pilot.press("s")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.click("#yes")
            await until(pilot, lambda: "run stopped at step 1; its checkpoint is none." in app.said)
    finally:
        if read_state(run).alive:
            signals.kill(run)


async def test_a_crash_is_told_in_every_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = stand_in(tmp_path / "runs" / "run", 120)
    app = NanochatApp(ScriptedBackend("x"), runs=tmp_path / "runs")
    said: list[str] = []
    bells: list[int] = []
    monkeypatch.setattr(app, "bell", lambda: bells.append(1))
    notify = app.notify

    def heard(message: str, **options: object) -> None:
        said.append(message)
        notify(message, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(app, "notify", heard)
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, TrainScreen) and app.screen.runs.runs)
        train = app.screen
        assert isinstance(train, TrainScreen)
        train.watcher.glance_seconds = (0.1, 0.1)
        await until(pilot, lambda: train.runs.runs[0].state.life == "running")
        await pilot.press("f2")
        await until(pilot, lambda: app.current_mode == "chat")
        os.kill(launched.pid, signal.SIGKILL)
        await until(pilot, lambda: any("run crashed at step 1" in text for text in said))
        assert bells and "f4 Train ✗" in str(app.screen.query_one(KeyLine).render())
        await pilot.press("f4")
        await until(pilot, lambda: not app.key_badges)
        await pilot.press("f2")
        await until(pilot, lambda: app.current_mode == "chat")
        assert "✗" not in str(app.screen.query_one(KeyLine).render())


async def test_a_dashboard_lives_on_behind_a_question(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", **me(), step=3600, total=4000)
    app = TrainApp(tmp_path)
    async with app.run_test(size=(120, 36)) as pilot:
        await found(pilot, app)
        app.train.open_path(run)
        await until(pilot, lambda: "running" in overview(app))
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        write_status(run, state="finished", step=4000, total=4000)
        await until(pilot, lambda: "finished" in overview(app))
        assert isinstance(app.screen, Ask)


async def test_the_list_keeps_up_with_runs_elsewhere(tmp_path: Path) -> None:
    """A run opened from outside the folder, and one that is resumed from a command line."""
    (tmp_path / "runs").mkdir()
    far = recorded_run(tmp_path / "far" / "d20 live", **me(), step=60, total=4000)
    near = recorded_run(tmp_path / "runs" / "near", state="running", pid=os.getpid(), process_started=1.0)
    app = TrainApp(tmp_path / "runs")
    app.train.watcher.glance_seconds = (0.1, 0.1)
    app.train.watcher.search_seconds = (60.0, 60.0)
    async with app.run_test(size=(120, 36)) as pilot:
        await found(pilot, app)
        app.train.open_path(far)
        await until(pilot, lambda: "running" in overview(app))
        app.train.open_path(near)
        await until(pilot, lambda: "crashed" in overview(app))
        rows = {run.path: run for run in app.train.runs.runs}
        assert rows[far].state.life == "running" and rows[near].state.life == "crashed"
        app.train.action_tab("runs")
        await until(pilot, lambda: app.train.runs.table.row_count == 2)
        row = app.train.runs.table.get_row(str(far))
        assert "far/d20 live" in str(row[1])  # not taken for one of the folder's
        app.train.runs.table.move_cursor(row=app.train.runs.table.get_row_index(str(far)))
        await until(pilot, lambda: str(tmp_path / "far") in str(app.train.query_one("#runs-note").render()))
        write_status(far, **{**me(), "state": "stopped"}, step=90, total=4000)
        write_status(near, **me(), step=3100, total=4000)
        await until(
            pilot,
            lambda: {r.path: r.state.life for r in app.train.runs.runs} == {far: "stopped", near: "running"},
        )
        assert app.train.seen is not None
        await until(pilot, lambda: "running" in overview(app))  # and on its open dashboard
        grow(near, step=3700, loss=1.7, tokens=15_000_000)
        await until(pilot, lambda: "3,700/4,000" in overview(app))  # the rows are ahead of the heartbeat
        shutil.rmtree(far)
        await until(pilot, lambda: any(r.state.life == "unknown" for r in app.train.runs.runs))


async def test_a_resume_brings_its_prefix_and_may_be_longer(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", state="stopped", step=3500)
    words = ["env", "X=1"]
    (run / "launch.json").write_text(json.dumps({"command": [*words, "true"], "prefix": words, "started": 1.0}))
    app = TrainApp(run)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.train.seen is not None)
        await pilot.press("R")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        fields = list(app.screen.query(Input))
        assert fields[2].value == "env X=1"
        assert fields[1].placeholder == "as before: 3,528 steps"
        assert all(field.is_on_screen and field.region.height for field in fields)
        fields[1].value = "0"
        fields[1].focus()
        await pilot.press("enter")
        assert "the length must be" in str(app.screen.query_one(".problem").render())
        fields[1].value = "30 min"
        fields[2].value = "echo the words are:"
        await pilot.press("enter")
        await until(pilot, lambda: "before its first step: the words are:" in overview(app))
        assert "--minutes 30" in (run / "console.txt").read_text()
        assert launcher.launch_prefix(run) == "echo the words are:"


async def test_a_chat_next_to_a_living_run_takes_fewer_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat_tui.system.default_threads", lambda: 8)
    recorded_run(tmp_path / "done")
    run = recorded_run(tmp_path / "run", **me(), step=3600, total=4000)
    app = TrainApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await found(pilot, app, 2)
        runs = app.train.runs.runs
        config = json.loads((run / "config.json").read_text())
        for threads, wanted in ((8, 4), (1, 7), (3, 5)):
            config["environment"]["threads"] = threads
            (run / "config.json").write_text(json.dumps(config))
            assert shared_threads(runs) == wanted
        assert shared_threads([r for r in runs if not r.state.alive]) is None
        write_status(run, **{**me(), "host": "elsewhere"}, step=3600)
        app.train.action_refresh()
        await until(pilot, lambda: not any(r.state.local for r in app.train.runs.runs if r.state.alive))
        assert shared_threads(app.train.runs.runs) is None
