"""Requests for Rust functions: what is read of one, and what an answer is worth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.requests import judge, read_requests, rust_of, summarise, with_compiled
from nanochat_tui.evaluate.rust_functions import first_function, free_functions
from nanochat_tui.evaluate.rustc import UNNAMED, compile_errors
from nanochat_tui.evaluate.sandbox.isolation import Isolation, isolation
from nanochat_tui.evaluate.toolchains import rustc

FILE = """use std::collections::{HashMap, hash_map};

/// Adds two numbers.
///
/// # Examples
#[inline]
pub fn add(
    a: i32,
    b: i32,
) -> i32 {
    a + b
}

mod inner {
    //// no documentation
    pub(crate) fn count(text: &str) -> HashMap<char, usize> {
        let mut found = HashMap::new();
        for c in text.chars() {
            *found.entry(c).or_insert(0) += 1;
        }
        found
    }
}

#[test]
fn tested() {}

impl Thing {
    fn method(&self) {}
}

fn broken(x: u32) -> u32 { let = ; }
"""
NEEDS_RUSTC = pytest.mark.skipif(shutil.which("rustc") is None, reason="rustc is not installed")


def test_free_functions_are_found_with_what_is_said_of_them() -> None:
    add, count = free_functions(FILE)
    assert (add.name, add.parameters, add.returns) == ("add", (("a", "i32"), ("b", "i32")), "i32")
    assert add.signature == "fn add(a: i32, b: i32) -> i32"
    assert add.source == "fn add(a: i32, b: i32) -> i32 {\n    a + b\n}"
    assert add.documentation.startswith("Adds two numbers.\n\n# Examples")
    assert count.documentation == ""
    assert count.source.splitlines()[-1] == "}"
    assert count.uses == ("use std::collections::HashMap;",)
    assert add.uses == ()


@pytest.mark.parametrize(
    ("body", "constant"),
    [
        ("{ 0 }", True),
        ("{ }", True),
        ("{ // nothing\n None }", True),
        ("{ Kind::A }", True),
        ("{ return -1; }", True),
        ("{ x }", False),
        ("{ x + 1 }", False),
        ("{ f() }", False),
        ("{ let y = 1; y }", False),
        ("{ vec![] }", False),
    ],
)
def test_a_body_that_only_names_a_value_is_told_apart(body: str, constant: bool) -> None:
    function = first_function(f"fn f(x: u32) -> T {body}")
    assert function is not None
    assert function.constant is constant


def _requests(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "Write `fn add(a: i32, b: &str) -> i32`.", "completion": "fn add(a: i32, b: &str) -> i32 { a }\n"},
        {"prompt": "Write `fn now()`.", "completion": "fn now() {}\n"},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("answer", "parses", "asked_for"),
    [
        ("fn add(a: i32, b: &str) -> i32 { a + b.len() as i32 }", True, True),
        ("use std::fmt;\n\n/// Adds.\npub fn add(mut a: i32, b: & str) -> i64 { 1 }", True, True),
        ("Here:\n```rust\nfn add(a: i32, b: &str) {}\n```\nDone.", True, True),
        ("fn add(b: &str, a: i32) {}", True, False),
        ("fn sum(a: i32, b: &str) {}", True, False),
        ("fn add(a: i32, b: &String) {}", True, False),
        ("fn add(a: i32, b: &str) -> i32 { a +", False, False),
        ("let a = 3;", False, False),
        ("", False, False),
    ],
)
def test_an_answer_must_parse_and_declare_what_was_asked_for(
    tmp_path: Path, answer: str, parses: bool, asked_for: bool
) -> None:
    (request,) = read_requests(_requests(tmp_path))  # the one without parameters asks for too little
    found = judge(request, answer)
    assert (found.parses, found.asked_for) == (parses, asked_for)


def test_the_summary_counts_and_says_which_goals_are_met(tmp_path: Path) -> None:
    (request,) = read_requests(_requests(tmp_path))
    texts = ["fn add(a: i32, b: &str) -> i32 { 0 }", "fn add(a: i32, b: &str) -> i32 { a + b }", "fn add("]
    answers = with_compiled(
        [judge(request, text) for text in texts], lambda sources: ["" if "{ 0 }" in s else "error" for s in sources]
    )
    assert [answer.compiles for answer in answers] == [True, False, False]
    found = summarise(answers)
    assert (found["parses"], found["asked_for"], found["compiles"], found["constant"]) == (2, 2, 1, 1)
    assert found["goals_met"] == {"asked_for": True, "compiles": True, "constant": False}


def test_a_file_of_something_else_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for text, words in (
        ('{"prompt": "a"}', "line 1 is not an object"),
        ('{"prompt": "a", "completion": "fn ("}', "no Rust function that parses"),
        ("", "holds no request"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_requests(path)
    assert rust_of("```\nfn a() {}\n") == "fn a() {}\n"


@pytest.fixture(scope="module")
def kind() -> Isolation:
    try:
        return isolation()
    except UserError as error:
        pytest.skip(str(error))


@NEEDS_RUSTC
def test_the_compiler_says_which_functions_compile_alone(kind: Isolation) -> None:
    sources = [
        "fn good(a: u32) -> u32 { a + 1 }",
        "fn unknown(a: Thing) -> u32 { 1 }",
        "fn mistyped(a: u32) -> String { a }",
        "fn borrowed() -> &'static str { let s = String::new(); s.as_str() }",
        "use std::collections::HashMap;\n\nfn map(m: HashMap<u8, u8>) -> usize { m.len() }",
        "fn open(a: u32) { (",
        'fn formatted(a: u32) { println!("{} {}", a); }',
    ]
    found = compile_errors(sources, kind)
    assert [not errors for errors in found] == [True, False, False, False, True, False, False]
    assert "cannot find type `Thing`" in found[1] and "main.rs:1:" in found[1]
    assert "mismatched types" in found[2] and UNNAMED not in found
    assert compile_errors([], kind) == []


@NEEDS_RUSTC
def test_a_text_cannot_include_files_of_the_user(kind: Isolation, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not rust at all")
    sources = [f'const S: &str = include_str!("{secret}");', f'include!("{secret}");', "fn fine() {}"]
    found = compile_errors(sources, kind)
    assert "couldn't read" in found[0] and "couldn't read" in found[1] and not found[2]
    assert "not rust at all" not in "".join(found)


@NEEDS_RUSTC
def test_many_errors_of_one_text_hide_no_other(kind: Isolation) -> None:
    many = "\n".join(f"fn f{n}() -> u32 {{ missing_{n} }}" for n in range(2000))
    assert [bool(errors) for errors in compile_errors(["fn fine() {}", many, "fn other() {}"], kind)] == [
        False,
        True,
        False,
    ]


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    rustc.cache_clear()
    with pytest.raises(UserError, match="rustc is missing"):
        compile_errors(["fn a() {}"], Isolation.NONE)
