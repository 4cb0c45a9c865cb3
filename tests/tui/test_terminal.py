"""The application as a process on a real terminal: killed, crashed, without a home, over a pipe."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from openai_server import serving

from nanochat_tui.chat.store import Store

fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")


@dataclass
class Terminal:
    process: subprocess.Popen[bytes]
    descriptor: int
    seen: bytearray = field(default_factory=bytearray)

    def read(self, seconds: float = 0.05) -> None:
        ready, _, _ = select.select([self.descriptor], [], [], seconds)
        if ready:
            with contextlib.suppress(OSError):
                self.seen += os.read(self.descriptor, 1 << 16)

    def until(self, done: Callable[[], object], seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.seen[-3000:].decode("utf-8", "replace")
            assert self.process.poll() is None or done(), self.seen[-3000:].decode("utf-8", "replace")
            self.read()

    def wait(self, seconds: float = 120.0) -> int:
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end
            self.read()
        self.read()
        return self.process.returncode

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())


@contextlib.contextmanager
def terminal(tmp_path: Path, *arguments: str, python: str | None = None, **variables: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {
        "TERM": "xterm-256color",
        "NANOCHAT_DATA_DIR": str(tmp_path / "data"),
        "NANOCHAT_STATE_DIR": str(tmp_path / "state"),
        "NANOCHAT_CONFIG_DIR": str(tmp_path / "config"),
        **variables,
    }
    command = [sys.executable, *(["-c", python] if python else ["-m", "nanochat_tui"]), *arguments]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True, close_fds=True
    )
    os.close(slave)
    made = Terminal(process, master)
    try:
        yield made
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(120)
        os.close(master)


def kept(tmp_path: Path) -> str:
    """Return the reply that the application has on the disk, while it runs."""
    uri = f"file:{tmp_path / 'data' / 'sessions.db'}?mode=ro"
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(uri, uri=True)) as store:
        return "".join(reply for (reply,) in store.execute("SELECT reply FROM turn"))
    return ""


def test_killed_in_mid_reply_it_comes_back_with_what_was_said(tmp_path: Path) -> None:
    with serving(words=[f"word{i} " for i in range(400)], hold_after=300, owner="vllm") as server:
        with terminal(tmp_path, "--attach", server.url) as screen:
            screen.until(lambda: b"Message" in screen.seen)
            screen.type("what is the question\r")
            screen.until(lambda: b"word150" in screen.seen)
            screen.until(lambda: "word150 " in kept(tmp_path))  # before the reply has ended
            os.kill(screen.process.pid, signal.SIGKILL)
            screen.process.wait(120)
        store = Store(tmp_path / "data" / "sessions.db")
        (info,) = store.sessions().result(120)
        (turn,) = store.load(info.id).result(120).turns
        store.close()
        assert turn.prompt == "what is the question"
        assert "word150 " in turn.reply
        with terminal(tmp_path, "--attach", server.url) as screen:
            last = turn.reply.split()[-2].encode()
            screen.until(lambda: last in screen.seen)
            screen.type("\x11")
            assert screen.wait() == 0


def test_a_crash_leaves_a_clean_terminal_and_a_report(tmp_path: Path) -> None:
    program = """
