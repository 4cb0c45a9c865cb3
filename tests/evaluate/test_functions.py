"""Function bodies: found in files, judged when completed."""

import pytest

from nanochat_tui.evaluate.functions import find_functions, judge, passes

FILE = """//! A file.
impl Counter {
    /// Adds.
    pub fn add(&mut self, n: u32) -> u32 {
        let before = self.count;
        self.count += n; // }
        println!("}} {}", before);
        before
    }

    fn short(&self) -> u32 { self.count }
}

fn broken() { let = ; one(); two(); three(); }
"""


def test_functions_with_three_statements_that_parse_are_found() -> None:
    (function,) = find_functions(FILE, "counter", "src/lib.rs")
    assert function.header == "pub fn add(&mut self, n: u32) -> u32 {"
    assert function.before.endswith(function.header)
    assert function.before + function.body in FILE
    assert function.body.endswith("before\n    }")


def test_the_reference_itself_passes() -> None:
    (function,) = find_functions(FILE, "counter", "src/lib.rs")
    verdict = judge(function.header, function.body + "\n\n    fn next() {")
    assert verdict.closed
    assert verdict.valid
    assert verdict.statements == 4
    assert verdict.text == function.body
    assert passes(verdict, function.body)


@pytest.mark.parametrize(
    ("completion", "closed", "valid", "statements"),
    [
        ("\n    a();\n    b();\n    c()\n}", True, True, 3),
        ("\n    if x { a() }\n", False, False, 0),
        ("\n    let x = '}';\n    b();\n}\nfn other() {}", True, True, 2),
        ("\n    let = 3;\n}", True, False, 0),
        ("", False, False, 0),
    ],
)
def test_completions_are_judged(completion: str, closed: bool, valid: bool, statements: int) -> None:
    verdict = judge("fn f() -> u8 {", completion)
    assert (verdict.closed, verdict.valid, verdict.statements) == (closed, valid, statements)


def test_a_short_body_counts_if_the_reference_is_short_too() -> None:
    verdict = judge("fn f() {", " a(); b() }")
    assert verdict.statements == 2
    assert passes(verdict, "x" * 2 * len("a(); b() }"))
    assert not passes(verdict, "x" * (2 * len("a(); b() }") + 1))
