"""Duplicates against a plain-Python reference; the split by path."""

from __future__ import annotations

import random

import pytest

from nanochat_tui.train.data_preparation.dedup import WindowIndex, content_digest, line_windows
from nanochat_tui.train.data_preparation.split import path_fraction, validation_files


def lines(*numbers: int) -> str:
    return "".join(f"    let value_{n} = compute({n});\n" for n in numbers)


def test_digest_folds_white_space_only() -> None:
    assert content_digest("fn main() {\n\tlet a = 1;\n}\n") == content_digest("fn main() { let a = 1; }")
    assert content_digest("let a = 1;") != content_digest("let a = 2;")
    assert content_digest("let ab = 1;") != content_digest("let a b = 1;")


def test_windows_ignore_indentation_blank_and_comment_lines() -> None:
    plain = line_windows(lines(1, 2, 3, 4, 5, 6))
    assert len(plain) == 2
    dressed = "// about\n\n" + lines(1, 2, 3).replace("    ", "\t") + "   // more\n\n" + lines(4, 5, 6)
    assert line_windows(dressed).tolist() == plain.tolist()
    assert line_windows(lines(1, 2, 3, 4, 6, 5)).tolist() != plain.tolist()


def test_windows_of_short_and_of_commented_files() -> None:
    assert len(line_windows(lines(1, 2))) == 1
    assert line_windows("// one\n// two\n").tolist() != line_windows("// one\n// three\n").tolist()
    assert line_windows("# a\nx = 1\n", ".py").tolist() == line_windows("x = 1\n", ".py").tolist()
    assert line_windows("#[test]\nfn a() {}\n").tolist() != line_windows("fn a() {}\n").tolist()


def reference_windows(text: str) -> list[tuple[str, ...]]:
    code = [line.strip() for line in text.split("\n") if line.strip()]
    return [tuple(code[i : i + 5]) for i in range(max(1, len(code) - 4))]


def test_near_duplicates_and_sharing_equal_a_reference_with_sets() -> None:
    rng = random.Random(5)
    # runs of few distinct lines, so that files share windows in every degree
    texts = [
        "".join(lines(*range(start, start + rng.randint(1, 12))) for start in rng.choices(range(0, 90, 3), k=4))
        for _ in range(120)
    ]
    index = WindowIndex([line_windows(text) for text in texts])
    seen: set[tuple[str, ...]] = set()
    expected = []
    for text in texts:
        windows = reference_windows(text)
        duplicate = sum(w in seen for w in windows) / len(windows) > 0.5
        expected.append(duplicate)
        if not duplicate:
            seen.update(windows)
    assert index.near_duplicates(0.5) == expected
    assert 10 < sum(expected) < 110

    kept = [i for i, duplicate in enumerate(expected) if not duplicate]
    shared = index.shared(kept)
    sets = {i: set(reference_windows(texts[i])) for i in kept}
    for i in kept:
        others = set().union(*(sets[j] for j in kept if j != i))
        assert shared[i] == pytest.approx(len(sets[i] & others) / len(sets[i]))


def test_exactly_half_is_kept_and_the_first_wins() -> None:
    first, second = line_windows(lines(*range(1, 11))), line_windows(lines(*range(6, 16)))
    assert len(first) == len(second) == 6
    index = WindowIndex([first, second, line_windows(lines(*range(2, 12)))])
    assert index.near_duplicates(0.5) == [False, False, True]


KEYS = [f"crate/src/file_{n}.rs" for n in range(20_000)]


def test_split_takes_its_share_and_only_by_path() -> None:
    shared = dict.fromkeys(range(len(KEYS)), 0.0)
    chosen, moved = validation_files(KEYS, shared, 0.02, 0.10)
    assert moved == 0
    assert 0.017 < len(chosen) / len(KEYS) < 0.023
    # the same files among fewer others: nobody changes sides
    half = dict.fromkeys(range(0, len(KEYS), 2), 0.0)
    assert validation_files(KEYS, half, 0.02, 0.10)[0] == {i for i in chosen if i in half}


def test_split_sends_what_is_shared_to_training() -> None:
    shared = {i: 0.11 if i % 2 else 0.10 for i in range(len(KEYS))}
    chosen, moved = validation_files(KEYS, shared, 0.02, 0.10)
    assert all(i % 2 == 0 for i in chosen)
    assert moved > 150


def test_a_small_corpus_gets_one_validation_file() -> None:
    keys = KEYS[:6]
    shared = {0: 0.0, 1: 0.5, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.0}
    assert all(path_fraction(key, "validation-1") >= 0.001 for key in keys)
    chosen, _ = validation_files(keys, shared, 0.001, 0.10)
    assert len(chosen) == 1
    assert 1 not in chosen
    assert validation_files(keys, shared, 0.0, 0.10)[0] == set()
    assert validation_files(keys, {0: 0.0}, 0.001, 0.10)[0] == set()
