"""Keys of the train mode where they must not reach a run, and everything that has a key in the palette."""

import os
from pathlib import Path

import psutil
import pytest
from run_support import recorded_run, write_status
from textual import events
from textual.widgets import Input
from train_app import TrainApp, found, inside, launch_form, overview, until

from nanochat_tui.runs.state import read_state
from nanochat_tui.tui.train.launch_form import LaunchForm
from nanochat_tui.tui.widgets.chart import Chart
from nanochat_tui.tui.widgets.dialogs import Confirm
from nanochat_tui.tui.widgets.key_line import KeyLine

STEERING = ("checkpoint", "stop", "kill", "newest")


def me() -> dict[str, object]:
    return {"pid": os.getpid(), "process_started": psutil.Process().create_time(), "state": "running"}


def asked(run: Path) -> bool:
    return (run / "control").exists()


async def test_the_form_and_the_list_do_not_steer_a_run(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "living", **me(), step=3000, total=4000)
    recorded_run(tmp_path / "other")
    app = TrainApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await found(pilot, app, 2)
        app.train.open_path(run)
        await until(pilot, lambda: "running" in overview(app))
        assert all(app.train.check_action(action, ()) for action in STEERING)
        await pilot.press("n")
        await until(pilot, lambda: app.train.query(LaunchForm))
        await pilot.pause()
        assert type(app.focused).__name__ == "Choice"  # takes no letters itself
        assert not any(app.train.check_action(action, ()) for action in STEERING)
        await pilot.press("s", "c", "t", "e", "K", "R")
        await pilot.pause(0.3)
        assert app.screen is app.train and not app.said and not asked(run)
        # in the list another run may be under the cursor
        app.train.action_tab("runs")
        await pilot.pause()
        app.train.runs.table.move_cursor(row=1)
        assert app.train.runs.selected is not None and app.train.runs.selected.name == "other"
        await pilot.press("s", "c", "K")
        await pilot.pause(0.3)
        assert app.screen is app.train and not asked(run)
        # the palette steers it from there, by its name
        offers = {title: (text, call) for title, text, call in app.train.palette_commands()}
        assert "living" in offers["Stop the run safely"][0]
        offers["Stop the run safely"][1]()
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        assert "Stop living at step 3,528?" in str(app.screen.query_one(".question").render())
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.train)
        assert not asked(run)


async def test_the_list_hears_of_runs_elsewhere(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run")
    app = TrainApp(tmp_path)
    app.train.watcher.search_seconds = (0.1, 0.2)
    async with app.run_test(size=(80, 24)) as pilot:
        await found(pilot, app)
        assert app.train.runs.runs[0].state.life == "finished"
        recorded_run(tmp_path / "later")
        await found(pilot, app, 2)
        write_status(run, **me(), step=10, total=4000)
        await until(pilot, lambda: any(r.state.life == "running" for r in app.train.runs.runs))
        write_status(run, **{**me(), "state": "finished"}, step=20, total=4000)
        await until(pilot, lambda: not any(r.state.alive for r in app.train.runs.runs))
        assert app.train.watcher.looks == 0  # only searched


async def test_a_run_that_is_resumed_elsewhere_comes_to_life(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run")
    app = TrainApp(run)
    app.train.watcher.search_seconds = (0.1, 0.2)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "finished" in overview(app))
        write_status(run, **me(), step=3600, total=4000)
        await until(pilot, lambda: "running" in overview(app))
        assert read_state(run).alive


async def test_nothing_is_searched_for_while_another_screen_is_on_show(tmp_path: Path) -> None:
    app = TrainApp(tmp_path)
    app.train.watcher.search_seconds = (0.05, 0.05)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.train.is_mounted)
        app.train.watcher.pause(True)
        await pilot.pause(0.2)
        recorded_run(tmp_path / "run")
        await pilot.pause(0.4)
        assert not app.train.runs.runs
        app.train.watcher.pause(False)
        await found(pilot, app)


