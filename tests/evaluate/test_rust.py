"""Items are made of held-out Rust, the author's own text passes them all, and figures come with their bounds."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from support import write_model

from nanochat_tui.chat.backend import CancelEvent, Event, Finished, Request, Started
from nanochat_tui.cli.app import dispatch
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.comparing import compare
from nanochat_tui.evaluate.pass_at_k import pass_rate
from nanochat_tui.evaluate.rust_items import PARTS, Item, Part, Source, make_items, read_sources, shipped_sources
from nanochat_tui.evaluate.rust_report import part_reports, rate, rate_text, report_lines
from nanochat_tui.evaluate.rust_solving import Asking, edit_similarity, infill_problem, wanted_of
from nanochat_tui.evaluate.rustc import compile_errors
from nanochat_tui.evaluate.sandbox.isolation import Isolation, isolation
from nanochat_tui.evaluate.sandbox.limits import Limits
from nanochat_tui.evaluate.solving import Evaluation, Row, Task, work
from nanochat_tui.evaluate.summary import wilson
from nanochat_tui.request import SamplingParams, Token

needs_rustc = pytest.mark.skipif(shutil.which("rustc") is None, reason="rustc is not installed")
ALL: tuple[Part, ...] = tuple(PARTS)


@pytest.fixture(scope="module")
def kind() -> Isolation:
    try:
        return isolation()
    except UserError as error:
        pytest.skip(str(error))


def nothing_wrong(sources: Sequence[str]) -> list[str]:
    return ["" for _ in sources]


class Author:
    """A backend that writes what the author wrote, or always the same; it fills in the middle as a server does."""

    name, kernel, threads, context_size, path, scorer, is_chat = "author", "none", 1, 4096, None, None, False

    def __init__(self, items: Sequence[Item], *, always: str | None = None, stop_after: int | None = None) -> None:
        self._known = {(item.before, item.after or None): item for item in items}
        self._always, self._left = always, stop_after
        self.asked: list[Request] = []

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
        self._left = None if self._left is None else self._left - 1
        self.asked.append(request)
        yield Started(1)
        item = self._known.get((request.prompt or "", request.suffix))
        text = self._always if self._always is not None else item.reference if item else ""
        for piece in f"{text}\nmore of it".split("\n"):
            if cancel.is_set():
                return
            yield Token(f"{piece}\n", 0)
        yield Finished("stop")


def asking(kind: Isolation, temperatures: Sequence[float] = (0.0,), samples: int = 1) -> Asking:
    request = Request(prompt="", max_tokens=128, sampling=SamplingParams(seed=7))
    return Asking(Task(samples, request, False, kind, Limits(seconds=120)), temperatures)


def test_items_come_from_places_that_do_not_depend_on_others() -> None:
    sources = shipped_sources()
    items = make_items(sources, ALL, 20, 256, nothing_wrong)
    by_part = {part: [item for item in items if item.part == part] for part in PARTS}
    assert all(len(found) == 20 for found in by_part.values())
    assert len({item.name for item in items}) == 100
    fewer = make_items(sources, ALL, 5, 256, nothing_wrong)
    assert all(item in items for item in fewer)
    texts = {f"{source.crate}/{source.path}": source.text for source in sources}
    for item in by_part["infill"]:
        whole = texts[item.name.removeprefix("infill/").rpartition(":")[0]]
        assert item.before + item.reference + item.after in whole
    for item in by_part["lines"]:
        place, _, line = item.name.removeprefix("lines/").rpartition(":")
        assert texts[place].splitlines()[int(line) - 1].strip() == item.reference
    for item in by_part["bodies"]:
        assert item.before.endswith(item.header) and item.reference.endswith("}")


def test_held_out_text_may_be_files_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.rs").write_text("fn one() {}\n")
    (tmp_path / "a" / "y.txt").write_text("no Rust")
    assert read_sources(tmp_path / "a") == [Source("a", "b/x.rs", "fn one() {}\n")]
    assert read_sources(tmp_path / "a" / "b" / "x.rs")[0].path == "x.rs"
    with pytest.raises(UserError, match="holds no Rust file"):
        read_sources(tmp_path / "a" / "none")
    (tmp_path / "bad.rs").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_sources(tmp_path / "bad.rs")
    with pytest.raises(UserError, match="nothing to ask for"):
        make_items(read_sources(tmp_path / "a"), ("bodies", "lines"), 3, 64, nothing_wrong)


@needs_rustc
def test_what_the_author_wrote_passes_every_part(kind: Isolation, tmp_path: Path) -> None:
    items = make_items(shipped_sources(), ALL, 6, 400, partial(compile_errors, kind=kind))
    evaluation = Evaluation(tmp_path / "run", {"model": "author"})
    work(evaluation, wanted_of(Author(items), items, asking(kind)), lambda done: None)
    reports, missing = part_reports(evaluation.rows, items, {0.0: 1})
    assert missing == 0 and [one.part for one in reports] == list(PARTS)
    for one in reports:
        assert one.passed.count == one.passed.total == 6, (one, [r for r in evaluation.rows if r.verdict != "passed"])
        assert one.similarity.value == 1.0 and one.exact.count == 6
        assert rate_text(one.passed).startswith("6 of 6 (at least ")
    constants = {one.part: one.constant for one in reports}
    assert constants["bodies"] is None and constants["compile"] is not None and constants["compile"].count == 0


@needs_rustc
def test_a_constant_answer_compiles_and_is_told_apart(kind: Isolation, tmp_path: Path) -> None:
    items = make_items(shipped_sources(), ("compile", "tests", "lines"), 4, 400, partial(compile_errors, kind=kind))
    evaluation = Evaluation(tmp_path / "run", {})
    work(evaluation, wanted_of(Author(items, always="    todo!()\n}"), items, asking(kind)), lambda done: None)
    by_part = {one.part: one for one in part_reports(evaluation.rows, items, {0.0: 1})[0]}
    assert by_part["compile"].passed.count == 4, "a function that panics has every type"
    assert by_part["tests"].passed.count == 0 and by_part["tests"].compiles is not None
    assert by_part["tests"].compiles.count == 4 and by_part["tests"].verdicts == {"failed": 4}
    assert by_part["compile"].constant is not None and by_part["compile"].constant.count == 0, "a macro is a call"
    assert "0 of 4 (at most " in "\n".join(report_lines(list(by_part.values())))
    other = Evaluation(tmp_path / "other", {})
    work(other, wanted_of(Author(items, always="    false\n}"), items, asking(kind)), lambda done: None)
    tests = next(one for one in part_reports(other.rows, items, {0.0: 1})[0] if one.part == "tests")
    assert tests.constant is not None and tests.constant.count == 4


def test_it_goes_on_at_every_temperature(kind: Isolation, tmp_path: Path) -> None:
    items = make_items(shipped_sources(), ("lines", "infill"), 3, 64, nothing_wrong)
    samples = {0.0: 1, 0.8: 2}
    asked = asking(kind, (0.0, 0.8), 2)
    evaluation = Evaluation(tmp_path / "run", {})
    with pytest.raises(UserError, match="server is gone"):
        work(evaluation, wanted_of(Author(items, stop_after=7), items, asked), lambda done: None)
    assert len(evaluation.rows) == 7
    again = Evaluation(tmp_path / "run", {})
    backend = Author(items)
    work(again, wanted_of(backend, items, asked), lambda done: None)
    assert len(backend.asked) == 18 - 7
    assert {(r.sampling.temperature, r.sampling.seed) for r in backend.asked} == {(0.8, 7), (0.8, 8)}
    reports, missing = part_reports(again.rows, items, samples)
    assert missing == 0
    assert [(one.part, one.temperature, one.passed.total) for one in reports] == [
        ("infill", 0.0, 3),
        ("infill", 0.8, 6),
        ("lines", 0.0, 3),
        ("lines", 0.8, 6),
    ]
    assert part_reports(again.rows[:4], items, samples)[1] == 14
    assert compare(again.rows, again.rows).problems == 6, "a problem at two temperatures is one problem"


def test_rates_have_their_interval() -> None:
    one = rate([[True]] * 3 + [[False]] * 7)
    assert (one.count, one.total, one.low, one.high) == (3, 10, *wilson(3, 10))
    several = rate([[True, True]] * 3 + [[False, True]] * 7)
    expected = pass_rate([(2, 2)] * 3 + [(2, 1)] * 7, 1)
    assert (several.value, several.low, several.high) == (expected.value, expected.low, expected.high)
    assert several.value == pytest.approx(13 / 20)
    none = rate([[False]] * 24)
    assert rate_text(none) == "0 of 24 (at most 13.8%)"


def test_similarities_have_a_standard_error() -> None:
    items = [Item("lines", f"lines/{n}", "", "") for n in range(3)]
    rows = [Row(f"lines/{n}", 0, "", "differs", "", 0.0, {"similarity": n / 2, "exact": 0.0}) for n in range(3)]
    (found,) = part_reports(rows, items, {0.0: 1})[0]
    assert found.similarity.value == 0.5 and found.similarity.error == pytest.approx(0.5 / math.sqrt(3))


def test_edit_similarity_equals_the_textbook_distance() -> None:
    def distance(a: str, b: str) -> int:
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            last, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
        return row[-1]

    for a, b in (("kitten", "sitting"), ("let x = 1;", "let y = 12;"), ("", "abc"), ("same", "same")):
        assert edit_similarity(a, f"  {b}\n") == pytest.approx(1 - distance(a, b) / max(len(a), len(b)))
    assert edit_similarity("", "") == 1.0


@needs_rustc
def test_the_command_on_a_model_without_marks_and_on_one_that_has_them(
    kind: Isolation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_model(tmp_path / "plain.gguf")
    words = ["eval", "rust", str(plain), "--items", "2", "--max-tokens", "60", "--temperatures", "0,0.8", "-n", "2"]
    out = tmp_path / "run"
    assert dispatch([*words, "--out", str(out), "--json-lines"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["event"] for e in events] == ["started", *["sample"] * 24, "finished"]
    assert events[-2]["done"] == events[-2]["total"] == 24 and events[-2]["passed"] == 0
    assert events[-1]["left_out"] == {"infill": "the file has no FIM tokens"} and events[-1]["unjudged"] == 0
    assert {part["temperature"] for part in events[-1]["parts"]} == {0.0, 0.8}
    problems = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    assert len(problems) == 8 and all(row["prompt"] and row["reference"] for row in problems)
    command = json.loads((out / "command.json").read_text())
    assert command["total"] == 24
    capsys.readouterr()
    assert dispatch(command["arguments"]) == 0, "its own arguments continue it"
    said = capsys.readouterr().out
    assert "infill: left out, the file has no FIM tokens" in said and "(at most" in said
    assert len((out / "samples.jsonl").read_text().splitlines()) == 24, "nothing is done twice"
    assert dispatch(["eval", "compare", str(out), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == 8

    marked = write_model(tmp_path / "marked.gguf", infill=True)
    words = ["eval", "rust", str(marked), "--parts", "infill", "--items", "3", "--max-tokens", "8", "--json"]
    assert dispatch([*words, "--out", str(tmp_path / "marked")]) == 0
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert part["part"] == "infill" and part["items"] == 3
    with pytest.raises(UserError, match="nothing is left to ask: the file has no FIM tokens"):
        dispatch(["eval", "rust", str(plain), "--parts", "infill", "--out", str(tmp_path / "none")])


def test_a_server_that_refuses_a_suffix_leaves_the_part_out() -> None:
    assert infill_problem(Author([])) is None
    assert infill_problem(Author([], stop_after=0)) == "the server cannot fill in the middle (the server is gone)"


def test_two_processes_do_not_work_on_one_folder(tmp_path: Path) -> None:
    first, second = (Evaluation(tmp_path / "run", {}) for _ in range(2))
    with first.folder.hold(["eval"]):
        said: list[str] = []

        def other() -> None:
            try:
                with second.folder.hold(["eval"]):
                    said.append("taken")
            except UserError as error:
                said.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(said) == 1 and "another process works on" in said[0]
    with second.folder.hold(["eval"]):
        pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--parts", "bodies,nonsense"], "--parts takes .*, not nonsense"),
        (["--temperatures", "warm"], "--temperatures takes numbers"),
        (["--temperatures", "-1"], "--temperatures takes numbers"),
    ],
)
def test_bad_options_are_one_sentence(options: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dispatch(["eval", "rust", "x.gguf", *options])
