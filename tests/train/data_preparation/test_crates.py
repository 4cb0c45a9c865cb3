"""Crates: whose a file is, which copy stays, whole ones held out, none too large; near duplicates by MinHash."""

from __future__ import annotations

import json
import random
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from nanochat_tui.formats.ngrams import ngram_cover
from nanochat_tui.train.data_preparation import PrepareOptions, PrepareReport, Source, prepare_data
from nanochat_tui.train.data_preparation.benchmarks import holds_any, ngram_hashes
from nanochat_tui.train.data_preparation.crates import find_crate, is_vendored, version_key
from nanochat_tui.train.data_preparation.filters import Reason
from nanochat_tui.train.data_preparation.minhash import MinHashIndex, shingles, signature
from nanochat_tui.train.data_preparation.selection import over_share

from .corpus_tree import TOKENIZER, rust, write


def crate(folder: Path, name: str, version: str, files: dict[str, str], extra: str = "") -> None:
    write(folder / "Cargo.toml", f'[package]\nname = "{name}"\nversion = "{version}"\nlicense = "MIT"\n{extra}')
    for path, text in files.items():
        write(folder / path, text)


def prepare(tmp_path: Path, *sources: Source | Path, **changes: Any) -> tuple[PrepareReport, dict[str, str]]:
    """Prepare and return the report and the split of each `source/path`."""
    settings: dict[str, Any] = {"validation_fraction": 0.0, "workers": 1, **changes}
    report = prepare_data(PrepareOptions(sources, TOKENIZER, tmp_path / "out", **settings))
    lines = (tmp_path / "out/files.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return report, {f"{row[1]}/{row[2]}": row[0] for row in (line.split("\t") for line in lines)}


def test_a_file_belongs_to_the_nearest_package(tmp_path: Path) -> None:
    write(tmp_path / "Cargo.toml", '[workspace.package]\nversion = "3.1.0"\n')
    write(tmp_path / "core/Cargo.toml", '[package]\nname = "My_Core"\nversion.workspace = true\n')
    write(tmp_path / "tool/Cargo.toml", '[package]\nname = "tool"\nversion = "1.0.0"\npublish = false\n')
    found = find_crate(tmp_path, PurePosixPath("core/src/deep"), "whole")
    assert (found.name, found.version, found.folder, found.private) == ("my-core", "3.1.0", "core", False)
    assert find_crate(tmp_path, PurePosixPath("tool"), "whole").private
    assert find_crate(tmp_path, PurePosixPath("scripts"), "Whole_Tree").name == "whole-tree"
    assert is_vendored("a/vendor/b/lib.rs")
    assert is_vendored("include/cargo/b/lib.rs")
    assert not is_vendored("a/vendor.rs")


def test_versions_are_ordered_as_cargo_does() -> None:
    versions = ["0.9.0", "0.10.0-alpha.1", "0.10.0", "1.0.0-rc.1", "1.0.0+build.7", "1.0.1"]
    mixed = [versions[i] for i in (3, 5, 0, 2, 4, 1)]
    assert sorted(mixed, key=version_key) == versions


def test_the_newest_version_stays_wherever_it_is(tmp_path: Path) -> None:
    crate(tmp_path / "a", "app", "0.1.0", {"src/lib.rs": rust(1)})
    crate(tmp_path / "a/vendor/dep", "dep_one", "2.0.0", {"lib.rs": rust(2)})
    crate(tmp_path / "b", "dep-one", "1.9.0", {"lib.rs": rust(3), "extra.rs": rust(4)})
    report, kept = prepare(tmp_path, tmp_path / "a", tmp_path / "b", one_version=True)
    assert set(kept) == {"a/src/lib.rs", "a/vendor/dep/lib.rs"}
    assert report.left_out[Reason.OTHER_VERSION].documents == 2
    assert set(report.crates["train"]) == {"app", "dep-one"}


def test_private_crates_of_one_name_are_different_unless_in_one_group(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        crate(tmp_path / name, "xtask", "0.0.0", {"main.rs": rust(seed)})
    _, kept = prepare(tmp_path, tmp_path / "a", tmp_path / "b", one_version=True)
    assert len(kept) == 2
    grouped = [Source(tmp_path / name, name, group="compiler") for name in ("a", "b")]
    _, kept = prepare(tmp_path / "grouped", *grouped, one_version=True)
    assert set(kept) == {"a/main.rs"}


def test_a_held_out_crate_is_validation_and_nowhere_in_training(tmp_path: Path) -> None:
    held = {"src/lib.rs": rust(1, 8), "src/a.rs": rust(2)}
    crate(tmp_path / "old", "held-out", "1.0.0", {"src/lib.rs": rust(1, 8), "src/gone.rs": rust(3)})
    crate(tmp_path / "new", "held_out", "2.0.0", held)
    # a copy under another name, and a file with one function of it
    function = rust(1, 8).split("\n\n")[3]
    borrowed = rust(5, 4) + function + "\n"
    crate(
        tmp_path / "other",
        "other",
        "1.0.0",
        {"copied.rs": held["src/a.rs"], "borrowed.rs": borrowed, "own.rs": rust(6)},
    )
    sources = [tmp_path / name for name in ("other", "old", "new")]
    report, kept = prepare(tmp_path, *sources, hold_out=("held-out",))
    assert kept == {"new/src/lib.rs": "val", "new/src/a.rs": "val", "other/own.rs": "train"}
    assert report.left_out[Reason.OTHER_VERSION].documents == 2
    assert set(report.crates["val"]) == {"held-out"}
    documents = json.loads((tmp_path / "out/val_documents.json").read_text(encoding="utf-8"))
    assert {document["crate"] for document in documents} == {"held-out"}
    data = json.loads((tmp_path / "out/dataset.json").read_text(encoding="utf-8"))
    assert data["validation"]["held_out_crates"] == {"held-out": data["splits"]["val"]["tokens"]}


def test_reserved_files_and_their_copies_stay_out(tmp_path: Path) -> None:
    crate(tmp_path / "a", "a", "1.0.0", {"kept.rs": rust(1), "again.rs": rust(2) + "// the same\n"})
    crate(tmp_path / "b", "b", "1.0.0", {"measured.rs": rust(2)})
    report, kept = prepare(tmp_path, tmp_path / "a", tmp_path / "b", reserved=lambda key: key == "b/measured.rs")
    assert set(kept) == {"a/kept.rs"}
    assert report.left_out[Reason.RESERVED].documents == 1
    assert report.left_out[Reason.NEAR_DUPLICATE].documents == 1


def test_no_crate_and_no_group_has_more_than_its_share() -> None:
    rng = random.Random(3)
    order = list(range(900))
    tokens = {i: rng.randint(10, 400) for i in order}
    crates = {i: ("", f"c{min(i % 17, rng.randint(0, 40) and 5)}") for i in order}
    crates |= {i: ("", f"d{i}") for i in order if i % 3}
    groups = {i: "compiler" if i % 2 else "" for i in order}
    out = over_share(order, tokens, crates, groups, 0.05, 0.25)
    kept = [i for i in order if i not in out]
    total = sum(tokens[i] for i in kept)
    by_crate: dict[tuple[str, str], int] = {}
    for i in kept:
        by_crate[crates[i]] = by_crate.get(crates[i], 0) + tokens[i]
    group = sum(tokens[i] for i in kept if groups[i])
    assert max(by_crate.values()) <= 0.05 * total
    assert group <= 0.25 * total
    # not more than needed: both limits are nearly used
    assert max(by_crate.values()) > 0.03 * total
    assert group > 0.22 * total
    assert {*out.values()} == {Reason.CRATE_SHARE, Reason.GROUP_SHARE}


def test_minhash_estimates_the_jaccard_similarity() -> None:
    rng = random.Random(1)
    for wanted in (0.0, 0.3, 0.7, 0.95):
        same = [rng.getrandbits(64) for _ in range(int(2000 * wanted))]
        each = (2000 - len(same)) // 2
        a, b = (np.unique(np.array(same + [rng.getrandbits(64) for _ in range(each)], np.uint64)) for _ in range(2))
        exact = len(np.intersect1d(a, b)) / len(np.union1d(a, b))
        # four standard errors of 128 draws
        assert abs((signature(a) == signature(b)).mean() - exact) <= 4 * (max(exact * (1 - exact), 1e-4) / 128) ** 0.5


def test_numbers_and_white_space_are_folded() -> None:
    a, b = "fn dep_12() -> u32 { 7 }\nfn x() {}", "fn  dep_9()  ->  u64 {\n\t81 }\nfn x() {}"
    assert shingles(a).tolist() == shingles(b).tolist()
    index = MinHashIndex(0.7)
    index.add(signature(shingles(a)))
    assert index.seen(signature(shingles(b)))
    assert not index.seen(signature(shingles(rust(4))))


def test_benchmark_ngrams_are_found_whatever_the_punctuation() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    hashes = ngram_hashes([words, "short text", " ".join(map(str, range(40)))])
    assert len(hashes) == 2
    assert holds_any("// ONE, two: three-four five\n six; seven eight nine ten eleven twelve (thirteen)", hashes)
    assert not holds_any(words.replace("seven", "7"), hashes)
    assert not holds_any(" ".join(map(str, range(40))), hashes)
    assert not holds_any(words, ngram_hashes([]))


@pytest.mark.parametrize("n", [3, 13])
def test_cover_equals_a_reference_with_sets(n: int) -> None:
    rng = np.random.default_rng(2)
    corpus = rng.integers(0, 9, 5000).astype(np.uint16)
    tokens = np.concatenate([rng.integers(0, 9, 300), corpus[700:760], rng.integers(0, 9, 40)]).astype(np.uint16)
    grams = {tuple(corpus[i : i + n]) for i in range(len(corpus) - n + 1)}
    expected = np.zeros(len(tokens), bool)
    for i in range(len(tokens) - n + 1):
        if tuple(tokens[i : i + n]) in grams:
            expected[i : i + n] = True
    assert ngram_cover(tokens, corpus, n).tolist() == expected.tolist()
    assert 0 < expected.sum() <= len(tokens)
    assert not ngram_cover(tokens[:2], corpus, n).any()
