"""The whole pipeline: text comes back, the result does not depend on the processes, nothing is half written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

from nanochat_tui.errors import UserError
from nanochat_tui.formats.tokens import open_tokens
from nanochat_tui.model.text import tabs_to_spaces
from nanochat_tui.train.data_preparation import PrepareOptions, Progress, Source, prepare_data

from .corpus_tree import TOKENIZER, make_tree, rust, write

FILES = {"crates.tsv", "train.bin", "val.bin", "dataset.json", "files.tsv", "val_documents.json", "tokenizer.json"}


def options(tmp_path: Path, name: str = "out", **changes: Any) -> PrepareOptions:
    settings: dict[str, Any] = {
        "sources": (tmp_path / "tree",),
        "tokenizer": TOKENIZER,
        "output": tmp_path / name,
        "validation_fraction": 0.1,
        "workers": 1,
        **changes,
    }
    return PrepareOptions(**settings)


def rows(folder: Path) -> list[list[str]]:
    lines = (folder / "files.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == ["split", "source", "path", "licence", "bytes", "tokens", "crate", "version"]
    return [line.split("\t") for line in lines[1:]]


def description(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return loaded


def tokens(folder: Path, split: str) -> npt.NDArray[Any]:
    return np.asarray(open_tokens(folder / f"{split}.bin", "u16", vocab_size=50257))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("indentation", [4, 0])
def test_tokens_decode_to_the_original_text(tmp_path: Path, indentation: int) -> None:
    texts = make_tree(tmp_path / "tree")
    write(tmp_path / "tree/src/windows.rs", rust(700).replace("\n", "\r\n"))
    texts["src/windows.rs"] = rust(700)
    prepare_data(options(tmp_path, indentation=indentation))
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    table = rows(tmp_path / "out")
    assert {row[2] for row in table} == set(texts)
    for split in ("train", "val"):
        ids = tokens(tmp_path / "out", split)
        starts = np.flatnonzero(ids == 50256)
        mine = [row for row in table if row[0] == split]
        assert len(starts) == len(mine) > 0
        for row, document in zip(mine, np.split(ids, starts[1:]), strict=True):
            text = tokenizer.decode(document[1:].tolist(), skip_special_tokens=False)
            assert ("\t" in text) == (indentation == 4)
            assert tabs_to_spaces(text, indentation) == texts[row[2]]
            assert int(row[4]) == len(texts[row[2]].encode())
            assert int(row[5]) == len(document)


def test_the_description_adds_up(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    report = prepare_data(options(tmp_path))
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == FILES
    data, table = description(folder), rows(folder)
    assert data["dtype"] == report.dtype == "u16"
    assert (data["vocab_size"], data["eot_id"]) == (50257, 50256)
    assert data["transform"] == {"indentation": 4}
    assert data["tokenizer_sha256"] == hashlib.sha256(TOKENIZER.read_bytes()).hexdigest()
    assert data["documents"] == report.documents == len(table) == 100
    for split in ("train", "val"):
        mine = [row for row in table if row[0] == split]
        part = data["splits"][split]
        assert part["documents"] == len(mine)
        assert part["bytes"] == sum(int(row[4]) for row in mine)
        assert part["tokens"] == sum(int(row[5]) for row in mine) == len(tokens(folder, split))
        assert part["sha256"] == hashlib.sha256((folder / f"{split}.bin").read_bytes()).hexdigest()
    crates = (folder / "crates.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert sum(int(line.split("\t")[5]) for line in crates) == sum(part["tokens"] for part in data["splits"].values())
    size = sum(int(row[4]) for row in table)
    count = sum(int(row[5]) for row in table)
    assert data["licences"] == {"MIT": {"documents": 100, "bytes": size, "tokens": count}}
    assert data["sources"] == {"tree": {"documents": 100, "bytes": size, "tokens": count}}
    assert data["found"]["files"] == 100 + sum(out["files"] for out in data["left_out"].values())


def test_validation_documents_locate_whole_documents(tmp_path: Path) -> None:
    texts = make_tree(tmp_path / "tree")
    prepare_data(options(tmp_path))
    documents = json.loads((tmp_path / "out/val_documents.json").read_text(encoding="utf-8"))
    ids = tokens(tmp_path / "out", "val")
    at = 0
    for document in documents:
        assert document["start"] == at
        assert ids[at] == 50256
        assert document["bytes"] == len(texts[document["path"]].encode())
        at += document["tokens"]
    assert at == len(ids)


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 150)  # three chunks
    write(tmp_path / "tree/src/again.rs", rust(3) + "// the same\n")
    seen: list[Progress] = []
    prepare_data(options(tmp_path, "one"))
    prepare_data(options(tmp_path, "two", workers=2), seen.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [step.stage for step in seen] == ["scanning"] * 151 + ["tokenising"] * 150
    assert (seen[150].done, seen[150].total) == (151, 151)


def test_the_seed_changes_the_order_alone(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    prepare_data(options(tmp_path, "a"))
    prepare_data(options(tmp_path, "b", seed=2))
    first, second = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert first != second
    assert sorted(first) == sorted(second)


def test_tabs_and_spaces_hold_the_same_documents(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    write(tmp_path / "tree/src/tabs.rs", rust(800).replace("    ", "\t"))
    prepare_data(options(tmp_path, "tabs"))
    prepare_data(options(tmp_path, "spaces", indentation=0, tabs_filter=4))
    tabs, spaces = rows(tmp_path / "tabs"), rows(tmp_path / "spaces")
    assert [row[:5] for row in tabs] == [row[:5] for row in spaces]
    assert len(tokens(tmp_path / "tabs", "train")) < len(tokens(tmp_path / "spaces", "train"))


def test_the_earlier_source_wins(tmp_path: Path) -> None:
    for name in ("old", "new"):
        write(tmp_path / name / "lib.rs", rust(1))
        write(tmp_path / name / f"{name}.rs", rust(2 if name == "old" else 3))
    write(tmp_path / "copyright", "Files: *\nLicense: ISC\n")
    old = Source(tmp_path / "old", "old-package", tmp_path / "copyright")
    report = prepare_data(options(tmp_path, sources=(tmp_path / "new", old)))
    assert sorted((row[1], row[2], row[3]) for row in rows(tmp_path / "out")) == [
        ("new", "lib.rs", "unknown"),
        ("new", "new.rs", "unknown"),
        ("old-package", "old.rs", "ISC"),
    ]
    assert report.left_out["exact duplicate"].documents == 1


def test_a_large_vocabulary_is_written_as_u32(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 20)
    large = Tokenizer.from_file(str(TOKENIZER))
    large.add_tokens([f"unlikely_word_{n}" for n in range(16_000)])
    large.save(str(tmp_path / "large.json"))
    prepare_data(options(tmp_path, "small"))
    report = prepare_data(options(tmp_path, tokenizer=tmp_path / "large.json"))
    assert report.dtype == description(tmp_path / "out")["dtype"] == "u32"
    wide = open_tokens(tmp_path / "out/train.bin", "u32", vocab_size=66_257)
    assert wide.tolist() == tokens(tmp_path / "small", "train").tolist()


def test_odd_names_links_and_hidden_folders(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 3)
    write(tmp_path / "tree/src/tab\tand\nline.rs", rust(300))
    write(tmp_path / "tree/.git/hook.rs", rust(301))
    write(tmp_path / "tree/target/built.rs", rust(302))
    write(tmp_path / "tree/target/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n")
    write(tmp_path / "tree/notes.txt", rust(303))
    write(tmp_path / "elsewhere/linked.rs", rust(304))
    (tmp_path / "tree/link.rs").symlink_to(tmp_path / "elsewhere/linked.rs")
    (tmp_path / "tree/folder").symlink_to(tmp_path / "elsewhere")
    report = prepare_data(options(tmp_path))
    assert report.found.documents == 4
    assert "src/tab\\tand\\nline.rs" in {row[2] for row in rows(tmp_path / "out")}


def test_a_file_that_changes_meanwhile_stops_it_without_a_trace(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 10)

    def meddle(step: Progress) -> None:
        if step.stage == "scanning" and step.done == step.total:
            for path in (tmp_path / "tree/src").rglob("file_7.rs"):
                write(path, rust(777))

    with pytest.raises(UserError, match=r"file_7\.rs changed"):
        prepare_data(options(tmp_path), meddle)
    assert {path.name for path in tmp_path.iterdir()} == {"tree"}


def test_only_a_data_set_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 10)
    prepare_data(options(tmp_path))
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="holds a data set already"):
        prepare_data(options(tmp_path, indentation=0))
    with pytest.raises(UserError, match="changed"):
        # a failure while replacing leaves the old one
        prepare_data(
            options(tmp_path, overwrite=True, indentation=0),
            lambda step: write(next((tmp_path / "tree/src").rglob("*.rs")), rust(step.done + 5000)),
        )
    assert contents(tmp_path / "out") == before
    prepare_data(options(tmp_path, overwrite=True, indentation=0))
    assert contents(tmp_path / "out") != before
    assert {path.name for path in tmp_path.iterdir()} == {"tree", "out"}
    write(tmp_path / "thesis/chapter.txt", "years of work")
    with pytest.raises(UserError, match="holds no data set"):
        prepare_data(options(tmp_path, "thesis", overwrite=True))
    assert (tmp_path / "thesis/chapter.txt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "no folder given"),
        ({"sources": (Path("/nonexistent/place"),)}, "is not a folder"),
        ({"tokenizer": Path("/nonexistent.json")}, r"is not a tokenizer\.json"),
        ({"eot_token": "<end>"}, "no token <end>"),
        ({"extensions": (".zig",)}, r"no file ending in \.zig"),
        ({"extensions": ()}, "no file name extension"),
        ({"min_letters": 0.99}, "no file passed the filters; .*too few letters 10"),
        ({"validation_fraction": 2.0}, "between 0 and 1"),
        ({"max_crate_share": 0.0}, "above 0 and at most 1"),
        ({"hold_out": ("no-such-crate",)}, "no file of the crates to hold out"),
        ({"indentation": -1}, "0 to 16 spaces"),
        ({"workers": 0}, "at least 1 worker"),
        ({"min_bytes": 10, "max_bytes": 5}, "leave no file"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make_tree(tmp_path / "tree", 10)
    with pytest.raises(UserError, match=message) as caught:
        prepare_data(options(tmp_path, **changes))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"tree"}
