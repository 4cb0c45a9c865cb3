"""Which clipboard is filled, and that filling one never fails aloud."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from nanochat_tui.tui import clipboard

VARIABLES = ("SSH_CONNECTION", "WAYLAND_DISPLAY", "DISPLAY")


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search path with two programs that write what they are given into a file."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for program in ("wl-copy", "xclip"):
        path = tmp_path / program
        out = tmp_path / f"{program}.txt"
        path.write_text(f"#!/bin/sh\n/bin/cat > {out}.part\n/bin/mv {out}.part {out}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have one command each")


def test_command_follows_the_desktop(desktop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clipboard.clipboard_command() is None
    monkeypatch.setenv("DISPLAY", ":0")
    assert clipboard.clipboard_command() == ["xclip", "-selection", "clipboard"]
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert clipboard.clipboard_command() == ["wl-copy"]
    monkeypatch.setenv("SSH_CONNECTION", "somewhere")
    assert clipboard.clipboard_command() is None


def test_text_arrives(desktop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    clipboard.copy_natively("grüße\n")
    end = time.monotonic() + 120
    while not (desktop / "wl-copy.txt").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert (desktop / "wl-copy.txt").read_text() == "grüße\n"


def test_a_program_that_is_gone_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    clipboard._feed(["/no/such/program"], "x")
