"""Instruction pairs of Rust functions: which are kept, how they are asked for, and what is held out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.rust_functions import RustFunction, first_function, free_functions
from nanochat_tui.evaluate.toolchains import rustc
from nanochat_tui.train.data_preparation import PrepareOptions
from nanochat_tui.train.data_preparation.pairs import prepare_pairs, request_texts, summary_of
from nanochat_tui.train.data_preparation.standalone import cannot_stand_alone

TRAINED = """/// Adds two numbers, slowly.
pub fn add(a: i32, b: i32) -> i32 {
    a + b
}

fn mistyped(a: u32) -> u32 {
    let text = a.to_string();
    text
}

pub fn shared(values: &[u32]) -> u32 {
    values.iter().sum::<u32>() + 1
}
"""
HELD_OUT = """/// Counts the words of a text.
pub fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

pub fn shared(values: &[u32]) -> u32 {
    values.iter().sum::<u32>() + 2
}
"""


def _crate(folder: Path, name: str, text: str, licence: str = "MIT") -> Path:
    (folder / "src").mkdir(parents=True)
    (folder / "Cargo.toml").write_text(f'[package]\nname = "{name}"\nversion = "1.0.0"\nlicense = "{licence}"\n')
    (folder / "src" / "lib.rs").write_text(text)
    return folder


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.skipif(shutil.which("rustc") is None, reason="rustc is not installed")
def test_pairs_are_functions_that_compile_and_held_out_crates_stay_apart(tmp_path: Path) -> None:
    sources = (
        _crate(tmp_path / "one", "one", TRAINED),
        _crate(tmp_path / "two", "two", HELD_OUT),
        _crate(tmp_path / "three", "three", "pub fn copied_left(a: u8) -> u8 { a * 2 }\n", "GPL-3.0"),
    )
    options = PrepareOptions(sources, Path("unused"), tmp_path / "pairs", hold_out=("two",), min_bytes=1)
    report = prepare_pairs(options)
    assert (report.asked, report.compiled, report.train, report.val) == (5, 4, 1, 2)
    train, val = _rows(tmp_path / "pairs" / "train.jsonl"), _rows(tmp_path / "pairs" / "val.jsonl")
    assert {row["completion"] for row in train} == {"fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n"}
    assert all("Adds two numbers, slowly." in row["prompt"] for row in train)
    # `shared` has the name and the parameters of a held-out one, so it is not learned
    assert sorted(first.name for row in val if (first := first_function(row["completion"]))) == ["shared", "words"]
    assert {row["crate"] for row in val} == {"two"}
    described = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
    assert described["licences"] == {"MIT": 4}
    with pytest.raises(UserError, match="holds a data set already"):
        prepare_pairs(options)


def test_without_a_compiler_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    rustc.cache_clear()
    with pytest.raises(UserError, match="rustc is missing"):
        prepare_pairs(PrepareOptions((tmp_path,), Path("unused"), tmp_path / "pairs"))
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("fn f(a: u32) -> Option<u32> { a.checked_add(u32::MAX) }", True),
        ('use std::fmt::Write;\nfn f(s: &mut String) { write!(s, "{}", 1).unwrap(); }', True),
        ("fn f<T: Ord>(a: &[T]) -> Option<&T> { a.iter().max() }", True),
        ("fn f(a: u32) -> u32 { let g = |x: u32| x + a; g(1) }", True),
        ('fn f(a: &str) -> String { format!("{} Thing::new()", a) }', True),
        ("fn f(a: Thing) -> u32 { 1 + a.b }", False),
        ("fn f(a: u32) -> u32 { helper(a) }", False),
        ("fn f(a: u32) -> u32 { crate::helper(a) }", False),
        ("fn f(a: u32) -> u32 { my_macro!(a) }", False),
        ("fn f(a: u32) -> u32 { other::g(a) }", False),
        ("fn f(a: u32) -> u32 { 7 }", False),
        ("fn f(a: *const u8) -> u8 { unsafe { *a } }", False),
    ],
)
def test_what_needs_more_than_itself_is_not_asked_of_the_compiler(text: str, alone: bool) -> None:
    (function,) = free_functions(text)
    assert cannot_stand_alone(function) is not alone


def _function(documentation: str = "") -> RustFunction:
    (function,) = free_functions(f"{documentation}\nfn scale(value: f32, by: &[f32]) -> Vec<f32> {{ vec![value] }}")
    return function


def test_every_way_to_ask_names_the_function_and_its_parameters() -> None:
    ways = request_texts(_function("/// Scales."))
    assert len(set(ways)) == 5
    for way in ways:
        assert "scale" in way
        assert "value: f32" in way
        assert "by: &[f32]" in way
        assert "Scales." in way
    assert ways == request_texts(_function("/// Scales."))


@pytest.mark.parametrize(
    ("documentation", "text"),
    [
        ("Adds [`two`](x) numbers\nof [three][y]\n\nMore.", "Adds `two` numbers of three."),
        ("# Safety\nNone.", ""),
        ("Ends here. " + "a" * 300, "Ends here."),
        ("", ""),
    ],
)
def test_the_summary_is_the_first_paragraph_in_plain_words(documentation: str, text: str) -> None:
    assert summary_of(documentation) == text
