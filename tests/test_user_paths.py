"""Folders of a user who has no home: in the temporary folder, or one sentence."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from nanochat_tui import paths as places
from nanochat_tui.engine.compile import cache as compile_cache
from nanochat_tui.errors import UserError
from nanochat_tui.tui.chat import model_places


@pytest.fixture(autouse=True)
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the libraries do when HOME is not set and the list of users does not have the process's number."""

    def no_home(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    for name in ("user_cache_path", "user_config_path", "user_data_path", "user_state_path", "user_cache_dir"):
        monkeypatch.setattr(platformdirs, name, no_home)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(Path, "expanduser", no_home)
    for name in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.delenv(f"NANOCHAT_{name}_DIR", raising=False)
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_all_folders_are_in_the_temporary_folder(tmp_path: Path) -> None:
    found = [compile_cache.cache_directory(), places.config_directory(), places.data_directory()]
    for folder in (*found, places.state_directory()):
        assert folder is not None and folder.is_dir() and folder.is_relative_to(tmp_path)
        assert folder.stat().st_mode & 0o077 == 0
    assert model_places.hugging_face_cache() is None
    assert model_places.find_models([], None) == model_places.find_models([], None, tmp_path)


def test_without_any_folder_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(blocked))
    assert compile_cache.cache_directory() is None
    with pytest.raises(UserError, match="set HOME to a folder of your own"):
        places.data_directory()
    monkeypatch.setenv("NANOCHAT_DATA_DIR", "~/sessions")
    with pytest.raises(UserError, match="NANOCHAT_DATA_DIR begins with ~"):
        places.data_directory()
