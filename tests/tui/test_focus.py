"""Where keys go: completion stays in the input, the turn that keys act on is marked, typing in the list searches."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted import ScriptedBackend
from test_app import say, state, until
from textual.pilot import Pilot
from textual.widgets import Input, Static

from nanochat_tui.chat.backend import Token
from nanochat_tui.chat.store import Store
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.completing import completed
from nanochat_tui.tui.chat.lens import spelled
from nanochat_tui.tui.chat.lens_view import TokenRibbon
from nanochat_tui.tui.widgets.key_line import KeyLine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.rs").write_text("x")
    (tmp_path / "src" / "a name with blanks.rs").write_text("x")
    (tmp_path / "same-one").write_text("x")
    (tmp_path / "same-two").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_and_paths_are_completed(folder: Path) -> None:
    assert completed("/na") == ("/na", [])
    assert completed("/ver") == ("/versions", [])
    assert completed("/fil") == ("/file ", [])
    assert completed("/re")[0] == "/re"
    assert completed("/re")[1][:2] == ["/rename", "/restore"]
    assert completed("/file READ") == ("/file README.md", [])
    assert completed("/file s")[0] == "/file s"
    assert completed("/export sa") == ("/export same-", ["same-one", "same-two"])
    assert completed("/import sr") == ("/import src/", [])
    assert completed("/model src/m") == ("/model src/main.rs", [])
    assert completed("/model src/a") == ("/model src/a name with blanks.rs", [])
    assert completed(f"/file {folder}/.h") == (f"/file {folder}/.hidden", [])
    assert completed("/file ")[1] == ["README.md", "same-one", "same-two", "src/"]
    for text in ("/file no/such/", "/file \0", "/file ~nobody-here/x", "/system ab", "/", "/file a\nb", "/usr/bin"):
        assert completed(text)[0] == text
    assert completed("/")[1]


@pytest.mark.parametrize("key", ["tab", "shift+tab"])
async def test_tab_never_leaves_a_line_that_begins_with_a_slash(folder: Path, key: str) -> None:
    app = NanochatApp(ScriptedBackend("A", "B", is_chat=True))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        for text in ("/file READ", "/file README.md", "/file nothing-like-it", "/system x", "/", "/nonsense ", "/ret"):
            app.chat.prompt.fill(text)
            await pilot.press(key)
            await pilot.pause()
            assert app.focused is app.chat.prompt, text
            await pilot.press("d")
            assert app.chat.prompt.text.endswith("d"), text
        assert len(app.chat.session.conversation.turns) == 1, "no letter was a command"
        app.chat.prompt.fill("/export sa")
        await pilot.press("tab", "tab")
        if key == "tab":
            ways = app.chat.query_one("#suggestions", Static)
            await until(pilot, lambda: "same-two" in str(ways.render()))
        app.chat.prompt.fill("text")
        await pilot.press(key)
        assert app.focused is not app.chat.prompt


def bar(app: NanochatApp, pilot: Pilot[None]) -> list[int]:
    """The rows of the screen whose left edge holds the solid bar in the accent's colour."""
    accent = app.theme_variables["accent"].lower()
    rows = []
    for y, strip in enumerate(app.screen._compositor.render_strips()):
        cells = strip.crop(0, 3)
        if any("█" in s.text and s.style and s.style.color and s.style.color.name == accent for s in cells):
            rows.append(y)
    return rows


@pytest.mark.parametrize("is_chat", [True, False])
async def test_the_turn_that_keys_act_on_is_marked(tmp_path: Path, is_chat: bool) -> None:
    app = NanochatApp(ScriptedBackend("A", "B", "C", is_chat=is_chat), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        for text in ("one", "two", "three"):
            await say(pilot, app, text)
        turns = app.chat.session.conversation.turns
        transcript = app.chat.transcript
        assert bar(app, pilot) == []
        await pilot.press("tab")
        assert app.focused is transcript
        assert transcript.chosen is turns[2]
        await pilot.pause()
        last = bar(app, pilot)
        assert len(last) >= 3
        assert last == list(range(last[0], last[-1] + 1)), "one solid bar"
        keys = str(app.chat.query_one(KeyLine).render())
        assert "↑↓ Turn" in keys
        assert "d Delete" in keys
        await pilot.press("up")
        assert transcript.chosen is turns[1]
        await pilot.pause()
        assert bar(app, pilot)[-1] < last[0]
        await pilot.press("up", "up", "up")
        assert transcript.chosen is turns[0]
        await pilot.press("down")
        assert transcript.chosen is turns[1]
        await pilot.press("d")
        await until(pilot, lambda: len(app.chat.session.conversation.turns) == 2)
        assert [turn.prompt.strip() for turn in app.chat.session.conversation.turns] == ["one", "three"]
        await pilot.pause()
        assert transcript.chosen is not None, "the next key's turn is marked too"
        await pilot.press("escape")
        assert transcript.chosen is None
        await pilot.pause()
        assert bar(app, pilot) == []
        await pilot.press("tab", "tab")
        assert transcript.chosen is None, "the mark that came with the focus goes with it"


async def test_letters_typed_over_the_session_list_search(tmp_path: Path) -> None:
    app = NanochatApp(ScriptedBackend("about kernels", "about rust", is_chat=True), store=Store(tmp_path / "s.db"))
    async with app.run_test(size=(120, 30)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not app.chat.session.conversation.turns)
        await say(pilot, app, "two")
        await pilot.press("ctrl+o")
        await until(pilot, lambda: app.chat.sessions.options.option_count == 2)
        await pilot.press(*"kernelsrdfe")
        assert app.screen is app.chat, "no letter was a command"
        assert app.chat.sessions.query_one(Input).value == "kernelsrdfe"
        await pilot.press(*["backspace"] * 4)
        await until(pilot, lambda: app.chat.sessions.options.option_count == 1)
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.session.conversation.turns[0].prompt == "one")
        await pilot.press("escape", "ctrl+o")
        await until(pilot, lambda: app.chat.sessions.options.option_count == 2)  # an old search hides nothing
        options = app.chat.sessions.options
        options.highlighted = 0
        await pilot.press("down")
        assert options.highlighted == 1, "the arrow keys move in the list while the search has the focus"
        await pilot.press("tab", "s")
        assert app.chat.sessions.order == "created", "in the list letters are commands"


def test_the_parts_of_a_character_can_be_told_apart() -> None:
    pieces = [b"\xf0", b"\x9f", b" \x91", b"\x8d"]
    assert [spelled("", piece) for piece in pieces] == ["<F0>", "<9F>", " <91>", "<8D>"]
    assert spelled("\ufffd", b"\xf0\x9f") == "<F0><9F>"
    assert spelled("👍", b"\x8d") == "👍", "what the stream made whole stays whole"
    assert spelled("", b"") == "∅"
    assert spelled("\ufffd", b"") == "\ufffd"
    ribbon = TokenRibbon(0, [], bytes_of={7: b"\xe2"}.__getitem__)
    assert ribbon.spell(Token("", 7)) == "<E2>"
    assert ribbon.spell(Token("x")) == "x"
