"""Texts of a row as prefix, suffix and middle: what is kept, where it ends, and that a run repeats."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import tiny_tokenizer
from trained import losses, on_data, train, write_data

from nanochat_tui.errors import UserError
from nanochat_tui.export import export_model
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.model.shipped import shipped_tokenizer
from nanochat_tui.model.tokenizer import codec_from_gguf, load_tokenizer
from nanochat_tui.model.tokenizer.infill import NAMES, InfillMarks, choose_marks
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.train.data import BatchLoader
from nanochat_tui.train.infill import Infill, InfillSettings, make_infill

END = 50_256
LENGTH = 128
Ids = NDArray[np.int64]
TOKENIZER = load_tokenizer(path) if (path := shipped_tokenizer()) else tiny_tokenizer()
MARKS = choose_marks(TOKENIZER)


def _document(number: int) -> str:
    lines = (f"\t\tlet größe_{i} = 0x{number * 7919 + i:x}; // 中文 🦀 {i}\n" for i in range(number % 23))
    return f"fn doc_{number}() {{\n\tif true {{\n{''.join(lines)}\t}}\n}}\n"


def _corpus(documents: int = 60) -> NDArray[np.uint16]:
    ids = [t for n in range(documents) for t in (END, *TOKENIZER.encode(_document(n)).ids)]
    return np.array(ids, np.uint16)


def _infill(rate: float = 1.0, suffix_first: float = 0.5, seed: int = 0) -> Infill:
    return Infill(TOKENIZER, MARKS, InfillSettings(rate, suffix_first, END, seed))


def _loader(infill: Infill | None, **changes: Any) -> BatchLoader:
    config = TrainConfig(**{"dataset": "synthetic", "seq_len": LENGTH, "batch_size": 4, **changes})
    return BatchLoader(_corpus(), config, END, infill)


def _text(ids: Any) -> str:
    return TOKENIZER.decode([int(i) for i in ids], skip_special_tokens=False)


def _parts(text: Ids) -> tuple[str, str, str, bool]:
    """Prefix, middle, suffix of a rearranged text without its ends, and whether the suffix came first."""
    ids = text.tolist()
    pre, suf, mid = (ids.index(i) for i in MARKS.ids)
    assert pre == 0 and suf < mid
    if suf == 1:  # the prefix runs into the middle
        return _text(ids[mid + 1 :]), "", _text(ids[2:mid]), True
    return _text(ids[1:suf]), _text(ids[mid + 1 :]), _text(ids[suf + 1 : mid]), False


def test_every_text_is_there_but_for_the_end_of_its_suffix() -> None:
    infill = _infill()
    rng = np.random.default_rng(0)
    orders = set()
    none = 0
    for number in range(300):
        ids = np.array(TOKENIZER.encode(_document(number)).ids, np.int64)
        lead = [END] if number % 2 else []
        ends = number % 3 == 0
        found = infill.rearrange(np.array([*lead, *ids], np.int64), rng, ends=ends)
        if found is None:
            none += len(ids) > 60  # almost all of it the middle
            continue
        assert len(found) == len(ids) + len(lead)
        assert found[: len(lead)].tolist() == lead
        assert (found[-1] == END) != ends
        prefix, middle, suffix, suffix_first = _parts(found[len(lead) : len(found) if ends else -1])
        orders.add(suffix_first)
        whole = prefix + middle + suffix
        # what the marks take away is left out at the end: a few tokens
        original = _document(number)
        assert original.startswith(whole) or (not suffix and whole in original)
        assert len(original) - len(whole) < 60
    assert orders == {True, False}
    assert none < 6


def test_parts_are_encoded_as_they_will_be_in_use() -> None:
    infill = _infill(suffix_first=0.0)
    rng = np.random.default_rng(1)
    for number in range(40, 90):
        ids = np.array(TOKENIZER.encode(_document(number)).ids, np.int64)
        found = infill.rearrange(ids, rng, ends=True)
        assert found is not None
        listed = found.tolist()
        _, suf, mid = (listed.index(i) for i in MARKS.ids)
        prefix, middle, _, _ = _parts(found)
        assert "�" not in prefix + middle  # no character is cut
        assert listed[1:suf] == TOKENIZER.encode(prefix).ids
        assert listed[mid + 1 :] == TOKENIZER.encode(middle).ids


def test_rows_keep_their_documents_and_their_length() -> None:
    plain, filled = _loader(None), _loader(_infill(rate=0.5))
    changed = texts = 0
    for index in range(plain.plan(0).rows // 4):
        for before, after in zip(*(_rows(loader, index) for loader in (plain, filled)), strict=True):
            assert len(before) == len(after) == LENGTH + 1
            # documents begin where they did; what is added is an end behind a middle that nothing follows
            ends = np.flatnonzero(before == END)
            assert (after[ends] == END).all()
            assert set(np.flatnonzero(after == END)) - set(ends) <= {LENGTH}
            borders = [0, *ends[ends > 0], LENGTH + 1]
            for start, stop in itertools.pairwise(borders):
                own, new = before[start:stop], after[start:stop]
                texts += 1
                if np.array_equal(own, new):
                    continue
                changed += 1
                # each mark once: no text runs into another
                assert [int((new == mark).sum()) for mark in MARKS.ids] == [1, 1, 1]
                names = set(_words(own))
                assert set(_words(new)) <= names
    assert 0.35 < changed / texts < 0.55


def _words(ids: Ids) -> list[str]:
    """Whole numbers of a text, which tell documents apart."""
    return [word for word in _text(ids).split() if word.startswith("doc_") and word.endswith("{")]


def _rows(loader: BatchLoader, index: int, length: int | None = None) -> Ids:
    x, y = loader.batch_at(index, length)
    return torch.cat([x, y[:, -1:]], 1).numpy()


def test_short_sequences_are_rearranged_one_by_one() -> None:
    plain, filled = _loader(None), _loader(_infill())
    rows, short = _rows(plain, 3), _rows(plain, 3, 32)
    assert np.array_equal(short.reshape(4, 4, 33)[:, :, :-1].reshape(4, -1), rows[:, :-1])
    found = _rows(filled, 3, 32)
    assert found.shape == (16, 33)
    for row in found:
        for mark in MARKS.ids[1:]:
            assert (row == mark).sum() == (row == MARKS.prefix).sum()
    assert (found == MARKS.middle).any(axis=1).mean() > 0.6  # the others begin or end within a character


def test_rows_depend_on_seed_and_place_only() -> None:
    a, b, c = (_loader(_infill(seed=seed)) for seed in (0, 0, 1))
    later = 2 * a.plan(0).rows // 4 + 3  # a comes through two epochs first
    for index in range(later):
        a.batch_at(index)
    assert np.array_equal(_rows(a, later), _rows(b, later))
    assert not np.array_equal(_rows(a, later), _rows(c, later))
    assert not np.array_equal(_rows(a, 0), _rows(_loader(None), 0))
    assert np.array_equal(_rows(_loader(_infill(rate=0.0)), 0), _rows(_loader(None), 0))


def test_data_that_cannot_be_used_for_it_is_refused() -> None:
    tokens = np.array([END, MARKS.middle, 5], np.uint16)
    assert make_infill(None, tokens, None, (0.0, 0.5, 0)) is None
    with pytest.raises(UserError, match="needs data with a tokenizer"):
        make_infill(None, tokens, END, (0.25, 0.5, 0))
    with pytest.raises(UserError, match="needs data with a tokenizer"):
        make_infill(TOKENIZER, tokens, None, (0.25, 0.5, 0))
    with pytest.raises(UserError, match="holds the ids 185, 186, 187"):
        make_infill(TOKENIZER, tokens, END, (0.25, 0.5, 0))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Data of documents of letters, without the ids of the marks."""
    folder = write_data(tmp_path / "data")
    letters = np.random.default_rng(1).integers(64, 90, 4000).astype("<u2")
    letters[::97] = 299
    (folder / "train.bin").write_bytes(letters.tobytes())
    info = json.loads((folder / "dataset.json").read_text())
    del info["splits"]["train"]["sha256"]
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder


def test_a_run_is_continued_with_it_and_repeats(tmp_path: Path, data: Path) -> None:
    options = {**on_data(data), "eval_interval": 5}
    train(tmp_path / "a", **options, steps=5)
    start = tmp_path / "a" / "final"
    assert json.loads((start / "state.json").read_text())["infill"] is None
    whole = train(tmp_path / "b", start, **options, steps=15, fim_rate=0.5, checkpoint_interval=5)
    again = train(tmp_path / "c", tmp_path / "b" / "step_10", **options, steps=15, fim_rate=0.5, checkpoint_interval=5)
    assert {k: v for k, v in losses(whole).items() if k > 10} == {k: v for k, v in losses(again).items() if k > 10}
    plain = train(tmp_path / "d", start, **options, steps=15)
    assert losses(plain)[6] != losses(whole)[6]
    log = (RunDirectory(tmp_path / "b").path / "log.txt").read_text()
    assert "fim_rate was 0.0 and is 0.5" in log
    # a leg without it leaves the model one that knows the marks
    train(tmp_path / "e", tmp_path / "b" / "final", **options, steps=20)
    marks = choose_marks(tiny_tokenizer())
    assert json.loads((tmp_path / "e" / "final" / "state.json").read_text())["infill"] == marks.to_json()


def test_the_exported_model_names_its_marks(tmp_path: Path, data: Path) -> None:
    train(tmp_path / "run", **on_data(data), steps=2, fim_rate=0.25)
    train(tmp_path / "without", **on_data(data), steps=2)
    report = export_model(tmp_path / "run" / "final", tmp_path / "m.gguf", None, data / "tokenizer.json")
    bare = export_model(tmp_path / "without" / "final", tmp_path / "w.gguf", None, data / "tokenizer.json")
    marks = choose_marks(tiny_tokenizer())
    with read_gguf(tmp_path / "m.gguf") as file:
        named = [file.metadata[f"tokenizer.ggml.fim_{part}_token_id"].value for part in ("pre", "suf", "mid")]
        assert named == list(marks.ids)
        codec = codec_from_gguf(file.metadata)
        types: Any = file.metadata["tokenizer.ggml.token_type"].value
        assert [int(types[i]) for i in marks.ids] == [3, 3, 3]
    assert codec.infill == marks
    assert report.parameters == bare.parameters
    with read_gguf(tmp_path / "w.gguf") as file:
        assert "tokenizer.ggml.fim_pre_token_id" not in file.metadata
        assert codec_from_gguf(file.metadata).infill is None
    assert report.tokenizer_path is not None and report.tokenizer_path.name == "tokenizer.json"
    assert bare.tokenizer_path is not None and bare.tokenizer_path.name == "w-tokenizer.json"
    tokenizer = load_tokenizer(report.tokenizer_path)
    assert InfillMarks(*(tokenizer.token_to_id(name) for name in NAMES)) == marks
    assert all(tokenizer.get_added_tokens_decoder()[i].special for i in marks.ids)
    for name in NAMES:
        assert not set(codec.encode(name, special=False)) & set(marks.ids)
