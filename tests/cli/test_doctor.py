"""The doctor looks things up and does not faint."""

from __future__ import annotations

import json
import platform

import pytest

from nanochat_tui.bench import doctor as diagnosis
from nanochat_tui.cli.app import dispatch
from nanochat_tui.engine.compile.choose import available_kernels, choose_kernel


def test_json_names_versions_and_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["versions"]["python"] == platform.python_version()
    assert findings["engine"]["kernel"] == choose_kernel().name
    assert findings["engine"]["kernels"] == [kernel.name for kernel in available_kernels()]
    used = choose_kernel().name == "avx512-amx"
    assert findings["engine"]["amx"].startswith("used for prompts; " if used else "not used; ")
    assert findings["paths"]["package"].endswith("nanochat_tui")


def test_text_names_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["doctor"]) == 0
    out = capsys.readouterr().out
    assert choose_kernel().name in out
    assert "\nengine\n" in out


def test_a_section_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> diagnosis.Rows:
        raise RuntimeError("no driver")

    monkeypatch.setattr(diagnosis, "_gpu", broken)
    findings = diagnosis.diagnose()
    assert findings["gpu"] == {"error": "RuntimeError: no driver"}
    assert "kernel" in findings["engine"]