@pytest.mark.parametrize(
    ("tab", "titles"),
    [
        ("runs", {"Runs: Compare", "Let every checkpoint write", "Dashboard: mHC α", "Train: compare"}),
        ("dashboard", {"Dashboard: Fill", "Dashboard: mHC α/p/q", "Chart: Log axis", "Chart: Zoom in", "Train: runs"}),
        ("checkpoints", {"Checkpoints: Scrub all", "Checkpoints: Talk", "Dashboard: log"}),
        ("compare", {"Compare: Axis", "Chart: Log axis"}),
        ("new", {"New run: Launch", "New run: Save"}),
    ],
)
async def test_the_palette_has_what_the_tab_has(tmp_path: Path, tab: str, titles: set[str]) -> None:
    app = TrainApp(recorded_run(tmp_path / "run"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.train.seen is not None)
        app.train.action_tab(tab)
        await pilot.pause(0.1)
        offers = {title: call for title, _, call in app.train.palette_commands()}
        assert titles <= set(offers), sorted(offers)
        if tab == "runs":
            offers["Dashboard: mHC α"]()
            await until(pilot, lambda: app.train.tabs.active == "dashboard" and app.train.dashboard.current == "mhc")
            chart = app.train.query_one("#panel-mhc", Chart)
            offers = {title: call for title, _, call in app.train.palette_commands()}
            result = offers["Chart: Log axis"]()
            assert chart.log_axis is False
            await result  # type: ignore[misc]
            assert chart.log_axis is True


async def test_every_mhc_record_can_be_told(tmp_path: Path) -> None:
    app = TrainApp(recorded_run(tmp_path / "run"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.train.seen is not None)
        await pilot.press("6")
        chart = app.train.query_one("#panel-mhc", Chart)
        await until(pilot, lambda: len(chart.curves) == 12)

        def title() -> str:
            return chart.render_line(0).text

        await pilot.pause()
        assert "v: each" in title()  # not all twelve names fit
        told = []
        for number in range(1, 13):
            await pilot.press("v")
            assert f"({number} of 12; v: next)" in title()
            told.append(title().split()[2])
            drawn = chart._in_order()
            assert [c.label for c in drawn if not c.faint] == [drawn[-1].label] == [told[-1]]
        assert told == [f"{block}{part}" for block in range(6) for part in "af"]
        await pilot.press("V")
        assert "(11 of 12" in title()
        await pilot.press("v", "v")
        assert chart.chosen is None and "v: each" in title()


async def test_the_way_to_the_other_tabs_is_on_the_key_line(tmp_path: Path) -> None:
    app = TrainApp(recorded_run(tmp_path / "run", **me(), step=3000, total=4000))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.train.seen is not None)
        for tab in ("runs", "dashboard", "checkpoints", "compare", "new"):
            app.train.action_tab(tab)
            await pilot.pause(0.2)
            assert "Alt+→ Tab" in str(app.train.query_one(KeyLine).render()), tab


async def test_the_form_and_its_command_line_are_reached_by_keys(tmp_path: Path) -> None:
    app = TrainApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        form = await launch_form(pilot, app)
        await until(pilot, lambda: form.estimate is not None)
        assert app.focused is form.query_one("#form-preset")
        await pilot.press("down")
        assert app.focused is form.query_one("#form-directory")
        await pilot.press("down", "up", "up")
        assert app.focused is form.query_one("#form-preset")
        last = form.query_one("#form-fields").query("Input, Choice").last()
        last.focus()
        await pilot.press("down")
        report = form.query_one("#form-report")
        assert app.focused is report
        command = form.query_one("#form-command")
        await pilot.pause()
        assert form.query_one("#form-facts").region.y == report.region.y  # at the top, nothing is wrong
        await pilot.press("end")
        await until(pilot, lambda: report.scroll_y == report.max_scroll_y > 0)
        assert command.region.bottom <= report.region.bottom  # and its end was reached


async def test_saved_settings_are_not_replaced_unasked(tmp_path: Path) -> None:
    app = TrainApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        form = await launch_form(pilot, app)
        form.query_one("#form-directory", Input).value = str(tmp_path / "v1.2")
        target = tmp_path / "v1.2.toml"
        target.write_text("mine")
        await pilot.pause()
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is app.train)
        assert target.read_text() == "mine"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.click("#yes")
        await until(pilot, lambda: app.said)
        assert "batch_size" in target.read_text()


async def test_the_scrubber_samples_and_shows_how(tmp_path: Path) -> None:
    app = TrainApp(recorded_run(tmp_path / "run"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.train.seen is not None)
        app.train.action_tab("checkpoints")
        await pilot.pause(0.1)
        values = [field.value for field in app.train.query_one("CheckpointsView").query(Input)]
        assert values[1:] == ["64", "0", "0.8", "1.1"]
        inside(app)


async def test_tabs_follow_keys_however_fast(tmp_path: Path) -> None:
    recorded_run(tmp_path / "run")
    app = TrainApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await found(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: app.train.seen is not None)
        for keys, tab in ((("right",) * 3, "new"), (("left",) * 2, "checkpoints"), (("right",) * 7, "new")):
            for key in keys:
                app.post_message(events.Key(f"alt+{key}", None))
            await until(pilot, lambda tab=tab: app.train.tabs.active == tab)  # type: ignore[misc]
            await pilot.pause(0.2)
            assert app.train.tabs.active == tab
