"""Training-Free GRPO: operations on the library, rewards, and a loop that a stop does not harm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat_tui.chat.backend import CancelEvent, Event, Finished, Request, Started
from nanochat_tui.chat.experience import read_experiences, with_experiences, write_experiences
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.folder import EvaluationFolder
from nanochat_tui.evaluate.grpo.library import Operation, apply, merge, read_operations
from nanochat_tui.evaluate.grpo.practice import BudgetError, Learner, Models, Practice, mean_reward
from nanochat_tui.evaluate.grpo.rewards import Question, read_questions
from nanochat_tui.request import Token

ADD = Operation("ADD", None, "new: when x, do y")


@pytest.mark.parametrize(
    ("operations", "library", "after"),
    [
        ([ADD], {}, ["new: when x, do y"]),
        ([ADD], {"G0": "old"}, ["old", "new: when x, do y"]),
        ([Operation("UPDATE", "G0", "better")], {"G0": "old", "G1": "other"}, ["better", "other"]),
        ([Operation("UPDATE", "G9", "better")], {"G0": "old"}, ["old", "better"]),
        ([Operation("UPDATE", None, "better")], {"G0": "old"}, ["old", "better"]),
        ([Operation("DELETE", "G0")], {"G0": "old", "G1": "other"}, ["other"]),
        ([Operation("DELETE", "G9")], {"G0": "old"}, ["old"]),
        ([Operation("NONE")], {"G0": "old"}, ["old"]),
        ([Operation("UPDATE", "G0", "better"), Operation("DELETE", "G0")], {"G0": "old"}, []),
        ([Operation("DELETE", "G0"), Operation("UPDATE", "G0", "better")], {"G0": "old"}, []),
        ([ADD, Operation("ADD", None, "NEW: when x, do y")], {}, ["new: when x, do y"]),
        ([Operation("UPDATE", "G0", "one"), Operation("UPDATE", "G0", "two")], {"G0": "old"}, ["two"]),
        ([Operation("ADD", None, "old")], {"G0": "old"}, ["old"]),
    ],
)
def test_operations_change_the_library(operations: list[Operation], library: dict[str, str], after: list[str]) -> None:
    assert apply(operations, library, 40) == {f"G{number}": text for number, text in enumerate(after)}
    assert apply(merge(operations), library, 40) == apply(operations, library, 40)


def test_the_library_is_bounded_and_keeps_the_newest() -> None:
    added = [Operation("ADD", None, str(number)) for number in range(5)]
    assert apply(added, {"G0": "old"}, 3) == {"G0": "2", "G1": "3", "G2": "4"}


@pytest.mark.parametrize(
    ("reply", "operations"),
    [
        ('[{"operation": "ADD", "content": "a"}]', [Operation("ADD", None, "a")]),
        ('Here:\n```json\n[{"operation": "delete", "id": "G1"}]\n```', [Operation("DELETE", "G1")]),
        ('Changes: [{"operation": "NONE"}] as asked', [Operation("NONE")]),
        ("[]", []),
        ("no list", None),
        ('{"operation": "NONE"}', None),
        ('[{"operation": "ADD"}]', None),
        ('[{"operation": "DELETE"}]', None),
        ('[{"operation": "RENAME", "content": "a"}]', None),
        ('[{"operation": "NONE"}, "x"]', None),
        ("[" * 5000, None),
    ],
)
def test_operations_are_read_from_replies(reply: str, operations: list[Operation] | None) -> None:
    assert read_operations(reply) == operations


def test_experiences_are_a_file_people_can_edit(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    write_experiences(path, {"G0": "edges: when a list may be empty,\n check it"})
    assert read_experiences(path) == {"G0": "edges: when a list may be empty,\n check it"}
    text = with_experiences("Solve it.", read_experiences(path))
    assert "[G0] edges: when a list may be empty, check it\n\nSolve it." in text
    assert with_experiences("Solve it.", {}) == "Solve it."
    for bad in ("[]", '{"G0": 1}', '{"G0": " "}', "{", "[" * 5000):
        path.write_text(bad)
        with pytest.raises(UserError, match="no JSON object of texts"):
            read_experiences(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_experiences(tmp_path / "absent")


def questions(folder: Path, *rows: object) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_answers_are_checked(tmp_path: Path) -> None:
    rows = (
        {"question": "2 + 2?", "answer": 4},
        {"question": "Where?", "answer": "Paris", "check": "contains"},
        {"question": "A date?", "answer": r"\d{4}-\d\d", "check": "regex", "id": "date"},
    )
    number, place, date = read_questions(questions(tmp_path, *rows), "exact")
    assert date.name == "date"
    assert [number.verify(text).reward for text in ("4", " 4\n", "It is\n4.", "44", "4 it is")] == [1, 1, 1, 0, 0]
    assert [place.verify(text).reward for text in ("In paris, of course", "Rome")] == [1, 0]
    assert [date.verify(text).reward for text in ("on 2026-11", "never")] == [1, 0]
    assert "right answer is 4" in number.verify("5").reasoning


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x", "no object"),
        ({"question": "a"}, "answer must be"),
        ({"question": "a", "answer": True}, "answer must be"),
        ({"question": "a", "answer": "b", "check": "smell"}, "check must be one of"),
        ({"question": "a", "answer": "(", "check": "regex"}, "no regular expression"),
    ],
)
def test_bad_questions_are_refused(row: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"line 1: .*{said}"):
        read_questions(questions(tmp_path, row), "exact")


class Scripted:
    """A chat model that doubles numbers right if it was told to, and by its seed otherwise; also a critic."""

    name, kernel, threads, context_size, path, scorer, is_chat = "scripted", "none", 1, 4096, None, None, True

    def __init__(
        self, edits: str = '[{"operation": "ADD", "content": "double: when asked for 2 x n, add n to n"}]'
    ) -> None:
        self.asked: list[str] = []
        self.left = 10_000
        self._edits = edits

    def can_continue(self, *, chat: bool) -> bool:
        return False

    def reading(self) -> None:
        return None

    def load(self, progress: object = None) -> None:
        return None

    def close(self) -> None:
        return None

    def chat(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
        if self.left == 0:
            raise UserError("the server is gone")
        self.left -= 1
        asked = request.messages[0].content
        self.asked.append(asked)
        yield Started(len(asked) // 4)
        yield Token(self._reply(asked, request.sampling.seed or 0), 0)
        yield Finished("stop")

    def _reply(self, asked: str, seed: int) -> str:
        if asked.startswith("Summarise"):
            return "1. It added."
        if asked.startswith("Several attempts"):
            return "<Experiences>\ndouble: when asked for 2 x n, add n to n\n</Experiences>"
        if asked.startswith(("Bring new", "Several people")):
            return self._edits
        number = int(asked.rpartition("2 x ")[2])
        told = "add n to n" in asked
        return str(2 * number if told or seed % 2 else 2 * number + 1)


def doubles(*numbers: int) -> list[Question]:
    def question(number: int) -> Question:
        from nanochat_tui.evaluate.grpo.rewards import _verifier

        return Question(str(number), f"2 x {number}", str(2 * number), _verifier("exact", str(2 * number)))

    return [question(number) for number in numbers]


PRACTICE = Practice(epochs=2, batch_size=2, grpo_n=4)


def learner(folder: Path, backend: Scripted, practice: Practice = PRACTICE) -> Learner:
    return Learner(EvaluationFolder(folder, {}), Models(backend, backend), practice)


def test_rules_are_learned_and_help(tmp_path: Path) -> None:
    backend = Scripted()
    learning = learner(tmp_path / "p", backend)
    before = mean_reward(learning, "before", doubles(50, 60), 0.3)
    batches = learning.learn(doubles(1, 2, 3), lambda batch: None)
    assert [(batch.reward, batch.spread) for batch in batches] == [(0.5, 2), (1.0, 0), (1.0, 0), (1.0, 0)]
    library = read_experiences(tmp_path / "p" / "experiences.json")
    assert library == {"G0": "double: when asked for 2 x n, add n to n"} == batches[-1].experiences
    after = mean_reward(learning, "after", doubles(50, 60), 0.3)
    assert sum(map(sum, before)) == 4 and sum(map(sum, after)) == 8
    assert learning.journal.tokens > 0 and not learning.warnings


def test_groups_without_a_difference_ask_no_critic(tmp_path: Path) -> None:
    backend = Scripted()
    learning = learner(tmp_path / "p", backend)
    learning.experiences = {"G0": "add n to n"}
    learning.learn(doubles(1, 2), lambda batch: None)
    assert not [asked for asked in backend.asked if not asked.endswith(("2 x 1", "2 x 2"))]


def test_replies_that_cannot_be_read_change_nothing(tmp_path: Path) -> None:
    backend = Scripted(edits="I would add a rule.")
    learning = learner(tmp_path / "p", backend, Practice(epochs=1, batch_size=2, grpo_n=4))
    learning.learn(doubles(1), lambda batch: None)
    assert learning.experiences == {} and "3 replies of the critic" in learning.warnings[0]
    assert len([asked for asked in backend.asked if asked.startswith("Bring new")]) == 3


@pytest.mark.parametrize("stop", [1, 5, 9, 12, 14, 17, 30])
def test_a_practice_that_was_stopped_ends_as_one_that_was_not(stop: int, tmp_path: Path) -> None:
    whole = learner(tmp_path / "whole", Scripted())
    wanted = whole.learn(doubles(1, 2, 3), lambda batch: None)
    backend = Scripted()
    backend.left = stop
    with pytest.raises(UserError, match="gone"):
        learner(tmp_path / "p", backend).learn(doubles(1, 2, 3), lambda batch: None)
    again = Scripted()
    found = learner(tmp_path / "p", again)
    assert found.learn(doubles(1, 2, 3), lambda batch: None) == wanted
    assert len(again.asked) + stop == len(whole.journal._known), "no reply is asked for twice"
    history = (tmp_path / "p" / "history.jsonl").read_text()
    assert history == (tmp_path / "whole" / "history.jsonl").read_text()


def test_a_budget_ends_a_practice_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    small = Practice(epochs=2, batch_size=2, grpo_n=4, token_budget=40)
    with pytest.raises(BudgetError, match=r"budget is used up.*--token-budget"):
        learner(tmp_path / "p", Scripted(), small).learn(doubles(1, 2, 3), lambda batch: None)
    learning = learner(tmp_path / "p", Scripted(), PRACTICE)
    assert len(learning.learn(doubles(1, 2, 3), lambda batch: None)) == 4
