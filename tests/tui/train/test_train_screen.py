"""The train mode as a person drives it, on recorded runs and real processes."""

import os
import shutil
from pathlib import Path

import psutil
import pytest
from run_support import grow, recorded_run, run_with_checkpoints, stand_in, write_status
from textual.widgets import DataTable, Input, Static
from train_app import TrainApp, found, inside, launch_form, overview, until

from nanochat_tui.runs import signals
from nanochat_tui.runs.state import read_state
from nanochat_tui.text import printable
from nanochat_tui.tui.train.checkpoints_view import CheckpointsView
from nanochat_tui.tui.train.compare_view import CompareView
from nanochat_tui.tui.train.dashboard import ORDER, TextPanel
from nanochat_tui.tui.widgets.chart import Chart
from nanochat_tui.tui.widgets.dialogs import Ask, Confirm

SIZES = [(80, 24), (200, 60)]


def me() -> dict[str, object]:
    return {"pid": os.getpid(), "process_started": psutil.Process().create_time(), "state": "running"}


def text(panel: TextPanel) -> str:
    return str(panel.query_one("Static").render())


@pytest.mark.parametrize("size", SIZES)
async def test_a_finished_run_is_shown_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    recorded_run(tmp_path / "d20")
    app = TrainApp(tmp_path)
    async with app.run_test(size=size) as pilot:
        await found(pilot, app)
        table = app.train.runs.table
        assert [str(cell) for cell in table.get_row_at(0)][1:3] == ["d20", "finished"]
        await pilot.press("enter")
        await until(pilot, lambda: "finished" in overview(app))
        seen = overview(app)
        for part in ("d20", "17.98M parameters", "3,528/3,528 100%", "14.45M tokens", "bits/byte 0.9531"):
            assert part in seen, seen
        assert "ETA" not in seen
        charts = {chart.id: chart for chart in app.train.query(Chart)}
        assert [c.label for c in charts["panel-loss"].curves] == ["logged", "train", "val"]
        assert len(charts["panel-mhc"].curves) == 12
        assert charts["panel-recent"].default_range is not None
        for number, name in enumerate(ORDER):
            await pilot.press(str(number + 1))
            panel = app.train.query_one(f"#panel-{name}")
            assert panel.display and panel.has_focus and panel.region.area > 0
            inside(app)
        log = app.train.query_one("#panel-log", TextPanel)
        assert "finished at step 3528" in text(log)
        await until(pilot, lambda: log.scroll_y == log.max_scroll_y > 0)  # the newest line is what one wants
        assert "step 3500" in text(app.train.query_one("#panel-samples", TextPanel))
        await pilot.press("1", "z")
        assert app.screen.maximized is charts["panel-loss"]
        await pilot.press("z", "m")
        await until(pilot, lambda: charts["panel-mhc"].chart_title == "mHC p (read)")
        await until(pilot, lambda: any(float(c.y[-1]) < 0.2 for c in charts["panel-mhc"].curves))


async def test_a_living_run_is_followed_and_a_dead_one_costs_nothing(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", **me(), step=3000, total=4000)
    app = TrainApp(run)  # the folder that was given is itself a run: it opens at once
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "running" in overview(app))
        assert "ETA" in overview(app)
        chart = app.train.query_one("#panel-loss", Chart)
        count = len(chart.curves[1].x)
        grow(run, step=3600, tokens=15_000_000, loss=1.75, tok_per_s=3000.0)
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3610, "lo')  # and half a line, which is no error
        await until(pilot, lambda: len(chart.curves[1].x) == count + 1)
        write_status(run, **{**me(), "state": "finished"}, step=4000, total=4000)
        await until(pilot, lambda: "finished" in overview(app))
        await pilot.pause(0.3)
        looks = app.train.watcher.looks
        await pilot.pause(2.5)
        assert app.train.watcher.looks == looks
        await pilot.press("r")
        await until(pilot, lambda: app.train.watcher.looks == looks + 1)


