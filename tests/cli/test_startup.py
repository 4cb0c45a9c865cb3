"""What a start may cost. Imports are compared, not seconds: a busy machine must not fail the test."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nanochat_tui.cli.app import COMMANDS, COMPLETION_VARIABLE, dispatch
from nanochat_tui.cli.entry import IDLE, IDLE_VARIABLE

HEAVY = ("numpy", "numba", "llvmlite", "torch", "textual", "typer", "rich", "tokenizers", "pydantic", "jinja2", "gguf")


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nsys.stderr.write('MODULES ' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "MODULES " in done.stderr, done.stderr
    return set(done.stderr.rpartition("MODULES ")[2].split())


def test_importing_the_library_imports_nothing_heavy() -> None:
    loaded = modules_after("import nanochat_tui; assert nanochat_tui.__version__")
    assert not loaded & set(HEAVY)


def test_version_imports_nothing_heavy() -> None:
    code = """
sys.argv = ["nanochat-tui", "--version"]
from nanochat_tui.cli.entry import main
try:
    main()
except SystemExit as exc:
    assert exc.code == 0, exc.code
"""
    assert not modules_after(code) & set(HEAVY)


@pytest.mark.parametrize("command", ["chat", "inspect", "bench", "doctor", "tui"])
def test_headless_commands_do_not_pay_for_the_application(command: str) -> None:
    code = f"""
from nanochat_tui.cli.app import dispatch
dispatch(["{command}", "--help"])
"""
    assert not modules_after(code) & {"textual", "torch", "numba", "tokenizers"}


def test_a_command_does_not_pay_for_the_others() -> None:
    loaded = modules_after('from nanochat_tui.cli.app import dispatch\ndispatch(["doctor", "--help"])')
    assert "nanochat_tui.cli.doctor" in loaded
    assert not loaded & {"nanochat_tui.cli.bench", "nanochat_tui.cli.chat", "nanochat_tui.cli.tui"}


def test_help_and_completion_know_every_command() -> None:
    module = [sys.executable, "-m", "nanochat_tui"]
    done = subprocess.run([*module, "--help"], capture_output=True, text=True, check=True)
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
    words = {"COMP_WORDS": "nanochat-tui co", "COMP_CWORD": "1", COMPLETION_VARIABLE: "complete_bash"}
    done = subprocess.run(module, capture_output=True, text=True, check=True, env={**os.environ, **words})
    assert done.stdout.split() == ["convert"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_asked_for_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch([command, "--help"]) == 0
    assert f"nanochat-tui {command} " in capsys.readouterr().out


@pytest.mark.parametrize("given", [None, "20"])
def test_threads_of_the_linear_algebra_sleep_when_they_are_idle(given: str | None) -> None:
    """They begin as NumPy is imported, so that the command has to say so before; what the user says counts."""
    code = f"""
import os
os.environ.pop({IDLE_VARIABLE!r}, None)
if {given!r}:
    os.environ[{IDLE_VARIABLE!r}] = {given!r}
from nanochat_tui.cli.entry import run
def command(arguments):
    assert os.environ[{IDLE_VARIABLE!r}] == ({given!r} or {IDLE!r})
    return 0
assert run(command, []) == 0
"""
    assert "numpy" not in modules_after(code)
