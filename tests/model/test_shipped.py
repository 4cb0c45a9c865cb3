"""The shipped models: which one is meant where none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat_tui.cli.options import find_model
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.model import shipped
from nanochat_tui.model.chat.families import chat_format
from nanochat_tui.tui.chat.model_places import find_models


def test_both_are_offered_and_each_is_the_one_for_its_purpose(tmp_path: Path) -> None:
    assert [path.stem for path in shipped.shipped_models()] == [shipped.CHAT, shipped.NAME]
    assert find_model(None).stem == shipped.NAME
    assert find_model(None, chat=True).stem == shipped.CHAT
    assert [found.name for found in find_models([], None, tmp_path)] == [shipped.CHAT, shipped.NAME]


def test_one_stands_in_for_the_other_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only = tmp_path / "one.gguf"
    monkeypatch.setattr(shipped, "_find", lambda name: only if name == f"{shipped.NAME}.gguf" else None)
    assert shipped.shipped_model(chat=True) == only
    assert shipped.shipped_models() == [only]
    monkeypatch.setattr(shipped, "_find", lambda name: None)
    assert shipped.shipped_model() is None
    assert shipped.shipped_models() == []


def test_the_one_that_answers_says_how_it_is_asked_and_is_small() -> None:
    path = shipped.shipped_model(chat=True)
    assert path is not None
    assert path.stat().st_size < 20_000_000
    with read_gguf(path) as file:
        found = chat_format(file.metadata)
        assert found is not None
        assert found.family is None
        assert file.metadata["tokenizer.ggml.eos_token_id"].value == 50_256