async def test_a_crash_is_told_and_offers_to_resume(tmp_path: Path) -> None:
    recorded_run(tmp_path / "run", state="running", pid=os.getpid(), process_started=1.0, step=3100)
    app = TrainApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await found(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: "crashed: its process is gone; resume" in overview(app))
        assert app.train.check_action("stop", ()) is None
        await pilot.press("R")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        fields = list(app.screen.query(Input))
        assert fields[0].value == str(tmp_path / "run" / "step_3500")
        fields[1].value = "many"
        fields[1].focus()
        await pilot.press("enter")
        assert "the length must be" in str(app.screen.query_one(".problem").render())
        await pilot.press("escape")
        assert app.screen is app.train


async def test_checkpoint_stop_and_kill_reach_a_real_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stand_in(run)
    app = TrainApp(tmp_path)
    try:
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: read_state(run).life == "running")
            app.train.open_path(run)
            await until(pilot, lambda: "running" in overview(app))
            await pilot.press("c")
            await until(pilot, lambda: read_state(run).control_done is not None)
            assert any("Asked for a checkpoint" in said for said in app.said)
            await until(pilot, lambda: any("is written" in said for said in app.said))
            # killing is asked twice, and either answer can be no
            await pilot.press("K")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            assert "everything is lost" in str(app.screen.query_one(".question").render())
            await pilot.press("enter")  # the harmless button has the focus
            await until(pilot, lambda: app.screen is app.train)
            await pilot.press("K")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.click("#yes")
            await until(pilot, lambda: isinstance(app.screen, Confirm) and "Really" in app.screen._question)
            await pilot.press("escape")
            await until(pilot, lambda: app.screen is app.train)
            assert read_state(run).life == "running"
            # stopping is asked once
            await pilot.press("s")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            assert "Stop run at step" in app.screen._question
            await pilot.press("enter")
            await until(pilot, lambda: app.screen is app.train)
            assert read_state(run).life == "running"
            await pilot.press("s")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.click("#yes")
            await until(pilot, lambda: "stopped" in overview(app))
    finally:
        if read_state(run).alive:
            signals.kill(run)
    other = tmp_path / "other"
    stand_in(other)
    async with TrainApp(tmp_path).run_test(size=(80, 24)) as pilot:
        app = pilot.app  # type: ignore[assignment]
        await until(pilot, lambda: read_state(other).life == "running")
        app.train.open_path(other)
        await until(pilot, lambda: "running" in overview(app))
        await pilot.press("K")
        for _ in range(2):
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.click("#yes")
            await pilot.pause(0.1)
        await until(pilot, lambda: "killed by a person" in overview(app))
        assert read_state(other).life == "killed" and "crashed" not in overview(app)


