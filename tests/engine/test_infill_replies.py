"""Filling in the middle through the library: the ids that are asked with, marks, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import TINY, write_model

import nanochat_tui as nc
from nanochat_tui.errors import UserError


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("infill") / "model.gguf", TINY, infill=True)


def test_a_suffix_asks_with_marks_around_both_texts(path: Path) -> None:
    with nc.load(path, threads=1) as model:
        marks = model.codec.infill
        assert marks is not None
        prefix, suffix = "fn <|fim_middle|>", "}\n"  # a mark that is written out is text
        ids = [
            model.codec.bos,
            marks.prefix,
            *model.codec.encode(prefix, bos=False, special=False),
            marks.suffix,
            *model.codec.encode(suffix, bos=False),
            marks.middle,
        ]
        assert ids.count(marks.middle) == 1
        expected = [t.id for t in model.generate(ids, max_tokens=9, temperature=0)]
        found = [t.id for t in model.generate(prefix, suffix=suffix, max_tokens=9, temperature=0)]
        assert found == expected
        assert found != [t.id for t in model.generate(prefix, max_tokens=9, temperature=0)]
        with pytest.raises(nc.ArgumentError, match="both text"):
            model.generate(ids, suffix="x")
        with pytest.raises(UserError, match="96"):
            model.generate("x" * 60, suffix="y" * 60)


def test_a_model_without_marks_refuses(tmp_path: Path) -> None:
    with (
        nc.load(write_model(tmp_path / "plain.gguf"), threads=1) as model,
        pytest.raises(UserError, match="cannot fill in between two texts"),
    ):
        model.generate("fn", suffix="}")
