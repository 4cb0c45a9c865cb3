"""Preferences, keys, themes, the log, crashes, the picker, and a start without any model."""

from __future__ import annotations

import logging
import tempfile
import tomllib
from pathlib import Path

import pytest
from scripted import ScriptedBackend
from support import write_model
from test_app import say, shown, state, until
from textual.binding import Binding
from textual.widgets import Input, OptionList, RichLog, Select, Static

from nanochat_tui.chat.missing import MissingBackend
from nanochat_tui.errors import UserError
from nanochat_tui.tui import lent
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat import commands
from nanochat_tui.tui.chat.code_blocks import code_blocks
from nanochat_tui.tui.chat.model_picker import ModelPicker
from nanochat_tui.tui.chat.model_places import find_models
from nanochat_tui.tui.inspect.screen import InspectScreen
from nanochat_tui.tui.key_owners import key_owners
from nanochat_tui.tui.keys import key_problem, remappable
from nanochat_tui.tui.log import write_crash_report
from nanochat_tui.tui.log_screen import LogScreen
from nanochat_tui.tui.messages import ModelUsed, OpenFile
from nanochat_tui.tui.preferences import Preferences, load_preferences, remember_model, save_preferences
from nanochat_tui.tui.preferences_screen import PreferencesScreen
from nanochat_tui.tui.train.screen import TrainScreen
from nanochat_tui.tui.widgets.choice import Choice
from nanochat_tui.tui.widgets.key_line import Item, fitting


async def test_preferences_apply_at_once_and_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "config" / "settings.toml"
    app = NanochatApp(ScriptedBackend("x"), preferences_path=path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, PreferencesScreen))
        screen = app.screen
        theme = next(s for s in screen.query(Select) if s.name == "appearance.theme")
        theme.value = "high-contrast"
        await until(pilot, lambda: app.theme == "high-contrast")
        field = next(i for i in screen.query(Input) if i.name == "sampling.temperature")
        field.value = "-1"
        await until(pilot, lambda: field.has_class("-invalid"))
        field.value = "0.3"
        await until(pilot, lambda: app.preferences.sampling.temperature == 0.3)
        folded = next(c for c in screen.query(Choice) if c.name == "appearance.unfold_thinking")
        assert "no" in str(folded.render()), "yes and no are written, not marked"
        folded.focus()
        await pilot.press("space")
        await until(pilot, lambda: app.preferences.appearance.unfold_thinking)
        await pilot.press("space")
        await until(pilot, lambda: not app.preferences.appearance.unfold_thinking)
        key = next(i for i in screen.query(Input) if i.name == "chat.sessions")
        key.value = "f7"
        await until(pilot, lambda: app.preferences.keys == {"chat.sessions": "f7"})
        key.value = "ctrl+n"
        await until(pilot, lambda: key.has_class("-invalid"))
        assert "already means" in str(screen.query_one("#preferences-hint", Static).render())
        await pilot.press("escape")
        await pilot.press("f7")
        await until(pilot, lambda: bool(app.chat.sessions.display))
        await pilot.press("escape", "ctrl+n")
        await until(pilot, lambda: app.chat.session.sampling.temperature == 0.3)
    kept = tomllib.loads(path.read_text())
    assert kept == {
        "appearance": {"theme": "high-contrast"},
        "sampling": {"temperature": 0.3},
        "keys": {"chat.sessions": "f7"},
    }
    again, problem = load_preferences(path)
    assert problem is None
    assert again == app.preferences


