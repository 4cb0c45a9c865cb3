"""The evaluate mode in the application: its key, and what it knows of the chat."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted import ScriptedBackend
from test_app import until
from textual.widgets import Static

from nanochat_tui.evaluate.solving import Evaluation, Row
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.evaluate.screen import EvaluateScreen


async def test_the_application_shows_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_DATA_DIR", str(tmp_path))
    made = Evaluation(tmp_path / "evaluations" / "old", {"set": "one", "model": "m", "problems": 1, "samples": 1})
    made.append(Row("p0", 0, "x", "passed", ""))
    app = NanochatApp(ScriptedBackend("hello"))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("f6")
        await until(pilot, lambda: isinstance(app.screen, EvaluateScreen) and bool(app.screen.list.kept))
        assert isinstance(app.screen, EvaluateScreen)
        assert (app.screen.list.kept[0].name, app.screen.list.kept[0].state) == ("old", "finished")
        assert "100.0%" in str(app.screen.query_one("#kept-progress", Static).render())
        await pilot.press("f2")
        await until(pilot, lambda: app.current_mode == "chat")