@pytest.mark.parametrize("size", SIZES)
async def test_runs_are_compared(tmp_path: Path, size: tuple[int, int]) -> None:
    recorded_run(tmp_path / "a")
    recorded_run(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text('{"config": {"config": "d20", "muon_lr": 0.5}}')
    shutil.copy(tmp_path / "a" / "log.txt", tmp_path / "c.log")
    app = TrainApp(tmp_path)
    async with app.run_test(size=size) as pilot:
        await found(pilot, app, 3)
        for row in range(3):
            app.train.runs.table.move_cursor(row=row)
            await pilot.press("space")
        view = app.train.query_one(CompareView)
        await until(pilot, lambda: len(view.runs) == 3)
        app.train.action_tab("compare")
        await pilot.pause()
        table = str(view.query_one("#compare-table Static").render())
        assert "best val" in table and "1.8828" in table
        assert "muon_lr" in table and "0.5" in table
        chart = view.query_one(Chart)
        assert {c.label for c in chart.curves if not c.faint} == {"a", "b", "c.log"}
        await pilot.press("x")
        assert view.axis == "tokens"
        assert max(float(c.x[-1]) for c in chart.curves) == 14_450_688
        inside(app)


@pytest.mark.parametrize("size", SIZES)
async def test_the_form_judges_while_typing_and_launches(tmp_path: Path, size: tuple[int, int]) -> None:
    app = TrainApp(tmp_path)
    async with app.run_test(size=size) as pilot:
        form = await launch_form(pilot, app)
        await until(pilot, lambda: form.estimate is not None)
        inside(app)
        facts = str(form.query_one("#form-facts").render())
        assert "361,124 parameters" in facts and "200 steps of 512 tokens" in facts
        batch = form.query_one("#field-batch_size", Input)
        batch.focus()
        await pilot.pause()
        assert "Sequences per micro-batch" in str(form.query_one("#form-hint").render())
        await pilot.press("end", "backspace")
        assert batch.has_class("-wrong")
        assert form.query_one("#form-launch").disabled
        await pilot.press("x")
        assert "needs a whole number" in str(form.query_one("#form-problems").render())
        await pilot.press("backspace", "4")
        assert not batch.has_class("-wrong")
        assert "--batch-size 4" in str(form.query_one("#form-command").render())
        # presets, and data that is not there
        form.query_one("#form-preset").focus()
        await pilot.press("right")
        assert form.query_one("#field-config").value == "d20"  # type: ignore[attr-defined]
        assert "data_path is needed" in str(form.query_one("#form-problems").render())
        form.set_field("data_path", str(tmp_path / "nothing"))
        await until(pilot, lambda: form.checks)
        assert "there is no data" in str(form.query_one("#form-problems").render())
        await pilot.press("ctrl+l")
        assert "there is no data" in app.said[-1]
        # a real launch, of a program that says what it was given and ends
        form.query_one("#form-preset").focus()
        await pilot.press("left")
        form.query_one("#form-prefix", Input).value = "echo the words are:"
        await until(pilot, lambda: form.ready)
        directory = form.directory
        assert directory.parent == tmp_path
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "failed" in overview(app))
        assert "before its first step: the words are:" in overview(app)
        console = (directory / "console.txt").read_text()
        assert "the words are:" in console and f"--checkpoint-dir {directory}" in console
        assert "the words are:" in text(app.train.query_one("#panel-log", TextPanel))
        assert form.directory != directory  # the next run gets another place


async def test_settings_are_read_from_a_run_and_saved(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run")
    app = TrainApp(tmp_path)
    async with app.run_test(size=(120, 40)) as pilot:
        form = await launch_form(pilot, app)
        file = form.query_one("#form-file", Input)
        file.focus()
        file.value = str(run)
        await pilot.press("enter")
        assert form.config is not None and form.config.head_frequent == 6144
        form.query_one("#form-directory", Input).value = str(tmp_path / "mine")
        await pilot.press("ctrl+s")
        assert (tmp_path / "mine.toml").is_file()
        file.value = str(tmp_path / "absent.toml")
        file.focus()
        await pilot.press("enter")
        assert "cannot read" in app.said[-1]


async def test_a_log_of_the_original_trainer_is_attached_by_its_path(tmp_path: Path) -> None:
    log = tmp_path / "elsewhere" / "training.log"
    log.parent.mkdir()
    log.write_text("[    50/5000  ] loss=177.8123 lr=0.010000 gnorm=43.12 tok/s=10234 elapsed=20s\n")
    (tmp_path / "runs").mkdir()
    app = TrainApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.train.is_mounted)
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        field = app.screen.query_one(Input)
        field.value = str(tmp_path)
        await pilot.press("enter")
        assert "not a run directory" in str(app.screen.query_one(".problem").render())
        field.value = str(log)
        await pilot.press("enter")
        await until(pilot, lambda: "log of the original trainer" in overview(app))
        assert "loss 177.8" in overview(app)
        app.train.action_tab("runs")
        assert app.train.runs.table.row_count == 1