def test_damaged_preferences_are_told_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    for text, word in (
        ("[sampling]\ntemperature = -3", "sampling.temperature"),
        ("not toml", "fix or delete the file"),
        ("[no]\nx=1", "no is unknown"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("sampling = 5", "sampling"),
    ):
        path.write_text(text)
        found, problem = load_preferences(path)
        assert found == Preferences()
        assert problem is not None
        assert word in problem
        assert path.read_text() == text
    path.write_bytes(b"\xff\xfe")
    assert "UTF-8" in (load_preferences(path)[1] or "")
    path.unlink()
    path.mkdir()
    problem = load_preferences(path)[1] or ""
    assert "Errno" not in problem
    assert "directory" in problem
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be kept"):
        save_preferences(Preferences(), tmp_path / "file" / "settings.toml")


def test_what_is_wrong_in_the_preferences_costs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        'newer = 1\nrecent = ["/a", 5, "/b", []]\n[sampling]\ntemperature = 0.3\ntop_k = -1\nsystem = "be brief"\n'
        '[appearance]\ntheme = "nanochat-light"\nfont = "x"\n[keys]\n"chat.sessions" = "f7"\n"chat.new" = 5\n'
    )
    found, problem = load_preferences(path)
    assert (found.sampling.temperature, found.sampling.top_k, found.sampling.system) == (0.3, 40, "be brief")
    assert found.appearance.theme == "nanochat-light"
    assert found.keys == {"chat.sessions": "f7"}
    assert found.recent == ["/a", "/b"]
    assert problem is not None
    assert "appearance.font is unknown" in problem
    assert "2 more" in problem
    assert "\n" not in problem


async def test_a_theme_and_keys_that_mean_nothing_are_said() -> None:
    wrong = Preferences.model_validate(
        {"appearance": {"theme": "no-such"}, "keys": {"no.such": "f7", "chat.new": "foo++", "chat.sessions": "f7"}}
    )
    app = NanochatApp(ScriptedBackend("x"), preferences=wrong)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(pilot, lambda: any("not used" in n.message for n in app._notifications))
        (text,) = [n.message for n in app._notifications if "not used" in n.message]
        assert "no theme no-such" in text
        assert "keys.no.such is unknown" in text
        assert "keys.chat.new" in text
        assert "chat.sessions" not in text
        await pilot.press("f7")
        await until(pilot, lambda: bool(app.chat.sessions.display))


def test_keys_are_checked() -> None:
    known = remappable([NanochatApp])
    assert {"app.help", "app.quit"} <= {k.id for k in known}
    assert key_problem("app.help", "f11", known, {}) is None
    assert "no key" in (key_problem("app.help", "ctrl++", known, {}) or "")
    assert "already means" in (key_problem("app.help", "f2", known, {}) or "")
    assert key_problem("app.help", "f2", known, {"app.chat": "f12"}) is None


