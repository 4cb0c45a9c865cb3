"""`cache` knows its own files and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanochat_tui.cli.app import dispatch
from nanochat_tui.engine.compile.cache import ENVIRONMENT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "kernels"
    monkeypatch.setenv(ENVIRONMENT, str(place))
    return place


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert dispatch(["cache", "--json", *words]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_an_empty_cache(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys) == {
        "schema": 1,
        "cleared": False,
        "held": [{"kind": "kernels", "folder": str(folder), "files": 0, "bytes": 0}],
    }


def test_only_its_own_files_are_deleted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir(mode=0o700)
    beside = folder.parent / "weights"
    beside.mkdir()
    others = [folder / "main.o", folder / "letter.tmp", folder / "letter.txt", beside / "m.tmp"]
    own = f"avx2-64-{'0' * 24}.o"
    for path in (folder / own, folder / f".{own}.0a1b2c3d.tmp", *others):
        path.write_bytes(b"12345")
    held = shown(capsys)["held"]
    assert isinstance(held, list)
    assert [(one["kind"], one["files"], one["bytes"]) for one in held] == [("kernels", 2, 10)]
    shown(capsys, "--clear")
    assert all(path.exists() for path in others) and len(list(folder.iterdir())) == 3
    assert dispatch(["cache"]) == 0
    assert "0 files" in capsys.readouterr().out
