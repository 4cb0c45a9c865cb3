"""The application as a person drives it: keys in, screen out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted import ScriptedBackend
from textual.pilot import Pilot
from textual.widgets import Input, Static

from nanochat_tui.chat.backend import Event, Request, Started, Stats
from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.chat.turns import CompletionTurn, DialogueTurn
from nanochat_tui.tui.widgets.markdown_text import MarkdownText
from nanochat_tui.tui.widgets.status import StatusLine


async def until(pilot: Pilot[None], predicate: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)
    await pilot.pause()


def state(app: NanochatApp) -> str:
    return app.chat.status.state.strip()


def shown(app: NanochatApp) -> str:
    """All text of the transcript, as its widgets hold it."""
    found = app.chat.query("#transcript Static, #transcript MarkdownText")
    return "\n".join(str(widget.render()) for widget in found)


async def test_completion_streams_into_one_highlighted_block() -> None:
    backend = ScriptedBackend("let x = 1; }")
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await pilot.press(*"fn a() {", "enter")
        await until(pilot, lambda: app.chat.session.conversation.last is not None and state(app) == "ready")
        blocks = list(app.chat.query(CompletionTurn))
        assert len(blocks) == 1
        assert "fn a() {let x = 1; }" in shown(app)
        assert blocks[0].border_title == "rust"
        assert blocks[0].border_subtitle == "5 tokens · 50.0 tok/s · length limit · Enter continues"
        assert app.chat.prompt.text == ""
        assert backend.requests[0].prompt == "fn a() {"
        assert app.chat.status.stats is not None and app.chat.status.stats.decode_tps == 50.0


async def say(pilot: Pilot[None], app: NanochatApp, text: str) -> None:
    """Type and send, and wait until the reply is over."""
    count = app.chat.replies.runs
    app.chat.prompt.text = text
    await pilot.press("enter")
    await until(pilot, lambda: app.chat.replies.runs == count + 1 and state(app) == "ready")


async def test_first_paint_does_not_wait_for_the_model() -> None:
    backend = ScriptedBackend("x")
    backend.load_gate.clear()
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "compiling the paper kernel" in shown(app))
        assert state(app) == "loading"
        await pilot.press(*"early", "enter")  # typing is possible, and Enter is not forgotten
        assert app.chat.prompt.text == "early"
        assert state(app) == "waiting"
        await pilot.press("escape")
        assert state(app) == "loading"
        await pilot.press("ctrl+n")  # nothing to begin anew
        assert "compiling the paper kernel" in shown(app)
        await pilot.press("enter")
        backend.load_gate.set()
        await until(pilot, lambda: app.chat.session.conversation.last is not None and state(app) == "ready")
        assert backend.requests[0].prompt == "early"


async def test_an_edit_sent_while_another_model_loads_is_sent_once(tmp_path: Path) -> None:
    app = NanochatApp(ScriptedBackend("first"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        app.chat.transcript.focus()
        await pilot.press("e")
        other = ScriptedBackend("second")
        other.load_gate.clear()
        await app.chat.models.use(other)
        app.chat.prompt.text = "uno"
        await pilot.press("enter")
        await until(pilot, lambda: state(app) == "waiting")
        other.load_gate.set()
        await until(pilot, lambda: len(other.requests) == 1 and state(app) == "ready")
        assert app.chat.session.conversation.turns[0].prompt == "uno"
        await pilot.press("escape")
        assert state(app) == "ready", "nothing waits to be sent any more"


async def test_leaving_while_loading_stops_the_loader() -> None:
    backend = ScriptedBackend("x")
    backend.load_gate.clear()
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.chat.model.loader.is_working)
        await pilot.press("ctrl+q")
    end = time.monotonic() + 120  # the loader itself would wait for ever
    while app.is_working:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_leaving_while_writing_cancels_the_reply() -> None:
    backend = ScriptedBackend("one two three")
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        backend.gate.clear()
        await pilot.press("a", "enter")
        await until(pilot, lambda: state(app) == "writing")
        await pilot.press("ctrl+q")
    assert not app.is_working


async def test_failure_to_load_is_explained_and_the_app_lives() -> None:
    app = NanochatApp(ScriptedBackend("x", fail="The file is [red]damaged[/red]; get it \x1b[31m again."))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "failed")
        assert "The file is [red]damaged[/red]; get it \\x1b[31m again." in shown(app)
        assert "Ctrl+Q" in shown(app)
        assert "/attach URL" in shown(app)
        await pilot.press(*"hello", "enter")
        assert app.chat.prompt.text == "hello", "what was typed is not lost"
        await pilot.press("ctrl+s")
        await pilot.press("escape")
        assert app.is_running


async def test_escape_stops_and_keeps_what_was_said() -> None:
    backend = ScriptedBackend("one two three")
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        backend.gate.clear()
        await pilot.press("a", "enter")
        await until(pilot, lambda: "one" in shown(app))
        assert "▌" in shown(app), "a reply being written shows a cursor"
        await pilot.press(*"go")
        assert app.chat.prompt.text == "go"
        await pilot.press("enter")  # not sent while a reply is being written, and not lost
        assert app.chat.prompt.text == "go"
        await pilot.press("escape")
        await until(pilot, lambda: state(app) == "ready")
        assert app.chat.session.conversation.last is not None
        assert app.chat.session.conversation.last.reply == "one "
        assert app.chat.session.conversation.last.reason == "cancelled"
        assert app.chat.query_one(CompletionTurn).border_subtitle == "1 token · 50.0 tok/s · stopped · Enter continues"
        assert "▌" not in shown(app)


async def test_empty_enter_goes_on_and_ctrl_r_writes_the_last_part_anew() -> None:
    backend = ScriptedBackend(" first", " second", " third")
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await pilot.press("enter")  # nothing to continue yet
        assert backend.requests == []
        await say(pilot, app, "a")
        await say(pilot, app, "")
        assert app.chat.session.conversation.document == "a first second"
        await pilot.press("ctrl+r")
        await until(pilot, lambda: app.chat.session.conversation.document == "a first third" and state(app) == "ready")
        assert [(r.prompt, r.prefix) for r in backend.requests] == [("a", ""), ("a", " first"), ("a", " first")]
        assert len(app.chat.query(CompletionTurn)) == 1


async def test_new_forgets_and_ignores_what_the_old_reply_still_says() -> None:
    backend = ScriptedBackend("one two three", "fresh")
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        backend.gate.clear()
        await pilot.press("a", "enter")
        await until(pilot, lambda: state(app) == "writing")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: state(app) == "ready")
        backend.gate.set()
        await say(pilot, app, "b")
        assert app.chat.session.conversation.document == "bfresh"
        assert "one" not in shown(app)


async def test_typing_into_the_transcript_reaches_the_input() -> None:
    app = NanochatApp(ScriptedBackend("x", "y"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "a")
        await pilot.click("#transcript")
        assert app.focused is app.chat.prompt, "a click does not take the keys away"
        app.chat.transcript.focus()
        await pilot.press("h", "i")
        assert app.focused is app.chat.prompt
        assert app.chat.prompt.text == "hi"
        first = app.chat.query_one(CompletionTurn)
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.replies.runs == 2 and state(app) == "ready")
        assert "Enter continues" not in str(first.border_subtitle), "only the last turn can go on"


async def test_history_and_newlines_in_the_input() -> None:
    app = NanochatApp(ScriptedBackend("x"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "one")
        await pilot.press("a", "ctrl+j", "b")
        assert app.chat.prompt.text == "a\nb"
        assert app.chat.prompt.size.height == 2, "the input grows"
        await pilot.press("up")
        assert app.chat.prompt.text == "a\nb", "inside the text the arrow moves the cursor"
        await pilot.press("up")
        assert app.chat.prompt.text == "one"
        await pilot.press("down")
        assert app.chat.prompt.text == "a\nb"


async def test_sampling_panel_applies_at_once_and_refuses_nonsense() -> None:
    backend = ScriptedBackend("x")
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await pilot.press("ctrl+s")
        assert isinstance(app.focused, Input)
        app.focused.value = "0.25"
        await until(pilot, lambda: app.chat.session.sampling.temperature == 0.25)
        app.focused.value = "-3"
        await until(pilot, lambda: app.focused is not None and app.focused.has_class("-invalid"))
        assert "temperature must be" in str(app.chat.query_one("#hint", Static).render())
        assert app.chat.session.sampling.temperature == 0.25
        app.focused.value = "0.5"
        await pilot.press("tab")
        await until(pilot, lambda: app.chat.session.sampling.temperature == 0.5)
        await pilot.press("escape")
        assert app.focused is app.chat.prompt
        await say(pilot, app, "a")
        assert backend.requests[0].sampling.temperature == 0.5


async def test_a_long_prompts_speed_is_shown_while_it_is_read() -> None:
    class Slow(ScriptedBackend):
        def reading(self) -> Stats | None:
            return Stats(321.0, None, 128, 512)

        def chat(self, request: Request, cancel: threading.Event) -> Iterator[Event]:
            yield Started(300)
            self.gate.wait(120)
            yield from super().chat(request, cancel)

    backend = Slow("one two")
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        backend.gate.clear()
        await pilot.press("a", "enter")
        await until(pilot, lambda: app.chat.status.stats == backend.reading())
        assert state(app) == "reading"
        line = str(app.chat.query_one(StatusLine).render())
        assert "prompt   321" in line
        assert "128/512" in line
        backend.gate.set()
        await until(pilot, lambda: state(app) == "ready")
        await until(pilot, lambda: app.chat.replies.reading is None)


@pytest.mark.parametrize("is_chat", [True, False])
async def test_enter_continues_only_what_the_model_can_continue(is_chat: bool) -> None:
    backend = ScriptedBackend("one two", is_chat=is_chat, continues=False)
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        assert "continues it" not in shown(app)
        await say(pilot, app, "a")
        assert "Enter continues" not in str(app.chat.query(".turn").first().border_subtitle)
        await pilot.press("enter")
        await until(pilot, lambda: any("cannot continue" in note.message for note in app._notifications))
        app.chat.prompt.text = "/continue"
        await pilot.press("enter")
        await until(pilot, lambda: any("/continue is not possible" in note.message for note in app._notifications))
        assert len(backend.requests) == 1
        assert app.chat.session.conversation.turns[0].parts == ["one two"]


async def test_defaults_sample() -> None:
    backend = ScriptedBackend("x")
    app = NanochatApp(backend)
    async with app.run_test() as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "a")
        sampling = backend.requests[0].sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 40, 0.95)


async def test_copy_puts_the_reply_on_the_clipboard() -> None:
    app = NanochatApp(ScriptedBackend("the reply"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await pilot.press("ctrl+y")  # nothing yet; must not fail
        await say(pilot, app, "a")
        await pilot.press("ctrl+y")
        assert app.clipboard == "the reply"
        app.chat.turns.copy_all()
        assert app.clipboard == "athe reply"


async def test_model_text_is_neither_markup_nor_control() -> None:
    app = NanochatApp(ScriptedBackend("[red]x[/red] [@click=app.quit]y[/] \x1b]0;owned\x07 [/] \x9b2J"))
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "[b]a[/b]")
        assert "[b]a[/b][red]x[/red] [@click=app.quit]y[/] \\x1b]0;owned\\x07 [/] \\x9b2J" in shown(app)


async def test_text_of_a_chat_model_is_neither_markup_nor_control() -> None:
    backend = ScriptedBackend("[red]x[/red] [@click=app.quit]y[/] \x1b]0;owned\x07 [/]", is_chat=True)
    app = NanochatApp(backend)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        backend.gate.clear()
        await pilot.press("a", "enter")
        await until(pilot, lambda: state(app) == "writing")
        backend.gate.set()
        await until(pilot, lambda: state(app) == "ready")
        assert "[red]x[/red] [@click=app.quit]y[/] \\x1b]0;owned\\x07 [/]" in shown(app)


async def test_failing_reply_is_a_note_and_the_next_one_works() -> None:
    app = NanochatApp(ScriptedBackend("!The model [tripped].", "fine"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "a")
        assert "The model [tripped]." in shown(app)
        await say(pilot, app, "b")
        assert "fine" in shown(app)


async def test_full_context_is_noted_once() -> None:
    backend = ScriptedBackend("x")
    backend.note_dropped = 7
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "a")
        assert shown(app).count("the oldest 7 tokens no longer reach the model") == 1
        backend.note_dropped = 9
        await say(pilot, app, "")
        assert shown(app).count("no longer reach the model") == 1
        assert "the oldest 9 tokens" in shown(app)


async def test_chat_model_streams_markdown_into_one_widget_that_stays() -> None:
    backend = ScriptedBackend("# Head\n\nSome **bold** text", "again", is_chat=True)
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        backend.gate.clear()
        await pilot.press("h", "i", "enter")
        await until(pilot, lambda: len(app.chat.query(MarkdownText)) == 1 and state(app) == "writing")
        (answer,) = app.chat.query(MarkdownText)
        backend.gate.set()
        await until(pilot, lambda: state(app) == "ready")
        assert list(app.chat.query(MarkdownText)) == [answer]
        assert len(list(app.chat.query(DialogueTurn).first().query("*"))) == 2, "few widgets: every one makes keys slow"
        assert "Head\n\nSome bold text" in shown(app)
        await pilot.press("ctrl+r")
        await until(pilot, lambda: "again" in shown(app) and state(app) == "ready")
        assert "Some bold" not in shown(app)
        assert [m.role for m in backend.requests[1].messages] == ["user"]
        await say(pilot, app, "")  # an empty message lets a chat model continue its answer
        assert (backend.requests[2].prefix, len(backend.requests[2].messages)) == ("again", 1)


async def test_reader_who_scrolled_up_is_left_in_peace() -> None:
    backend = ScriptedBackend("\n".join(f"line {i}" for i in range(60)), "more " + "\n".join("z" * 20))
    app = NanochatApp(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "a")
        transcript = app.chat.transcript
        await until(pilot, lambda: transcript.max_scroll_y > 0 and transcript.scroll_y == transcript.max_scroll_y)
        backend.gate.clear()
        await pilot.press("enter")
        await until(pilot, lambda: state(app) == "writing")
        transcript.focus()
        await pilot.press("home")
        await until(pilot, lambda: transcript.scroll_y == 0)
        backend.gate.set()
        await until(pilot, lambda: state(app) == "ready")
        assert transcript.scroll_y == 0


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (40, 12)])
async def test_small_terminals_keep_input_status_and_transcript(size: tuple[int, int]) -> None:
    app = NanochatApp(ScriptedBackend("let x = 1;"))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await pilot.press(*[k for _ in range(14) for k in ("x", "ctrl+j")])  # a long input must not push all else away
        screen = app.chat.size
        for selector in ("#transcript", "#prompt", "#status"):
            region = app.chat.query_one(selector).region
            assert region.height >= 1
            assert region.bottom <= screen.height
            assert region.right <= screen.width
        assert app.chat.transcript.region.height >= 2
        await pilot.press("ctrl+s")
        panel = app.chat.query_one("#side").region
        assert panel.right <= screen.width
        assert panel.height >= 3


async def test_palette_offers_what_makes_sense_and_help_opens() -> None:
    app = NanochatApp(ScriptedBackend("x"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        titles = {command.title for command in app.get_system_commands(app.chat)}
        assert {"New session", "Session settings", "Help", "Theme", "Quit"} <= titles
        assert "Stop the reply" not in titles
        assert "Write again" not in titles
        assert not {"Completion or conversation", "Inspect this model", "System prompt"} & titles
        await say(pilot, app, "a")
        titles = {command.title for command in app.get_system_commands(app.chat)}
        assert {"Write again", "Copy the reply", "Copy everything"} <= titles
        await pilot.press("f1")
        await until(pilot, lambda: bool(app.screen.query("HelpPanel")))
        await pilot.press("f1")
        await until(pilot, lambda: not app.screen.query("HelpPanel"))


async def test_other_themes_draw_too(tmp_path: Path) -> None:
    app = NanochatApp(ScriptedBackend("let x = 1;"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        await say(pilot, app, "fn a() {")
        for theme in ("textual-light", "ansi-dark" if "ansi-dark" in app.available_themes else "textual-ansi"):
            app.theme = theme
            await pilot.pause()
            assert "let" in Path(app.save_screenshot("s.svg", path=str(tmp_path))).read_text()
