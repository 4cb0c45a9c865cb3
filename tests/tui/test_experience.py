"""Rules from experience: the file with its switches, and what the chat does with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted import ScriptedBackend
from test_app import say, until
from textual.widgets import Button, Input

from nanochat_tui.chat.experience import ExperienceFile, read_experiences
from nanochat_tui.errors import UserError
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.experience_screen import ExperienceScreen
from nanochat_tui.tui.widgets.status import Status, status_content


def rules(path: Path) -> Path:
    path.write_text('{"G0": "When asked, answer", "G3": "When  two\\nlines, fold"}')
    return path


def test_each_change_is_saved_and_what_is_off_is_not_read(tmp_path: Path) -> None:
    file = ExperienceFile(rules(tmp_path / "r.json"))
    assert file.add("  When new,\n do this ") == "G1"
    file.switch("G0")
    file.edit("G3", "When three")
    saved = json.loads(file.path.read_text())
    assert saved["G0"] == {"text": "When asked, answer", "enabled": False}
    assert (saved["G3"], saved["G1"]) == ("When three", "When new, do this")
    assert read_experiences(file.path) == {"G3": "When three", "G1": "When new, do this"}
    assert "[G3] When three" in file.text and "When asked" not in file.text and file.enabled == 2
    again = ExperienceFile(file.path)
    again.switch("G0")
    again.delete("G3")
    assert read_experiences(file.path) == {"G0": "When asked, answer", "G1": "When new, do this"}


def test_changes_of_others_are_not_overwritten(tmp_path: Path) -> None:
    file = ExperienceFile(rules(tmp_path / "r.json"))
    file.path.write_text('{"G9": "When practised, learn"}')
    with pytest.raises(UserError, match="changed by another program"):
        file.add("mine")
    assert list(file.all) == ["G9"] and json.loads(file.path.read_text()) == {"G9": "When practised, learn"}
    file.add("mine")
    assert list(read_experiences(file.path)) == ["G9", "G0"]
    with pytest.raises(UserError, match="needs a text"):
        file.edit("G9", "  ")


@pytest.mark.parametrize(
    "text", ["[]", '{"G0": ""}', '{"G0": {"text": 3}}', '{"G0": {"text": "a", "enabled": "no"}}', "{"]
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match="are no JSON object of texts"):
        ExperienceFile(path)


async def test_the_chat_reads_shows_and_edits_them(tmp_path: Path) -> None:
    path = rules(tmp_path / "mine.json")
    backend = ScriptedBackend("one", "two", "three", is_chat=True)
    app = NanochatApp(backend)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.chat.model.ready)
        app.chat.prompt.text = f"/experience {path}"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ExperienceScreen))
        assert app.chat.status.experience == "mine (2)"
        await pilot.press("space")
        await until(pilot, lambda: app.chat.status.experience == "mine (1)")
        await pilot.press("a")
        await until(pilot, lambda: bool(app.screen.query(Input)))
        app.screen.query_one(Input).value = "When tested, pass"
        await pilot.press("enter")
        await until(pilot, lambda: len(json.loads(path.read_text())) == 3)
        await until(pilot, lambda: isinstance(app.screen, ExperienceScreen))
        await pilot.press("up", "e")
        await until(pilot, lambda: bool(app.screen.query(Input)))
        assert app.screen.query_one(Input).value == "When two lines, fold"
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ExperienceScreen))
        await pilot.press("d")
        await until(pilot, lambda: bool(app.screen.query("#yes")))
        app.screen.query_one("#yes", Button).press()
        await until(pilot, lambda: len(json.loads(path.read_text())) == 2)
        await until(pilot, lambda: isinstance(app.screen, ExperienceScreen))
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.chat)

        await say(pilot, app, "hello")
        sent = backend.requests[-1].messages[-1].content
        assert sent.endswith("\n\nhello") and "[G1] When tested, pass" in sent and "When asked" not in sent
        assert app.chat.session.conversation.turns[0].prompt == "hello", "what is kept is what was said"
        await say(pilot, app, "again")
        first, _, last = backend.requests[-1].messages
        assert first.content == "hello" and "When tested, pass" in last.content
        app.chat.prompt.text = "/experience off"
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.status.experience == "")
        await say(pilot, app, "bare")
        assert backend.requests[-1].messages[-1].content == "bare"


def test_the_status_names_them_where_there_is_room() -> None:
    status = Status("model", "ready", "avx2", 2, context_size=512, experience="mine (2)")
    assert "rules mine (2)" in status_content(status, 100).plain
    assert "rules" not in status_content(status, 40).plain
