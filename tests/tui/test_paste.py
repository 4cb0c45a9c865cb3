"""A paste is one insertion and never a key, whatever it holds and however it arrives."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_server import serving
from scripted import ScriptedBackend
from test_app import state, until
from textual import events
from textual.message import Message

from nanochat_tui.tui.app import NanochatApp
from nanochat_tui.tui.paste import SILENCE, PasteParser, pasted_text

START, END = "\x1b[200~", "\x1b[201~"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def events_of(*reads: str) -> list[Message]:
    parser = PasteParser(clock=Clock())
    return [event for data in reads for event in parser.feed(data)]


def told(found: list[Message]) -> list[str]:
    return [f"paste {e.text}" if isinstance(e, events.Paste) else f"key {getattr(e, 'key', e)}" for e in found]


@pytest.mark.parametrize(
    ("held", "inserted"),
    [
        ("AAA \x1b[31mBBB", "AAA BBB"),
        ("one\rtwo\r", "one\ntwo\n"),
        ("one\r\ntwo", "one\ntwo"),
        ("nul\x00 bell\x07 tab\t", "nul bell tab\t"),
        ("\x1b[A\x1b[B up and down", " up and down"),
        ("\x1b]0;title\x07text\x1b]52;c;QUJD\x1b\\", "text"),
        ("\x1bOP F1, \x1bx, \x03 \x04 \x11 \x1a", "P F1, ,    "),
        ("end \x1b", "end "),
        ("\x1b[200~ a start within", " a start within"),
        ("an end \x1b[201~ within\r", "an end  within\n"),
        ("\x1b[<0;10;5M mouse \x1b[I focus \x1b[48;24;80;0;0t size", " mouse  focus  size"),
        ("\x9b31m\x85 C1 \u202e ümlaut 👍🏽", "31m C1 \u202e ümlaut 👍🏽"),
        ("x" * 300_000, "x" * 300_000),
    ],
)
def test_a_paste_is_one_insertion(held: str, inserted: str) -> None:
    assert told(events_of(f"a{START}{held}{END}b")) == ["key a", f"paste {inserted}", "key b"]


@given(st.text(st.sampled_from("ab\r\n\t\x00\x1b[201~;mO\x9b"), max_size=40).filter(lambda t: END not in t + END[:-1]),
       st.lists(st.integers(0, 60), max_size=6))  # fmt: skip
def test_it_does_not_matter_how_a_paste_is_split_over_reads(held: str, cuts: list[int]) -> None:
    whole = f"a{START}{held}{END}b"
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    reads = [whole[a:b] for a, b in pairwise(places) if a < b]
    text = pasted_text(held)
    assert told(events_of(*reads)) == ["key a", *([f"paste {text}"] if text else []), "key b"]


def test_a_paste_without_an_end_is_delivered_and_locks_nobody_out() -> None:
    clock = Clock()
    parser = PasteParser(clock=clock)
    assert list(parser.feed(f"{START}half a te")) == []
    clock.now += SILENCE / 2
    assert list(parser.tick()) == []
    clock.now += SILENCE
    assert told(list(parser.tick())) == ["paste half a te"]
    assert list(parser.feed("xt, later\rand more")) == [], "more text is more of the paste"
    clock.now += 2 * SILENCE
    assert told(list(parser.tick())) == ["paste xt, later\nand more"]
    assert told(list(parser.feed("\x11"))) == ["key ctrl+q"]
    assert told(list(parser.feed("ab"))) == ["key a", "key b"]


def test_escape_is_still_a_key_of_its_own() -> None:
    clock = Clock()
    parser = PasteParser(clock=clock)
    assert list(parser.feed("\x1b")) == []
    clock.now += 1
    assert told(list(parser.tick())) == ["key escape"]
    assert told(list(parser.feed(f"\x1b{START}x{END}"))) == ["key escape", "paste x"]
    assert told(list(parser.feed("\x1b[A\x1b[1;5C"))) == ["key up", "key ctrl+right"]
    list(parser.feed("\x1b"))
    assert told(list(parser.feed("[B"))) == ["key down"]


async def test_a_paste_reaches_the_input_from_the_transcript_too() -> None:
    app = NanochatApp(ScriptedBackend("x", is_chat=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: state(app) == "ready")
        app.chat.transcript.focus()
        await pilot.pause()
        app.post_message(events.Paste("dd rr"))
        await until(pilot, lambda: app.chat.prompt.text == "dd rr")
        assert app.focused is app.chat.prompt


def test_on_a_real_terminal_nothing_of_a_paste_is_sent_or_out_of_order(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    from test_terminal import terminal

    from nanochat_tui.chat.store import Store

    with serving(words=["fine"], owner="vllm") as server, terminal(tmp_path, "--attach", server.url) as screen:
        screen.until(lambda: b"ready" in screen.seen)
        paste = f"{START}AAA \x1b[31mBBB\r\x1b[Bsecond \x00line\r\x1b[201"
        os.write(screen.descriptor, paste.encode() + b"\xff")
        time.sleep(0.3)
        os.write(screen.descriptor, f"tail{END}".encode())
        screen.until(lambda: b"tail" in screen.seen)
        assert not server.requests
        screen.type("\r")
        screen.until(lambda: b"fine" in screen.seen)
        screen.type("\x11")
        assert screen.wait() == 0
    store = Store(tmp_path / "data" / "sessions.db")
    (info,) = store.sessions().result(120)
    (turn,) = store.load(info.id).result(120).turns
    store.close()
    assert turn.prompt.startswith("AAA BBB\nsecond line\n")
    assert turn.prompt.endswith("tail")