async def test_a_run_that_disappears_is_survived(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", **me())
    app = TrainApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await found(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: "running" in overview(app))
        shutil.rmtree(run)
        await until(pilot, lambda: "unknown" in overview(app))
        await pilot.press("r")
        await until(pilot, lambda: not app.train.runs.runs)


async def test_nothing_is_read_while_another_screen_is_on_show(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", **me())
    app = TrainApp(run)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "running" in overview(app))
        app.train.watcher.pause(True)
        await pilot.pause(0.3)
        looks = app.train.watcher.looks
        await pilot.pause(1.5)
        assert app.train.watcher.looks == looks
        app.train.watcher.pause(False)
        await until(pilot, lambda: app.train.watcher.looks > looks)


async def test_names_of_files_are_harmless(tmp_path: Path) -> None:
    recorded_run(tmp_path / "[red]x\x1b[31m")
    app = TrainApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await found(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: "[red]x\\x1b[31m" in overview(app))


async def test_talk_and_scrub_on_real_checkpoints(tmp_path: Path) -> None:
    run = run_with_checkpoints(tmp_path / "run", (10, 20, 30))
    app = TrainApp(tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await found(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: app.train.seen is not None)
        app.train.action_tab("checkpoints")
        view = app.train.query_one(CheckpointsView)
        await until(pilot, lambda: len(view.checkpoints) == 3)
        assert [str(view.table.get_row_at(i)[1]).strip() for i in range(3)] == ["3.4000", "3.3000", "3.2000"]
        view.query_one("#scrub-tokens", Input).value = "12"
        view.query_one("#scrub-temperature", Input).value = "-1.5"
        await pilot.press("g")  # a setting that makes no sense is refused before anything is exported
        await until(pilot, lambda: "temperature must be" in str(view.query_one("#scrub-note", Static).render()))
        assert not view.errors and not view.done
        view.query_one("#scrub-temperature", Input).value = "1.5"
        assert isinstance(app.focused, DataTable)
        await pilot.press("g")
        await until(pilot, lambda: len(view.done) == 3, 120)
        texts = [view.texts[run / f"step_{step}"] for step in (10, 20, 30)]
        assert len(set(texts)) == 3
        await pilot.press("up")
        assert printable(texts[1]) in str(view.query_one("#scrub-text Static").render())
        first = dict(view.texts)
        await pilot.press("g")  # same prompt, same seed, same files: the same texts
        await until(pilot, lambda: len(view.done) == 3, 60)
        assert view.texts == first
        # talk: a temporary file, handed to the chat
        await pilot.press("t")
        await until(pilot, lambda: app.talks, 60)
        gguf = app.talks[0].path
        assert gguf.is_file() and gguf.name == "run-step_20.gguf"
        # a checkpoint that was pruned meanwhile
        shutil.rmtree(run / "step_10")
        view.table.move_cursor(row=0)
        await pilot.press("t")
        await until(pilot, lambda: app.said and "keeps only the newest" in app.said[-1])
    assert not gguf.exists()  # temporary files go with the application


@pytest.mark.slow
async def test_export_for_good_is_verified(tmp_path: Path) -> None:
    run_with_checkpoints(tmp_path / "run", (10,))
    app = TrainApp(tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await found(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: app.train.seen is not None)
        app.train.action_tab("checkpoints")
        await until(pilot, lambda: app.train.query_one(CheckpointsView).checkpoints)
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        target = tmp_path / "out" / "mine.gguf"
        app.screen.query_one(Input).value = str(target)
        await pilot.press("enter")
        await until(pilot, lambda: len(app.said) == 2, 180)  # that it began, and how it ended
        assert "equal bit for bit" in app.said[1] and "same top" in app.said[1]
        assert target.is_file() and target.with_suffix(".mhc").is_file()


async def test_nobody_talks_to_made_up_numbers(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run")
    (run / "config.json").write_text('{"config": {"config": "tiny", "dataset": "synthetic"}}')
    app = TrainApp(run)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.train.seen is not None)
        app.train.action_tab("checkpoints")
        view = app.train.query_one(CheckpointsView)
        await until(pilot, lambda: len(view.checkpoints) == 2 and view.table.has_focus)
        await pilot.press("g")
        assert "synthetic data" in str(view.query_one("#scrub-note").render())
        await pilot.press("enter")
        await until(pilot, lambda: app.said and "synthetic data" in app.said[-1])
