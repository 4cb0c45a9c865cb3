"""Held-out text that training text holds, too: shares by crate, and the figure on the rest."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.copies import mark_copies, overlaps, token_sizes, without_copies
from nanochat_tui.evaluate.held_out import HeldOut, open_held_out
from nanochat_tui.evaluate.scoring import Scored
from nanochat_tui.formats.tokens import DTYPES
from nanochat_tui.model.shipped import shipped_tokenizer
from nanochat_tui.model.tokenizer import load_tokenizer

EOT, VOCAB = 0, 5000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training crates, of which all hold one phrase of 15 tokens and one a run of 60 of the held-out crate `a`."""
    rng = np.random.default_rng(5)

    def words(n: int) -> list[int]:
        return rng.integers(1, VOCAB, n).tolist()

    phrase, copied = words(15), words(60)
    train = [[EOT, *words(40), *phrase, *(copied if crate == 3 else []), *words(20)] for crate in range(6)]
    val = {"a": [EOT, *words(30), *copied, *words(24), *phrase], "b": [EOT, *words(99)]}
    np.array([t for document in train for t in document], DTYPES["u16"]).tofile(tmp_path / "train.bin")
    np.array([t for document in val.values() for t in document], DTYPES["u16"]).tofile(tmp_path / "val.bin")
    lines = ["split\tsource\tpath\tlicence\tbytes\ttokens\tcrate\tversion"]
    lines += [f"train\ts\tp{i}\tMIT\t1\t{len(document)}\tc{i}\t1" for i, document in enumerate(train)]
    (tmp_path / "files.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows, start = [], 0
    for crate, ids in val.items():
        rows.append({"start": start, "tokens": len(ids), "bytes": 1000, "source": "s", "crate": crate, "path": "p"})
        start += len(ids)
    (tmp_path / "val_documents.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {"dtype": "u16", "vocab_size": VOCAB, "eot_id": EOT, "transform": {"indentation": 4}}
    (tmp_path / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    return tmp_path


def test_copies_are_told_from_common_phrases(folder: Path) -> None:
    whole, a, b = overlaps(folder, open_held_out(folder))
    assert (whole.crate, a.crate, b.crate) == ("", "a", "b")
    assert a.tokens == 130 and b.covered == 0
    assert a.covered == pytest.approx(75 / 130)
    assert a.few == a.copied == pytest.approx(60 / 130)
    assert a.common == pytest.approx(15 / 130)
    assert whole.covered == pytest.approx(75 / 230)


def test_the_figure_without_copies_is_that_of_the_other_tokens(folder: Path) -> None:
    held_out = open_held_out(folder)
    rng = np.random.default_rng(1)
    scored = [Scored(d, rng.uniform(0, 4, len(d.ids) - 1), np.zeros(len(d.ids) - 1, bool)) for d in held_out.documents]
    sizes = rng.integers(1, 9, VOCAB)
    found = without_copies(scored, mark_copies(held_out, held_out.documents), sizes)
    bits = bytes_ = 0.0
    for one in scored:
        own = [int(sizes[t]) for t in one.targets]
        for place in range(len(one.nats)):
            if one.document.crate == "a" and 31 <= place + 1 < 91:
                continue
            bits += one.nats[place] / math.log(2)
            bytes_ += own[place] * one.document.size / sum(own)
    assert found.bits_per_byte.value == pytest.approx(bits / bytes_)
    assert found.copied == pytest.approx(60 / 228)


def test_a_list_of_other_files_is_refused(folder: Path) -> None:
    held_out = open_held_out(folder)
    (folder / "files.tsv").write_text("split\tsource\tcrate\ttokens\ntrain\ts\tc\t7\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"does not list train\.bin"):
        overlaps(folder, held_out)
    (folder / "files.tsv").unlink()
    with pytest.raises(UserError, match=r"no files\.tsv"):
        overlaps(folder, held_out)
    alone = HeldOut(held_out.documents, 4, VOCAB, None, None, EOT, None)
    with pytest.raises(UserError, match=r"no train\.bin"):
        mark_copies(alone, alone.documents)


def test_sizes_are_those_of_the_original_text() -> None:
    path = shipped_tokenizer()
    assert path is not None
    tokenizer = load_tokenizer(path)
    sizes = token_sizes(tokenizer, 50_257, 4)
    ids = tokenizer.encode("fn é() {\n\t\tlet x;\n").ids
    assert sizes[ids].sum() == len("fn é() {\n        let x;\n".encode())
    assert sizes[50_256] == 0
