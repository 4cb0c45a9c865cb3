"""Where `chat` puts the thinking of a model that thinks before it answers."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest
from openai_server import Server, serving

from nanochat_tui.cli.app import dispatch


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(thoughts=["hm,", " so"], words=["Yes", "."]) as made:
        yield made


def chat(server: Server, *options: str) -> int:
    return dispatch(["chat", "--attach", server.url, "-p", "x", *options])


@pytest.mark.parametrize(
    ("options", "out", "err"),
    [
        ([], "Yes.\n", "hm, so\n"),
        (["--thinking", "stderr"], "Yes.\n", "hm, so\n"),
        (["--thinking", "hide"], "Yes.\n", ""),
        (["--thinking", "stdout"], "hm, so\n\nYes.\n", ""),
    ],
)
def test_on_a_pipe(server: Server, options: list[str], out: str, err: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(server, *options) == 0
    assert capsys.readouterr() == (out, err)


def test_thinking_that_ends_its_own_line(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.thoughts = ["hm\n"]
    chat(server, "--thinking", "stdout")
    assert capsys.readouterr().out == "hm\n\nYes.\n"
    chat(server)
    assert capsys.readouterr() == ("Yes.\n", "hm\n")


def test_tags_in_the_text_are_thinking_too(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.thoughts, server.words = [], ["<think>hm</think>", "\n\nYes."]
    chat(server, "--thinking", "hide")
    assert capsys.readouterr() == ("Yes.\n", "")


def test_a_limit_in_mid_thought_is_told(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.thoughts, server.words, server.reason = ["hm"], [], "length"
    chat(server, "--thinking", "hide")
    out, err = capsys.readouterr()
    assert out == ""
    assert "raise --max-tokens" in err


def test_json_holds_both_and_hides_nothing(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    chat(server, "--json", "--thinking", "hide")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows if row["event"] == "token" and row["thinking"]] == ["hm,", " so"]
    assert (rows[-1]["text"], rows[-1]["answer"], rows[-1]["thinking"]) == ("hm, soYes.", "Yes.", "hm, so")


def test_a_wrong_place_is_refused(server: Server) -> None:
    with pytest.raises(Exception, match="nowhere"):
        chat(server, "--thinking", "nowhere")


def on_a_terminal(server: Server) -> tuple[int, bytes]:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "nanochat_tui", "chat", "--attach", server.url, "-p", "x"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # how the end of a terminal is told
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    return process.wait(120), seen.replace(b"\r\n", b"\n")


def test_on_a_terminal_thinking_is_dimmed_and_parted(server: Server) -> None:
    code, seen = on_a_terminal(server)
    assert code == 0
    assert b"\x1b[2mhm,\x1b[0m" in seen
    assert b"hm, so\n\nYes.\n" in seen.replace(b"\x1b[2m", b"").replace(b"\x1b[0m", b"")


def test_a_broken_reply_and_its_reason_stand_on_two_lines(server: Server) -> None:
    server.error_after = 3
    code, seen = on_a_terminal(server)
    assert code == 1
    assert b"\nYes\nerror: The server reports an error" in seen
