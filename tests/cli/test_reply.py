"""Playing a reply on stdout: text stays data, terminals stay safe, JSON keeps its keys, Ctrl+C is a clean end."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from nanochat_tui.chat.backend import Event, Finished, Progress, Request, Started, Stats, Token
from nanochat_tui.cli.entry import run
from nanochat_tui.cli.reply import JsonWriter, TextWriter, play

EVIL = "a\x1b]0;owned\x07\r\n\tb"


class Listed:
    """A backend that sends a list of events."""

    name, kernel, threads, context_size, is_chat = "listed", "none", 1, 64, False

    def __init__(self, *events: Event) -> None:
        self.events = events

    def load(self, progress: Progress | None = None) -> None:
        return

    def chat(self, request: Request, cancel: threading.Event) -> Iterator[Event]:
        yield from self.events


class Interruptible(Listed):
    """Says a word, then waits to be interrupted."""

    def chat(self, request: Request, cancel: threading.Event) -> Iterator[Event]:
        yield Started(1)
        yield Token("word", 1)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert cancel.wait(120), "the signal did not arrive"
        yield Stats(1.0, 1.0, 2, 64, 1, 0.5)
        yield Finished("cancelled")


REPLY = (
    Started(3, dropped_tokens=2),
    Token("fn ", 5, -0.5, ((5, "fn ", -0.5), (6, "pub", -1.25))),
    Stats(100.0, 50.0, 4, 64, 1, 0.25),
    Token(EVIL, 7, -1.0),
    Stats(100.0, 60.0, 5, 64, 2, 0.25, drafted=6, accepted=4),
    Finished("length"),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_the_text_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert play(Listed(*REPLY), Request(prompt="x"), TextWriter(echo="x")) == 0
    out, err = capsys.readouterr()
    assert out == "fn " + EVIL + "\n"
    assert err == "note: The context is full: the oldest 2 tokens no longer reach the model.\n"


def test_a_terminal_gets_safe_text_after_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    play(Listed(*REPLY), Request(prompt="x"), TextWriter(echo="pro\x1bmpt"))
    assert out.getvalue() == "fn a\\x1b]0;owned\\x07\\r\n\tb\n"
    assert "pro\\x1bmpt" in err.getvalue()
    assert "2 tokens · 60 tok/s · prompt 100 tok/s · context 5 of 64 · " in err.getvalue()
    assert " · draft tokens 4 of 6 accepted · length limit" in err.getvalue()


def test_json_has_one_object_per_event_and_sums_up(capsys: pytest.CaptureFixture[str]) -> None:
    play(Listed(*REPLY), Request(prompt="x"), JsonWriter())
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["event"] for row in rows] == ["started", "token", "stats", "token", "stats", "finished"]
    assert rows[1] == {
        "schema": 1,
        "event": "token",
        "text": "fn ",
        "id": 5,
        "logprob": -0.5,
        "top": [[5, "fn ", -0.5], [6, "pub", -1.25]],
        "thinking": False,
    }
    assert rows[-1] == {
        "schema": 1,
        "event": "finished",
        "reason": "length",
        "text": "fn " + EVIL,
        "answer": "fn " + EVIL,
        "thinking": "",
        "prompt_tokens": 3,
        "tokens": 2,
        "prompt_tps": 100.0,
        "decode_tps": 60.0,
        "seconds_to_first_token": 0.25,
        "drafted": 6,
        "accepted": 4,
    }


def test_interrupt_ends_the_reply_whole(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert play(Interruptible(), Request(prompt="x"), JsonWriter()) == 130
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["reason"], last["text"]) == ("cancelled", "word")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "\n"),
        (MemoryError(), 1, "error: There is not enough memory"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: The system refused: Permission denied (/x).\n"),
        (KeyError("who"), 1, "error: This should not happen (KeyError: 'who')"),
    ],
)
def test_whatever_happens_is_a_sentence_and_a_code(
    failure: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise failure

    assert run(fail, []) == code
    err = capsys.readouterr().err
    assert err.startswith(text)
    assert err.count("\n") == 1
    assert "Traceback" not in err
