"""A data set in one file: whole documents, within the limit, and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.train.data_preparation import packing

END = 500


def make_data(folder: Path, documents: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    train = np.concatenate([np.append(END, rng.integers(0, END, 999)) for _ in range(documents)]).astype("<u2")
    folder.mkdir()
    train.tofile(folder / "train.bin")
    train[:2000].tofile(folder / "val.bin")
    import hashlib

    splits = {
        split: {"tokens": n, "bytes": 4 * n, "sha256": hashlib.sha256(train[:n].tobytes()).hexdigest()}
        for split, n in (("train", train.size), ("val", 2000))
    }
    info = {"dtype": "u16", "eot_id": END, "vocab_size": 501, "transform": {"indentation": 4}, "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    (folder / "val_documents.json").write_text("[]\n", encoding="utf-8")
    return train


def test_all_of_it_comes_back_where_it_fits(tmp_path: Path) -> None:
    train = make_data(tmp_path / "data", 700)
    packing.pack(tmp_path / "data", tmp_path / "p", 8 << 20)
    packing.unpack(tmp_path / "p", tmp_path / "back")
    assert np.fromfile(tmp_path / "back/train.bin", "<u2").tolist() == train.tolist()
    for name in ("val.bin", "val_documents.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "data" / name).read_bytes()


def test_whole_documents_fill_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_STEP", 1 << 14)
    train = make_data(tmp_path / "data", 700)
    limit = 400_000
    info = packing.pack(tmp_path / "data", tmp_path / "p", limit)
    assert 0.6 * limit < (tmp_path / "p").stat().st_size <= limit
    taken = info["splits"]["train"]["tokens"]
    assert 0 < taken < train.size
    assert train[taken] == END
    packing.unpack(tmp_path / "p", tmp_path / "back")
    assert np.fromfile(tmp_path / "back/train.bin", "<u2").tolist() == train[:taken].tolist()
    assert info["splits"]["train"]["documents"] == (train[:taken] == END).sum()


def test_refusals(tmp_path: Path) -> None:
    make_data(tmp_path / "data", 3)
    with pytest.raises(UserError, match="not a data set"):
        packing.pack(tmp_path, tmp_path / "p", 1 << 20)
    with pytest.raises(UserError, match="even the validation part"):
        packing.pack(tmp_path / "data", tmp_path / "p", 1000)
    packing.pack(tmp_path / "data", tmp_path / "p", 1 << 22)
    with pytest.raises(UserError, match="is there already"):
        packing.unpack(tmp_path / "p", tmp_path / "data")
    whole = (tmp_path / "p").read_bytes()
    (tmp_path / "p").write_bytes(whole[:2000])
    with pytest.raises(UserError, match="damaged"):
        packing.unpack(tmp_path / "p", tmp_path / "back")
    assert not (tmp_path / "back").exists()
