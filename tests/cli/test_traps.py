"""Files that fool other programs: what a user of `inspect` and of `chat` is told about each.

`chat` either answers (the trap is disarmed) or refuses in one sentence that names the cause; printing garbage without a
word is the one thing it must not do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from trap_files import TRAPS, Case, lost_scales, shards

from nanochat_tui.cli.app import dispatch
from nanochat_tui.cli.entry import run
from nanochat_tui.formats.gguf import read_gguf

CHAT = ("-p", "Hello", "-n", "3", "--temperature", "0", "--raw", "--json")


def case_of(name: str) -> Case:
    case = TRAPS[name]
    if case.linux and sys.platform != "linux":
        pytest.skip("needs files with holes")
    return case


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command line: exit code, stdout, stderr. What went wrong is one line, the last."""
    code = run(dispatch, words)
    found = capsys.readouterr()
    errors = [line for line in found.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (1 if code else 0), found.err
    assert not errors or found.err.splitlines()[-1] == errors[0]
    assert "\x1b" not in found.out + found.err
    return code, found.out, found.err


@pytest.mark.parametrize("name", TRAPS)
def test_inspect_names_the_trap(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = case_of(name)
    code, out, err = say(capsys, "inspect", str(case.make(tmp_path)))
    assert code == case.code
    for words in case.inspect:
        assert words in out + err, (out, err)


def test_a_forecast_takes_no_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two thousand million rows are counted, not listed."""
    path = case_of("weights beyond memory").make(tmp_path)
    tracemalloc.start()
    try:
        assert say(capsys, "inspect", str(path))[0] == 0
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", TRAPS)
def test_chat_answers_or_says_why_not(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = case_of(name)
    code, out, err = say(capsys, "chat", str(case.make(tmp_path)), *CHAT, *case.options)
    if case.refused is not None:
        assert code == 2
        assert case.refused in err
        assert not out
        return
    assert code == 0, err
    finished = json.loads(out.splitlines()[-1])
    assert finished["event"] == "finished"
    assert finished["prompt_tokens"] > 0
    assert case.noted is None or case.noted in err


def test_a_process_says_the_same(tmp_path: Path) -> None:
    """The exit code and streams of the command itself, once."""
    words = [sys.executable, "-m", "nanochat_tui", "chat", str(TRAPS["TL1"].make(tmp_path)), "-p", "x"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "TL1" in done.stderr


def test_lost_scales_are_told_while_converting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = say(capsys, "convert", str(lost_scales(tmp_path)), str(tmp_path / "out.gguf"))
    assert code == 0
    assert "trained scales are lost" in err


def test_a_whole_split_model_is_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = shards(tmp_path)
    code, out, _ = say(capsys, "convert", str(first), str(tmp_path / "one.gguf"))
    assert code == 0
    assert "14 Q2_0_g128 tensors to Q2_0" in out
    with read_gguf(tmp_path / "one.gguf") as file:
        assert not any(key.startswith("split.") for key in file.metadata)
        assert len(file.tensors) == 20


def test_notes_stay_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    from nanochat_tui.cli.narration import Narration

    with Narration() as narrate:
        narrate("note: the rules 'llama-bpe' are used\x1b[2J")
        narrate("a step that nobody waits for")
    err = capsys.readouterr().err
    assert err.startswith("note: the rules 'llama-bpe' are used")
    assert "\x1b" not in err
    assert err.count("\n") == 1