import sys
from nanochat_tui.cli.entry import main
from nanochat_tui.tui.chat.screen import ChatScreen
def broken(self, name): raise KeyError("broken on purpose")
ChatScreen.action_command = broken
sys.argv = ["nanochat-tui", *sys.argv[1:]]
main()
"""
    with serving() as server, terminal(tmp_path, "--attach", server.url, python=program) as screen:
        screen.until(lambda: b"Message" in screen.seen)
        screen.type("\x0c")
        assert screen.wait() == 1
        end = screen.seen[-2000:].decode("utf-8", "replace")
        assert "the application crashed; a report is at" in end
        assert "Traceback" not in end
        assert "\x1b[?1049l" in end, "the other screen was left"
        assert "\x1b[?25h" in end, "the cursor is back"
    (report,) = (tmp_path / "state").glob("crash-*.txt")
    assert "broken on purpose" in report.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_keeps_what_was_said_and_leaves_a_clean_terminal(tmp_path: Path, number: signal.Signals) -> None:
    temporary = tmp_path / "tmp"
    left = temporary / f"nanochat-checkpoints-{2**22 + 5}-abc"  # beyond the largest number of a process
    left.mkdir(parents=True)
    (left / "big.gguf").write_bytes(b"x")
    mine = temporary / f"nanochat-checkpoints-{os.getpid()}-abc"
    mine.mkdir()
    words = [f"word{i} " for i in range(4000)]
    with serving(words=words) as server, terminal(tmp_path, "--attach", server.url, TMPDIR=str(temporary)) as screen:
        screen.until(lambda: b"Message" in screen.seen)
        screen.until(lambda: not left.exists())
        screen.type("hi\r")
        screen.until(lambda: b"word20" in screen.seen)
        os.kill(screen.process.pid, number)
        assert screen.wait() == 128 + number
        end = screen.seen[-3000:]
        assert b"\x1b[?1049l" in end, "the other screen was left"
        assert b"\x1b[?1000l" in end, "the mouse is the terminal's again"
        assert b"Traceback" not in screen.seen
    assert mine.exists(), "its process lives"
    store = Store(tmp_path / "data" / "sessions.db")
    (info,) = store.sessions().result(120)
    assert "word20 " in store.load(info.id).result(120).turns[0].reply
    assert store.take(info.id).result(120)
    store.close()


def test_a_home_that_is_no_folder_gives_a_message_and_the_chat_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "x")
    variables = {"NANOCHAT_DATA_DIR": nowhere, "NANOCHAT_STATE_DIR": nowhere, "NANOCHAT_CONFIG_DIR": nowhere}
    with serving() as server, terminal(tmp_path, "--attach", server.url, **variables) as screen:
        screen.until(lambda: b"unsaved" in screen.seen)
        screen.type("hi\r")
        screen.until(lambda: b"reader" in screen.seen)
        screen.type("\x11")
        assert screen.wait() == 0


def test_a_full_disk_gives_a_message_and_the_chat_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    program = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file grows beyond it, whatever it is
from nanochat_tui.cli.entry import main
main()
"""
    words = [f"word{i} " * 60 + "\n\n" for i in range(200)]
    with serving(words=words, owner="vllm") as server:
        with terminal(tmp_path, "--attach", server.url, python=program) as screen:
            screen.until(lambda: b"Message" in screen.seen)
            screen.type("hi\r")
            screen.until(lambda: b"not being saved" in screen.seen)
            screen.until(lambda: b"unsaved" in screen.seen)
            screen.until(lambda: b"word199" in screen.seen)
            screen.type("\x11")
            assert screen.wait() == 0
            assert b"Traceback" not in screen.seen
        with terminal(tmp_path, "--attach", server.url) as screen:
            screen.until(lambda: b"Message" in screen.seen)  # the database is sound
            screen.type("\x11")
            assert screen.wait() == 0


def test_no_color_draws_without_colours(tmp_path: Path) -> None:
    with serving() as server, terminal(tmp_path, "--attach", server.url, NO_COLOR="1") as screen:
        screen.until(lambda: b"Message" in screen.seen)
        screen.type("hi\r")
        screen.until(lambda: b"reader" in screen.seen)
        greys = {
            part
            for part in screen.seen.decode("utf-8", "replace").split("\x1b[")
            if part.startswith(("38;2;", "48;2;"))
        }
        for part in greys:
            red, green, blue = part.split("m")[0].split(";")[2:5]
            assert red == green == blue, part


@pytest.mark.slow
def test_it_ends_when_its_terminal_is_gone(tmp_path: Path) -> None:
    with serving() as server, terminal(tmp_path, "--attach", server.url) as screen:
        screen.until(lambda: b"Message" in screen.seen)
        spare = os.open(os.devnull, os.O_RDWR)
        os.dup2(spare, screen.descriptor)  # the other end is closed, and nobody sends a signal
        os.close(spare)
        assert screen.process.wait(120) == 129
