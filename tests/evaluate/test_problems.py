"""Problems are read, completions cut and judged, pass@k estimated, and an evaluation goes on where it stopped."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from nanochat_tui.chat.backend import CancelEvent, Event, Finished, Request, Started, TooLongError
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.comparing import compare, sign_test
from nanochat_tui.evaluate.judging import answer_code, cut, judge
from nanochat_tui.evaluate.pass_at_k import pass_at_k, pass_rate
from nanochat_tui.evaluate.problems import SETS, Problem, ProblemSet, SetName, read_problems, shipped_problems
from nanochat_tui.evaluate.sandbox.isolation import Isolation, isolation
from nanochat_tui.evaluate.sandbox.limits import Limits
from nanochat_tui.evaluate.solving import Evaluation, Row, Task, report, solve
from nanochat_tui.request import SamplingParams, Token

LIMITS = Limits(seconds=120)
needs_rustc = pytest.mark.skipif(shutil.which("rustc") is None, reason="no Rust compiler")
MULTIPL_E = {
    "name": "HumanEval_0_twice",
    "language": "rs",
    "prompt": "/// Twice the number.\nfn twice(n: isize) -> isize {\n",
    "tests": "}\n\nfn main() {\n    let candidate = twice;\n    assert_eq!(candidate(2), 4);\n}\n",
    "stop_tokens": ["\n}"],
}


@pytest.fixture(scope="module")
def kind() -> Isolation:
    try:
        return isolation()
    except UserError as error:
        pytest.skip(str(error))


def one(name: str) -> Problem:
    found = shipped_problems("python" if name.startswith("HumanEval") else "rust")
    return next(problem for problem in found.problems if problem.name == name)


def written(folder: Path, *rows: object) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_sets_that_come_along() -> None:
    python, rust = shipped_problems("python"), shipped_problems("rust")
    assert (len(python.problems), len(rust.problems), len(rust.excluded)) == (164, 92, 29)
    assert "92 of 121" in rust.title
    assert all(problem.solution and problem.entry_point in problem.prompt for problem in python.problems)
    assert {problem.edition for problem in rust.problems} == {"2024"}
    small = shipped_problems("rust-small")
    assert len(small.problems) == 60 and {problem.language for problem in small.problems} == {"rust"}


@pytest.mark.parametrize(("samples", "correct"), [(n, c) for n in range(1, 9) for c in range(n + 1)])
def test_pass_at_k_equals_enumeration(samples: int, correct: int) -> None:
    for k in range(1, samples + 1):
        drawn = list(combinations(range(samples), k))
        hits = sum(any(index < correct for index in choice) for choice in drawn)
        assert math.isclose(pass_at_k(samples, correct, k), hits / len(drawn), abs_tol=1e-12)


def test_values_of_the_paper_s_estimator() -> None:
    assert round(pass_at_k(200, 10, 10), 6) == 0.408548 and round(pass_at_k(10, 3, 5), 6) == 0.916667
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)


def test_zero_of_n_has_an_upper_bound() -> None:
    rate = pass_rate([(1, 0)] * 121, 1)
    assert (rate.value, rate.low) == (0.0, 0.0) and round(rate.high, 4) == 0.0245
    assert round(pass_rate([(1, 1)] * 121, 1).low, 4) == 0.9755
    some = pass_rate([(1, 1)] * 30 + [(1, 0)] * 70, 1)
    assert some.value == 0.3 and 0.19 < some.low < 0.23 and 0.37 < some.high < 0.41


def test_completions_are_cut_where_the_function_ends() -> None:
    python, rust = one("HumanEval/0"), one("CodeGen/a1f52b64b45d")
    assert cut(python, "    return 1\n\ndef other():\n    pass") == "    return 1\n"
    assert cut(python, "    return 1\n") == "    return 1\n"
    assert cut(rust, "\n    true\n}\n\nfn other() {\n}") == "\n    true\n}"
    assert answer_code(rust, "Here it is:\n```rust\nfn below_zero() {}\n```\nIt works.") == "fn below_zero() {}"
    assert answer_code(rust, "fn a() {}") == "fn a() {}"


def test_own_solutions_pass_and_others_fail(kind: Isolation) -> None:
    problem = one("HumanEval/0")
    assert problem.solution is not None
    assert judge(problem, problem.solution, kind, LIMITS).passed
    assert judge(problem, problem.prompt + problem.solution, kind, LIMITS).passed, "the whole function, as chat models"
    wrong = judge(problem, "    return True\n", kind, LIMITS)
    assert wrong.verdict == "failed" and "AssertionError" in wrong.detail


@pytest.mark.parametrize(
    "code",
    [
        "    return 1\nprint('passed')\nimport os; os._exit(0)\n",
        "    return 1\nraise SystemExit(0)\n",
        "    return 1\nimport sys; print('\\n' + sys.stdin.read() + '\\n', flush=True); sys.exit(0)\n",
    ],
)
def test_an_exit_before_the_tests_is_no_success(code: str, kind: Isolation) -> None:
    assert judge(one("HumanEval/0"), code, kind, LIMITS).verdict == "left early"


def test_limits_are_verdicts(kind: Isolation) -> None:
    problem = one("HumanEval/0")
    assert judge(problem, "    while True: pass\n", kind, Limits(seconds=1.0)).verdict == "timeout"
    assert judge(problem, "    while True: print('x' * 9999)\n", kind, LIMITS).verdict == "output"


@needs_rustc
def test_rust_is_compiled_and_run(kind: Isolation) -> None:
    problem = one("CodeGen/a1f52b64b45d")
    assert problem.solution is not None
    assert judge(problem, problem.solution, kind, LIMITS).passed
    assert judge(problem, problem.prompt + problem.solution, kind, LIMITS).passed
    assert judge(problem, "    true\n}", kind, LIMITS).verdict == "failed"
    broken = judge(problem, "    let x: i32 = ;\n}", kind, LIMITS)
    assert broken.verdict == "compile error" and "expected expression" in broken.detail
    faked = '    println!("test result: ok. 2 passed; 0 failed"); std::process::exit(0)\n}'
    assert judge(problem, faked, kind, LIMITS).verdict == "left early"
    assert judge(problem, "    loop {}\n}", kind, Limits(seconds=1.0)).verdict == "timeout"


@needs_rustc
def test_problems_of_multipl_e(kind: Isolation, tmp_path: Path) -> None:
    (problem,) = read_problems(written(tmp_path, MULTIPL_E)).problems
    right = cut(problem, "    n * 2\n}\nfn other() {}")
    assert right == "    n * 2" and judge(problem, right, kind, LIMITS).passed
    assert judge(problem, "fn twice(n: isize) -> isize {\n    2 * n\n}\n", kind, LIMITS).passed
    assert judge(problem, "    n * 3", kind, LIMITS).verdict == "failed"
    assert judge(problem, "    std::process::exit(0)", kind, LIMITS).verdict == "left early"


@pytest.mark.slow
@pytest.mark.parametrize("chosen", SETS)
def test_every_kept_problem_is_solved_by_its_own_solution(chosen: SetName, kind: Isolation) -> None:
    if chosen != "python" and shutil.which("rustc") is None:
        pytest.skip("no Rust compiler")
    found = shipped_problems(chosen)
    failed = [p.name for p in found.problems if not judge(p, p.solution or "", kind, LIMITS).passed]
    assert not failed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no problem"),
        ("{", "line 1: this is not a JSON object"),
        ("[]\n", "line 1: this is not a JSON object"),
        ('{"task_id": "a"}', "line 1: test must be a text"),
        (json.dumps({**MULTIPL_E, "language": "lua"}), "problems in lua cannot be run"),
        (json.dumps({**MULTIPL_E, "stop_tokens": "x"}), "stop_tokens must be a list"),
        (json.dumps(MULTIPL_E) + "\n" + json.dumps(MULTIPL_E), "line 2: the problem HumanEval_0_twice was there"),
    ],
)
def test_bad_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_problems(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_problems(tmp_path / "absent")


class Solver:
    """A backend that knows some solutions, and counts what it was asked."""

    name, kernel, threads, context_size, path, scorer = "solver", "none", 1, 4096, None, None

    def __init__(
        self, problems: ProblemSet, known: int, stop_after: int | None = None, *, is_chat: bool = False
    ) -> None:
        self.is_chat = is_chat
        self._known = {problem.prompt: problem for problem in problems.problems[:known]}
        self._left = stop_after
        self.seeds: list[int | None] = []

    def can_continue(self, *, chat: bool) -> bool:
        return not chat

    def reading(self) -> None:
        return None

    def load(self, progress: object = None) -> None:
        return None

    def close(self) -> None:
        return None

    def chat(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
        if self._left == 0:
            raise UserError("the server is gone")
        if self._left is not None:
            self._left -= 1
        self.seeds.append(request.sampling.seed)
        yield Started(1)
        if request.prompt is None:
            asked = request.messages[0].content
            found = next((p for p in self._known.values() if p.prompt.rstrip() in asked), None)
            text = f"Sure.\n```python\n{found.prompt}{found.solution}\n```" if found else "no"
        else:
            found = self._known.get(request.prompt)
            text = (found.solution or "") + "\ndef next(): pass" if found else "    pass\n"
        for piece in text.split("\n"):
            if cancel.is_set():
                return
            yield Token(piece + "\n", 0)
        yield Finished("stop")


def task(kind: Isolation, samples: int, *, chat: bool = False) -> Task:
    request = Request(prompt="", sampling=SamplingParams(seed=7))
    return Task(samples, request, chat, kind, LIMITS)


def test_an_evaluation_goes_on_after_a_failure(kind: Isolation, tmp_path: Path) -> None:
    found = shipped_problems("python")
    problems = found.problems[:4]
    asked = task(kind, 2)
    ticks: list[int] = []
    evaluation = Evaluation(tmp_path / "run", {"model": "solver"})
    with pytest.raises(UserError, match="server is gone"):
        solve(evaluation, Solver(found, 2, stop_after=3), problems, asked, ticks.append)
    assert len(evaluation.rows) == 3, "what was written before is judged and kept"
    path = tmp_path / "run" / "samples.jsonl"
    path.write_bytes(path.read_bytes() + b'{"problem": "HumanEval/3", "sam')

    again = Evaluation(tmp_path / "run", {"model": "solver"})
    assert again.rows == evaluation.rows
    backend = Solver(found, 2)
    solve(again, backend, problems, asked, ticks.append)
    assert len(backend.seeds) == 5 and backend.seeds[-1] == 8 and ticks[-1] == 8
    whole = report(again.rows, problems, 2, (1, 2, 10))
    assert [(rate.k, rate.value) for rate in whole.rates] == [(1, 0.5), (2, 0.5)]
    assert whole.verdicts == {"passed": 4, "failed": 4} and whole.unjudged == 0
    assert report(again.rows[:3], problems, 2, (1,)).unjudged == 4

    with pytest.raises(UserError, match="another evaluation"):
        Evaluation(tmp_path / "run", {"model": "other"})
    path.write_text("nonsense\n")
    with pytest.raises(UserError, match="damaged"):
        Evaluation(tmp_path / "run", {"model": "solver"})


def test_chat_models_answer_with_a_code_block(kind: Isolation, tmp_path: Path) -> None:
    found = shipped_problems("python")
    evaluation = Evaluation(tmp_path / "run", {})
    solve(evaluation, Solver(found, 1, is_chat=True), found.problems[:2], task(kind, 1, chat=True), lambda done: None)
    assert [row.verdict for row in evaluation.rows] == ["passed", "failed"]


def test_a_question_that_does_not_fit_fails_alone(kind: Isolation, tmp_path: Path) -> None:
    found = shipped_problems("python")

    class Short(Solver):
        def chat(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
            if len(self.seeds) == 1:
                self.seeds.append(None)
                raise TooLongError("The message needs 528 tokens")
            yield from super().chat(request, cancel)

    evaluation = Evaluation(tmp_path / "run", {})
    solve(evaluation, Short(found, 3), found.problems[:3], task(kind, 1), lambda done: None)
    assert [row.verdict for row in evaluation.rows] == ["passed", "prompt too long", "passed"]
    assert "528 tokens" in evaluation.rows[1].detail


def test_every_sample_has_a_seed_of_its_own(kind: Isolation, tmp_path: Path) -> None:
    found = shipped_problems("python")
    backend = Solver(found, 0)
    one_problem = replace(found, problems=found.problems[:1])
    solve(Evaluation(tmp_path / "run", {}), backend, one_problem.problems, task(kind, 3), lambda done: None)
    assert backend.seeds == [7, 8, 9]


def rows(*shares: tuple[int, int]) -> list[Row]:
    """Return rows of problems 0, 1, …: so many passed and so many failed samples of each."""
    return [
        Row(str(number), sample, "", "passed" if sample < passed else "failed", "")
        for number, (passed, failed) in enumerate(shares)
        for sample in range(passed + failed)
    ]


def test_models_are_compared_on_the_same_problems() -> None:
    weak, strong = rows(*[(0, 1)] * 40, (1, 0)), rows(*[(1, 0)] * 20, *[(0, 1)] * 20)
    found = compare(weak, strong)
    assert found.problems == 40 and found.rates == (0.0, 0.5) and found.better == (0, 20)
    assert found.is_significant and 0.3 < found.low < 0.4 and 0.6 < found.high < 0.7
    same = compare(strong, strong)
    assert same.difference == 0 and not same.is_significant and same.sign_test == 1.0
    assert (same.low, same.high) == (-same.high, 1 - 0.05 ** (1 / 40)), "40 problems without a difference prove little"
    with pytest.raises(UserError, match="no problem in common"):
        compare(weak, [])


def test_the_sign_test_equals_enumeration() -> None:
    for n in range(1, 9):
        for k in range(n + 1):
            splits = [bin(outcome).count("1") for outcome in range(2**n)]
            uneven = sum(min(split, n - split) <= min(k, n - k) for split in splits) / len(splits)
            assert math.isclose(sign_test(k, n - k), min(1.0, uneven)), (k, n)
    assert sign_test(0, 0) == 1.0