@pytest.mark.parametrize("theme", ["nanochat", "nanochat-light", "high-contrast"])
async def test_every_theme_draws_the_ribbon_and_the_chat(theme: str) -> None:
    app = NanochatApp(ScriptedBackend("let x = 1;"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        app.theme = theme
        await say(pilot, app, "fn a() {")
        await pilot.press("f5")
        await until(pilot, lambda: app.chat.lens.ribbon is not None)
        await pilot.press("right")
        assert app.chat.lens.ribbon is not None
        assert app.chat.lens.ribbon.region.height == 1


async def test_without_a_model_there_is_a_welcome_and_the_picker_leads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    write_model(tmp_path / "models" / "one.gguf")
    preferences = Preferences()
    preferences.chat.model_folder = str(tmp_path / "models")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr("nanochat_tui.tui.chat.model_places.shipped_models", list)
    app = NanochatApp(MissingBackend("There is no model here."), preferences=preferences)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "failed")
        assert "There is no model here." in shown(app)
        await pilot.press("ctrl+g")
        await until(
            pilot, lambda: isinstance(app.screen, ModelPicker) and app.screen.query_one(OptionList).option_count == 1
        )
        await pilot.press("enter")
        await until(pilot, lambda: state(app) == "ready", 120)
        assert app.chat.model.backend.name == "one"
        assert app.preferences.recent == [str((tmp_path / "models" / "one.gguf").resolve())]


def test_models_are_found_once_each_and_under_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat_tui.tui.chat.model_places.shipped_models", list)
    snapshot = tmp_path / "hub" / "models--some--repo" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "hub" / "blob"
    blob.write_bytes(b"GGUF")
    (snapshot / "weights.gguf").symlink_to(blob)
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    (folder / "b.gguf").write_bytes(b"GGUFx")
    (folder / "readme.md").write_text("no")
    found = find_models([str(folder / "b.gguf"), "/gone.gguf"], tmp_path / "folder", tmp_path / "hub")
    assert [(f.place, f.name, f.size) for f in found] == [
        ("recent", "b", 5),
        ("Hugging Face", "some/repo · weights.gguf", 4),
    ]
    assert find_models([], None, tmp_path / "nothing") == []
    assert remember_model(Preferences(recent=["/x"]), folder / "b.gguf").recent[0].endswith("b.gguf")


async def test_the_log_shows_what_was_noted(tmp_path: Path) -> None:
    app = NanochatApp(ScriptedBackend("!It [tripped] \x1b[31m." + " far" * 30 + " end"), reports=tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "a")
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(app.screen, LogScreen))
        log = app.screen.query_one(RichLog)
        await until(pilot, lambda: "far end" in " ".join(line.text for line in log.lines))
        assert any("It [tripped] \\x1b[31m." in line.text for line in log.lines)
        assert all(line.cell_length <= 80 for line in log.lines), "long lines are broken, not cut off"
        await pilot.press(*"zzzz")
        await until(pilot, lambda: not any(line.text.strip() for line in log.lines))
        await pilot.press("escape")
    assert "tripped" in (tmp_path / "nanochat-tui.log").read_text()
    for handler in list(logging.getLogger("nanochat_tui").handlers):
        if isinstance(handler, logging.FileHandler):
            logging.getLogger("nanochat_tui").removeHandler(handler)
            handler.close()


def test_a_crash_report_says_what_happened(tmp_path: Path) -> None:
    try:
        raise KeyError("lost")
    except KeyError as exc:
        path = write_crash_report(exc, tmp_path / "state")
    assert path is not None
    text = path.read_text()
    assert "KeyError: 'lost'" in text
    assert "test_habits.py" in text
    assert write_crash_report(KeyError("x"), path / "below a file") is None


def test_commands_are_read_as_people_mean_them() -> None:
    assert commands.parse("/new") == (commands.BY_NAME["new"], "")
    assert commands.parse("/rename a b ") == (commands.BY_NAME["rename"], "a b")
    for text in ("// a comment", "/// doc", "/usr/bin/env", " /new", "/new thing", "/* x */", "plain"):
        assert commands.parse(text) is None, text
    with pytest.raises(UserError, match="did you mean /export"):
        commands.parse("/exprt x")
    assert [c.name for c in commands.suggestions("/re")] == ["rename", "restore", "retry", "remove"]


def test_blocks_of_code_are_found() -> None:
    blocks = code_blocks("a\n```rust\nfn x() {}\n```\n\n    indented\n\n```\nopen")
    assert [(b.language, b.code) for b in blocks] == [("rust", "fn x() {}\n"), ("", "indented\n"), ("", "open")]
    assert blocks[0].summary == "rust, 1 line"


async def test_copying_one_of_several_blocks() -> None:
    app = NanochatApp(ScriptedBackend("```\none\n```\nand\n```\ntwo\n```", is_chat=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "a")
        app.chat.transcript.focus()
        await pilot.pause()
        await pilot.press("c")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.clipboard == "two\n")


async def test_a_files_beginning_is_completed(tmp_path: Path) -> None:
    source = tmp_path / "lib.rs"
    source.write_text("line one\nline two\nline three\n")
    backend = ScriptedBackend("more")
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        app.chat.prompt.text = f"/file {source}:2"
        await pilot.press("enter")
        await until(pilot, lambda: bool(backend.requests) and state(app) == "ready")
        assert backend.requests[0].prompt == "line one\nline two\n"
        app.chat.prompt.text = "/file /no/such/file"
        await pilot.press("enter")
        await pilot.pause()
        assert len(backend.requests) == 1


