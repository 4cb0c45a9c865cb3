"""Exit codes and the one sentence, through real processes."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nanochat_tui import __version__
from nanochat_tui.cli import entry


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nanochat_tui", *arguments], input=stdin, capture_output=True, text=True, check=False
    )


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nanochat-tui {__version__}\n", "")


@pytest.mark.parametrize("program", ["train", "serve"])
def test_version_of_the_other_programs(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"nanochat_tui.cli.{program}_entry", "-V"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nanochat-{program} {__version__}\n", "")


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("chat", "inspect", "bench", "doctor", "tui"):
        assert command in done.stdout


def test_help_is_a_command() -> None:
    assert run("help").stdout == run("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat", "no-such-file.gguf", "-p", "x"], "There is no file no-such-file.gguf"),
        (["no-such-file.gguf"], "There is no file no-such-file.gguf; give the path"),
        (["chta"], "did you mean the command chat?"),
        (["inspct"], "did you mean the command inspect?"),
        (["chat", "doctr", "-p", "x"], "did you mean the command doctor?"),
        (["./chta"], "There is no file ./chta; give the path"),
        (["chat", "-p", "x", "--temperature", "-1"], "temperature must be"),
        (["chat", "-p", "x", "--temperature", "hot"], "Invalid value for '--temperature'"),
        (["chat", "-p", "x", "--top-p", "0"], "top_p must be above 0"),
        (["chat", "-p", "x", "--max-tokens", "0"], "max_tokens must be 1 or more"),
        (["chat", "-p", "x", "--no-such-option"], "No such option"),
        (["chat", ".", "-p", "x"], "is a folder"),
        (["chat", __file__, "-p", "x", "--mhc", "missing.mhc"], "There is no mHC sidecar missing.mhc"),
        (["chat", __file__, "-p", "x", "--threads", "0"], "--threads must be between"),
        (
            ["chat", "--attach", "http://127.0.0.1:9", "-p", "x", "--threads", "2"],
            "are for files; a server has its own",
        ),
        (["--attach", "http://127.0.0.1:9", "--threads", "2"], "are for files; a server has its own"),
        (["--attach", "http://127.0.0.1:9", "--kv", "int8"], "are for files; a server has its own"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "evil\x1b[31m.gguf"
    path.write_bytes(b"not a model")
    for command in (["chat", str(path), "-p", "x"], ["inspect", str(path)]):
        done = run(*command)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert "\x1b" not in done.stderr


def test_the_application_needs_a_terminal() -> None:
    done = run(__file__)
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "The system refused: Broken pipe."),
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), 1, "No space left on device (a.bin)"),
        (OSError(errno.EIO, "Input/output error", 7), 1, "Input/output error."),
        (OSError(), 1, "the system gave no reason"),
        (RecursionError(), 2, "nested too deeply"),
        (MemoryError(), 1, "not enough memory"),
    ],
)
def test_what_the_system_refuses_is_said_without_numbers(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe that breaks elsewhere than at stdout (a child, a socket) is a failure: nothing was done."""

    def command(_: Sequence[str]) -> int:
        raise error

    assert entry.run(command, []) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Errno" not in said
