"""The compiler's reward: what earns how much, what tricks earn nothing, and that the compiler itself is locked up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.compiler_reward import (
    CompilerReward,
    Practice,
    RewardWeights,
    compile_sandboxed,
    gives_up,
)
from nanochat_tui.evaluate.problems import shipped_problems
from nanochat_tui.evaluate.requests import Request
from nanochat_tui.evaluate.rust_functions import first_function
from nanochat_tui.evaluate.sandbox.isolation import Isolation, isolation

pytest.importorskip("tree_sitter_rust")
pytestmark = pytest.mark.skipif(shutil.which("rustc") is None, reason="there is no rustc")


@pytest.fixture(scope="module")
def kind() -> Isolation:
    try:
        return isolation()
    except UserError as error:
        pytest.skip(str(error))


def request_for(source: str) -> Request:
    wanted = first_function(source)
    assert wanted is not None
    return Request(f"Write a Rust function `{wanted.signature}`.", wanted)


DOUBLE = "fn double(x: i32) -> i32 { x * 2 }"
REPLIES = [
    (DOUBLE, 1.0),
    (f"```rust\n{DOUBLE}\n```", 1.0),
    ("fn double(x: i32) -> i32 { x + y }", 0.4),  # does not compile
    ("fn double(x: i64) -> i64 { x * 2 }", 0.1),  # other parameters
    ("fn double(x: i32) -> i32 { x *", 0.0),
    ("I cannot do that.", 0.0),
    ("", 0.0),
    ("fn double(x: i32) -> i32 { 4 }", 0.4),  # only names a value
    ("fn double(x: i32) -> i32 { todo!() }", 0.4),
    ('fn double(x: i32) -> i32 { /* soon */ panic!("no") }', 0.4),
    ("fn double(x: i32) -> i32 { loop {} }", 0.4),
]


def test_each_part_earns_its_weight_and_tricks_do_not(kind: Isolation) -> None:
    reward = CompilerReward([Practice(request_for(DOUBLE))], kind)
    scored = reward([0] * len(REPLIES), [text for text, _ in REPLIES])
    assert [one.value for one in scored] == pytest.approx([value for _, value in REPLIES])
    assert [one.success for one in scored] == [value == 1.0 for _, value in REPLIES]
    assert scored[2].parts == {"parses": 1.0, "asked_for": 1.0, "compiles": 0.0}
    other = CompilerReward([Practice(request_for(DOUBLE))], kind, RewardWeights(0.0, 0.0, 5.0, 0.0))
    assert [one.value for one in other([0, 0], [DOUBLE, REPLIES[2][0]])] == [5.0, 0.0]


def test_where_there_are_tests_they_count(kind: Isolation) -> None:
    problem = next(p for p in shipped_problems("rust-small").problems if p.name == "small/add")
    right, wrong = "fn add(a: i32, b: i32) -> i32 { a + b }", "fn add(a: i32, b: i32) -> i32 { a - b }"
    reward = CompilerReward([Practice(request_for(right), problem), Practice(request_for(right))], kind)
    passed, failed, untested = reward([0, 0, 1], [right, wrong, wrong])
    assert (passed.value, passed.success, passed.parts["passes"]) == (pytest.approx(2.0), True, 1.0)
    assert (failed.value, failed.success, failed.parts["passes"]) == (pytest.approx(1.0), False, 0.0)
    assert (untested.success, "passes" in untested.parts) == (True, False)


def test_bodies_that_give_up_are_told_from_others() -> None:
    assert gives_up("fn f(a: u32) -> u32 {\n    unimplemented!()\n}")
    assert gives_up("fn f(a: u32) -> u32 { unreachable![] }")
    assert not gives_up("fn f(a: u32) -> u32 { if a > 1 { panic!() } a }")
    assert not gives_up("fn f(a: u32) -> u32 { loop { break } a }")
    assert not gives_up("no Rust")


def test_the_compiler_sees_no_file_of_the_user(kind: Isolation, tmp_path: Path) -> None:
    if kind is Isolation.NONE:
        pytest.skip("nothing separates programs from the system here")
    secret = tmp_path / "secret"
    secret.write_text("word")
    peeks = f'fn f(x: u8) -> &\'static str {{ let _ = x; include_str!("{secret}") }}'
    assert compile_sandboxed([peeks, DOUBLE, "fn f() -> u8 { 1u16 }"], kind) == [False, True, False]
    assert compile_sandboxed([], kind) == []


def test_weights_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="the reward for compiles must be 0 to 1000, not -1"):
        RewardWeights(compiles=-1)
