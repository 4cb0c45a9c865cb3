"""What a start may cost. Imports are compared, not seconds: a busy machine must not fail the test."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