async def test_loading_can_be_given_up_and_its_late_end_changes_nothing() -> None:
    backend = ScriptedBackend("x")
    backend.load_gate.clear()
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "compiling the paper kernel" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: state(app) == "failed")
        assert "Loading was given up" in shown(app)
        backend.load_gate.set()
        await until(pilot, lambda: not app.chat.model.loader.is_working)
        assert state(app) == "failed"
        assert not app.chat.model.ready


def test_keys_of_every_mode_can_be_changed_and_none_has_the_name_of_another() -> None:
    owners = key_owners()
    known = remappable(owners)
    rooms = {key.id.partition(".")[0] for key in known}
    assert {"chat", "prompt", "lens", "inspect", "trits", "train", "dashboard", "chart", "form"} <= rooms
    places: dict[str, set[str]] = {}
    for owner in owners:
        for binding in owner.BINDINGS:
            if isinstance(binding, Binding) and binding.id:
                places.setdefault(binding.id, set()).add(binding.action)
    assert {name for name, actions in places.items() if len(actions) > 1} == set()


async def test_keys_of_the_other_modes_are_remapped(tmp_path: Path) -> None:
    preferences = Preferences(keys={"inspect.right": "f7", "train.new": "f10"})
    app = NanochatApp(ScriptedBackend("x"), preferences=preferences, runs=tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        app.post_message(OpenFile(write_model(tmp_path / "m.gguf")))
        await until(pilot, lambda: isinstance(app.screen, InspectScreen) and app.screen.opened is not None)
        inspected = app.screen
        assert isinstance(inspected, InspectScreen)
        await pilot.press("f7")
        await until(pilot, lambda: inspected.pane.TITLE == "Metadata")
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, TrainScreen))
        train = app.screen
        assert isinstance(train, TrainScreen)
        await pilot.press("n", "f10")
        await until(pilot, lambda: train.tabs.active == "new")


def test_the_key_line_keeps_the_general_keys_on_a_narrow_terminal() -> None:
    own = [Item(f"^{i}", "something", f"ctrl+{i}", enabled=i != "b") for i in "abcdef"]
    general = [Item("F1", "Help", "f1", True), Item("F2", "Chat", "f2", True), Item("^q", "Quit", "ctrl+q", True)]
    assert fitting(own, general, 200) == (own, general, False)
    left, right, more = fitting(own, general, 40)
    assert more
    assert right == general[:2]
    assert [item.label for item in left] == ["^a"]
    assert sum(item.cells + 1 for item in left + right) < 40
    assert fitting(own[:1], general, 12) == (own[:1], [], False)


async def test_a_checkpoints_copy_is_no_recent_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    app = NanochatApp(ScriptedBackend("x"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        app.post_message(ModelUsed(lent.make_folder() / "step-8.gguf"))
        app.post_message(ModelUsed(tmp_path / "mine.gguf"))
        await until(pilot, lambda: bool(app.preferences.recent))
        assert app.preferences.recent == [str(tmp_path / "mine.gguf")]


def test_saving_keeps_the_comments_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        "# mine\nrecent = ['/a']  # of yesterday\n\n[sampling] # how it writes\n# between 0 and 1\ntemperature = 0.3\n"
        "top_k = 20 # few\n\n[appearance]\n# dark\ntheme = 'high-contrast'\n"
    )
    found, problem = load_preferences(path)
    assert problem is None
    found.sampling.temperature = 0.5
    found.sampling.top_k = Preferences().sampling.top_k
    found.chat.alternatives = 3
    found.keys["chat.sessions"] = "f7"
    save_preferences(found, path)
    text = path.read_text()
    for comment in ("# mine", "# of yesterday", "# how it writes", "# between 0 and 1", "# dark"):
        assert comment in text
    assert "top_k" not in text
    assert text.index("temperature = 0.5") < text.index("theme")
    assert load_preferences(path) == (found, None)
    save_preferences(Preferences(), path)
    assert load_preferences(path) == (Preferences(), None)
    assert "# between 0 and 1" in path.read_text()
