"""`nanochat-tui chat` as a shell runs it, on a real model of random weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import TINY, write_model

from nanochat_tui.cli import entry
from nanochat_tui.cli.app import dispatch
from nanochat_tui.engine.generate.model import load

CONFIG = TINY.with_(context_length=512)
PROMPT = "fn main() {"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("cli") / "model.gguf", CONFIG)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "nanochat_tui", "chat", *map(str, arguments)]


def run(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), input=stdin, capture_output=True, text=True, check=False, timeout=120)


def expected(path: Path, prompt: str, tokens: int) -> str:
    model = load(path)
    text = "".join(t.text for t in model.generate(prompt, max_tokens=tokens, temperature=0.0))
    return text if text.endswith("\n") else text + "\n"


def test_text_goes_to_stdout_and_nothing_to_stderr(model: Path) -> None:
    done = run(model, "-p", PROMPT, "-n", 8, "--temperature", 0)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected(model, PROMPT, 8)


def test_stdin_is_the_prompt_as_it_is(model: Path) -> None:
    done = run(model, "-n", 8, "--temperature", 0, stdin=PROMPT + "\n")
    assert done.stdout == expected(model, PROMPT + "\n", 8)


def test_a_suffix_fills_in_the_middle(tmp_path: Path, model: Path) -> None:
    path = write_model(tmp_path / "infill.gguf", CONFIG, infill=True)
    options = {"max_tokens": 8, "temperature": 0.0}
    text = "".join(t.text for t in load(path).generate("fn ", suffix="}", **options))
    done = run(path, "-p", "fn ", "--suffix", "}", "-n", 8, "--temperature", 0)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.removesuffix("\n") == text.removesuffix("\n")
    for more, reason in (((model,), "cannot fill in between two texts"), ((path, "--system", "x"), "--suffix leaves")):
        done = run(*more, "-p", "fn ", "--suffix", "}", "-n", 8)
        assert done.returncode == 2 and done.stdout == ""
        assert reason in done.stderr and done.stderr.count("\n") == 1


def test_a_long_prefix_gives_way_to_the_suffix(tmp_path: Path) -> None:
    path = write_model(tmp_path / "infill.gguf", CONFIG, infill=True)
    done = run(path, "-p", "x" * 900, "--suffix", "y" * 900, "-n", 8, "--temperature", 0, "--json")
    started = json.loads(done.stdout.splitlines()[0])
    assert started["prompt_tokens"] == 504 and started["dropped_tokens"] == 1804 - 504


def test_json_tells_every_event(model: Path) -> None:
    done = run(model, "-p", PROMPT, "-n", 8, "--seed", 3, "--json", "--top-logprobs", 2)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[0]["event"] == "started"
    last = rows[-1]
    assert last["event"] == "finished"
    assert last["reason"] in ("length", "stop")
    assert last["text"] == "".join(row["text"] for row in rows if row["event"] == "token")
    assert last["prompt_tokens"] == rows[0]["prompt_tokens"] > 0
    assert 0 < last["tokens"] <= 8
    assert last["prompt_tps"] > 0
    assert last["seconds_to_first_token"] > 0
    assert len(rows[1]["top"]) == 2
    again = run(model, "-p", PROMPT, "-n", 8, "--seed", 3, "--json")
    assert json.loads(again.stdout.splitlines()[-1])["text"] == last["text"]


def test_guesses_are_counted_and_change_nothing(model: Path) -> None:
    """Greedy replies of a random model run in circles, which is what guesses are good at."""
    last = {}
    for mode in ("off", "on"):
        done = run(model, "-p", PROMPT, "-n", 120, "--temperature", 0, "--json", "--speculation", mode)
        last[mode] = json.loads(done.stdout.splitlines()[-1])
    assert last["on"]["text"] == last["off"]["text"]
    assert last["off"]["drafted"] == last["off"]["accepted"] == 0
    assert 0 < last["on"]["accepted"] <= last["on"]["drafted"]


def test_system_message_without_template_is_refused(model: Path) -> None:
    done = run(model, "-p", "x", "--system", "rules")
    assert done.returncode == 2
    assert done.stderr.endswith(  # behind what is told of a slow start
        "error: --system has no place here, because this model has no chat template; leave one of them out.\n"
    )


def test_a_closed_pipe_is_no_failure(model: Path) -> None:
    shell = f"{' '.join(command(model, '-p', 'x', '-n', '400', '--json'))} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False, timeout=120)
    assert "error" not in done.stderr  # a slow start may tell what it does
    assert json.loads(done.stdout)["event"] == "started"
    assert done.returncode == 0


def test_bytes_on_stdin_that_are_no_text_are_refused(model: Path) -> None:
    done = subprocess.run(command(model), input=b"\xff\xfe\x00", capture_output=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr == b"error: The text on stdin is not valid UTF-8; convert it first.\n"


@pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")
def test_interrupt_leaves_with_130(tmp_path: Path) -> None:
    path = write_model(tmp_path / "long.gguf", TINY.with_(context_length=100_000))
    process = subprocess.Popen(
        command(path, "-p", "x", "-n", 90_000, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "token":
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    last = json.loads(out.splitlines()[-1])
    if last["event"] == "finished":
        assert last["reason"] == "cancelled"


@pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")
def test_on_a_terminal_the_prompt_is_echoed_and_control_characters_are_not(model: Path) -> None:
    import pty

    pid, master = pty.fork()
    if pid == 0:
        os.execv(sys.executable, command(model, "-p", "fn \x1b]0;x\x07", "-n", "40", "--seed", "1"))  # noqa: S606
    data = b""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        data += piece
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    text = data.decode(errors="replace")
    assert "fn \\x1b]0;x\\x07" in text
    for own in ("\x1b[2m", "\x1b[0m", "\x1b[2K", "\r\n", "\r", "\n", "\t"):
        text = text.replace(own, "")
    assert not [c for c in text if ord(c) < 32 or 127 <= ord(c) < 160]
    assert "tok/s" in text


def test_interrupt_anywhere_else_leaves_with_130(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("nanochat_tui.cli.chat._read_stdin", interrupted)
    assert entry.run(dispatch, ["chat", str(model)]) == 130
    assert capsys.readouterr().err.strip() == ""
