"""The mode inside the application: on its key, asleep while another mode is on show, talking to the chat."""

import sys
from pathlib import Path

from run_support import recorded_run, run_with_checkpoints
from train_app import until

sys.path.insert(0, str(Path(__file__).parents[1]))
from scripted import ScriptedBackend

from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.train.screen import TrainScreen


def train(app: NanochatApp) -> TrainScreen:
    assert isinstance(app.screen, TrainScreen)
    return app.screen


async def test_f4_shows_runs_and_another_mode_lets_them_be(tmp_path: Path) -> None:
    app = NanochatApp(ScriptedBackend("x"), runs=recorded_run(tmp_path / "run"))
    async with app.run_test(size=(80, 24)) as pilot:
        assert "nanochat_tui.tui.train.launch_form" not in sys.modules or app.current_mode == "chat"
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, TrainScreen) and app.screen.seen is not None)
        screen = train(app)
        titles = [command.title for command in app.get_system_commands(screen)]
        assert "Resume the run" in titles and "Talk to the newest checkpoint" in titles
        assert "Kill the run" not in titles or screen.check_action("kill", ()) is None
        await pilot.press("f2")
        await until(pilot, lambda: app.current_mode == "chat")
        assert screen.watcher._paused
        await pilot.press("f4")
        await until(pilot, lambda: not screen.watcher._paused)
        for theme in ("textual-light", "nord", "nanochat"):
            app.theme = theme
            await pilot.pause()
            chart = screen.query_one("#panel-loss")
            assert any(segment.text.strip() for segment in chart.render_line(3))


async def test_talking_to_a_checkpoint_opens_it_in_the_chat(tmp_path: Path) -> None:
    app = NanochatApp(ScriptedBackend("x"), runs=run_with_checkpoints(tmp_path / "run", (10,)))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, TrainScreen) and app.screen.seen is not None)
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.chat.model.backend, LocalBackend), 60)
        assert app.current_mode == "chat"
        assert app.chat.model.backend.name == "run-step_10"
        assert app.chat.model.backend._threads is None  # no run is alive
        await until(pilot, lambda: app.chat.model.ready, 60)
        path = app.chat.model.backend.path
        assert path.is_file()
    assert not path.exists()  # temporary, and gone although the application ended in another mode
